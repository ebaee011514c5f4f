"""The report page of the main job, one HTML file that loads nothing.

Every figure is taken from a stage's result, its records or the query bill; none is measured here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certify
from certdef.attacks.evaluation import THREAT_MODELS, AttackEvaluation
from certdef.config.job import RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.purifiers import plain_name
from certdef.data.sets import Splits
from certdef.models.storage import load_model
from certdef.purifiers.registry import find_purifier
from certdef.report import figures, images
from certdef.report.certificates import certificate_rows
from certdef.report.template import papers, template, uris
from certdef.report.words import law_in_words, purifier_title, right_in_words
from certdef.stages.attack import AttackResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.conditions import conditions
from certdef.stages.ladder import Evaluation, LadderResult
from certdef.stages.networks import NetworkResult
from certdef.tracking.workspace import Stage
from surrogates import Bill

STRIP = 8  # held-out images among the pictures: the first ones, not picked
MOST_CLASSES = 30  # rows of the table by class
SUBJECTS = ("target", "surrogate")


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages target, surrogate, certify, attack and served, and the ladder if it was evaluated, in any
            order.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    purifier = find_purifier(config.purifier)
    stages = {each.name: each for each in done}
    result = {each.name: each.result for each in done}
    return template("report.html").render(
        config=config,
        config_json=json.dumps(config.public_dict(), indent=2),
        data=data,
        device=device,
        run_id=run_id,
        image=_image(data, config.certify.radii),
        target=result["target"],
        surrogate=result["surrogate"],
        served=result["served"],
        uris=uris(result),
        networks={
            name: each.parameters for name, each in sorted(result.items()) if isinstance(each, NetworkResult)
        },
        purifier=_title(config),
        about=purifier.about,
        purifier_stage=f"purifier-{plain_name(config.purifier)}",
        denoiser=purifier.denoiser.name if purifier.denoiser else None,
        by_class=_by_class(config, data, stages["certify"].path) if data.named else [],
        strip=_strip(config, data, stages["served"], stages["certify"].path),
        attack=_attack(config, data, result["attack"]),
        ladder=_ladder(stages["ladder"]) if "ladder" in stages else None,
        bill=bill,
        papers=papers("smoothing", "denoised", *purifier.about.papers, "ducd", "pgd"),
        **_certificates(config, result["certify"], stages["certify"].path),
    )


def _title(config: RunConfig) -> str:
    return purifier_title(config.purifier).replace("^3", "³")


def _image(data: Splits, radii: Sequence[float]) -> dict[str, Any]:
    """What the configured L2 radii amount to for images of this size."""
    values = math.prod(data.image_shape)
    return {
        "shape": data.image_shape,
        "values": values,
        "unit": "pixel" if data.image_shape[0] == 1 else "color value",
        "root": math.sqrt(values),
        "radii": [
            # k values moved by their whole range are sqrt(k) away, one moved by a share r of it is r away
            {"radius": radius, "whole": math.floor(radius**2 + 1e-9), "each": radius / math.sqrt(values)}
            for radius in radii
            if radius > 0
        ],
    }


def _certificates(config: RunConfig, result: CertifyResult, folder: Path) -> dict[str, Any]:
    """The rows of both subjects, the headline's radius and records, and the pictures."""
    radii, header = [0.0, *config.certify.radii], _headline_records(config, folder, "target").config
    assert header is not None  # a .jsonl has one
    files = {"both": "certified_accuracy"} | {each: f"certified_accuracy_{each}" for each in SUBJECTS}
    return {
        "certificates": {subject: certificate_rows(config, result, subject) for subject in SUBJECTS},
        "radii": radii,
        "headline_at": next((at for at, radius in enumerate(radii) if radius > 0), 0),
        "headline_law": law_in_words(config.certify.laws[0]),
        "curves": {
            name: images.data_uri((folder / f"{file}.png").read_bytes()) for name, file in files.items()
        },
        "smoothed_targets": sum(curve.subject == "target" for curve in result.curves.values()),
        "draws_target": result.draws_target,
        "versions": header["versions"],
    }


def _headline_records(config: RunConfig, folder: Path, subject: str) -> certify.records.Records:
    first = next(each for each in conditions(config) if each.subject == subject)
    return certify.read_records(folder / "records" / f"{first.key}.jsonl")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one certified vote; `label` is None where it abstains."""

    label: str | None
    radius: float
    right: bool


def _verdicts(config: RunConfig, data: Splits, folder: Path, subject: str) -> dict[int, Verdict]:
    """The headline's certificates of a subject, by index of the image."""
    records = _headline_records(config, folder, subject)
    rows = zip(records.idx, records.predict, records.radius, records.correct, strict=True)
    return {
        int(index): Verdict(None, 0.0, False)
        if predict == certify.ABSTAIN
        else Verdict(data.class_name(int(predict)), float(radius), bool(right))
        for index, predict, radius, right in rows
    }


