"""What may be wrong with a target that answers badly, and how it would show: labels in another order, pixels in another form.

Nothing here is queried. All functions take what was answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from surrogates.targets.formats import PixelFormat
from surrogates.targets.layouts import LAYOUTS

USEFUL = 0.9  # a target whose accuracy may reach this share is not suspected
CHANCE = 0.01  # how surely it must be better than chance
FAMILYWISE = 0.05  # how surely another form must be better, over all that are tried
TRIES = 10  # about as many as are tried
LISTED = 4  # labels that a message shows
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MNIST = ((0.1307,), (0.3081,))
HALF = ((0.5,), (0.5,))
UNIT, LEVELS = (0.0, 1.0), (0.0, 255.0)


@dataclass(frozen=True)
class Form:
    """A pixel format that a target may want in the place of its own.

    Args:
        words: What it is.
        changes: The options that make it: values of PixelFormat by name.
    """

    words: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What is likely wrong.

    Args:
        words: What it is.
        mend: What mends it: options, or what to do.
        right: Images that are right then.
        instead: Images that are right as it is.
        images: Of how many.
        options: The target's options that mend it, where these do.
    """

    words: str
    mend: str
    right: int
    instead: int
    images: int
    options: dict[str, Any] | None = None


def is_poor(right: int, images: int, classes: int) -> bool:
    """Whether a target is worse than a useful one: its accuracy can't reach 90% (95% interval), or may be chance."""
    upper = float(binomtest(right, images).proportion_ci(0.95).high)
    by_chance = binomtest(right, images, 1 / classes, alternative="greater").pvalue
    return upper < USEFUL or by_chance > CHANCE


def is_better(these: NDArray[np.bool_], than: NDArray[np.bool_]) -> bool:
    """Whether more images (N,) are right, by an exact test on those that only one of both has right (McNemar, 1947)."""
    gained, lost = int((these & ~than).sum()), int((than & ~these).sum())
    if gained <= lost:
        return False
    return binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue < FAMILYWISE / TRIES


def label_fault(
    labels: NDArray[np.int64], answers: NDArray[np.int64], names: tuple[str, ...]
) -> Fault | None:
    """The labels numbered from another class on, or in another order, as far as the answers (N,) show it."""
    right = answers == labels
    for step in (1, -1):
        shifted = answers == labels + step
        if is_better(shifted, right):
            one = "one more" if step == 1 else "one less"
            words = f"its classes are numbered from another one on: it answers {one} than your label"
            moved = {int(label): int(label) + step for label in np.unique(labels)}
            return Fault(words, _mapping(moved, names), int(shifted.sum()), int(right.sum()), len(labels))
    return _permutation(labels, answers, names)


def _permutation(
    labels: NDArray[np.int64], answers: NDArray[np.int64], names: tuple[str, ...]
) -> Fault | None:
    """The labels in another order: each image is answered as the other ones of its label are, each label in its own way."""
    votes = {int(label): Counter(answers[labels == label].tolist()) for label in np.unique(labels)}
    usual = {label: count.most_common(1)[0][0] for label, count in votes.items() if count.total() > 1}
    if len(usual) < 2 or len(set(usual.values())) < len(usual):
        return None
    rows = np.flatnonzero([int(label) in usual for label in labels])
    foreseen = np.zeros(len(rows), bool)
    for at, row in enumerate(rows):
        others = votes[int(labels[row])] - Counter([int(answers[row])])
        ranked = others.most_common(2)
        unique = len(ranked) == 1 or ranked[0][1] > ranked[1][1]
        foreseen[at] = unique and ranked[0][0] == answers[row]
    right = answers[rows] == labels[rows]
    if not is_better(foreseen, right):
        return None
    moved = {label: answer for label, answer in usual.items() if label != answer}
    return Fault(
        "its classes are in another order than your labels",
        _mapping(moved, names),
        int(foreseen.sum()),
        int(right.sum()),
        len(rows),
    )


def _mapping(moved: dict[int, int], names: tuple[str, ...]) -> str:
    """How labels are given the numbers of the target's classes."""
    lines = [f"{names[label] if label < len(names) else label}: {answer}" for label, answer in moved.items()]
    return f"map them with --data.labels FILE ({', '.join(lines[:LISTED])}{' ...' if len(lines) > LISTED else ''})"


def other_forms(pixels: PixelFormat, channels: int, family: str) -> list[Form]:
    """The pixel formats of a family that a target may want in the place of its own, the likely ones first.

    Args:
        pixels: Its own format.
        channels: Of the images.
        family: normalization, color, layout, or shape: what may mend a target that fails.
    """
    if family == "normalization":
        return _normalizations(pixels, channels)
    if family == "color":
        return _colors(pixels, ("rgb", "bgr") if channels == 3 else ())
    if family == "shape":
        return [*_layouts(pixels), *_colors(pixels, ("gray",) if channels == 3 else ("rgb",))]
    return [] if pixels.order_is_known else _layouts(pixels)


def _normalizations(pixels: PixelFormat, channels: int) -> list[Form]:
    color = channels == 3
    known: list[tuple[str, tuple[float, float], Any, Any]] = [
        ("pixels from 0 to 255", LEVELS, None, None),
        ("ImageNet's mean and std", UNIT, *IMAGENET) if color else ("MNIST's mean and std", UNIT, *MNIST),
        ("pixels from -1 to 1", UNIT, *HALF),
        ("pixels in [0, 1], without mean and std", UNIT, None, None),
    ]
    if color:
        known.append(("pixels from 0 to 255 less ImageNet's mean", LEVELS, IMAGENET[0], None))
    now = (pixels.ends, pixels.mean, pixels.std)
    return [
        Form(words, {"pixel_range": ends, "mean": mean, "std": std})
        for words, ends, mean, std in known
        if now != (ends, mean, std)
    ]


def _colors(pixels: PixelFormat, colors: Sequence[str]) -> list[Form]:
    now = pixels.color or "rgb"
    return [Form(f"{color} images", {"color": color}) for color in colors if color != now]


def _layouts(pixels: PixelFormat) -> list[Form]:
    taken = str(pixels.layout)
    # first that of the same number of axes
    others = sorted(LAYOUTS, key=lambda layout: layout.startswith("flat") != taken.startswith("flat"))
    return [Form(f"the layout {layout}", {"layout": layout}) for layout in others if layout != taken]


def as_options(changes: dict[str, Any], pixels: PixelFormat) -> str:
    """What to write on the command line for a pixel format in the place of the target's own."""
    given, left_out = [], []
    for name, value in changes.items():
        if value == (pixels.ends if name == "pixel_range" else getattr(pixels, name)):
            continue
        if value is None:
            left_out.append(f"--target.{name}")
        else:
            given.append(f"--target.{name} {_written(value)}")
    without = [f"without {' and '.join(left_out)}"] if left_out else []
    return ", ".join([" ".join(given), *without] if given else without)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(f'{number:g}' for number in value)}]"
    return str(value)
