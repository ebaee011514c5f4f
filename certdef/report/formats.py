"""Figures as a person reads them, in the terminal, on the page and in the README."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from certdef.stages.udc.intervals import Mean
from certdef.tracking.results import Share


def percent(value: float) -> str:
    """A share with one decimal: 0.575 is 57.5%."""
    return f"{100 * value:.1f}%"


def percent_up(value: float) -> str:
    """An upper bound of a share with one decimal, rounded up."""
    return f"{Decimal(100 * value).quantize(Decimal('0.1'), ROUND_CEILING)}%"


def with_interval(share: Share) -> str:
    """A share and its interval: 57.5% [51.0, 63.8]."""
    return f"{percent(share.value)} [{100 * share.lower:.1f}, {100 * share.upper:.1f}]"


def decibels(mean: Mean) -> str:
    """A mean in dB and its interval: 25.41 dB [23.09, 27.72]."""
    return f"{mean.value:.2f} dB [{mean.lower:.2f}, {mean.upper:.2f}]"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def radius_down(value: float) -> str:
    """A radius with three decimals, rounded down: never more than was proven."""
    return str(Decimal(value).quantize(Decimal("0.001"), ROUND_FLOOR)) if math.isfinite(value) else "∞"
