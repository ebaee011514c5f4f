"""Agreement against queries: the finished cells as a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from certdef.report.figures import CONDITIONS, budget_plot
from certdef.stages.budgets import Cell, Point, curves

if TYPE_CHECKING:
    from certify.records.picture import Picture


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
            row = [_cell(by_queries[budget]) if budget in by_queries else "" for budget in budgets]
            lines.append(f"| {condition} | {strategy} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(point: Point) -> str:
    spread = f" ({100 * point.lowest:.1f}-{100 * point.highest:.1f})" if point.seeds > 1 else ""
    return f"{100 * point.median:.1f}{spread} [{100 * point.lower:.1f}, {100 * point.upper:.1f}]"


def plot(cells: Sequence[Cell]) -> Picture:
    """A panel a condition, a line a strategy."""
    panels = {title: lines for name, title in CONDITIONS.items() if (lines := curves(cells, name))}
    return budget_plot(panels)
