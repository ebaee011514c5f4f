"""The report page of a job: plain facts gathered from the stages' results, rendered as one HTML file.

Every figure is taken from a stage's result, its records or the query bill; none is measured here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import certify
from certdef import stages
from certdef.config.job import RunConfig, without_password
from certdef.config.noise_laws import noise_law
from certdef.config.purifiers import plain_name
from certdef.data.sets import Splits
from certdef.models.storage import load_model
from certdef.purifiers.registry import find_purifier
from certdef.report import figures as pictures
from certdef.report.citations import reference
from certdef.report.words import law_in_words, purifier_title
from certdef.stages.attack import AttackResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.ladder import LadderResult
from certdef.stages.networks import NetworkResult
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage
from surrogates import Bill

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 8  # held-out images in the picture strip: the first ones, not picked
SUBJECTS = ("target", "surrogate")
PURPOSES = {
    "training": "labels for the surrogate's training images",
    "evaluation": "accuracy, agreement and membership inference: answers that need not be fresh",
    "certification": "noise votes that certify the target itself",
    "attack": "transferred adversarial images",
    "canary": "repeated questions that notice a changed target",
}


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML that loads nothing: styles and pictures are inside.

    Args:
        done: The finished stages target, surrogate, certify, attack and served, and the ladder if it was climbed, in any
            order.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    purifier = find_purifier(config.purifier)
    stage = {each.name: each for each in done}
    result = {each.name: each.result for each in done}
    folder = stage["certify"].path
    certificates = _certificates(config, result["certify"])
    radii = [0.0, *config.certify.radii]
    return template("report.html").render(
        data=data,
        config=config,
        image=_image(data, config.certify.radii),
        target=result["target"],
        surrogate=result["surrogate"],
        front=purifier_title(config.purifier).replace("^3", "³"),
        about=purifier.about,
        purifier_stage=f"purifier-{plain_name(config.purifier)}",
        certified_front=purifier.denoiser,
        networks={name: each.parameters for name, each in result.items() if isinstance(each, NetworkResult)},
        certificates=certificates,
        radii=radii,
        headline_at=next((at for at, radius in enumerate(radii) if radius > 0), 0),
        headline={subject: certificates[subject]["rows"][0] for subject in SUBJECTS},
        headline_law=law_in_words(config.certify.laws[0]),
        curves={
            name: pictures.data_uri((folder / f"{file}.png").read_bytes())
            for name, file in {"both": "certified_accuracy"}.items()
            | {subject: f"certified_accuracy_{subject}" for subject in SUBJECTS}.items()
        },
        strip=_strip(config, data, stage["served"], folder),
        attack=_attack(config, data, result["attack"]),
        ladder=_ladder(stage["ladder"]) if "ladder" in stage else None,
        bill=_bill(config, bill, result["certify"]),
        uris=uris(result),
        registered_model=result["served"].registered_model,
        versions=_headline_records(config, folder, "target").config["versions"],
        config_json=json.dumps(config.public_dict(), indent=2),
        papers=papers("smoothing", "denoised", *purifier.about.papers, "ducd", "pgd"),
        run_id=run_id,
        device=device,
    )


def uris(results: Mapping[str, StageResult]) -> dict[str, str]:
    """Where each stage's model is, without passwords."""
    found = {name: getattr(result, "uri", None) for name, result in results.items()}
    return {name: without_password(uri) for name, uri in found.items() if uri}


