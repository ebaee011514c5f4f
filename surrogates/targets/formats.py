"""The form in which a target takes its pixels: layout, number type, range, normalization, and how coarsely it rounds them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from surrogates.errors import Refused, TargetError

LAYOUTS = ("chw", "hwc", "flat", "flat_hwc")
DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int64")


@dataclass(frozen=True)
class PixelFormat:
    """What becomes of pixels in [0, 1] before a target gets them.

    Rounding is part of the target: whoever certifies it certifies the rounding too.

    Args:
        layout: chw, hwc, flat (rows of C*H*W) or flat_hwc (rows of H*W*C).
        dtype: float32, float64, float16, uint8, int32 or int64.
        pixel_range: What 0 and 1 become; unset (0, 255) for uint8, else (0, 1). int32 and int64 need one.
        quantize: Bits that pixels are rounded to first, as a PNG does with 8; clips what lies outside [0, 1].
        mean: What is subtracted from each channel, in units of pixel_range; one number stands for all channels.
        std: What each channel is divided by then.

    Raises:
        TargetError: A value out of its range.
    """

    layout: str = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    quantize: int | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise TargetError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.dtype not in DTYPES:
            raise TargetError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        whole = isinstance(self.quantize, int) and not isinstance(self.quantize, bool)
        if self.quantize is not None and not (whole and 1 <= self.quantize <= 16):
            raise TargetError(f"quantize must be a number of bits from 1 to 16, got {self.quantize!r}: try 8")
        object.__setattr__(self, "pixel_range", self.ends)
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._per_channel(name))

    def _per_channel(self, name: str) -> tuple[float, ...]:
        """Return mean or std as a number a channel."""
        given = getattr(self, name)
        try:
            values = tuple(float(value) for value in np.atleast_1d(given))
        except (TypeError, ValueError):
            values = ()
        if not values or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise TargetError(f"{name} must be a number for each channel, got {given!r}: try (0.5,)")
        if "int" in self.dtype:
            raise TargetError(
                f"{name} makes fractions of pixels, but dtype is {self.dtype}: leave one of them out"
            )
        return values

    @property
    def ends(self) -> tuple[float, float]:
        """What 0 and 1 become."""
        if self.pixel_range is None:
            if self.dtype in ("int32", "int64"):
                raise TargetError(
                    f"pixels of {self.dtype} need pixel_range, what 0 and 1 become: give e.g. pixel_range=(0, 255)"
                )
            return (0.0, 255.0) if self.dtype == "uint8" else (0.0, 1.0)
        try:
            low, high = (float(end) for end in self.pixel_range)
        except (TypeError, ValueError):
            low = high = np.nan
        if not (np.isfinite([low, high]).all() and low < high):
            raise TargetError(
                f"pixel_range must be two numbers, lower first, got {self.pixel_range!r}: try (0, 255)"
            )
        if self.dtype == "uint8" and not (low >= 0 and high <= 255):
            raise TargetError(f"pixel_range of uint8 must lie in [0, 255], got {self.pixel_range!r}")
        return low, high

    @property
    def name(self) -> str:
        """What a kept answer depends on besides the pixels; empty where they go out as they are."""
        parts = []
        if self.quantize is not None:
            parts.append(f"{self.quantize} bits")
        if self.dtype not in ("float32", "float64"):
            parts.append(self.dtype)
        if self.ends != (0.0, 1.0):
            parts.append("{:g}..{:g}".format(*self.ends))
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {'/'.join(map(repr, getattr(self, name)))}")
        return ", ".join(parts)

    def canonical(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 so that images which the target sees alike are the same bytes."""
        if self.dtype == "uint8":
            return replace(self, layout="chw").encode(pixels)
        if self.quantize is not None:
            return np.rint(self._levels(pixels)).astype(np.uint16)
        return pixels + np.float32(0)  # -0.0 becomes 0.0

    def check(self, channels: int) -> None:
        """Check that mean and std are for images of so many channels.

        Raises:
            Refused: They are not.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, channels):
                raise Refused(
                    f"{name} has {len(values)} values, but images have {channels} channels: give one for each"
                )

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 as the target takes them, in memory of their own."""
        values = pixels
        if self.quantize is not None:
            values = np.rint(self._levels(pixels)) / (2**self.quantize - 1)
        low, high = self.ends
        if (low, high) != (0.0, 1.0):
            values = values.astype(np.float64) * (high - low) + low
        if self.mean is not None or self.std is not None:
            self.check(pixels.shape[1])
            mean, std = (
                np.reshape(value, (-1, 1, 1))
                for value in (0.0 if self.mean is None else self.mean, 1.0 if self.std is None else self.std)
            )
            values = (values.astype(np.float64) - mean) / std
        if "int" in self.dtype:
            values = np.rint(values)
        if self.dtype == "uint8":
            values = np.clip(values, 0, 255)
        if self.layout in ("hwc", "flat_hwc"):
            values = values.transpose(0, 2, 3, 1)
        if self.layout in ("flat", "flat_hwc"):
            values = values.reshape(len(values), -1)
        return np.array(values, dtype=self.dtype, order="C", copy=True)

    def _levels(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels in units of the levels that they are rounded to, clipped."""
        assert self.quantize is not None
        return np.clip(pixels.astype(np.float64), 0, 1) * (2**self.quantize - 1)


def check_input_shape(input_shape: object) -> None:
    """Check that a declared shape of images is (C, H, W).

    Raises:
        TargetError: It is not.
    """
    sides = input_shape if isinstance(input_shape, tuple | list) else ()
    if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
        raise TargetError(f"input_shape must be (channels, height, width), got {input_shape!r}")


def channel_axis(sides: Sequence[int]) -> int | None:
    """Return which of three sides of images are the channels: 0, 2, or None where the sides do not tell.

    One or three channels are looked for first, then four; else there are fewer channels than rows and columns. A side that
    is free is -1.
    """
    first, middle, last = sides
    for few in ((1, 3), (4,)):
        if (first in few) or (last in few):
            return 0 if first in few else 2
    if min(sides) < 1 or (first < min(middle, last)) == (last < min(first, middle)):
        return None
    return 0 if first < last else 2
