"""The perturbations that a camera, a network and a hand bring about, each one law of one strength.

A strength is the far end of what a law draws, or the sigma of its noise. Units: pixel values in [0, 1], lengths in
pixels, angles in degrees. The kinds are among the common corruptions of Hendrycks and Dietterich (ICLR 2019), whose
strengths are single and fixed; the defaults here are mild.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch

from certify.errors import CertifyError, check_count
from certify.threats.perturbations import Perturbation, compose
from certify.threats.warping import gaussian_blurred, moved_along, rotated, shifted

BEST_QUALITY = 95  # of JPEG, above which files only grow
NEAR_0 = 2**-16  # what a power of a black pixel is taken of, so that gamma keeps it black
CHANNELS = (1, 3)  # of images that JPEG keeps


@dataclass(frozen=True)
class Corruption(Perturbation):
    """A law of this module: its kind, and at most one field, which is its strength."""

    kind: ClassVar[str]
    most: ClassVar[float] = math.inf  # strength that can still be computed in floats, and at all

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise CertifyError(
                    f"{field.name} must be finite and above 0, got {value!r}: try {field.default:g}"
                )
            if value > self.most:
                raise CertifyError(
                    f"{field.name} must be at most {self.most:g}, got {value!r}: try {field.default:g}"
                )

    @property
    def strength(self) -> float | None:
        """The one number of the law; None where it has none."""
        return next((getattr(self, field.name) for field in fields(self)), None)

    @property
    def name(self) -> str:
        return self.kind if self.strength is None else f"{self.kind}={self.strength:g}"

    def describe(self) -> dict[str, Any]:
        plain = {} if self.strength is None else {"strength": float(self.strength)}
        return {"law": self.kind, **plain}


def _uniform(low: float, high: float, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A draw for each image, (B,)."""
    return low + (high - low) * torch.rand(len(images), generator=generator)


