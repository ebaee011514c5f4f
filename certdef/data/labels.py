"""Labels as people write them: whole numbers, names, or one-column tables of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from certdef.config.job import ConfigError

LARGEST = 100_000  # a class called 20240101 is a name
WHOLE = r"[0-9]{1,18}(\.0*)?"


class Labels(NamedTuple):
    """Labels (N,) int64 from 0, the names of the classes (None for bare numbers), and whether the labels came as names."""

    values: np.ndarray
    classes: tuple[str, ...] | None
    by_name: bool


def labels_from_texts(texts: Sequence[str], known: Iterable[str] = ()) -> Labels:
    """Labels that are written out: whole numbers, also as 3.0, stand for themselves, names are numbered in sorted order.

    Args:
        texts: A label for each image.
        known: Further classes, of which there is no image.
    """
    names = sorted({*texts, *known})
    # As numbers they sort otherwise: a table with 10.0 before 2.0 would have other classes than its numbers say.
    numbers = {name: int(name.partition(".")[0]) for name in names if re.fullmatch(WHOLE, name)}
    if names and len({*numbers.values()}) == len(names) and max(numbers.values()) <= LARGEST:
        return Labels(np.array([numbers[text] for text in texts], np.int64), None, False)
    index = {name: number for number, name in enumerate(names)}
    return Labels(np.array([index[text] for text in texts], np.int64), tuple(names), True)


def labels_from_array(labels: np.ndarray, count: int, class_names: np.ndarray | None = None) -> Labels:
    """Labels of an array for so many images; (N, 1) is read as (N,), whole floats as whole numbers, texts as names.

    Raises:
        ConfigError: Another shape or type, negative numbers, or names that do not fit.
    """
    labels = np.asarray(labels)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if (
        np.issubdtype(labels.dtype, np.floating)
        and np.array_equal(labels, np.rint(labels))
        and (abs(labels) <= 2**53).all()
    ):
        labels = labels.astype(np.int64)
    text = labels.dtype.kind in "US"  # bytes or str
    if labels.shape != (count,) or not (text or np.issubdtype(labels.dtype, np.integer)):
        one_hot = labels.ndim == 2 and len(labels) == count
        remedy = "; of one column a class, give the argmax" if one_hot else ""
        raise ConfigError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: expected {count} whole numbers from 0, or names{remedy}"
        )
    names = None if class_names is None else tuple(map(str, np.atleast_1d(class_names)))
    if text:
        return _named(labels.astype(str).tolist(), names)
    if labels.min() < 0:
        raise ConfigError(f"labels go down to {labels.min()}: number the classes from 0")
    if names is not None:
        _check_names(labels, names)
    elif labels.max() > LARGEST:
        raise _not_numbered(labels)
    return Labels(labels.astype(np.int64), names, False)


def _named(texts: list[str], names: tuple[str, ...] | None) -> Labels:
    """Labels that are names, in the order of the names that are given, else sorted."""
    if names is None:
        return labels_from_texts(texts)
    index = {name: number for number, name in enumerate(names)}
    if missing := sorted({*texts} - index.keys()):
        raise ConfigError(
            f"class_names lists {', '.join(names)}, but a label is {missing[0]!r}: list every class"
        )
    return Labels(np.array([index[text] for text in texts], np.int64), names, True)


def _check_names(labels: np.ndarray, names: tuple[str, ...]) -> None:
    last = int(labels.max())
    if len(set(names)) != len(names) or last >= len(names):
        raise ConfigError(
            f"class_names lists {len(set(names))} names, but labels go up to {last}: list one for each class"
        )


def numbered_classes(labels: np.ndarray, *, gaps: bool) -> tuple[str, ...]:
    """Names of classes that are bare numbers.

    Args:
        labels: (N,) whole numbers from 0.
        gaps: Whether a class may have no image: a target may know more of them than the data set has.

    Raises:
        ConfigError: There are gaps, and may be none.
    """
    seen = np.unique(labels)
    gapless = int(seen[0]) == 0 and int(seen[-1]) == len(seen) - 1
    if not gapless and not gaps:
        raise _not_numbered(labels)
    return tuple(map(str, range(int(seen[-1]) + 1)))


def _not_numbered(labels: np.ndarray) -> ConfigError:
    seen = np.unique(labels)
    few = f"{', '.join(map(str, seen[:3]))}{' ...' if len(seen) > 3 else ''} up to {seen[-1]}"
    return ConfigError(
        f"labels are {few}, {len(seen)} in all: number the classes from 0 without a gap, or add the array "
        "class_names with the name of every class"
    )
