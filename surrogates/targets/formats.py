"""The form in which a target takes its pixels: layout, number type, range, and how coarsely it rounds them."""

from dataclasses import dataclass

import numpy as np

from surrogates.errors import TargetError

LAYOUTS = ("chw", "hwc", "flat")
DTYPES = ("float32", "float64", "uint8")


@dataclass(frozen=True)
class PixelFormat:
    """What becomes of pixels in [0, 1] at a target's door.

    layout is chw, hwc or flat (N, C*H*W); pixel_range is what 0 and 1 become, (0, 255) for uint8;
    quantise rounds to that many bits first, as a PNG does with 8, and clips what lies outside [0, 1].
    Rounding is part of the target: whoever certifies it certifies the rounding too. Raises TargetError.
    """

    layout: str = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    quantise: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise TargetError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.dtype not in DTYPES:
            raise TargetError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        whole = isinstance(self.quantise, int) and not isinstance(self.quantise, bool)
        if self.quantise is not None and not (whole and 1 <= self.quantise <= 16):
            raise TargetError(f"quantise must be a number of bits from 1 to 16, got {self.quantise!r}: try 8")
        if self.pixel_range is None:
            object.__setattr__(self, "pixel_range", (0.0, 255.0) if self.dtype == "uint8" else (0.0, 1.0))
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
        object.__setattr__(self, "pixel_range", (low, high))

    @property
    def name(self) -> str:
        """What a cached answer depends on besides the pixels; empty where they go out as they are."""
        parts = []
        if self.quantise is not None:
            parts.append(f"{self.quantise} bits")
        if self.dtype == "uint8":
            parts.append("uint8")
        if self.pixel_range != (0.0, 1.0):
            parts.append("{:g}..{:g}".format(*self.pixel_range))
        return ", ".join(parts)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 as the target takes them, in memory of their own."""
        values = pixels
        if self.quantise is not None:
            levels = 2**self.quantise - 1
            values = np.rint(np.clip(pixels.astype(np.float64), 0, 1) * levels) / levels
        low, high = self.pixel_range
        if (low, high) != (0.0, 1.0):
            values = values.astype(np.float64) * (high - low) + low
        if self.dtype == "uint8":
            values = np.clip(np.rint(values), 0, 255)
        if self.layout == "hwc":
            values = values.transpose(0, 2, 3, 1)
        elif self.layout == "flat":
            values = values.reshape(len(values), -1)
        return np.array(values, dtype=self.dtype, order="C", copy=True)
