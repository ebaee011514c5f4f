"""Gaussian blur: only ever more of it, so the laws of its variance live on [0, inf) and radii are one-sided.

Blurring by variance a and then by d is blurring by a + d: the heat equation's semigroup. On pixels it holds exactly for
the blur that multiplies the cosine transform (DCT-II) of an image by exp(-v w^2 / 2) at frequency w = pi k / side, as
exp(-a w^2 / 2) exp(-d w^2 / 2) = exp(-(a + d) w^2 / 2). The cosine transform sees the image reflected at its borders (half a
pixel outside), endlessly, so this is Gaussian blur with reflection; a kernel that is cut off and sampled anew for each
variance does not compose.

Radii are standard deviations of the blur in pixels: a radius R certifies every blur of variance up to R^2. Proofs: TSS
(arXiv 2002.12398), Theorem 2 and Corollary 3; ``tests/certify/test_transformations.py`` computes each again by Neyman-Pearson.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from certify.noise.base import FloatArray
from certify.threats.transformation import (
    Transformation,
    check_parameter,
    normal,
    squares,
    standard_exponential,
)

DEVIATION = "standard deviation of the blur, pixels"


class Blur(Transformation):
    """What the laws of a blur's variance share."""

    unit = DEVIATION

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return blurred(images, parameters[:, 0])


def blurred(images: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W), each blurred by its own variance (B,) in square pixels, reflected at the borders."""
    height, width = images.shape[-2:]
    rows, columns = (_cosines(side, images.dtype, str(images.device)) for side in (height, width))
    gains = [torch.exp(-variance[:, None].to(w) * w**2 / 2) for w in _frequencies(images)]
    spectrum = rows @ images @ columns.T
    spectrum = spectrum * gains[0].to(images.dtype)[:, None, :, None]
    spectrum = spectrum * gains[1].to(images.dtype)[:, None, None, :]
    return rows.T @ spectrum @ columns


@lru_cache(maxsize=16)
def _cosines(side: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """The orthonormal DCT-II (side, side): row k is the cosine of frequency pi k / side."""
    k = torch.arange(side, dtype=torch.float64)[:, None]
    table = torch.cos(math.pi * k * (torch.arange(side, dtype=torch.float64) + 0.5) / side)
    table *= math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table.to(device=device, dtype=dtype)


def _frequencies(images: torch.Tensor) -> list[torch.Tensor]:
    """Angular frequencies (side,) of rows and columns, a pixel, in float64."""
    return [
        math.pi * torch.arange(side, dtype=torch.float64, device=images.device) / side
        for side in images.shape[-2:]
    ]


@dataclass(frozen=True)
class BlurExponential(Blur, law="blur_exponential", fields=("scale",)):
    """Variance ~ exponential with mean ``scale``: radius R = sqrt(-scale * ln(2 (1 - p))).

    Moved by a, the law lives beyond a, where its density is e^(a / scale) times the old one. The worst class of probability p
    takes the mass below a first, which the moved law does not have, and keeps 1 - e^(a / scale) (1 - p): at least 1/2 where
    a <= -scale ln(2 (1 - p)).
    """

    scale: float
    norm = threat = "blur_exponential"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_parameter("scale", self.scale, "variance, square pixels", 1))

    def describe(self) -> dict[str, Any]:
        return {"law": "blur_exponential", "norm": self.norm, "unit": self.unit, "scale": self.scale}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return np.sqrt(-self.scale * np.log(2 * (1 - p)))  # 1 - p is exact for p >= 1/2

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return 1 - 0.5 * np.exp(-squares(r) / self.scale)

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        return standard_exponential(count, generator, device) * self.scale


@dataclass(frozen=True)
class BlurUniform(Blur, law="blur_uniform", fields=("variance",)):
    """Variance ~ uniform on [0, ``variance``]: radius R = sqrt(variance * (p - 1/2)).

    Moved by a, the law has lost a / variance of its mass to where the old one has none; a class of probability p keeps p - a / variance.
    """

    variance: float
    norm = threat = "blur_uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "variance", check_parameter("variance", self.variance, "square pixels", 2))

    def describe(self) -> dict[str, Any]:
        return {"law": "blur_uniform", "norm": self.norm, "unit": self.unit, "variance": self.variance}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return np.sqrt(self.variance * (p - 0.5))

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return 0.5 + squares(r) / self.variance

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        uniform = torch.rand((count, 1), generator=generator, device=device, dtype=torch.float64)
        return uniform * self.variance


@dataclass(frozen=True)
class BlurFolded(Blur, law="blur_folded", fields=("sigma",)):
    """Variance ~ |N(0, sigma^2)|: radius R = sqrt(sigma * (Phi^-1((1 + p) / 2) - Phi^-1(3 / 4))).

    Moved by a, the law lives beyond a, and its density over the old one grows there: the worst class of probability p is [0, t] with
    2 Phi(t / sigma) - 1 = p, and keeps 2 Phi((t - a) / sigma) - 1.
    """

    sigma: float
    norm = threat = "blur_folded"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_parameter("sigma", self.sigma, "variance, square pixels", 1))

    def describe(self) -> dict[str, Any]:
        return {"law": "blur_folded", "norm": self.norm, "unit": self.unit, "sigma": self.sigma}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        reach = -ndtri((1 - p) / 2) - ndtri(0.75)  # 1 - p keeps the tail
        return np.sqrt(self.sigma * np.maximum(reach, 0))

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return 1 - 2 * ndtr(-(squares(r) / self.sigma + ndtri(0.75)))

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        return normal(count, 1, generator, device).abs() * self.sigma
