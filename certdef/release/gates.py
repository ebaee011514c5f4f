"""Gates: conditions on a release, in a small strict grammar.

rule      = quantity comparison number          the release is refused where it is true
quantity  = certified@RADIUS | drop@RADIUS | lost@RADIUS | clean | abstained | median_radius | mean_radius
comparison = < | <= | > | >=
number    = 0.6 | 60% | 1e-3
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from certdef.config.job import ConfigError, nearest
from certdef.release.pairing import Pairs, certified
from certdef.release.results import Gate, Row

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RULE = re.compile(rf"\s*([a-z_]+)\s*(?:@\s*({NUMBER}))?\s*(<=|>=|<|>)\s*([+-]?{NUMBER})\s*(%?)\s*", re.ASCII)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
AT_RADIUS: dict[str, Callable[[Pairs, float], float]] = {
    "certified": lambda pairs, radius: float(np.mean(certified(pairs.new, radius))),
    "drop": lambda pairs, radius: (
        float(np.mean(certified(pairs.old, radius))) - float(np.mean(certified(pairs.new, radius)))
    ),
    "lost": lambda pairs, radius: float(np.sum(certified(pairs.old, radius) & ~certified(pairs.new, radius))),
}
OF_NEW: dict[str, Callable[[Pairs], float]] = {
    "clean": lambda pairs: float(np.mean(certified(pairs.new, 0.0))),
    "abstained": lambda pairs: float(np.mean(pairs.new.predict < 0)),
    "median_radius": lambda pairs: float(np.median(radii_of_right(pairs))),
    "mean_radius": lambda pairs: float(np.mean(radii_of_right(pairs))),
}
SHARES = ("certified", "drop", "clean", "abstained")
SLACK = 1e-12  # shares are quotients of whole numbers: 95/100 - 93/100 is not more than 0.02
EXAMPLE = 'e.g. --fail-if "certified@0.25 < 0.60"'


@dataclass(frozen=True)
class Rule:
    """A parsed --fail-if."""

    text: str
    quantity: str
    radius: float | None
    comparison: str
    limit: float

    def check(self, pairs: Pairs) -> Gate:
        """Measure NEW."""
        if self.radius is None:
            value = OF_NEW[self.quantity](pairs)
        else:
            value = AT_RADIUS[self.quantity](pairs, self.radius)
        near = abs(value - self.limit) <= SLACK
        failed = "=" in self.comparison if near else COMPARISONS[self.comparison](value, self.limit)
        return Gate(rule=f"fail if {self.text}", passed=not failed, measured=f"{value:.4g}")


def parse_rules(texts: Sequence[str]) -> list[Rule]:
    """Parse every --fail-if.

    Raises:
        ConfigError: All that can't be read, at once.
    """
    rules: list[Rule] = []
    problems: list[str] = []
    for text in texts:
        found = _parse(text)
        if isinstance(found, Rule):
            rules.append(found)
        else:
            problems.append(f"--fail-if {text!r}: {found}")
    if problems:
        raise ConfigError("\n".join(problems))
    return rules


def _parse(text: str) -> Rule | str:
    match = RULE.fullmatch(text)
    if match is None:
        return f"write QUANTITY < NUMBER, {EXAMPLE}"
    quantity, radius, comparison, limit, percent = match.groups()
    known = [*AT_RADIUS, *OF_NEW]
    if quantity not in known:
        return f"unknown quantity {quantity!r}{nearest(quantity, known)}: one of {', '.join(known)}"
    if (quantity in AT_RADIUS) != (radius is not None):
        needs = f"write {quantity}@0.25" if quantity in AT_RADIUS else f"write {quantity} without a radius"
        return f"{needs}, {EXAMPLE}"
    value = float(limit) / (100 if percent else 1)
    if percent and quantity not in SHARES:
        return f"{quantity} is no share: give a number without %"
    if not math.isfinite(value) or (quantity in SHARES and abs(value) > 1):
        return f"a share lies between 0 and 1, got {limit}{percent}: write 0.60 or 60%"
    if radius is not None and not math.isfinite(float(radius)):
        return f"a radius is finite, got {radius}"
    return Rule(
        " ".join(text.split()), quantity, None if radius is None else float(radius), comparison, value
    )


def check_limit(option: str, value: float | None) -> list[str]:
    """What is wrong with the limit of a drop."""
    if value is None or (math.isfinite(value) and 0 <= value < 1):
        return []
    return [f"{option} is {value:g}: give a share in [0, 1), e.g. {option} 0.02"]


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
