"""What a model reports of its only input, and the pixel format that follows from it: one place for every protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.declared import Declared
from surrogates.targets.faults import Faults
from surrogates.targets.formats import channel_axis
from surrogates.targets.layouts import is_row, joined_order, row_of
from surrogates.targets.pixel_options import COLORS, DTYPES, EIGHT_BITS

GRAY = "color='gray' (--target.color gray)"
COLORED = "color='rgb' or 'bgr' (--target.color rgb)"


@dataclass(frozen=True)
class ModelInput:
    """The only input of a model.

    Args:
        what: The model, for errors.
        dtype: Its number type, by numpy's name.
        shape: Its sides, that of the batch first, -1 for one that is free; empty where the model is silent.
        scale: Of a quantized input: numbers are scale * (integer - zero_point). None where it is not quantized.
        zero_point: The integer that stands for 0 then.
        color: The color that its metadata names; what the caller declares wins.
        pixel_range: The range that its metadata names; what the caller declares wins.
        without_batch: Its sides are those of one image; `placed` finds out.
    """

    what: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    color: str | None = None
    pixel_range: tuple[float, float] | None = None
    without_batch: bool = False

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of one image."""
        return self.shape if self.without_batch else self.shape[1:]

    @property
    def batch(self) -> int | None:
        """The only size of a batch that the model takes, None for any."""
        if self.without_batch:
            return 1
        return self.shape[0] if self.shape and self.shape[0] > 0 else None

    @property
    def num_features(self) -> int | None:
        """The values of an image, None where any number will do."""
        return prod(self.sides) if self.sides and min(self.sides) > 0 else None

    def placed(self, declared: Declared) -> "ModelInput":
        """Return this with it decided whether the first side is that of the batch, by the images where they are known."""
        return replace(self, without_batch=self._lacks_batch(declared))

    def honored(self, declared: Declared) -> Declared:
        """Return what the caller declared with layout, number type and shape as the model takes them; `layout` wins.

        Raises:
            TargetError: The model contradicts what was declared, or takes what no image can be; a line for each reason.
        """
        faults = Faults()
        if self.dtype not in DTYPES:
            raise TargetError(
                f"{self.what} takes {self.dtype}, expected one of {', '.join(DTYPES)}: open a function that calls it"
            )
        with faults.kept():
            declared.agreed(dtype=self.dtype)
        declared = replace(declared, dtype=self.dtype, color=declared.color or self.color)
        declared = self._ranged(declared)
        with faults.kept():
            declared = self.placed(declared)._arranged_as(declared)
        with faults.kept():
            _ = declared.pixels
        faults.refuse()
        return declared

    def arranged(self, pixels: np.ndarray, *, fill: bool = True) -> np.ndarray:
        """Return encoded images with the sides and the batch that the model takes.

        Args:
            pixels: A batch as `PixelFormat.encode` returns it.
            fill: Whether a batch that is too small is filled up.
        """
        if self.shape and pixels.ndim - 1 != len(self.sides):
            pixels = pixels.reshape(len(pixels), *self.sides)
        if self.without_batch:
            return pixels[0]
        return padded(pixels, self.batch) if fill else pixels

    def answered(self, answer: Any, count: int) -> Any:
        """Return a raw answer to arranged images as one row for each of `count` images."""
        if self.without_batch:
            return np.asarray(answer).reshape(1, -1) if not isinstance(answer, list | dict) else answer
        return answer[:count]

    def _lacks_batch(self, declared: Declared) -> bool:
        """Whether the sides are those of one image without a batch."""
        sides, seen = self.shape, declared.model_shape
        if isinstance(declared.layout, tuple):
            return not _fits(sides[1:], declared.layout) and _fits(sides, declared.layout)
        if len(sides) < 2 or sides[0] < 0:
            return len(sides) == 1
        if sides[0] == 1:
            return False  # either way the same bytes, and the rest says more
        if seen is not None:
            if len(sides) == 3 and (_fits(sides, seen) or _fits(sides, _last(seen))):
                return True
            if _holds(sides[1:], prod(seen)):
                return False
            if _holds(sides, prod(seen)):
                return True
        return len(sides) == 3 or (len(sides) == 2 and sides[1] == 1)

    def _ranged(self, declared: Declared) -> Declared:
        """Return what was declared with the range that the model reports; of a quantized input, in its integers."""
        ends = declared.pixel_range
        if self.scale is None or self.dtype not in EIGHT_BITS:
            normalized = declared.mean is not None or declared.std is not None
            return replace(declared, pixel_range=ends or (None if normalized else self.pixel_range))
        if ends is None and declared.mean is None and declared.std is None:
            low, high = map(float, EIGHT_BITS[self.dtype])  # what its numbers reach is what they are for
        else:
            low, high = (end / self.scale + self.zero_point for end in ends or (0.0, 1.0))
        return replace(declared, pixel_range=(low, high))

    def _arranged_as(self, declared: Declared) -> Declared:
        """Return what was declared with the layout and the shape of images that the sides leave."""
        sides, seen = self.sides, declared.model_shape
        if not self.shape:
            return declared
        if self.shape == (-1,):
            raise TargetError(
                f"{self.what} takes shape (-1,), expected (N, values) or images (N, C, H, W) or (N, H, W, C): "
                "open a function that calls it"
            )
        if isinstance(declared.layout, tuple):
            if not _fits(sides, declared.layout):
                raise TargetError(
                    f"layout is {declared.layout}, but {self.what} takes sides {sides}: leave layout out"
                )
            return declared
        fits = seen is not None and len(sides) == 3 and (_fits(sides, seen) or _fits(sides, _last(seen)))
        if is_row(sides) and not fits:
            return self._as_rows(declared)
        return self._as_images(declared) if len(sides) == 3 else self._as_sides(declared)

    def _as_rows(self, declared: Declared) -> Declared:
        seen, features = declared.model_shape, self.num_features
        if seen is not None and features is not None and prod(seen) != features:
            raise TargetError(
                f"{self.what} takes {features} values per image, but {_images(declared)}: {_row_remedy(features, seen)}"
            )
        layout = row_of(declared.layout)
        return replace(declared, layout=layout, order_is_known=layout == "flat" and declared.layout is None)

    def _as_images(self, declared: Declared) -> Declared:
        seen, own = declared.model_shape, self._layout(declared)
        layout = declared.layout or own
        if layout not in ("chw", "hwc"):
            raise TargetError(f"{self.what} takes images of 4 axes, but layout is {layout!r}: leave it out")
        first, second, third = self.sides
        sides = (first, second, third) if layout == "chw" else (third, first, second)
        size = declared.resize or sides[1:]
        wanted = seen or (COLORS.get(declared.color or "", sides[0]), *size)  # type: ignore[misc]  # a pair by now
        if not _fits(sides, wanted):
            raise TargetError(
                f"{self.what} takes images of shape {sides} ({layout} {self.sides}), but {_images(declared)}: "
                f"{_remedy(sides, wanted)}"
            )
        shape = declared.input_shape
        if shape is None and declared.color is None and declared.resize is None and min(sides) > 0:
            shape = sides
        return replace(declared, layout=layout, input_shape=shape, order_is_known=layout == own)

    def _layout(self, declared: Declared) -> str:
        """Return chw or hwc: as the images that are meant fit in, else by where the channels are."""
        sides, seen = self.sides, declared.model_shape
        if seen is not None and (_fits(sides, seen) or _fits(sides, _last(seen))):
            return "chw" if _fits(sides, seen) else "hwc"
        axis = channel_axis(sides)
        if axis is None and min(sides) > 0 and declared.layout is None and seen is None:
            raise TargetError(
                f"{self.what} takes images of sides {sides}, where the channels may be first or last: "
                "give layout='chw' or 'hwc'"
            )
        return "hwc" if axis == 2 else "chw"

    def _as_sides(self, declared: Declared) -> Declared:
        """Images whose sides are neither three nor one: a gray image without its channel, or sides that are joined."""
        sides, seen = self.sides, declared.model_shape
        if seen is None:
            if min(sides) < 0:
                raise TargetError(
                    f"{self.what} takes sides {sides}: give input_shape=(C, H, W), or layout, the sides of one image"
                )
            return replace(declared, layout=row_of(declared.layout))
        if min(sides) < 0 and seen[0] == 1 and _fits(sides, seen[1:]):
            return replace(declared, layout=seen[1:], order_is_known=True)
        order = joined_order(sides, seen)
        if order is None:
            raise TargetError(
                f"{self.what} takes images of sides {sides}, but {_images(declared)}: "
                f"{_remedy((1, *sides), seen) if len(sides) == 2 else 'give images that fill them'}"
            )
        layout = row_of(declared.layout or order)
        return replace(declared, layout=layout, order_is_known=declared.layout is None)


