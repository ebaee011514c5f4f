"""Gaussian noise: the l2 radius of Cohen, Rosenfeld and Kolter (2019)."""

from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtr, ndtri

from certify.errors import check_positive
from certify.noise.base import FloatArray, NoiseLaw, Shape


@dataclass(frozen=True)
class Gaussian(NoiseLaw):
    """N(0, sigma^2) on every pixel: l2 radius sigma * Phi^-1(p) (Cohen et al. 2019, Theorem 1).

    Examples:
        >>> round(Gaussian(0.25).radius(0.95), 4)
        0.4112
        >>> round(Gaussian(0.25).p_required(0.5), 4)
        0.9772
    """

    sigma: float
    norm = "l2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_positive("sigma", self.sigma))

    @property
    def mean_sigma(self) -> float:
        """Standard deviation of a pixel's noise."""
        return self.sigma

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        return float(self.sigma / 2 * (ndtri(p_top) - ndtri(p_rival)))

    def describe(self) -> dict[str, Any]:
        return {"law": "gaussian", "norm": self.norm, "sigma": self.sigma}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return self.sigma * ndtri(p)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return ndtr(r / self.sigma)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(self.sigma)
