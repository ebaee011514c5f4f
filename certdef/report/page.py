"""The report page of the main job, one HTML file that loads nothing.

Every figure is taken from a stage's result, its records or the query bill; none is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certdef.attacks.evaluation import AttackEvaluation, known_by
from certdef.config.job import RunConfig
from certdef.config.purifiers import plain_name
from certdef.data.sets import Splits
from certdef.purifiers.registry import find_purifier
from certdef.report import figures, images
from certdef.report.certified import of_target
from certdef.report.template import papers, template
from certdef.report.words import right_in_words
from certdef.stages.attack import AttackResult
from certdef.stages.ladder import Evaluation, LadderResult
from certdef.stages.networks import NetworkResult
from certdef.stages.students import CertifiedSurrogateResult
from certdef.tracking.workspace import Stage
from surrogates import Bill


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages target, surrogate, certify and attack, served and the ladder where the job has them, in
            any order.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    stages = {each.name: each for each in done}
    result = {each.name: each.result for each in done}
    shared = of_target(config, data, done, run_id, device)
    trained = (each for each in result.values() if isinstance(each, CertifiedSurrogateResult))
    student = next((each for each in trained if each.headline), None)
    by_consistency = ["consistency"] if student and config.surrogate.consistency else []
    behind = f"finetuned-{plain_name(config.purifier)}"
    about = find_purifier(config.purifier).about.papers
    return template("report.html").render(
        surrogate=result["surrogate"],
        student=student,
        served=result.get("served"),
        networks={
            name: each.parameters for name, each in sorted(result.items()) if isinstance(each, NetworkResult)
        },
        purifier_stage=f"purifier-{plain_name(config.purifier)}",
        purified=config.purifier != "none",
        attack=_attack(config, data, result["attack"], shared["purifier"]),
        finetuned=result.get(behind),
        ladder=_ladder(stages["ladder"]) if "ladder" in stages else None,
        bill=bill,
        papers=papers("smoothing", "denoised", *about, "ducd", *by_consistency, "pgd"),
        **shared,
    )


def _attack(config: RunConfig, data: Splits, result: AttackResult, purifier: str) -> dict[str, Any]:
    """The rows, the picture, and at which eps the purifier helped or hurt by intervals that do not overlap."""
    rows = result.rows
    return {
        "rows": rows,
        "images": result.images,
        "clean": rows[0],
        "largest": max(rows, key=lambda row: row.eps),
        "helped": [
            f"{row.eps:g}"
            for row in rows
            if row.target_purified and row.target_purified.lower > row.target.upper
        ],
        "hurt": [
            f"{row.eps:g}"
            for row in rows
            if row.target_purified and row.target_purified.upper < row.target.lower
        ],
        "steps": config.attack.steps,
        "sigma": config.attack.sigma_255 / 255,
        "sigma_255": config.attack.sigma_255,
        "plot": images.data_uri(figures.attack_plot(rows, purifier, right_in_words(data.remarks)).to_png()),
    }


def _ladder(stage: Stage[LadderResult]) -> dict[str, Any]:
    """The ladder's result with a table a subject, and its picture."""
    result = stage.result
    return {
        "result": result,
        "tables": {
            subject: ladder_table({name: each[subject] for name, each in result.systems.items()})
            for subject in ("target", "surrogate")
        },
        "plot": images.data_uri((stage.path / "ladder.png").read_bytes()),
    }


def ladder_table(systems: dict[str, Evaluation]) -> dict[str, Any]:
    """A row an attack, from the weakest threat model on, and a column a system.

    Cells have the evaluation, None where the attack does not apply, and whether it is the headline: the worst case image by image.
    """
    attacks = {name: {each.name: each for each in evaluation.rungs} for name, evaluation in systems.items()}

    def cell(system: str, attack: str) -> tuple[AttackEvaluation | None, bool]:
        return attacks[system].get(attack), systems[system].headline.rung == attack

    return {
        "images": max(each.images for each in systems.values()),
        "queries": sum(each.queries for each in systems.values()),
        "gradients": sum(attack.gradients for each in systems.values() for attack in each.rungs),
        "worst": {name: each.headline for name, each in systems.items()},
        "alarms": [f"{name}: {alarm}" for name, each in systems.items() for alarm in each.alarms],
        "rows": [
            {
                "name": attack.replace("_", " "),
                "knows": threat_model,
                "cells": [cell(system, attack) for system in systems],
            }
            for attack, threat_model in known_by(each.rungs for each in systems.values()).items()
        ],
    }
