"""Uniform noise: the l1 and the linf radius of Yang et al. (2020)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from certify.errors import check_count, check_positive
from certify.noise.base import ROUNDING, FloatArray, NoiseLaw, Shape


@dataclass(frozen=True)
class Uniform(NoiseLaw):
    """U(-half_width, half_width) on every pixel: l1 radius 2 * half_width * (p - 1/2) (Yang et al. 2020).

    Examples:
        >>> round(Uniform(0.5).radius(0.9), 4)
        0.4
    """

    half_width: float
    norm = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "half_width", check_positive("half_width", self.half_width))

    def describe(self) -> dict[str, Any]:
        return {"law": "uniform", "norm": self.norm, "half_width": self.half_width}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return 2 * self.half_width * (p - 0.5)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return 0.5 + r / (2 * self.half_width)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        u = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        return u.mul_(2 * self.half_width).sub_(self.half_width)


@dataclass(frozen=True)
class UniformLinf(Uniform):
    """U(-half_width, half_width) on every pixel: linf radius 2 half_width (1 - (3/2 - p)^(1/dimensions)).

    Two cubes moved by r in every one of the ``dimensions`` pixel values share (1 - r / (2 half_width)) to that
    power of their volume, and a class can lose no more than the rest (Yang et al. 2020).
    """

    dimensions: int
    norm = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("dimensions", self.dimensions)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dimensions": self.dimensions}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return -2 * self.half_width * np.expm1(np.log1p(0.5 - p) / self.dimensions)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        # Beyond the cube's width nothing is shared, and the form above would certify from p = 3/2.
        moved = np.minimum(r / (2 * self.half_width), 1.0)
        with np.errstate(divide="ignore"):
            lost = -np.expm1(
                self.dimensions * np.log1p(-moved)
            )  # a power would lose d times its rounding error
        return (0.5 + lost) * (1 + ROUNDING)
