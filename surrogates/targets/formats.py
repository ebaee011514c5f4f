"""The form in which a target takes its pixels: size, color, layout, number type, range, normalization, and how coarsely it rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from surrogates.errors import Refused, TargetError
from surrogates.targets.faults import Faults
from surrogates.targets.layouts import order_of
from surrogates.targets.pixel_options import COLORS, EIGHT_BITS, READERS, read_option
from surrogates.targets.resizing import resized

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: Rec. ITU-R BT.601
CLIPPED = 0.1  # a quantized model may clip this share of the range at an end
VALUES = 2**15  # of one block: its double precision stays in the cache

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class PixelFormat:
    """What becomes of pixels in [0, 1] before a target gets them, in the order of these names but for the last two.

    All of it is part of the target: whoever certifies it certifies resizing and rounding too.

    Args:
        layout: chw, hwc, flat (rows of C*H*W), flat_hwc (rows of H*W*C), or the sides of one image, e.g. (784, 1). Last.
        dtype: float32, float64, float16, uint8, int8, int32 or int64. Before the layout.
        pixel_range: What 0 and 1 become; unset (0, 255) for uint8, else (0, 1). int8, int32 and int64 need one.
        quantize: Bits that pixels are rounded to first, as a PNG does with 8; clips what lies outside [0, 1].
        mean: What is subtracted from each channel of the model, in units of [0, 1]; one number stands for all channels.
        std: What each channel is divided by then.
        color: What the model takes: rgb, bgr or gray. A gray image becomes three equal channels for a color model, a color image
            its luminance for a gray one; unset, the channels go out as they are.
        resize: Height and width that images are resized to, or one number for both; antialiased bilinear.
        order_is_known: The model itself says in which order it takes the values, so that no answer depends on `layout`.

    Raises:
        TargetError: Values out of their range, a line each.
    """

    layout: str | tuple[int, ...] = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    quantize: int | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    color: str | None = None
    resize: tuple[int, int] | int | None = None
    order_is_known: bool = False

    def __post_init__(self) -> None:
        faults = Faults()
        for name in READERS:
            value = getattr(self, name)
            if value is not None or name in ("layout", "dtype"):  # these have no unset
                with faults.kept():
                    object.__setattr__(self, name, read_option(name, value))
        faults.refuse()
        for fault in self._contradictions():
            faults.add(fault)
        faults.refuse()
        if self.pixel_range is None:
            object.__setattr__(self, "pixel_range", (0.0, 255.0) if self.dtype == "uint8" else (0.0, 1.0))

    def _contradictions(self) -> list[str]:
        """Return a line for each pair of values that cannot go together."""
        lines = []
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if "int" in self.dtype and self.pixel_range is None:
                lines.append(
                    f"{name} makes fractions of pixels, but dtype is {self.dtype}: leave one of them out, or give pixel_range, "
                    "what 0 and 1 become after it"
                )
            if self.color is not None and len(values) not in (1, COLORS[self.color]):
                lines.append(
                    f"{name} has {len(values)} values, but color {self.color!r} has {COLORS[self.color]} channels: "
                    "give one for each"
                )
        furthest = max(map(abs, self.pixel_range or (0, 1)))
        if "float" in self.dtype and furthest > float(np.finfo(self.dtype).max):  # in float64, where both fit
            lines.append(f"pixel_range of {self.dtype} is {self.pixel_range!r}, more than it holds")
        if self.pixel_range is None:
            if self.dtype in ("int8", "int32", "int64") and not lines:
                usual = (-128, 127) if self.dtype == "int8" else (0, 255)
                lines.append(
                    f"pixels of {self.dtype} need pixel_range, what 0 and 1 become: give e.g. pixel_range={usual}"
                )
        elif self.dtype in EIGHT_BITS and not lines:
            # One number or one a channel; an array of one pixel has room for either.
            channels = max(np.size(1.0 if values is None else values) for values in (self.mean, self.std))
            low, high = (self._normalized(np.full((channels, 1, 1), end, np.float64)) for end in (0, 1))
            least, most = EIGHT_BITS[self.dtype]
            clipped = CLIPPED * (np.max(high) - np.min(low))
            if np.min(low) < least - clipped or np.max(high) > most + clipped:
                lines.append(
                    f"pixel_range of {self.dtype} must lie in [{least}, {most}], got {self.pixel_range!r}"
                    + (
                        f", after mean and std [{np.min(low):g}, {np.max(high):g}]"
                        if self._is_normalized
                        else ""
                    )
                )
        return lines

    @property
    def _is_normalized(self) -> bool:
        return self.mean is not None or self.std is not None

    @property
    def ends(self) -> tuple[float, float]:
        """What 0 and 1 become, where there is no mean and no std."""
        assert self.pixel_range is not None  # filled in above
        return self.pixel_range

    @property
    def name(self) -> str:
        """What a kept answer depends on besides the pixels; empty where they go out as they are."""
        parts = []
        if self.resize is not None:
            parts.append("resized to {}x{}".format(*self.resize))  # type: ignore[misc]  # a pair since __post_init__
        if self.color is not None:
            parts.append(self.color)
        if self.quantize is not None:
            parts.append(f"{self.quantize} bits")
        if self.dtype not in ("float32", "float64"):
            parts.append(self.dtype)
        # Version 0.1 had mean and std in units of pixel_range and named them behind it.
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {'/'.join(map(repr, getattr(self, name)))}")
        if self.ends != (0.0, 1.0):
            parts.append("{:g}..{:g}".format(*self.ends))
        if not self.order_is_known and self.layout in ("hwc", "flat_hwc"):
            parts.append("hwc")
        if not self.order_is_known and isinstance(self.layout, tuple):
            parts.append("sides " + "x".join(map(str, self.layout)))
        return ", ".join(parts)

    def model_shape(self, shape: Sequence[int]) -> Shape:
        """Return the shape (C, H, W) in which the model sees images of a shape (C, H, W)."""
        channels, height, width = shape
        if self.resize is not None:
            height, width = self.resize  # type: ignore[misc]  # a pair since __post_init__
        return (channels if self.color is None else COLORS[self.color]), height, width

    def check(self, shape: Sequence[int]) -> None:
        """Check that images of a shape (C, H, W) can be brought into this form.

        Raises:
            Refused: They cannot: a line for each reason.
        """
        faults = Faults()
        if self.color is not None and shape[0] not in (1, 3):
            faults.add(
                f"color is {self.color!r}, but images have {shape[0]} channels, expected 1 or 3: leave color out"
            )
        seen = self.model_shape(shape)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, seen[0]):
                faults.add(
                    f"{name} has {len(values)} values, but images have {seen[0]} channels: give one for each"
                )
        if isinstance(self.layout, tuple) and prod(self.layout) != prod(seen):
            faults.add(
                f"layout is {self.layout}, {prod(self.layout)} values, but images have {prod(seen)} "
                f"(shape {seen}): resize the images, or give resize or color"
            )
        faults.refuse(Refused)

    def settled(self, shape: Sequence[int]) -> "PixelFormat":
        """Return this without what changes nothing on images of a shape (C, H, W), so that it is not part of the name."""
        channels = self.model_shape(shape)[0]
        return replace(
            self,
            resize=None if self.resize == tuple(shape[1:]) else self.resize,
            color=None if channels == shape[0] and self.color != "bgr" else self.color,
            order_is_known=self.order_is_known or channels == 1,
        )

    def canonical(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 so that images which the target sees alike are the same bytes."""
        seen = self._seen(pixels)
        if self.dtype in EIGHT_BITS:
            return self._written(seen, "chw")
        if self.quantize is not None:
            levels = np.rint(self._levels(seen.astype(np.float64, order="C")))
            return levels.astype(np.uint16)
        return np.add(seen, np.float32(0), order="C")  # -0.0 becomes 0.0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (N, C, H, W) float32 as the target takes them, in memory of their own.

        Raises:
            Refused: They cannot be brought into this form.
        """
        self.check(pixels.shape[1:])
        seen = self._seen(pixels)
        count, *shape = seen.shape
        values = self._written(seen, order_of(self.layout, shape))
        if isinstance(self.layout, tuple):
            return values.reshape(count, *self.layout)
        return values.reshape(count, -1) if self.layout in ("flat", "flat_hwc") else values

    def _seen(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels in the size and the channels of the model, in [0, 1] still; perhaps a view of them."""
        if self.resize is not None:
            pixels = resized(pixels, self.resize)  # type: ignore[arg-type]  # a pair since __post_init__
        if self.color is None:
            return pixels
        if COLORS[self.color] == 1:
            return luminance(pixels)
        if pixels.shape[1] == 1:
            return np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
        return pixels[:, ::-1] if self.color == "bgr" else pixels

    def _written(self, seen: np.ndarray, order: str) -> np.ndarray:
        """Return pixels (N, C, H, W) in the model's numbers: (N, C, H, W), or (N, H, W, C) for the order hwc."""
        count, channels, height, width = seen.shape
        if order == "hwc":
            values = np.empty((count, height, width, channels), self.dtype)
            written = values.transpose(0, 3, 1, 2)
        else:
            values = written = np.empty(seen.shape, self.dtype)
        if not self._has_arithmetic:
            np.copyto(written, seen, casting="same_kind")
            return values
        step = max(1, VALUES // (channels * height * width))
        for start in range(0, count, step):
            block = self._computed(seen[start : start + step].astype(np.float64))
            np.copyto(written[start : start + step], block, casting="unsafe")
        return values

    @property
    def _has_arithmetic(self) -> bool:
        other = self._is_normalized or self.quantize is not None or "int" in self.dtype
        return other or self.ends != (0.0, 1.0)

    def _computed(self, values: np.ndarray) -> np.ndarray:
        """Return pixels, float64, as the model's numbers, in the same memory."""
        if self.quantize is not None:
            np.rint(self._levels(values), out=values)
            values /= 2**self.quantize - 1
        values = self._normalized(values)
        if "int" in self.dtype:
            np.rint(values, out=values)
        if self.dtype in EIGHT_BITS:
            np.clip(values, *EIGHT_BITS[self.dtype], out=values)
        return values

    def _normalized(self, values: np.ndarray) -> np.ndarray:
        """Return pixels (..., C, H, W) of [0, 1], float64, after mean, std and pixel_range, in the same memory."""
        if self.mean is not None:
            values -= np.reshape(self.mean, (-1, 1, 1))
        if self.std is not None:
            values /= np.reshape(self.std, (-1, 1, 1))
        low, high = self.pixel_range or (0.0, 1.0)
        if (low, high) != (0.0, 1.0):
            values *= high - low
            values += low
        return values

    def _levels(self, values: np.ndarray) -> np.ndarray:
        """Return pixels, float64, in units of the levels that they are rounded to, clipped, in the same memory."""
        assert self.quantize is not None
        np.clip(values, 0, 1, out=values)
        values *= 2**self.quantize - 1
        return values


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (N, 1 or 3, H, W) float32 as gray images (N, 1, H, W); gray ones, of three equal channels too, keep their values."""
    if pixels.shape[1] == 1:
        return pixels
    gray = np.empty((len(pixels), 1, *pixels.shape[2:]), np.float32)
    step = max(1, VALUES // prod(pixels.shape[2:]))
    for start in range(0, len(pixels), step):
        red, green, blue = (pixels[start : start + step, channel].astype(np.float64) for channel in range(3))
        gray[start : start + step, 0] = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return gray


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
