"""Figures of what is computed without a job: records, curves, bills, agreement, the threat ladder of one system."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np

import certify
from certdef.attacks.evaluation import CONTROLS, Evaluations
from certdef.config.job import ConfigError
from certdef.report import figures
from certify.records.curves import Curve
from certify.records.picture import Picture
from surrogates import Bill, Fidelity

POINTS = 400  # of a curve that is drawn from records
WHAT = (
    "certificates with labels (certify.Records.of), records or a curve, a bill, the result of a stage or a job, the "
    "evaluations of a ladder, or a mapping from names to several of these"
)


@singledispatch
def draw(value: Any) -> Picture:
    """Draw a value, or ConfigError with what can be drawn."""
    raise ConfigError(f"there is no picture of a {type(value).__name__}: give {WHAT}")


@draw.register
def _(value: certify.Records) -> Picture:
    return curves({"certified accuracy": value})


@draw.register
def _(value: Curve) -> Picture:
    return curves({"certified accuracy": value})


@draw.register
def _(value: Bill) -> Picture:
    return figures.bill_plot(value)


@draw.register
def _(value: Evaluations) -> Picture:
    return draw({"system": value})


@draw.register
def _(value: Mapping) -> Picture:
    values = list(value.values())
    if values and all(isinstance(each, certify.Records | Curve) for each in values):
        return curves(value)
    if values and all(isinstance(each, Evaluations) for each in values):
        return _ladder(value)
    if values and all(_is_agreement(each) for each in values):
        return _agreement(value)
    held = sorted({type(each).__name__ for each in value.values()})
    raise ConfigError(f"there is no picture of a mapping to {', '.join(held) or 'nothing'}: give {WHAT}")


def curves(several: Mapping[str, certify.Records | Curve], noise: Mapping[str, Any] | None = None) -> Picture:
    """Curves by name; the axis is that of `noise`, else of the records' law."""
    records = [each for each in several.values() if isinstance(each, certify.Records)]
    furthest = max([0.25, *(1.1 * float(each.radius.max(initial=0.0)) for each in records)])
    radii = np.linspace(0, furthest, POINTS)
    lines = {
        name: each if isinstance(each, Curve) else certify.curves.certified_accuracy(each, radii)
        for name, each in several.items()
    }
    laws = [noise or {}] if noise else [each.noise or {} for each in records]
    axes = {(law.get("norm", ""), law.get("unit", "pixel values in [0, 1]")) for law in laws} or {
        ("", "as given")
    }
    if len(axes) > 1:
        norms = ", ".join(sorted(norm for norm, _ in axes))
        raise ConfigError(f"these records have radii that do not compare ({norms}): plot each alone")
    norm, unit = axes.pop()
    return certify.curves.plot(lines, norm=norm, unit=unit)


def _ladder(systems: Mapping[str, Evaluations]) -> Picture:
    eps = max(
        (each.eps for system in systems.values() for each in system if each.name not in CONTROLS), default=0.0
    )
    return figures.ladder_plot({"threat ladder": systems}, (), eps)


def _is_agreement(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(each, Fidelity) for each in value.values())
    )


def _agreement(strategies: Mapping[str, Mapping[int, Fidelity]]) -> Picture:
    """Agreement against queries, a panel for clean images and one for noisy ones."""
    panels: dict[str, dict[str, list[figures.Measured]]] = {}
    for strategy, found in strategies.items():
        for queries, each in sorted(found.items()):
            title = figures.CONDITIONS["noisy" if each.noisy else "clean"]
            point = figures.Measured(queries, each.agreement, each.lower, each.upper)
            panels.setdefault(title, {}).setdefault(strategy, []).append(point)
    return figures.budget_plot(panels)
