"""Agreement against queries: what the finished cells say together, as a table, a picture and points for MLflow.

A cell is one surrogate: a strategy, a budget and a seed. Of its seeds a strategy shows the median and the spread; the
interval is the median seed's, over images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.curves import COLORS, STYLES

CONDITIONS = {
    "clean": "clean images",
    "noisy": "under the smoothing noise",
    "denoised": "behind the denoiser",
}


@dataclass(frozen=True)
class Cell:
    """One surrogate: what it was allowed to ask, what the ledger charged for it, and [share, lower, upper] of agreement.

    The ledger charges nothing for images that an earlier cell asked about.
    """

    strategy: str
    budget: int
    seed: int
    queries: int
    charged: int
    agreement: dict[str, list[float]]


@dataclass(frozen=True)
class Point:
    """The seeds of one strategy and budget: median agreement with its interval, lowest and highest seed."""

    queries: int
    median: float
    lower: float
    upper: float
    lowest: float
    highest: float
    seeds: int


def curves(cells: Sequence[Cell], condition: str) -> dict[str, list[Point]]:
    """One curve a strategy, in the order of the cells, its points by number of queries."""
    found: dict[str, dict[int, list[list[float]]]] = {}
    for cell in cells:
        if condition in cell.agreement:
            found.setdefault(cell.strategy, {}).setdefault(cell.queries, []).append(cell.agreement[condition])
    return {
        strategy: [_point(queries, by_queries[queries]) for queries in sorted(by_queries)]
        for strategy, by_queries in found.items()
    }


def _point(queries: int, triples: list[list[float]]) -> Point:
    ordered = sorted(triples)
    share, lower, upper = ordered[(len(ordered) - 1) // 2]  # of an even number, the lower of the middle two
    return Point(queries, share, lower, upper, ordered[0][0], ordered[-1][0], len(ordered))


def metrics(cells: Sequence[Cell]) -> dict[str, list[tuple[int, float]]]:
    """Metric name -> (queries, value): the steps of MLflow are numbers of queries."""
    series: dict[str, list[tuple[int, float]]] = {}
    for condition in CONDITIONS:
        for strategy, points in curves(cells, condition).items():
            name = f"budgets/{strategy}/agreement_{condition}"
            for suffix, part in (("", "median"), ("_lower", "lower"), ("_upper", "upper")):
                series[name + suffix] = [(point.queries, getattr(point, part)) for point in points]
    return series


def as_csv(cells: Sequence[Cell]) -> str:
    """A row a cell; agreement as share, lower and upper of each condition."""
    conditions = [name for name in CONDITIONS if any(name in cell.agreement for cell in cells)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = [f"agreement_{name}{end}" for name in conditions for end in ("", "_lower", "_upper")]
    writer.writerow(["strategy", "budget", "seed", "queries", "charged", *parts])
    for cell in cells:
        shares = [f"{value:.6f}" for name in conditions for value in cell.agreement[name]]
        writer.writerow([cell.strategy, cell.budget, cell.seed, cell.queries, cell.charged, *shares])
    return file.getvalue()


def as_markdown(cells: Sequence[Cell]) -> str:
    """A row a strategy and condition, a column a number of queries: median % (lowest-highest seed) [interval]."""
    budgets = sorted({cell.queries for cell in cells})
    lines = ["| agreement, % | strategy | " + " | ".join(f"{budget:,} queries" for budget in budgets) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(budgets))
    for condition in CONDITIONS:
        for strategy, points in curves(cells, condition).items():
            by_queries = {point.queries: point for point in points}
            shown = [_shown(by_queries[budget]) if budget in by_queries else "" for budget in budgets]
            lines.append(f"| {condition} | {strategy} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(point: Point) -> str:
    spread = f" ({100 * point.lowest:.1f}-{100 * point.highest:.1f})" if point.seeds > 1 else ""
    return f"{100 * point.median:.1f}{spread} [{100 * point.lower:.1f}, {100 * point.upper:.1f}]"


def plot(cells: Sequence[Cell]) -> bytes:
    """PNG: a panel a condition, a line a strategy through its medians; bars are intervals, bands the spread of seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

    shown = {name: found for name in CONDITIONS if (found := curves(cells, name))}
    figure = Figure(figsize=(1.2 + 4.2 * len(shown), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (condition, found) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for number, (strategy, points) in enumerate(found.items()):
            queries, median, lower, upper, lowest, highest = np.array(
                [[p.queries, p.median, p.lower, p.upper, p.lowest, p.highest] for p in points]
            ).T
            color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
            apart = 1.015 ** (number - (len(found) - 1) / 2)  # so that error bars do not hide each other
            axes.errorbar(
                queries * apart,
                median,
                yerr=np.clip([median - lower, upper - median], 0, None),
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.6,
                label=strategy,
            )
            axes.fill_between(queries * apart, lowest, highest, color=color, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sorted({cell.queries for cell in cells}))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(CONDITIONS[condition], loc="left", fontsize=10)
        axes.set_xlabel("queries")
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("agreement with the target")
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as JSON has them."""
    return [vars(cell) for cell in cells]
