"""The options of a pixel format one by one: what each of them may be, and what is said where it is anything else."""

from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.layouts import LAYOUTS
from surrogates.targets.redaction import shortened

DTYPES = ("float32", "float64", "float16", "uint8", "int8", "int32", "int64")
EIGHT_BITS = {"uint8": (0, 255), "int8": (-128, 127)}
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}  # and their channels
LONGEST_SIDE = 2**15


def read_option(name: str, value: Any) -> Any:
    """Return an option as a pixel format keeps it: lists as tuples, one number for several as several.

    Raises:
        TargetError: It names the option, the value and the remedy.
    """
    return READERS[name](name, value)


def _layout(name: str, value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value in LAYOUTS:
        return value
    sides = value if isinstance(value, list | tuple) else ()
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise TargetError(
            f"layout must be one of {', '.join(LAYOUTS)}, got {_said(value)}: or list the sides of one image, e.g. [784, 1]"
        )
    return tuple(sides)


def _dtype(name: str, value: Any) -> str:
    return _one_of(name, value, DTYPES)


def _color(name: str, value: Any) -> str:
    return _one_of(name, value, COLORS)


def _one_of(name: str, value: Any, known: Any) -> str:
    if not isinstance(value, str) or value not in known:
        raise TargetError(f"{name} must be one of {', '.join(known)}, got {_said(value)}")
    return value


def _quantize(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 16:
        raise TargetError(f"quantize must be a number of bits from 1 to 16, got {_said(value)}: try 8")
    return value


def _resize(name: str, value: Any) -> tuple[int, int]:
    sides = (value, value) if type(value) is int else value
    good = isinstance(sides, list | tuple) and len(sides) == 2
    if not good or not all(type(side) is int and 1 <= side <= LONGEST_SIDE for side in sides):
        raise TargetError(f"resize must be (height, width) in pixels, got {_said(value)}: try (224, 224)")
    return sides[0], sides[1]


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(each) for each in np.atleast_1d(value))
    except (TypeError, ValueError, OverflowError):
        values = ()
    if not values or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
        raise TargetError(f"{name} must be a number for each channel, got {_said(value)}: try (0.5,)")
    if name == "mean" and max(values) > 1:
        scaled = tuple(round(each / 255, 4) for each in values)
        raise TargetError(
            f"mean is subtracted from pixels in [0, 1], before pixel_range, but is {_said(value)}: "
            f"divide mean and std by 255, mean={scaled}"
        )
    return values


def _ends(name: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError, OverflowError):
        low = high = np.nan
    if not (np.isfinite([low, high]).all() and low < high):
        several = isinstance(value, list | tuple) and any(isinstance(each, list | tuple) for each in value)
        remedy = "give mean and std for a range of each channel" if several else "try (0, 255)"
        raise TargetError(f"pixel_range must be two numbers, lower first, got {_said(value)}: {remedy}")
    return low, high


def _said(value: Any) -> str:
    """A value for an error; that of a stranger's file may be long."""
    return shortened(repr(value), 200)


READERS = {
    "layout": _layout,
    "dtype": _dtype,
    "quantize": _quantize,
    "color": _color,
    "resize": _resize,
    "mean": _per_channel,
    "std": _per_channel,
    "pixel_range": _ends,
}
