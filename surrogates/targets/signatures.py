"""What a model reports of its only input, and the pixel format that follows from it: one place for every protocol."""

from dataclasses import dataclass, replace

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.declared import Declared
from surrogates.targets.formats import DTYPES, channel_axis

ROWS = {None: "flat", "chw": "flat", "flat": "flat", "hwc": "flat_hwc", "flat_hwc": "flat_hwc"}


@dataclass(frozen=True)
class ModelInput:
    """The only input of a model.

    Args:
        what: The model, for errors.
        dtype: Its number type, by numpy's name.
        shape: Its sides, that of the batch first, -1 for one that is free; empty where the model is silent.
    """

    what: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def batch(self) -> int | None:
        """The only size of a batch that the model takes, None for any."""
        return self.shape[0] if len(self.shape) in (2, 4) and self.shape[0] > 0 else None

    @property
    def num_features(self) -> int | None:
        """The length of its rows, None where it takes no rows or any."""
        return self.shape[1] if len(self.shape) == 2 and self.shape[1] > 0 else None

    def honored(self, declared: Declared) -> Declared:
        """Return what the caller declared with layout, number type and shape as the model takes them; `layout` wins.

        Raises:
            TargetError: The model contradicts what was declared, or takes what no image can be.
        """
        if self.dtype not in DTYPES:
            raise TargetError(
                f"{self.what} takes {self.dtype}, expected one of {', '.join(DTYPES)}: open a function that calls it"
            )
        declared = declared.agreed(dtype=self.dtype)
        if len(self.shape) == 2:
            return self._as_rows(declared)
        if len(self.shape) == 4:
            return self._as_images(declared)
        if self.shape and declared.layout is None:
            raise TargetError(
                f"{self.what} takes shape {self.shape}, expected (N, values) or images (N, C, H, W) or (N, H, W, C): "
                "open a function that calls it"
            )
        return declared

    def _as_rows(self, declared: Declared) -> Declared:
        shape, features = declared.input_shape, self.num_features
        if shape is not None and features is not None and int(np.prod(shape)) != features:
            raise TargetError(
                f"{self.what} takes {features} values per image, but input_shape is {shape}: resize the images"
            )
        return replace(declared, layout=ROWS.get(declared.layout, declared.layout))

    def _as_images(self, declared: Declared) -> Declared:
        layout = declared.layout or self._layout(declared.input_shape)
        if layout not in ("chw", "hwc"):
            raise TargetError(f"{self.what} takes images of 4 axes, but layout is {layout!r}: leave it out")
        first, second, third = self.shape[1:]
        sides = (first, second, third) if layout == "chw" else (third, first, second)
        if declared.input_shape is not None and not _fits(sides, declared.input_shape):
            raise TargetError(
                f"{self.what} takes images of shape {sides} ({layout} {self.shape[1:]}), but input_shape is "
                f"{declared.input_shape}: resize the images"
            )
        shape = declared.input_shape or (sides if min(sides) > 0 else None)
        return replace(declared, layout=layout, input_shape=shape)

    def _layout(self, input_shape: tuple[int, int, int] | None) -> str:
        """Return chw or hwc: as the images that are meant fit in, else by where the channels are."""
        sides = self.shape[1:]
        if input_shape is not None:
            channels, height, width = input_shape
            last = _fits(sides, (height, width, channels)) and not _fits(sides, input_shape)
            return "hwc" if last else "chw"
        axis = channel_axis(sides)
        if axis is None and min(sides) > 0:
            raise TargetError(
                f"{self.what} takes images of sides {sides}, where the channels may be first or last: "
                "give layout='chw' or 'hwc'"
            )
        return "hwc" if axis == 2 else "chw"


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


def _fits(sides: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether images of a shape go into sides of which some are free."""
    return all(side in (-1, wanted) for side, wanted in zip(sides, shape, strict=True))
