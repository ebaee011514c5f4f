"""What all figures share: panels on a canvas, a light grid, percentages, intervals as bars or bands, and PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.records.curves import COLORS, STYLES

__all__ = [
    "COLORS",
    "as_png",
    "canvas",
    "color",
    "line_with_band",
    "percentages",
    "query_counts",
    "style",
    "tidy",
    "with_errors",
]


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any
) -> tuple[Any, list[Any]]:
    """A figure of so many inches and its panels, row by row; `shared` goes to matplotlib's subplots."""
    from certify.records.picture import Picture

    figure = Picture(width, height)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def as_png(figure: Any) -> bytes:
    """A figure as PNG."""
    return figure.to_png()


def tidy(axes: Any) -> None:
    """A light grid below the lines, and no frame above and on the right."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percentages(axis: Any, decimals: int | None = None) -> None:
    """Shares on an axis as percentages."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def query_counts(axes: Any, counts: Sequence[int]) -> None:
    """A logarithmic horizontal axis with a mark at each number of queries."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("queries")


def color(number: int) -> str:
    """Color of a line by its number."""
    return COLORS[number % len(COLORS)]


def style(number: int) -> str:
    """Dashes of a line by its number."""
    return STYLES[number % len(STYLES)]


def with_errors(shares: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values (P,) of shares (P, 3) with their bounds, and the length of the bars below and above them (2, P)."""
    value, lower, upper = np.asarray(shares, dtype=np.float64).T
    return value, np.clip([value - lower, upper - value], 0, None)


def line_with_band(
    axes: Any, x: Any, shares: ArrayLike, *, color: str, linestyle: str, label: str | None
) -> None:
    """Shares (P, 3) as a line through the values and a band between the bounds."""
    value, lower, upper = np.asarray(shares, dtype=np.float64).T
    axes.plot(x, value, color=color, linestyle=linestyle, marker="o", markersize=4, label=label)
    axes.fill_between(x, lower, upper, color=color, alpha=0.12, linewidth=0)
