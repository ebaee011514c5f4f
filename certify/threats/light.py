"""Brightness and contrast: the light changes, for all pixels alike.

T_b(x) = x + b and T_k(x) = e^k x compose on their parameters: (x + b) + d = x + (b + d), and e^d (e^k x) = e^(k + d) x.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from certify.errors import CertifyError
from certify.noise.base import PIXELS, ROUNDING, FloatArray
from certify.noise.bisection import largest
from certify.threats.transformation import Transformation, check_parameter, normal

FACTOR = "change of the contrast factor"
LONGEST = 1 - 2.0**-40  # a factor of contrast stays above 0


@dataclass(frozen=True)
class Brightness(Transformation, law="brightness", fields=("sigma",)):
    """b ~ N(0, sigma^2) added to every pixel of an image alike: radius sigma * Phi^-1(p) in [0, 1] pixel values.

    Proof: the law of b is moved by the adversary's shift; Cohen et al. 2019, Theorem 1, in one dimension (TSS, Corollary 2).

    Examples:
        >>> round(Brightness(0.2).radius(0.9), 4)  # the same shift of every pixel, up or down
        0.2563
    """

    sigma: float
    norm = threat = "brightness"
    unit = PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_parameter("sigma", self.sigma, PIXELS, 0.2))

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        return float(self.sigma / 2 * (ndtri(p_top) - ndtri(p_rival)))

    def describe(self) -> dict[str, Any]:
        return {"law": "brightness", "norm": self.norm, "unit": self.unit, "sigma": self.sigma}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return self.sigma * ndtri(p)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return ndtr(r / self.sigma)

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        return normal(count, 1, generator, device) * self.sigma

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return images + parameters[:, :1, None, None]


@dataclass(frozen=True)
class BrightnessContrast(
    Transformation, law="brightness_contrast", fields=("contrast_sigma", "brightness_sigma")
):
    """Contrast and brightness at once: e^k (x + b), k ~ N(0, s^2), b ~ N(0, t^2); radius: both changes at once.

    The adversary shows c x + d, contrast first, with c = e^a. Under the law that is e^(k + a) (x + e^-a (b + d)): b has
    deviation e^-a t, and is moved by e^-a d. TSS (Lemma B.2 and Corollary 4) bounds the two steps after each other.
    1. The narrower or wider b (Neyman-Pearson on |b|) leaves the top class at least
       p' = 2 Phi(e^a Phi^-1((1 + p) / 2)) - 1 where a < 0, and 2 - 2 Phi(e^a Phi^-1(1 - p / 2)) where a > 0.
    2. Of the Gaussian that is left, both means move: the class stays where (a / s)^2 + (d / t)^2 < Phi^-1(p')^2, an
       ellipse whose size falls with |a|.
    ``radius`` is the largest r such that every factor c in [1 - r, 1 + r] together with every shift |d| <= r is in it: as
    p' and the left side are monotone in |a| on either side of 0, the two ends of c decide.
    """

    contrast_sigma: float
    brightness_sigma: float
    norm = threat = "brightness_contrast"
    unit = f"{FACTOR}, and {PIXELS}, at once"
    numbers = 2

    def __post_init__(self) -> None:
        for name in ("contrast_sigma", "brightness_sigma"):
            object.__setattr__(self, name, check_parameter(name, getattr(self, name), "no unit", 0.2))

    def describe(self) -> dict[str, Any]:
        sigmas = {"contrast_sigma": self.contrast_sigma, "brightness_sigma": self.brightness_sigma}
        return {"law": "brightness_contrast", "norm": self.norm, "unit": self.unit, **sigmas}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return np.array([self._largest(each, lambda r: (r, r)) for each in p])

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return np.array([self.p_required_for(each, each) for each in r])

    def contrast_radius(self, p_lower: ArrayLike) -> Any:
        """The largest r such that every factor in [1 - r, 1 + r] is certified, brightness unchanged; rounded down."""
        return self._each(p_lower, lambda p: self._largest(p, lambda r: (r, 0.0)))

    def brightness_radius(self, p_lower: ArrayLike, contrast: float = 0.0) -> Any:
        """The largest shift that is certified together with every factor in [1 - contrast, 1 + contrast]; rounded down.

        0 also where that contrast alone is not certified.
        """
        if not 0 <= contrast < 1:
            raise CertifyError(
                f"contrast must be in [0, 1), got {contrast!r}: 0.2 is a factor from 0.8 to 1.2"
            )
        return self._each(p_lower, lambda p: self._shift(p, contrast))

    def p_required_for(self, contrast: float, brightness: float) -> float:
        """Top-class probability that certifies every factor in [1 - contrast, 1 + contrast] with shifts up to brightness."""
        if contrast >= 1:
            return math.inf
        return max(self._p_required(math.log1p(end), brightness) for end in (-contrast, contrast))

    def _p_required(self, a: float, shift: float) -> float:
        """The two steps backwards, for log factor a."""
        left = float(ndtr(math.hypot(a / self.contrast_sigma, shift / self.brightness_sigma)))
        if a <= 0:
            return float(2 * ndtr(math.exp(-a) * ndtri((1 + left) / 2)) - 1)
        return float(2 * ndtr(-math.exp(-a) * ndtri(1 - left / 2)))

    def _shift(self, p: float, contrast: float) -> float:
        """The smaller half axis at either end of the factor."""
        shifts = []
        for end in (-contrast, contrast):
            a = math.log1p(end)
            if a <= 0:
                left = 2 * ndtr(math.exp(a) * ndtri((1 + p) / 2)) - 1
            else:
                left = 2 * ndtr(-math.exp(a) * ndtri(1 - p / 2))
            room = max(0.0, float(ndtri(left))) ** 2 - (a / self.contrast_sigma) ** 2
            shifts.append(self.brightness_sigma * math.sqrt(max(0.0, room)))
        return min(shifts)

    def _largest(self, p: float, changes: Any) -> float:
        """The largest r whose changes (contrast, brightness) need no more than p."""
        margin = 1 - 4 * ROUNDING
        return largest(lambda r: self.p_required_for(*changes(r)) <= p * margin, 0.0, LONGEST)

    def _each(self, p_lower: ArrayLike, radius: Any) -> Any:
        p = np.asarray(p_lower, dtype=np.float64)
        if not np.all((p >= 0) & (p <= 1)):
            raise CertifyError(f"p_lower must be in [0, 1], got {p_lower!r}: pass a probability")
        found = np.array([radius(float(each)) * (1 - ROUNDING) if each > 0.5 else 0.0 for each in p.ravel()])
        return float(found[0]) if p.ndim == 0 else found.reshape(p.shape)

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        scale = torch.tensor([self.contrast_sigma, self.brightness_sigma], device=device)
        return normal(count, 2, generator, device) * scale

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        contrast, brightness = parameters[:, :, None, None, None].unbind(1)
        return contrast.exp() * (images + brightness)


@dataclass(frozen=True)
class Contrast(Transformation, law="contrast", fields=("sigma",)):
    """Every pixel times e^k, k ~ N(0, sigma^2): radius r, every factor in [1 - r, 1 + r], with r = 1 - e^(-sigma Phi^-1(p)).

    Proof: k is moved by the logarithm a of the adversary's factor; all |a| < sigma Phi^-1(p) are certified (TSS, Corollary 2).
    The factors between 1 / (1 - r) and 1 - r are those; as 1 + r < 1 / (1 - r), the interval is shorter on one side.
    Where brightness changes too, or votes are drawn under both: ``BrightnessContrast`` and its ``contrast_radius``.
    """

    sigma: float
    norm = threat = "contrast"
    unit = FACTOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_parameter("sigma", self.sigma, "log of a factor", 0.2))

    def describe(self) -> dict[str, Any]:
        return {"law": "contrast", "norm": self.norm, "unit": self.unit, "sigma": self.sigma}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return -np.expm1(-self.sigma * ndtri(p) * (1 - ROUNDING))

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = ndtr(-np.log1p(-r) / self.sigma)
        return np.where(r < 1, needed, np.inf)

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        return normal(count, 1, generator, device) * self.sigma

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return images * parameters[:, :1, None, None].exp()
