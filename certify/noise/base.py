"""Noise laws with a proven radius: what is added to the pixels, and how far its votes certify.

Every law answers two questions about the smoothed classifier that it defines: ``radius(p)``, how far an
adversary may move the image when the top class has probability at least p under the noise, and the inverse,
``p_required(r)``. Sigma, scale, half width and radius are all in [0, 1] pixel units. The Gaussian scale
mixture is in scale_mixture.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from certify.errors import CertifyError, check_count, check_positive

FloatArray = NDArray[np.float64]

ROUNDING = 4e-15  # relative; above the error of the special functions, so that radii err downwards


class NoiseLaw(ABC):
    """A law of additive noise whose smoothed classifier has a certified radius in ``norm``.

    ``sound`` says that the radius is proven: no perturbation of smaller ``norm`` lets another class reach
    probability 1/2 when the top class had probability at least p.
    """

    norm: ClassVar[str]
    sound: ClassVar[bool] = True

    def radius(self, p_lower: ArrayLike) -> Any:
        """Certified radius for a top-class probability of at least ``p_lower``; 0 where p_lower <= 1/2.

        A scalar gives a float, an array a float64 array of its shape; rounded down, in [0, 1] pixel units.
        Raises CertifyError where ``p_lower`` is outside [0, 1] or not a number.
        """
        p = _float64(p_lower, "p_lower")
        ok = (p >= 0) & (p <= 1)
        if not np.all(ok):
            raise CertifyError(f"p_lower must be in [0, 1], got {_offender(p, ok)}: pass a probability")
        radius = np.zeros(p.shape)
        above = p > 0.5
        radius[above] = np.maximum(self._radius(p[above]) * (1 - ROUNDING), 0.0)
        return float(radius) if radius.ndim == 0 else radius

    def p_required(self, radius: ArrayLike) -> Any:
        """Smallest top-class probability that certifies ``radius``, rounded up; 1/2 at radius 0.

        A scalar gives a float, an array a float64 array of its shape; inf where no probability certifies the
        radius. Raises CertifyError where ``radius`` is negative or not finite.
        """
        r = _float64(radius, "radius")
        ok = (r >= 0) & np.isfinite(r)
        if not np.all(ok):
            raise CertifyError(
                f"radius must be >= 0 and finite, got {_offender(r, ok)}: pass a distance in pixel units"
            )
        p = np.full(r.shape, 0.5)
        positive = r > 0
        required = self._p_required(r[positive])
        p[positive] = np.where(required > 1, np.inf, np.minimum(required + 2 * np.spacing(required), 1.0))
        return float(p) if p.ndim == 0 else p

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Draw noise of ``shape``; axis 0 counts independent draws, the other axes are those of one image.

        ``device`` defaults to the generator's. Raises CertifyError for a dtype coarser than float32: the
        certificate is about the noise that is really added.
        """
        if dtype not in (torch.float32, torch.float64):
            raise CertifyError(
                f"noise dtype must be float32 or float64, got {dtype}: cast the model's input instead"
            )
        if len(shape) == 0:
            raise CertifyError("noise shape must have a draw axis, got (): try shape=(1, 3, 32, 32)")
        if device is None:
            device = generator.device if generator is not None else "cpu"
        return self._sample(tuple(shape), generator, torch.device(device), dtype)

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        """Radius where the top class has at least ``p_top`` and every other at most ``p_rival`` < p_top.

        None for a law with no such form.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return a JSON-able dict that identifies the law completely."""

    @abstractmethod
    def _radius(self, p: FloatArray) -> FloatArray:
        """Radius for probabilities in (1/2, 1], 1-D."""

    @abstractmethod
    def _p_required(self, r: FloatArray) -> FloatArray:
        """Probability for radii above 0, 1-D."""

    @abstractmethod
    def _sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Gaussian(NoiseLaw):
    """N(0, sigma^2) on every pixel: l2 radius sigma * Phi^-1(p) (Cohen et al. 2019, Theorem 1)."""

    sigma: float
    norm: ClassVar[str] = "l2"

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

    def _radius(self, p: FloatArray) -> FloatArray:
        return self.sigma * ndtri(p)

    def _p_required(self, r: FloatArray) -> FloatArray:
        return ndtr(r / self.sigma)

    def _sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(self.sigma)


@dataclass(frozen=True)
class Laplace(NoiseLaw):
    """Laplace noise on every pixel: l1 radius -scale * log(2 (1 - p)) (Teng, Lee and Yuan 2020).

    The paper's other form, scale/2 * log(p_top / p_rival), is the larger one only where the runner-up is
    bounded by less than 1 - p: ``two_sided_radius`` takes the larger of both.
    """

    scale: float
    norm: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_positive("scale", self.scale))

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        with np.errstate(divide="ignore"):
            return float(self.scale * max(0.5 * np.log(p_top / p_rival), -np.log(1 - p_top + p_rival)))

    def describe(self) -> dict[str, Any]:
        return {"law": "laplace", "norm": self.norm, "scale": self.scale}

    def _radius(self, p: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -self.scale * np.log(2 * (1 - p))  # 1 - p is exact for p >= 1/2

    def _p_required(self, r: FloatArray) -> FloatArray:
        return 1 - 0.5 * np.exp(-r / self.scale)

    def _sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        # Inverse transform of a uniform magnitude and a fair sign; float64 keeps the tail.
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).mul_(2).sub_(1)
        u.clamp_(min=-1 + 2**-53)  # rand includes 0, whose image is infinite
        return (torch.sign(u) * torch.log1p(-u.abs())).mul_(-self.scale).to(dtype)


@dataclass(frozen=True)
class Uniform(NoiseLaw):
    """U(-half_width, half_width) on every pixel: l1 radius 2 * half_width * (p - 1/2) (Yang et al. 2020)."""

    half_width: float
    norm: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "half_width", check_positive("half_width", self.half_width))

    def describe(self) -> dict[str, Any]:
        return {"law": "uniform", "norm": self.norm, "half_width": self.half_width}

    def _radius(self, p: FloatArray) -> FloatArray:
        return 2 * self.half_width * (p - 0.5)

    def _p_required(self, r: FloatArray) -> FloatArray:
        return 0.5 + r / (2 * self.half_width)

    def _sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
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
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("dimensions", self.dimensions)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dimensions": self.dimensions}

    def _radius(self, p: FloatArray) -> FloatArray:
        return -2 * self.half_width * np.expm1(np.log1p(0.5 - p) / self.dimensions)

    def _p_required(self, r: FloatArray) -> FloatArray:
        # Beyond the cube's width nothing is shared, and the form above would certify from p = 3/2.
        shared = np.maximum(1 - r / (2 * self.half_width), 0.0)
        return 1.5 - shared**self.dimensions


def _float64(value: ArrayLike, name: str) -> FloatArray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise CertifyError(
            f"{name} must be a number or an array, got {value!r}: convert it to floats"
        ) from None


def _offender(values: FloatArray, ok: NDArray[np.bool_]) -> float:
    return float(values[~ok].ravel()[0])
