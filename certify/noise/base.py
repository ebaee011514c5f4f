"""What a noise law is: what is added to the pixels, and the radius that its votes certify.

Every law answers two questions about the smoothed classifier that it defines: ``radius(p)``, how far an
adversary may move the image when the top class has probability at least p under the noise, and the inverse,
``p_required(r)``. Sigma, scale, half width and radius are all in [0, 1] pixel units.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.errors import CertifyError

FloatArray = NDArray[np.float64]
Shape = tuple[int, ...]

ADDITIVE = "additive"  # the threat of laws that are added to the pixels
PIXELS = "[0, 1] pixel values"
ROUNDING = 4e-15  # relative; above the error of the special functions, so that radii err downwards


class NoiseLaw(ABC):
    """A law of additive noise whose smoothed classifier has a certified radius in ``norm``.

    A law of your own is a frozen dataclass with ``norm``, ``describe`` and the three methods that compute
    without checks: ``compute_radius``, ``compute_p_required`` and ``draw``. Callers use ``radius``,
    ``p_required`` and ``sample``, which check their arguments and round to the safe side.
    """

    norm: str
    threat: str = ADDITIVE
    unit: str = PIXELS

    @property
    def sound(self) -> bool:
        """Whether the radius is proven.

        Proven: no perturbation of smaller ``norm`` lets another class reach probability 1/2 when the top class
        had probability at least p.
        """
        return True

    def radius(self, p_lower: ArrayLike) -> Any:
        """Certified radius for a top-class probability of at least ``p_lower``; 0 where p_lower <= 1/2.

        Returns:
            A float for a scalar, a float64 array of the same shape for an array; rounded down.

        Raises:
            CertifyError: ``p_lower`` is outside [0, 1] or not a number.
        """
        p = _float64(p_lower, "p_lower")
        ok = (p >= 0) & (p <= 1)
        if not np.all(ok):
            raise CertifyError(f"p_lower must be in [0, 1], got {_offender(p, ok)}: pass a probability")
        radius = np.zeros(p.shape)
        above = p > 0.5
        radius[above] = np.maximum(self.compute_radius(p[above]) * (1 - ROUNDING), 0.0)
        return float(radius) if radius.ndim == 0 else radius

    def p_required(self, radius: ArrayLike) -> Any:
        """Smallest top-class probability that certifies ``radius``, rounded up; 1/2 at radius 0.

        Returns:
            A float for a scalar, a float64 array of the same shape for an array; inf where no probability
            certifies the radius.

        Raises:
            CertifyError: ``radius`` is negative or not finite.
        """
        r = _float64(radius, "radius")
        ok = (r >= 0) & np.isfinite(r)
        if not np.all(ok):
            raise CertifyError(
                f"radius must be >= 0 and finite, got {_offender(r, ok)}: pass a distance in pixel units"
            )
        p = np.full(r.shape, 0.5)
        positive = r > 0
        required = self.compute_p_required(r[positive])
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

        Args:
            shape: (draws, C, H, W), or (draws, ...) of any image.
            generator: Source of randomness; torch's global one if None.
            device: Defaults to the generator's.
            dtype: float32 or float64.

        Raises:
            CertifyError: The dtype is coarser than float32 (the certificate is about the noise that is really
                added), or ``shape`` has no axis.
        """
        if dtype not in (torch.float32, torch.float64):
            raise CertifyError(
                f"noise dtype must be float32 or float64, got {dtype}: cast the model's input instead"
            )
        if len(shape) == 0:
            raise CertifyError("noise shape must have a draw axis, got (): try shape=(1, 3, 32, 32)")
        if device is None:
            device = generator.device if generator is not None else "cpu"
        return self.draw(tuple(shape), generator, torch.device(device), dtype)

    def perturb(
        self,
        images: torch.Tensor,
        generator: torch.Generator | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each of images (B, C, H, W) under a fresh draw of its own: what a vote is about.

        Additive noise is added; a law of a transformation's parameter transforms.

        Args:
            images: Floats on the device of the generator; not changed.
            generator: As for ``sample``.
            out: Where the result goes, of the same shape; unset, a new tensor.
        """
        draws = self.sample(tuple(images.shape), generator, images.device)
        return torch.add(images, draws, out=out)

    @property
    def is_two_sided(self) -> bool:
        """Whether ``two_sided_radius`` has a form for this law; asking computes nothing."""
        return type(self).two_sided_radius is not NoiseLaw.two_sided_radius

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        """Radius where the top class has at least ``p_top`` and every other at most ``p_rival`` < p_top.

        None for a law with no such form.
        """
        return None

    def wins(self, p_top: float, p_rival: float, radius: float) -> bool:
        """Whether ``two_sided_radius`` is at least ``radius``."""
        found = self.two_sided_radius(p_top, p_rival) if p_top >= p_rival else None
        return found is not None and found * (1 - 4 * ROUNDING) >= radius

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON-able dict that identifies the law completely."""

    @abstractmethod
    def compute_radius(self, p: FloatArray) -> FloatArray:
        """Radii (M,) for probabilities (M,) in (1/2, 1]; ``radius`` checks p and rounds down."""

    @abstractmethod
    def compute_p_required(self, r: FloatArray) -> FloatArray:
        """Probabilities (M,) for radii (M,) above 0, more than 1 where none suffices; ``p_required`` rounds up."""

    @abstractmethod
    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Noise of ``shape`` (draws, ...) on ``device``; ``sample`` checks the arguments."""


def _float64(value: ArrayLike, name: str) -> FloatArray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise CertifyError(
            f"{name} must be a number or an array, got {value!r}: convert it to floats"
        ) from None


def _offender(values: FloatArray, ok: NDArray[np.bool_]) -> float:
    return float(values[~ok].ravel()[0])
