"""Figures of a job: of its summary, its stages, and what they found."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np

import certify
from certdef.config.job import ConfigError
from certdef.report import budget_curves, figures
from certdef.report.average_case import bars
from certdef.report.held_figures import WHAT, curves
from certdef.report.threats import threat_plot
from certdef.stages.attack import AttackResult
from certdef.stages.budgets import BudgetsResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.ladder import LadderResult
from certdef.stages.robustness import RobustnessResult
from certdef.stages.summary import Summary
from certdef.stages.threat import ThreatResult
from certdef.tracking.workspace import Stage
from certify.records.curves import Curve
from certify.records.picture import Picture


@singledispatch
def picture_of(value: Any) -> Picture:
    """Draw a result, or ConfigError with what can be drawn."""
    raise ConfigError(f"there is no picture of a {type(value).__name__}: give {WHAT}")


NONE = picture_of.dispatch(object)


@picture_of.register
def _(value: CertifyResult) -> Picture:
    """At the radii of the tables; a stage has its records, and a finer curve."""
    radii = np.array([0.0, *value.radii])
    headline = {key: curve for key, curve in value.curves.items() if curve.headline}
    lines = {}
    for key, curve in headline.items():
        accuracy, lower, upper = np.array(curve.shares).T
        lines[key] = Curve(radii, accuracy, lower, upper, curve.images, curve.sound)
    return curves(lines, next((curve.noise for curve in headline.values()), None))


@picture_of.register
def _(value: AttackResult) -> Picture:
    return figures.attack_plot(value.rows, "the purifier")


@picture_of.register
def _(value: LadderResult) -> Picture:
    return figures.ladder_plot(value.attacks_by_subject, value.curve, value.eps)


@picture_of.register
def _(value: BudgetsResult) -> Picture:
    return budget_curves.plot(value.cells)


@picture_of.register
def _(value: RobustnessResult) -> Picture:
    return bars(value, "target")


@picture_of.register
def _(value: ThreatResult) -> Picture:
    return threat_plot(value, value.title)


@picture_of.register
def _(value: Stage) -> Picture:
    result = value.result
    if not isinstance(result, CertifyResult):
        return picture_of(result)
    headline = [key for key, curve in result.curves.items() if curve.headline]
    return curves({key: certify.read_records(value.path / "records" / f"{key}.jsonl") for key in headline})


@picture_of.register
def _(value: Summary) -> Picture:
    drawn = [stage for stage in value.stages.values() if picture_of.dispatch(type(stage.result)) is not NONE]
    if not drawn:
        raise ConfigError(
            f"no stage of {', '.join(value.stages)} has a picture: plot what certify, attack or budgets return"
        )
    certified = [stage for stage in drawn if isinstance(stage.result, CertifyResult)]
    return picture_of((certified or drawn)[-1])
