"""Laplace noise: the l1 radius of Teng, Lee and Yuan (2020)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from certify.errors import check_positive
from certify.noise.base import FloatArray, NoiseLaw, Shape


@dataclass(frozen=True)
class Laplace(NoiseLaw):
    """Laplace noise on every pixel: l1 radius -scale * log(2 (1 - p)) (Teng et al. 2020).

    The paper's other form, scale/2 * log(p_top / p_rival), is the larger one only where the runner-up is
    bounded by less than 1 - p: ``two_sided_radius`` takes the larger of both.

    Examples:
        >>> round(Laplace(0.25).radius(0.99), 4)
        0.978
    """

    scale: float
    norm = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_positive("scale", self.scale))

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        with np.errstate(divide="ignore"):
            return float(self.scale * max(0.5 * np.log(p_top / p_rival), -np.log(1 - p_top + p_rival)))

    def describe(self) -> dict[str, Any]:
        return {"law": "laplace", "norm": self.norm, "scale": self.scale}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -self.scale * np.log(2 * (1 - p))  # 1 - p is exact for p >= 1/2

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return 1 - 0.5 * np.exp(-r / self.scale)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        # Inverse transform of a uniform magnitude and a fair sign; float64 keeps the tail.
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).mul_(2).sub_(1)
        u.clamp_(min=-1 + 2**-53)  # rand includes 0, whose image is infinite
        return (torch.sign(u) * torch.log1p(-u.abs())).mul_(-self.scale).to(dtype)