def template(name: str) -> Any:
    """A template of this folder; what is unknown to it is an error, and what comes from outside is text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "up": up, "count": count, "down": down}
    return environment.get_template(name)


# --- figures as they are printed ----------------------------------------------------------------------------


def share(value: float) -> str:
    """A share as a percentage with one decimal: 0.575 is 57.5%."""
    return f"{100 * value:.1f}%"


def up(value: float) -> str:
    """An upper bound of a share as a percentage with one decimal, rounded up."""
    return f"{Decimal(100 * value).quantize(Decimal('0.1'), ROUND_CEILING)}%"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def down(value: float) -> str:
    """A radius with three decimals, rounded down: never more than was proven."""
    return str(Decimal(value).quantize(Decimal("0.001"), ROUND_FLOOR)) if math.isfinite(value) else "∞"


# --- the sections -------------------------------------------------------------------------------------------


def _image(data: Splits, radii: Sequence[float]) -> dict[str, Any]:
    """What the configured L2 radii amount to for images of this size."""
    values = math.prod(data.image_shape)
    return {
        "shape": data.image_shape,
        "values": values,
        "unit": "pixel" if data.image_shape[0] == 1 else "colour value",
        "radii": [
            # k values moved by their whole range are sqrt(k) away, one moved by a share r of it is r away
            {"radius": radius, "whole": math.floor(radius**2 + 1e-9), "each": radius / math.sqrt(values)}
            for radius in radii
            if radius > 0
        ],
    }


def _certificates(config: RunConfig, result: CertifyResult) -> dict[str, Any]:
    """For each subject what its rows share, and a row for each law with and without the purifier; headline first."""
    words = {law.label: law_in_words(law) for law in config.certify.laws}
    found: dict[str, Any] = {subject: {"rows": []} for subject in SUBJECTS}
    for condition in stages.conditions(config):
        curve = result.curves[condition.key]
        sure = certify.binomial_lower_bound(curve.n, curve.n, config.certify.alpha)
        subject = found[condition.subject]
        subject |= {"n": curve.n, "images": curve.images, "norm": curve.noise["norm"]}
        subject["rows"].append(
            {
                "law": condition.law,
                "words": words.get(condition.law),
                "mean_sigma": condition.noise.mean_sigma,
                "comparison": condition.law not in words,
                "denoised": curve.denoised,
                "sound": curve.sound,
                "abstained": curve.abstained,
                "ceiling": condition.noise.radius(sure),
                "accuracy": curve.shares,
            }
        )
    return found


def _headline_records(config: RunConfig, folder: Path, subject: str) -> certify.records.Records:
    first = next(each for each in stages.conditions(config) if each.subject == subject)
    return certify.read_records(folder / "records" / f"{first.key}.jsonl")


def _strip(config: RunConfig, data: Splits, served: Stage, folder: Path) -> list[dict[str, Any]]:
    """The first held-out images: clean, under one noise draw, denoised where they are, and both subjects' verdicts."""
    images = data.heldout_images[:SHOWN]
    noise = noise_law(config.certify.laws[0])
    noisy, denoised = pictures.denoising_steps(
        load_model(served.path / "model").denoiser, noise, images, config.seed
    )
    verdicts = {}
    for subject in SUBJECTS:
        records = _headline_records(config, folder, subject)
        rows = zip(records.idx, records.predict, records.radius, records.correct, strict=True)
        verdicts[subject] = {int(idx): rest for idx, *rest in rows}

    def verdict(subject: str, index: int) -> dict[str, Any] | None:
        if index not in verdicts[subject]:
            return None
        predict, radius, correct = verdicts[subject][index]
        abstained = predict == certify.ABSTAIN
        return {
            "abstained": abstained,
            "label": None if abstained else data.classes[predict],
            "radius": float(radius),
            "right": bool(correct) and not abstained,
        }

    return [
        {
            "label": data.classes[data.heldout_labels[index]],
            "clean": pictures.data_uri(pictures.png(images[index])),
            "noisy": pictures.data_uri(pictures.png(noisy[index])),
            "denoised": pictures.data_uri(pictures.png(denoised[index])),
            **{subject: verdict(subject, index) for subject in SUBJECTS},
        }
        for index in range(len(images))
    ]


def _attack(config: RunConfig, data: Splits, result: AttackResult) -> dict[str, Any]:
    return {
        "rows": result.rows,
        "images": result.images,
        "clean": result.rows[0],
        "worst": max(result.rows, key=lambda row: row.eps),
        "helped": [f"{row.eps:g}" for row in result.rows if row.target_purified.lower > row.target.upper],
        "hurt": [f"{row.eps:g}" for row in result.rows if row.target_purified.upper < row.target.lower],
        "steps": config.attack.steps,
        "sigma": config.attack.sigma_255 / 255,
        "sigma_255": config.attack.sigma_255,
        "root": math.sqrt(math.prod(data.image_shape)),
        "plot": pictures.data_uri(
            pictures.attack_plot(result.rows, purifier_title(config.purifier).replace("^3", "³"))
        ),
    }


def _ladder(stage: Stage[LadderResult]) -> dict[str, Any]:
    """Each subject's table, a row an attack and a column a system; with the picture and whatever is suspicious."""
    result = stage.result
    tables = {}
    for subject in SUBJECTS:
        systems = {name: subjects[subject] for name, subjects in result.systems.items()}
        attacks = {name: {attack.name: attack for attack in each.rungs} for name, each in systems.items()}
        names = list(dict.fromkeys(attack.name for each in systems.values() for attack in each.rungs))
        tables[subject] = {
            "images": max(each.images for each in systems.values()),
            "queries": sum(each.queries for each in systems.values()),
            "lowest": {name: each.headline for name, each in systems.items()},
            "alarms": [f"{name}: {alarm}" for name, each in systems.items() for alarm in each.alarms],
            "rows": [
                {
                    "name": name.replace("_", " "),
                    "knows": next(each[name].knows for each in attacks.values() if name in each),
                    "cells": [
                        (attacks[system].get(name), systems[system].headline.rung == name)
                        for system in systems
                    ],
                }
                for name in names
            ],
        }
    return {
        "tables": tables,
        "systems": list(result.systems),
        "own": result.own,
        "eps": result.eps,
        "curve": result.curve,
        "plot": pictures.data_uri((stage.path / "ladder.png").read_bytes()),
    }


def charges(bill: Bill) -> dict[str, Any]:
    """The charges of the purposes that were budgeted or used, and their total."""
    return {
        "charges": {
            name: {"charge": charge, "why": PURPOSES.get(name, "")}
            for name, charge in bill.charges.items()
            if charge.budget or charge.largest
        },
        "total": bill.total,
    }


def _bill(config: RunConfig, bill: Bill, certified: CertifyResult) -> dict[str, Any]:
    return charges(bill) | {
        "smoothed_targets": sum(curve.subject == "target" for curve in certified.curves.values()),
        "draws": certified.draws_target,
        "held_back": certified.draws_target < config.certify.n,
    }


def papers(*keys: str) -> list[dict[str, str]]:
    """References, each with the address of its arXiv page where it has one."""
    listed = []
    for text in map(reference, keys):
        number = re.search(r"arXiv (\d{4}\.\d{5})", text)
        listed.append({"reference": text, "address": f"https://arxiv.org/abs/{number[1]}" if number else ""})
    return listed
