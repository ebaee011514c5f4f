"""A data set before it is split: images that are read when they are asked for, and labels, names or neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from certdef.data.pixels import Form

Progress = Callable[..., Any]  # a bar over an iterable, called as tqdm is


def no_bar(iterable: Any, **_: Any) -> Any:
    """No progress bar."""
    return iterable


class Images(Protocol):
    """Images of one shape, read when they are asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""

    def __len__(self) -> int: ...

    def take(self, chosen: np.ndarray, progress: Progress = no_bar) -> np.ndarray:
        """The images of these indices (n,), in their order: float32 (n, C, H, W) in [0, 1], in memory of their own."""


class ArrayImages:
    """Images (N, C, H, W) float32 in [0, 1] that are in memory.

    Args:
        array: The images.
        form: What becomes of each when it is taken.
    """

    def __init__(self, array: np.ndarray, form: Form | None = None):
        self._array, self._form = array, form or Form()
        self._form.apply(array[:1])  # refuses at once what it can't do

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._array.shape
        return self._form.shape((channels, height, width))

    def __len__(self) -> int:
        return len(self._array)

    def take(self, chosen: np.ndarray, progress: Progress = no_bar) -> np.ndarray:
        return self._form.apply(self._array[chosen])


@dataclass(frozen=True)
class Source:
    """A data set before it is split.

    Attributes:
        name: What tables and the page call it.
        images: Its images.
        labels: (N,) int64 from 0, or None where it has none.
        classes: Names of the classes; None for labels that are bare numbers, or none.
        by_name: Whether the labels are names, which a target that names its classes puts in its own order.
        test_images: Its own test set, where it has one.
        test_labels: The labels of that.
    """

    name: str
    images: Images
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    by_name: bool = False
    test_images: Images | None = None
    test_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images) + (0 if self.test_images is None else len(self.test_images))
