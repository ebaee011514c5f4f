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

from certdef.report.figures import budget_plot

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
    """PNG: a panel a condition, a line a strategy."""
    panels = {title: found for name, title in CONDITIONS.items() if (found := curves(cells, name))}
    return budget_plot(panels)


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as JSON has them."""
    return [vars(cell) for cell in cells]
