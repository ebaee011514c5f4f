"""What the pages of a certified target show of its certificates: tables, curves, and the first images with their verdicts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from torch import nn

import certify
from certdef.config.job import RunConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.data.sets import Splits
from certdef.models.storage import load_model
from certdef.purifiers.base import Parts
from certdef.purifiers.registry import find_purifier
from certdef.report import images
from certdef.report.average_case import found_average_case
from certdef.report.certificates import certificate_rows
from certdef.report.findings import warnings, worst_images
from certdef.report.template import uris
from certdef.report.threats import found_threats, section
from certdef.report.words import purifier_title
from certdef.stages.certificates import CertifyResult, headline_law
from certdef.stages.conditions import conditions, subjects
from certdef.stages.purifier import finetuned_networks
from certdef.tracking.workspace import RESULT, Stage

STRIP = 8  # held-out images among the pictures: the first ones, not picked
MOST_CLASSES = 30  # rows of the table by class


def of_target(
    config: RunConfig, data: Splits, done: Sequence[Stage], run_id: str, device: str
) -> dict[str, Any]:
    """What the pages of a certified target show alike.

    Args:
        config: The job.
        data: Its images.
        done: Its finished stages; target and certify are among them.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    purifier = find_purifier(config.purifier)
    stages = {each.name: each for each in done}
    result = {each.name: each.result for each in done}
    shown = certificates(config, stages)
    return {
        "config": config,
        "config_json": json.dumps(config.public_dict(), indent=2),
        "data": data,
        "device": device,
        "run_id": run_id,
        "image": radii_in_words(data, config.certify.radii),
        "target": result["target"],
        "uris": uris(result),
        "purifier": purifier_title(config.purifier).replace("^3", "³"),
        "about": purifier.about,
        "denoiser": purifier.denoiser.name if purifier.denoiser else None,
        "by_class": by_class(config, data, stages["certify"]) if data.named else [],
        "strip": strip(config, data, stages),
        "worst": {
            subject: worst_images(
                data, _headline_records(config, stages["certify"], subject), certify.ABSTAIN
            )
            for subject in subjects(config)
        },
        "certified_on": date.fromtimestamp((stages["certify"].path / RESULT).stat().st_mtime).isoformat(),
        "warnings": warnings(
            shown["certificates"], shown["radii"], shown["headline_at"], purifier_title(config.purifier)
        ),
        "average": found_average_case(config.workspace, result["target"].identity, data.heldout_digest),
        "threats": section(found_threats(config.workspace, result["target"].identity, data.heldout_digest)),
        **shown,
    }


def radii_in_words(data: Splits, radii: Sequence[float]) -> dict[str, Any]:
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


def certificates(config: RunConfig, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The rows of every subject, the headline's radius, noise and records, how that noise was chosen, and the pictures.

    Args:
        config: The job.
        stages: Its finished stages, by name: certify, and choice where the noise was chosen.
    """
    certified = stages["certify"]
    result, folder = certified.result, certified.path
    radii, header = [0.0, *config.certify.radii], _headline_records(config, certified, "target").config
    assert header is not None  # a .jsonl has one
    files = {"both": "certified_accuracy"} | {each: f"certified_accuracy_{each}" for each in subjects(config)}
    return {
        "certificates": {subject: certificate_rows(config, result, subject) for subject in subjects(config)},
        "radii": radii,
        "headline_at": next((at for at, radius in enumerate(radii) if radius > 0), 0),
        "headline_laws": {each: headline_law(config, result, each) for each in subjects(config)},
        "choice": stages["choice"].result if "choice" in stages else None,
        "curves": {
            name: images.data_uri((folder / f"{file}.png").read_bytes()) for name, file in files.items()
        },
        "smoothed_targets": sum(curve.subject == "target" for curve in result.curves.values()),
        "draws_target": result.draws_target,
        "versions": header["versions"],
    }


def _headline_records(
    config: RunConfig, stage: Stage[CertifyResult], subject: str
) -> certify.records.Records:
    first = next(each for each in conditions(config, stage.result.chosen) if each.subject == subject)
    return certify.read_records(stage.path / "records" / f"{first.key}.jsonl")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one certified vote; `label` is None where it abstains."""

    label: str | None
    radius: float
    right: bool


def _verdicts(
    config: RunConfig, data: Splits, stage: Stage[CertifyResult], subject: str
) -> dict[int, Verdict]:
    """The headline's certificates of a subject, by index of the image."""
    records = _headline_records(config, stage, subject)
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


def by_class(config: RunConfig, data: Splits, stage: Stage[CertifyResult]) -> list[ClassRow]:
    """The headline's certificates by class, the classes with most images first."""
    radius = next((each for each in config.certify.radii if each > 0), 0.0)
    every = {subject: _headline_records(config, stage, subject) for subject in subjects(config)}
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


def strip(config: RunConfig, data: Splits, done: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """The first held-out images: clean, under one draw of the target's headline noise, denoised where they are, and each subject's verdict.

    Args:
        config: The job.
        data: Its images.
        done: Its finished stages, by name.
    """
    clean, certified = data.heldout_images[:STRIP], done["certify"]
    law = headline_law(config, certified.result, "target")
    denoiser = _denoiser(config, law, done)
    noisy, denoised = images.denoising_steps(denoiser, noise_law(law), clean, config.seed)
    verdicts = {subject: _verdicts(config, data, certified, subject) for subject in subjects(config)}
    return [
        {
            "label": data.class_name(int(data.heldout_labels[index])),
            "clean": images.data_uri(images.png(clean[index])),
            "noisy": images.data_uri(images.png(noisy[index])),
            "denoised": images.data_uri(images.png(denoised[index])),
            **{subject: each.get(index) for subject, each in verdicts.items()},
        }
        for index in range(len(clean))
    ]


def _denoiser(config: RunConfig, headline: SigmaLaw, done: Mapping[str, Stage]) -> nn.Module | None:
    """What stands between the headline's noise and the classifier, with the networks that the job has trained."""
    spec = find_purifier(config.purifier)
    if spec.denoiser is None:
        return None
    own = {law.label: law for law in config.certify.laws}.get(headline.label, config.certify.laws[0])
    finetuned = {each.role: each.stage_name(config, headline) for each in finetuned_networks(config, spec)}
    if "served" in done and own == config.certify.laws[0] and not finetuned:
        return load_model(done["served"].path / "model").denoiser
    networks = {}
    for network in spec.networks(config):
        law = own if network.laws == "each" else config.certify.laws[0] if network.laws == "first" else None
        plain = network.stage_name(config, law)
        names = (finetuned.get(network.role, plain), plain)
        stage = next(done[name] for name in names if name in done)
        networks[network.role] = load_model(stage.path / "model")
    return spec.denoiser.build(Parts(spec.settings(config), networks))
