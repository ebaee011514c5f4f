"""What a release is held to, in a small strict grammar; loads no torch, so that a typo is answered at once.

rule      = quantity comparison number          the release is refused where it is true
quantity  = certified@RADIUS | drop@RADIUS | lost@RADIUS | clean | abstained | median_radius | mean_radius
comparison = < | <= | > | >=
number    = 0.6 | 60% | 1e-3
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from certdef.config.job import CertifyConfig, ConfigError, nearest

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RULE = re.compile(rf"\s*([a-z_]+)\s*(?:@\s*({NUMBER}))?\s*(<=|>=|<|>)\s*([+-]?{NUMBER})\s*(%?)\s*", re.ASCII)
AT_RADIUS = ("certified", "drop", "lost")
OF_NEW = ("clean", "abstained", "median_radius", "mean_radius")
SHARES = ("certified", "drop", "clean", "abstained")
RADII = (0.0, *CertifyConfig.radii)  # where two versions are compared
EXAMPLE = 'e.g. --fail-if "certified@0.25 < 0.60"'


@dataclass(frozen=True)
class Rule:
    """A parsed --fail-if."""

    text: str
    quantity: str
    radius: float | None
    comparison: str
    limit: float


def check_radii(radii: Sequence[float]) -> None:
    """Refuse radii at which nothing can be compared.

    Raises:
        ConfigError: There are none, or one is no finite number of 0 or more.
    """
    if not radii or not all(math.isfinite(radius) and radius >= 0 for radius in radii):
        raise ConfigError(f"--radii is {list(radii)}: give finite numbers >= 0, e.g. --radii 0,0.25,0.5")


def check_levels(alpha: float, **limits: float | None) -> None:
    """Refuse a level of the tests, or a limit of a drop, that is none.

    Raises:
        ConfigError: All that are none, at once.
    """
    problems = []
    if not 0 < alpha < 0.5:
        problems.append(f"--alpha is {alpha:g}: give a level in (0, 0.5), e.g. --alpha 0.05")
    for name, limit in limits.items():
        option = f"--{name.replace('_', '-')}"
        if limit is not None and not 0 <= limit < 1:
            problems.append(f"{option} is {limit:g}: give a share in [0, 1), e.g. {option} 0.02")
    if problems:
        raise ConfigError("\n".join(problems))


def parse_rules(texts: Sequence[str]) -> list[Rule]:
    """Parse every --fail-if.

    Raises:
        ConfigError: All that can't be read, at once.
    """
    parsed = [(text, _parse(text)) for text in texts]
    problems = [f"--fail-if {text!r}: {found}" for text, found in parsed if isinstance(found, str)]
    if problems:
        raise ConfigError("\n".join(problems))
    return [found for _, found in parsed if isinstance(found, Rule)]


def _parse(text: str) -> Rule | str:
    match = RULE.fullmatch(text)
    if match is None:
        return f"write QUANTITY < NUMBER, {EXAMPLE}"
    quantity, radius, comparison, limit, percent = match.groups()
    known = (*AT_RADIUS, *OF_NEW)
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
