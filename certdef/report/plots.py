"""`certdef.plot`: what a user holds in Python as a figure, drawn as the pages draw it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np

import certify
from certdef.attacks.evaluation import Evaluations
from certdef.config.job import ConfigError
from certdef.report import budget_curves, figures
from certdef.report.average_case import bars
from certdef.report.threats import threat_plot
from certdef.stages.attack import AttackResult
from certdef.stages.budgets import BudgetsResult, Point
from certdef.stages.certificates import CertifyResult
from certdef.stages.ladder import LadderResult
from certdef.stages.robustness import RobustnessResult
from certdef.stages.summary import Summary
from certdef.stages.threat import ThreatResult
from certdef.tracking.workspace import Stage
from certify.records.curves import Curve
from certify.records.picture import Picture
from surrogates import Bill, Fidelity

POINTS = 400  # of a curve that is drawn from records
WHAT = (
    "certificates with labels (certify.Records.of), records or a curve, a bill, the result of a stage or a job, the "
    "evaluations of a ladder, or a mapping from names to several of these"
)


@singledispatch
def plot(value: Any) -> Picture:
    """Draw what a call has returned. A notebook shows the figure; ``savefig`` writes it.

    Args:
        value: One of:

            - `certify.Records` or a curve, or several by name: certified accuracy against the radius;
            - a `surrogates.Bill`: what is spent of each query budget;
            - agreement by number of queries, by strategy: `{"kcenter": {100: fidelity, 300: fidelity}}`;
            - what `certdef.attacks.threat_ladder.evaluate` returns, or several by name;
            - the result of a stage: certify, attack, ladder, budgets, robustness, a threat;
            - a job's summary or one of its stages: of its certificates, else of the last stage that has a picture.

    Raises:
        ConfigError: Anything else.

    Example:
        >>> import certdef, surrogates
        >>> bill = surrogates.Bill(None, {"attack": surrogates.Charge(500, 120, 0, 0, 0)})
        >>> certdef.plot(bill).axes[0].get_xlabel()
        "share of the purpose's query budget"
    """
    raise ConfigError(f"there is no picture of a {type(value).__name__}: give {WHAT}")


@plot.register
def _(value: certify.Records) -> Picture:
    return _curves({"certified accuracy": value})


@plot.register
def _(value: Curve) -> Picture:
    return _curves({"certified accuracy": value})


@plot.register
def _(value: Bill) -> Picture:
    return figures.bill_plot(value)


@plot.register
def _(value: Evaluations) -> Picture:
    return plot({"system": value})


@plot.register
def _(value: Mapping) -> Picture:
    kinds: dict[type | tuple[type, ...], Any] = {
        (certify.Records, Curve): _curves,
        Evaluations: _ladder,
        Mapping: _agreement,
    }
    for kind, draw in kinds.items():
        if value and all(isinstance(each, kind) for each in value.values()):
            return draw(value)
    held = sorted({type(each).__name__ for each in value.values()})
    raise ConfigError(f"there is no picture of a mapping to {', '.join(held) or 'nothing'}: give {WHAT}")


@plot.register
def _(value: CertifyResult) -> Picture:
    """At the radii of the tables; a stage has its records, and a finer curve."""
    radii = np.array([0.0, *value.radii])
    headline = {key: curve for key, curve in value.curves.items() if curve.headline}
    lines = {}
    for key, curve in headline.items():
        accuracy, lower, upper = np.array(curve.shares).T
        lines[key] = Curve(radii, accuracy, lower, upper, curve.images, curve.sound)
    return _curves(lines, next((curve.noise for curve in headline.values()), None))


@plot.register
def _(value: AttackResult) -> Picture:
    return figures.attack_plot(value.rows, "the purifier")


@plot.register
def _(value: LadderResult) -> Picture:
    return figures.ladder_plot(value.attacks_by_subject, value.curve, value.eps)


@plot.register
def _(value: BudgetsResult) -> Picture:
    return budget_curves.plot(value.cells)


@plot.register
def _(value: RobustnessResult) -> Picture:
    return bars(value, "target")


@plot.register
def _(value: ThreatResult) -> Picture:
    return threat_plot(value, value.title)


@plot.register
def _(value: Stage) -> Picture:
    result = value.result
    if not isinstance(result, CertifyResult):
        return plot(result)
    headline = [key for key, curve in result.curves.items() if curve.headline]
    return _curves({key: certify.read_records(value.path / "records" / f"{key}.jsonl") for key in headline})


@plot.register
def _(value: Summary) -> Picture:
    drawn = [stage for stage in value.stages.values() if plot.dispatch(type(stage.result)) is not _none]
    if not drawn:
        raise ConfigError(
            f"no stage of {', '.join(value.stages)} has a picture: plot what certify, attack or budgets return"
        )
    certified = [stage for stage in drawn if isinstance(stage.result, CertifyResult)]
    return plot((certified or drawn)[-1])


_none = plot.dispatch(object)


def _curves(
    several: Mapping[str, certify.Records | Curve], noise: Mapping[str, Any] | None = None
) -> Picture:
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
    eps = next(each.eps for each in next(iter(systems.values())) if not each.name.endswith("clean"))
    return figures.ladder_plot({"threat ladder": systems}, (), eps)


def _agreement(strategies: Mapping[str, Mapping[int, Fidelity]]) -> Picture:
    """Agreement against queries, a panel for clean images and one for noisy ones."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for strategy, found in strategies.items():
        for queries, each in sorted(found.items()):
            title = budget_curves.CONDITIONS["noisy" if each.noisy else "clean"]
            share = each.agreement
            point = Point(queries, share, each.lower, each.upper, share, share, seeds=1)
            panels.setdefault(title, {}).setdefault(strategy, []).append(point)
    return figures.budget_plot(panels)
