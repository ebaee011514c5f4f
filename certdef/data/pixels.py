"""Pixels of images: any common array as float32 (N, C, H, W) in [0, 1]; size and color as the job wants them.

Size and color are a matter of the images, not of the target: they are changed before the noise is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from certdef.config.job import LONGEST_SIDE, ConfigError, DataConfig
from surrogates.targets.formats import channel_axis

COLORS = {"gray": 1, "rgb": 3}
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as PIL's mode L
MOST_PIXELS = 89_478_485  # of one picture; from here on Pillow too suspects a bomb
SMOOTHLY = Image.Resampling.BILINEAR  # over the area that a pixel covers: shrunken images do not alias


@dataclass(frozen=True)
class Form:
    """Size and color of the images of a job.

    Args:
        sides: Height and width; an image is scaled until it covers them, and its center is kept. Unset, as it is.
        color: gray or rgb; unset, as it is.

    Raises:
        ConfigError: Sides or a color that there are none of.
    """

    sides: tuple[int, int] | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        if self.sides and not all(1 <= side <= LONGEST_SIDE for side in self.sides):
            shown = self.sides[0] if len({*self.sides}) == 1 else self.sides
            raise ConfigError(f"data.resize is {shown}: use 1 to {LONGEST_SIDE:,} pixels, e.g. 224")
        if self.color not in (None, *COLORS):
            raise ConfigError(f"data.color is {self.color!r}: use gray or rgb")

    @classmethod
    def of(cls, config: DataConfig) -> Form:
        """What data.resize and data.color say."""
        sides = config.resize
        return cls((sides, sides) if isinstance(sides, int) else sides, config.color)

    @property
    def in_words(self) -> str:
        """What is done to each image, for tables and records; empty for nothing."""
        parts = []
        if self.sides:
            height, width = self.sides
            parts.append(f"scaled to cover {height} x {width} (height x width) and cropped to the center")
        if self.color:
            parts.append(f"as {self.color}")
        return f"{', '.join(parts)}, before the noise" if parts else ""

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of an image that was (C, H, W)."""
        channels = COLORS[self.color] if self.color else shape[0]
        return (channels, *(self.sides or shape[1:]))

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W) float32 in [0, 1] in this form.

        Raises:
            ConfigError: Images of other than 1 or 3 channels have no color to change.
        """
        images = recolored(images, self.color)
        if self.sides is None or self.sides == images.shape[2:]:
            return images
        done = np.empty((*images.shape[:2], *self.sides), np.float32)
        for image, target in zip(images, done, strict=True):
            for channel, into in zip(image, target, strict=True):
                into[:] = np.asarray(covering(Image.fromarray(channel), self.sides))
        return done.clip(0, 1)


def covering(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """An image scaled until it covers (height, width), its center cut out; as torchvision's Resize and CenterCrop do."""
    height, width = sides
    if height * image.width >= width * image.height:  # the height decides
        scaled = (height * image.width // image.height, height)
    else:
        scaled = (width, width * image.height // image.width)
    if scaled[0] * scaled[1] > MOST_PIXELS:
        raise ConfigError(
            f"{image.height} x {image.width} pixels would be {scaled[1]:,} x {scaled[0]:,} before they are cut to "
            f"{height} x {width}: crop the image, or give a smaller data.resize"
        )
    if image.size != scaled:
        image = image.resize(scaled, SMOOTHLY)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def recolored(images: np.ndarray, color: str | None) -> np.ndarray:
    """Images (N, C, H, W) in gray (Rec. 601 luminance of a color) or rgb (gray repeated); unchanged for None."""
    channels = images.shape[1]
    if color is None or channels == COLORS[color]:
        return images
    if channels not in COLORS.values():
        raise ConfigError(f"data.color is {color!r}, but images have {channels} channels: leave it out")
    if color == "rgb":
        return np.repeat(images, 3, axis=1)
    return np.ascontiguousarray(np.tensordot(images, LUMINANCE, axes=(1, 0))[:, None], np.float32).clip(0, 1)


def as_images(images: np.ndarray, layout: str | None = None) -> np.ndarray:
    """Any common image array as float32 (N, C, H, W) in [0, 1]; uint8 is divided by 255 here.

    Args:
        layout: chw or hwc, where four axes do not tell which of them is the channels.

    Raises:
        ConfigError: It names what was seen and how to say it.
    """
    if images.size == 0:
        raise ConfigError(f"images have shape {images.shape}: give at least one")
    if layout not in (None, "chw", "hwc"):
        raise ConfigError(f"layout is {layout!r}: use chw or hwc")
    if images.ndim == 3:
        if images.shape[-1] in (1, 3, 4):
            raise ConfigError(
                f"images have shape {images.shape}, perhaps of one image (H,W,C): give (N,H,W), (N,H,W,C) or (N,C,H,W)"
            )
        images = images[:, None]
    elif images.ndim == 4:
        axis = channel_axis(images.shape[1:])
        if layout is None and axis is None:
            raise ConfigError(
                f"images have shape {images.shape}, where the channels may be first or last: "
                "add the array layout to the file, with the text chw or hwc"
            )
        if layout == "hwc" or (layout is None and axis == 2):
            images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4:
        raise ConfigError(f"images have shape {images.shape}: expected (N,H,W), (N,H,W,C) or (N,C,H,W)")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images, dtype=np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"images have dtype {images.dtype}: expected uint8, or floats in [0, 1]")
    low, high = images.min(), images.max()
    if np.isnan(low):
        raise ConfigError("images hold pixels that are no number (NaN): leave such images out")
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ConfigError(
            f"images range from {low:.9g} to {high:.9g}: scale them to [0, 1], e.g. divide 8-bit levels by 255, "
            "and clip what rounding has left outside"
        )
    return np.ascontiguousarray(images, dtype=np.float32)