def _each(values: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Independent Gaussian noise of standard deviation ``sigma`` on every value."""

    sigma: float = 0.04
    kind = "noise"

    @property
    def in_words(self) -> str:
        return f"Gaussian noise of sigma {self.sigma:g}"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + self.sigma * torch.randn(images.shape, generator=generator)


@dataclass(frozen=True)
class BrightnessChange(Corruption):
    """Every value plus one number, uniform up to ``width`` either way."""

    width: float = 0.1
    kind = "brightness"

    @property
    def in_words(self) -> str:
        return f"brightness by up to {self.width:g} either way"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + _each(_uniform(-self.width, self.width, images, generator))


@dataclass(frozen=True)
class ContrastChange(Corruption):
    """Distances from the image's mean times a factor, log-uniform between 1 / (1 + ``width``) and 1 + ``width``."""

    width: float = 0.25
    kind = "contrast"
    most = 1000

    @property
    def in_words(self) -> str:
        return f"contrast between {1 / (1 + self.width):.2f} and {1 + self.width:.2f} times"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        reach = math.log1p(self.width)
        return mean + (images - mean) * _each(_uniform(-reach, reach, images, generator).exp())


@dataclass(frozen=True)
class Gamma(Corruption):
    """Every value to a power, log-uniform between 1 / (1 + ``width``) and 1 + ``width``."""

    width: float = 0.25
    kind = "gamma"
    most = 1000

    @property
    def in_words(self) -> str:
        return f"gamma between {1 / (1 + self.width):.2f} and {1 + self.width:.2f}"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        reach = math.log1p(self.width)
        power = _each(_uniform(-reach, reach, images, generator).exp())
        return torch.where(images > 0, images.clamp_min(NEAR_0) ** power, 0.0)


@dataclass(frozen=True)
class GaussianBlurring(Corruption):
    """Blur by a Gaussian whose standard deviation is uniform between 0 and ``sigma`` pixels."""

    sigma: float = 0.5
    kind = "blur"
    most = 100

    @property
    def in_words(self) -> str:
        return f"Gaussian blur of up to {self.sigma:g} pixels"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return gaussian_blurred(
            images, _uniform(0, self.sigma, images, generator), max(1, math.ceil(3 * self.sigma))
        )


@dataclass(frozen=True)
class MotionBlur(Corruption):
    """The mean along a straight path: its length uniform between 0 and ``length`` pixels, its direction any."""

    length: float = 1.0
    kind = "motion-blur"
    most = 100

    @property
    def in_words(self) -> str:
        return f"motion blur along up to {self.length:g} pixels"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        lengths = _uniform(0, self.length, images, generator)
        angles = _uniform(0, math.pi, images, generator)
        return moved_along(images, lengths, angles, 2 * math.ceil(self.length) + 3)


@dataclass(frozen=True)
class Shift(Corruption):
    """Moved by up to ``pixels`` either way, across and down, both uniform; fractions by interpolation."""

    pixels: float = 0.5
    kind = "shift"
    most = 1000

    @property
    def in_words(self) -> str:
        return f"shift by up to {self.pixels:g} pixels across and down"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        dx = _uniform(-self.pixels, self.pixels, images, generator)
        return shifted(images, dx, _uniform(-self.pixels, self.pixels, images, generator))


@dataclass(frozen=True)
class Rotation(Corruption):
    """Turned about the center by up to ``degrees`` either way, uniform."""

    degrees: float = 5.0
    kind = "rotation"

    @property
    def in_words(self) -> str:
        return f"rotation by up to {self.degrees:g} degrees either way"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return rotated(images, _uniform(-self.degrees, self.degrees, images, generator) * (math.pi / 180))


@dataclass(frozen=True)
class JPEG(Corruption):
    """Saved as a JPEG file and read again, of a quality that is uniform between ``quality`` and 95."""

    quality: int = 70
    kind = "jpeg"

    def __post_init__(self) -> None:
        if check_count("quality", self.quality) > BEST_QUALITY:
            raise CertifyError(f"quality must be in [1, {BEST_QUALITY}], got {self.quality!r}: try 70")

    @property
    def in_words(self) -> str:
        return f"JPEG of quality {self.quality} to {BEST_QUALITY}"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if images.shape[1] not in CHANNELS:
            raise CertifyError(
                f"jpeg takes images of 1 or 3 channels, got {images.shape[1]}: leave it out of the perturbations"
            )
        qualities = torch.randint(self.quality, BEST_QUALITY + 1, (len(images),), generator=generator)
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        saved = [
            _through_jpeg(picture, int(quality)) for picture, quality in zip(levels, qualities, strict=True)
        ]
        return torch.from_numpy(np.stack(saved)).permute(0, 3, 1, 2).contiguous()


def _through_jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    """8-bit levels (H, W, C), through a file: float32 (H, W, C) in [0, 1]."""
    from PIL import Image  # not at module level: this package loads none

    file = io.BytesIO()
    picture = levels[:, :, 0] if levels.shape[2] == 1 else levels
    Image.fromarray(np.ascontiguousarray(picture)).save(file, format="JPEG", quality=quality)
    read = np.asarray(Image.open(file), dtype=np.float32) / 255
    return read.reshape(levels.shape)


@dataclass(frozen=True)
class EightBit(Corruption):
    """Rounded to the 256 levels of an 8-bit picture; nothing of it is random."""

    kind = "8-bit"
    fixed = True

    @property
    def in_words(self) -> str:
        return "rounding to 8 bits"

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (images * 255).round() / 255


CORRUPTIONS: dict[str, Callable[..., Corruption]] = {
    "noise": GaussianNoise,
    "brightness": BrightnessChange,
    "contrast": ContrastChange,
    "gamma": Gamma,
    "blur": GaussianBlurring,
    "motion-blur": MotionBlur,
    "shift": Shift,
    "rotation": Rotation,
    "jpeg": JPEG,
    "8-bit": EightBit,
}


def corruption(text: str) -> Perturbation:
    """The law that a text names: ``noise``, ``noise=0.1``, or several one after the other, ``gamma=0.2+jpeg=50``.

    Raises:
        CertifyError: A name that nobody knows, or a strength that can't be.
    """
    return compose(*(_single(part.strip()) for part in text.split("+")))


def _single(text: str) -> Corruption:
    name, equals, value = text.partition("=")
    if name not in CORRUPTIONS:
        raise CertifyError(f"{name!r} is no corruption: choose from {', '.join(CORRUPTIONS)}")
    make = CORRUPTIONS[name]
    if not equals:
        return make()
    try:
        number: float = int(value) if name == "jpeg" else float(value)
    except ValueError:
        kind = "a whole number" if name == "jpeg" else "a number"
        raise CertifyError(f"the strength in {text!r} is not {kind}: {make().name}, for example") from None
    if name == "8-bit":
        raise CertifyError(f"8-bit has no strength, got {text!r}: write 8-bit alone")
    try:
        return make(number)
    except CertifyError as error:
        raise CertifyError(f"{text!r}: {error}") from error
