"""The order in which the values of an image lie in a tensor, and what its sides tell of it."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

LAYOUTS = ("chw", "hwc", "flat", "flat_hwc")


def row_of(layout: Any) -> Any:
    """Return a layout with the values of an image in one row, in the same order; what is no name stays as it is."""
    return {None: "flat", "chw": "flat", "hwc": "flat_hwc"}.get(layout, layout)


def order_of(layout: str | Sequence[int], shape: Sequence[int]) -> str:
    """Return chw or hwc: the order in which images (C, H, W) fill a layout; chw where the sides do not tell."""
    if isinstance(layout, str):
        return "hwc" if layout in ("hwc", "flat_hwc") else "chw"
    found = joined_order(layout, shape)
    if found is not None:
        return found
    ahead, behind = list(accumulate(layout, mul)), list(accumulate(reversed(layout), mul))
    return "hwc" if shape[0] in behind and shape[0] not in ahead else "chw"


def joined_order(sides: Sequence[int], shape: Sequence[int]) -> str | None:
    """Return chw or hwc where sides are those of images (C, H, W) in that order, some of them joined into one; else None.

    Joined, (3, 32, 32) may be (3, 1024), (96, 32) or (3072, 1), and in the order hwc (32, 32, 3), (1024, 3) or (32, 96).
    """
    channels, height, width = shape
    for order, whole in (("chw", (channels, height, width)), ("hwc", (height, width, channels))):
        if prod(sides) == prod(whole) and set(accumulate(sides, mul)) <= {1, *accumulate(whole, mul)}:
            return order
    return None


def is_row(sides: Sequence[int]) -> bool:
    """Whether sides are a row of values: at most one of them is not 1."""
    return len(sides) > 0 and sum(side != 1 for side in sides) <= 1