def padded(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """Return a batch filled up with its last image to the only size that a model takes."""
    if size is None or len(pixels) >= size:
        return pixels
    return np.concatenate([pixels, np.repeat(pixels[-1:], size - len(pixels), axis=0)])


def refuse_fixed_batch(batch: int | None, declared: Declared, what: str) -> Declared:
    """Return what was declared for a paid model: it is not filled up with images that nobody asked for.

    Raises:
        TargetError: It takes batches of one size alone, and the caller does not say how many it takes.
    """
    if batch is None:
        return declared
    if batch > 1 and declared.batch_size is None:
        raise TargetError(
            f"{what} reports batches of {batch} images and nothing else: "
            "give batch_size=1 if it takes single images all the same"
        )
    return replace(declared, batch_size=min(batch, declared.batch_size or batch))


def _fits(sides: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether images of a shape go into sides of which some are free."""
    return len(sides) == len(shape) and all(
        side in (-1, wanted) for side, wanted in zip(sides, shape, strict=True)
    )


def _holds(sides: Sequence[int], values: int) -> bool:
    """Whether sides of which some are free can hold so many values."""
    known = prod(side for side in sides if side > 0)
    return values % known == 0 if min(sides) < 0 else values == known


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[1:], shape[0])


def _images(declared: Declared) -> str:
    """What is said of the images, for an error."""
    said = {name: getattr(declared, name) for name in ("input_shape", "resize", "color")}
    return " and ".join(f"{name} is {value!r}" for name, value in said.items() if value is not None)


def _remedy(sides: Sequence[int], seen: Sequence[int]) -> str:
    """What brings images of a shape into the sides (C, H, W) of a model."""
    parts = []
    if not _fits(sides[1:], seen[1:]):
        height, width = (
            wanted if side < 0 else side for side, wanted in zip(sides[1:], seen[1:], strict=True)
        )
        parts.append(
            f"resize the images, or give resize=({height}, {width}) (--target.resize [{height},{width}])"
        )
    if not _fits(sides[:1], seen[:1]):
        parts.append(
            {1: f"give {GRAY}", 3: f"give {COLORED}"}.get(sides[0], f"give images of {sides[0]} channels")
        )
    return ", and ".join(parts)


def _row_remedy(features: int, seen: Sequence[int]) -> str:
    """What brings images of a shape into rows of another length."""
    channels, height, width = seen
    for own in (1, 3):
        if own * height * width == features:
            return _remedy((own, height, width), seen)
    side = round((features / channels) ** 0.5)
    if channels * side * side == features:
        return _remedy((channels, side, side), seen)
    return "resize the images"
