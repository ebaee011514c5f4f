"""The form in which a target takes its pixels: layout, number type, range, and how coarsely it rounds them."""

from dataclasses import dataclass, replace

import numpy as np

from surrogates.errors import TargetError

LAYOUTS = ("chw", "hwc", "flat")
DTYPES = ("float32", "float64", "uint8")


@dataclass(frozen=True)
class PixelFormat:
    """What becomes of pixels in [0, 1] before a target gets them.

    Rounding is part of the target: whoever certifies it certifies the rounding too.

    Args:
        layout: chw, hwc or flat (N, C*H*W).
        dtype: float32, float64 or uint8.
        pixel_range: What 0 and 1 become; unset (0, 255) for uint8, else (0, 1).
        quantize: Bits that pixels are rounded to first, as a PNG does with 8; clips what lies outside [0, 1].

    Raises:
        TargetError: A value out of its range.
    """

    layout: str = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    quantize: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise TargetError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.dtype not in DTYPES:
            raise TargetError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        whole = isinstance(self.quantize, int) and not isinstance(self.quantize, bool)
        if self.quantize is not None and not (whole and 1 <= self.quantize <= 16):
            raise TargetError(f"quantize must be a number of bits from 1 to 16, got {self.quantize!r}: try 8")
        object.__setattr__(self, "pixel_range", self.ends)

    @property
    def ends(self) -> tuple[float, float]:
        """What 0 and 1 become."""
        if self.pixel_range is None:
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
        if self.dtype == "uint8":
            parts.append("uint8")
        if self.ends != (0.0, 1.0):
            parts.append("{:g}..{:g}".format(*self.ends))
        return ", ".join(parts)

    def canonical(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 so that images which the target sees alike are the same bytes."""
        if self.dtype == "uint8":
            return replace(self, layout="chw").encode(pixels)
        if self.quantize is not None:
            return np.rint(self._levels(pixels)).astype(np.uint16)
        return pixels + np.float32(0)  # -0.0 becomes 0.0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 as the target takes them, in memory of their own."""
        values = pixels
        if self.quantize is not None:
            values = np.rint(self._levels(pixels)) / (2**self.quantize - 1)
        low, high = self.ends
        if (low, high) != (0.0, 1.0):
            values = values.astype(np.float64) * (high - low) + low
        if self.dtype == "uint8":
            values = np.clip(np.rint(values), 0, 255)
        if self.layout == "hwc":
            values = values.transpose(0, 2, 3, 1)
        elif self.layout == "flat":
            values = values.reshape(len(values), -1)
        return np.array(values, dtype=self.dtype, order="C", copy=True)

    def _levels(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels in units of the levels that they are rounded to, clipped."""
        assert self.quantize is not None
        return np.clip(pixels.astype(np.float64), 0, 1) * (2**self.quantize - 1)


def layout_of(shape: list[int], input_shape: tuple[int, int, int] | None) -> str:
    """Return the layout of an input of this shape: flat for rows, hwc where channels come last."""
    if len(shape) == 2:
        return "flat"
    sides = tuple(int(side) for side in shape[-3:])
    if input_shape is not None and sides == (*input_shape[1:], input_shape[0]) != tuple(input_shape):
        return "hwc"
    last = len(sides) == 3 and sides[2] in (1, 3, 4) and sides[0] not in (1, 3, 4)
    return "hwc" if last and input_shape is None else "chw"