@dataclass(frozen=True)
class ClassRow:
    """Images of one class, and of each subject how many were certified, and how many right within the headline's radius."""

    name: str
    certified: dict[str, tuple[int, int]]


def _by_class(config: RunConfig, data: Splits, folder: Path) -> list[ClassRow]:
    """The headline's certificates by class, the classes with most images first."""
    radius = next((each for each in config.certify.radii if each > 0), 0.0)
    every = {subject: _headline_records(config, folder, subject) for subject in SUBJECTS}
    seen = Counter(label for records in every.values() for label in records.label.tolist())

    def share(records: certify.records.Records, label: int) -> tuple[int, int]:
        mine = records.label == label
        return int((mine & records.correct & (records.radius >= radius)).sum()), int(mine.sum())

    return [
        ClassRow(
            data.class_name(label), {subject: share(records, label) for subject, records in every.items()}
        )
        for label, _ in sorted(seen.most_common(MOST_CLASSES), key=lambda each: (-each[1], each[0]))
    ]


def _strip(config: RunConfig, data: Splits, served: Stage, folder: Path) -> list[dict[str, Any]]:
    """The first held-out images: clean, under one noise draw, denoised where they are, and both subjects' verdicts."""
    clean, noise = data.heldout_images[:STRIP], noise_law(config.certify.laws[0])
    denoiser = load_model(served.path / "model").denoiser
    noisy, denoised = images.denoising_steps(denoiser, noise, clean, config.seed)
    verdicts = {subject: _verdicts(config, data, folder, subject) for subject in SUBJECTS}
    return [
        {
            "label": data.class_name(int(data.heldout_labels[index])),
            "clean": images.data_uri(images.png(clean[index])),
            "noisy": images.data_uri(images.png(noisy[index])),
            "denoised": images.data_uri(images.png(denoised[index])),
            **{subject: verdicts[subject].get(index) for subject in SUBJECTS},
        }
        for index in range(len(clean))
    ]


def _attack(config: RunConfig, data: Splits, result: AttackResult) -> dict[str, Any]:
    """The rows, the picture, and at which eps the purifier helped or hurt by intervals that do not overlap."""
    rows = result.rows
    return {
        "rows": rows,
        "images": result.images,
        "clean": rows[0],
        "largest": max(rows, key=lambda row: row.eps),
        "helped": [f"{row.eps:g}" for row in rows if row.target_purified.lower > row.target.upper],
        "hurt": [f"{row.eps:g}" for row in rows if row.target_purified.upper < row.target.lower],
        "steps": config.attack.steps,
        "sigma": config.attack.sigma_255 / 255,
        "sigma_255": config.attack.sigma_255,
        "plot": images.data_uri(figures.attack_plot(rows, _title(config), right_in_words(data.remarks))),
    }


def _ladder(stage: Stage[LadderResult]) -> dict[str, Any]:
    """The ladder's result with a table a subject, and its picture."""
    result = stage.result
    return {
        "result": result,
        "tables": {
            subject: ladder_table({name: each[subject] for name, each in result.systems.items()})
            for subject in SUBJECTS
        },
        "plot": images.data_uri((stage.path / "ladder.png").read_bytes()),
    }


def ladder_table(systems: dict[str, Evaluation]) -> dict[str, Any]:
    """A row an attack, from the weakest threat model on, and a column a system.

    Cells have the evaluation, None where the attack does not apply, and whether it is the system's worst case over attacks.
    """
    attacks = {name: {each.name: each for each in evaluation.rungs} for name, evaluation in systems.items()}

    def cell(system: str, attack: str) -> tuple[AttackEvaluation | None, bool]:
        return attacks[system].get(attack), systems[system].headline.rung == attack

    return {
        "images": max(each.images for each in systems.values()),
        "queries": sum(each.queries for each in systems.values()),
        "worst": {name: each.headline for name, each in systems.items()},
        "alarms": [f"{name}: {alarm}" for name, each in systems.items() for alarm in each.alarms],
        "rows": [
            {
                "name": attack.replace("_", " "),
                "knows": threat_model,
                "cells": [cell(system, attack) for system in systems],
            }
            for attack, threat_model in THREAT_MODELS.items()
            if any(attack in by_name for by_name in attacks.values())
        ],
    }
