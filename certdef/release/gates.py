"""Gates: what the rules of a release measure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np

from certdef.release.pairing import Pairs, certified
from certdef.release.results import Gate, Row
from certdef.release.rules import Rule

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MEASURED_AT: dict[str, Callable[[Pairs, float], float]] = {
    "certified": lambda pairs, radius: float(np.mean(certified(pairs.new, radius))),
    "drop": lambda pairs, radius: (
        float(np.mean(certified(pairs.old, radius))) - float(np.mean(certified(pairs.new, radius)))
    ),
    "lost": lambda pairs, radius: float(np.sum(certified(pairs.old, radius) & ~certified(pairs.new, radius))),
}
MEASURED: dict[str, Callable[[Pairs], float]] = {
    "clean": lambda pairs: float(np.mean(certified(pairs.new, 0.0))),
    "abstained": lambda pairs: float(np.mean(pairs.new.predict < 0)),
    "median_radius": lambda pairs: float(np.median(radii_of_right(pairs))),
    "mean_radius": lambda pairs: float(np.mean(radii_of_right(pairs))),
}
SLACK = 1e-12  # shares are quotients of whole numbers: 95/100 - 93/100 is not more than 0.02


def gate(rule: Rule, pairs: Pairs) -> Gate:
    """Measure NEW by a rule."""
    if rule.radius is None:
        value = MEASURED[rule.quantity](pairs)
    else:
        value = MEASURED_AT[rule.quantity](pairs, rule.radius)
    near = abs(value - rule.limit) <= SLACK
    failed = "=" in rule.comparison if near else COMPARISONS[rule.comparison](value, rule.limit)
    return Gate(rule=f"fail if {rule.text}", passed=not failed, measured=f"{value:.4g}")


def observed_drop(rows: Sequence[Row], limit: float) -> Gate:
    """At no compared radius may fewer images of all be certified than before, by more than the limit."""
    overall = [row for row in rows if row.scope == "all"]
    worst = min(overall, key=lambda row: row.difference)
    return Gate(
        rule=f"observed drop at most {limit:g}",
        passed=-worst.difference <= limit + SLACK,
        measured=f"largest {max(0.0, -worst.difference):.4g} at r = {worst.radius:g}",
    )


def proven_drop(rows: Sequence[Row], limit: float) -> Gate:
    """In no row, also of a class or group, may a drop beyond the limit be proven.

    The intervals of all rows hold together. For a limit of 0 Holm's p-values, which prove more, decide.
    """
    failing = [row for row in rows if (row.verdict == "worse" if limit == 0 else -row.upper > limit)]
    worst = min(failing or rows, key=lambda row: row.upper)
    more = f" and {len(failing) - 1} more" if len(failing) > 1 else ""
    where = " ".join(filter(None, [worst.scope, worst.name]))
    measured = f"{where}, r = {worst.radius:g}: at least {max(0.0, -worst.upper):.4g}{more}"
    return Gate(rule=f"proven drop at most {limit:g}", passed=not failing, measured=measured)


def radii_of_right(pairs: Pairs) -> np.ndarray:
    """Radii of NEW (M,); a wrong or abstained image has radius 0."""
    return np.where(certified(pairs.new, 0.0), pairs.new.radius, 0.0)
