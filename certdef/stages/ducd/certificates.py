"""DUCD, second part: one noise for all images, then surrogate and target certified under it, side by side.

The noise is chosen on held-out images that are not certified afterwards, by the surrogate alone: it costs no query.
The target is certified by paid queries and, where certdef trained it, also by its own weights, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import certify
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.stages.certificates import Condition, certify_condition, paid_classifier, target_draws
from certdef.stages.ducd.surrogates import Student
from certdef.stages.job import Job
from certdef.tracking.workspace import Stage


@dataclass(frozen=True)
class Choice:
    """The chosen noise by its label, and the stage that chose it."""

    label: str
    noise: certify.NoiseLaw
    stage: Stage


def candidate_noises(config: RunConfig) -> dict[str, certify.NoiseLaw]:
    """Every noise that may be chosen, by its label: Gaussians of constant sigma first, then certify.laws."""
    constant = {f"gaussian-{level:g}": certify.Gaussian(level / 255) for level in config.ducd.gaussians_255}
    return constant | {law.label: noise_law(law) for law in config.certify.laws}


def check_choice(config: RunConfig, data: Splits) -> None:
    """Refuse noise laws, a split or a budget that can't be used, before anything is spent."""
    if len(candidate_noises(config)) < len(config.ducd.gaussians_255) + len(config.certify.laws):
        raise ConfigError("certify.laws has a label of a Gaussian of ducd.gaussians_255: rename it")
    if config.certify.guide != "off":
        raise ConfigError(
            f"certify.guide is {config.certify.guide!r}: the DUCD job compares votes without a guide; use off"
        )
    held_out = len(data.heldout_images)
    need = config.certify.images + config.ducd.choice_images
    if need > held_out:
        raise ConfigError(
            f"data.heldout_images is {held_out}: {config.ducd.choice_images} images that choose the noise and "
            f"{config.certify.images} that are certified need {need}; raise it or lower one of them"
        )
    target_draws(config, paid=1)


def choose_noise(job: Job, student: Student) -> Choice:
    """The candidate with the highest certified accuracy of the surrogate on the last held-out images."""
    config, data = job.config, job.data
    noises = candidate_noises(config)
    described = {label: noise.describe() for label, noise in noises.items()}
    size = [config.ducd.choice_images, config.ducd.choice_n]
    stage = job.stage("noise", described, *size, config.certify.settings, student.stage.fingerprint)
    with job.tracker.stage(stage):
        if not stage.done:
            last = range(len(data.heldout_images) - config.ducd.choice_images, len(data.heldout_images))
            found = certify.choose_noise(
                list(noises.values()),
                student.model,
                torch.from_numpy(data.heldout_images[last]),
                data.heldout_labels[last],
                len(data.classes),
                config.certify.radii,
                indices=last,
                n0=config.certify.n0,
                n=config.ducd.choice_n,
                alpha=config.certify.alpha,
                seed=config.seed,
                device=job.device,
                batch_size=config.certify.batch_size,
            )
            found.check_fresh(range(config.certify.images))
            label = next(name for name, noise in noises.items() if noise is found.noise)
            table = dict(zip(noises, found.accuracy.tolist(), strict=True))
            stage.finish({
                "chosen": label,
                "candidates": {name: {"noise": described[name], "accuracy": row} for name, row in table.items()},
                "radii": found.radii.tolist(),
                "images": len(last),
                "draws": found.draws,
                "params": {"chosen": label, "candidates": ", ".join(noises), "images": len(last)},
                "metrics": {f"noise/{name}/mean_certified_accuracy": float(np.mean(row)) for name, row in table.items()},
            })  # fmt: skip
    label = stage.result["chosen"]
    return Choice(label, noises[label], stage)


def compare_subjects(
    job: Job, target: surrogates.Target, target_stage: Stage, students: list[Student], choice: Choice
) -> Stage:
    """Certify the first surrogate and the target under the chosen noise; measure how far they agree."""
    config = job.config.certify
    draws = target_draws(job.config, paid=1)
    stage = job.stage(
        "comparison", config.settings, draws, choice.label, choice.stage.fingerprint,
        *(student.stage.fingerprint for student in students),
    )  # fmt: skip
    with job.tracker.stage(stage):
        if not stage.done:
            bases = _bases(job, target, target_stage, students[0], choice, stage)
            curves = {
                condition.key: certify_condition(
                    job, condition, base, target.num_classes, stage, draws if condition.paid else config.n
                )
                for condition, base in bases.items()
            }
            agreement = {each.name: _agreement(job, target, each, choice.noise) for each in students}
            records = {each.key: _records(stage, each) for each in bases}
            _draw(job, stage, list(bases))
            stage.finish({
                "noise": choice.label,
                "law": choice.noise.describe(),
                "conditions": {subject_of(condition): condition.key for condition in bases},
                "curves": curves,
                "radii": list(config.radii),
                "draws_target": draws,
                "draws_surrogate": config.n,
                "agreement": agreement,
                "verdicts": _verdicts(job, target, records, list(bases)),
                "params": config.settings | {"n_target": draws, "noise": choice.label},
                "metrics": _metrics(job, bases, curves, agreement),
                "artifacts": ["*.png", "records/*"],
            })  # fmt: skip
    return stage


def subject_of(condition: Condition) -> str:
    """surrogate, target_white_box or target: who is certified, and how it was asked."""
    return "target_white_box" if condition.white_box else condition.subject


def _bases(
    job: Job, target: surrogates.Target, target_stage: Stage, student: Student, choice: Choice, stage: Stage
) -> dict[Condition, Any]:
    """Each smoothed classifier with what is smoothed; the target's own weights only where they are ours."""
    surrogate = Condition("surrogate", choice.label, None, choice.noise, headline=True)
    paid = Condition("target", choice.label, None, choice.noise, headline=True)
    found: dict[Condition, Any] = {surrogate: student.model}
    if (target_stage.path / "model" / "model.json").is_file():
        weights: nn.Module = storage.load_model(target_stage.path / "model", job.device)
        found[Condition("target", choice.label, None, choice.noise, white_box=True)] = weights
    return found | {paid: paid_classifier(job, target, stage, paid)}


def _agreement(
    job: Job, target: surrogates.Target, student: Student, noise: certify.NoiseLaw
) -> dict[str, dict[str, Any]]:
    """On all held-out images, clean and under one draw of the noise each; the same draws for every surrogate."""
    asked = job.ledger.attach(target, purpose="evaluation")
    images = job.data.heldout_images
    found = {
        "clean": surrogates.fidelity(student.model, asked, images),
        "noisy": surrogates.fidelity(student.model, asked, images, noise, seed=job.config.seed),
    }
    return {
        name: {
            "agreement": [each.agreement, each.lower, each.upper],
            "disagreement_upper": each.disagreement_upper,
            "images": each.n,
        }
        for name, each in found.items()
    }


def _verdicts(
    job: Job, target: surrogates.Target, records: dict[str, certify.records.Records], bases: list[Condition]
) -> dict[str, Any]:
    """What the certified surrogate's verdicts are worth for the target, counted image by image.

    `against_target`: certified verdicts that the target's own answer to the clean image contradicts, with the one-sided
    95% upper bound of their share. `carried`: for each radius how many images are certified right for the surrogate, and
    how many of them for the target as well, by each way of asking it.
    """
    ours = records[bases[0].key]
    asked = job.ledger.attach(target, purpose="evaluation")
    answers = asked.query(job.data.heldout_images[ours.idx]).labels
    certified = ours.predict != certify.ABSTAIN
    against, total = int((certified & (answers != ours.predict)).sum()), int(certified.sum())
    carried = {}
    for condition in bases[1:]:
        theirs = records[condition.key]
        both = np.isin(ours.idx, theirs.idx)
        rows = []
        for radius in job.config.certify.radii:
            here = set(ours.idx[both & ours.correct & (ours.radius >= radius)].tolist())
            there = set(theirs.idx[theirs.correct & (theirs.radius >= radius)].tolist())
            rows.append([len(here & there), len(here)])
        carried[subject_of(condition)] = {"images": int(both.sum()), "rows": rows}
    upper = certify.binomial_upper_bound(against, total, 0.05) if total else 1.0
    return {"certified": total, "against_target": against, "against_upper": float(upper), "carried": carried}


def _metrics(
    job: Job,
    bases: dict[Condition, Any],
    curves: dict[str, dict[str, Any]],
    agreement: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, float]:
    metrics = {}
    for condition in bases:
        found = curves[condition.key]
        at = zip([0, *job.config.certify.radii], [found["accuracy_at_0"], *found["accuracy"]], strict=True)
        metrics |= {f"{subject_of(condition)}/certified_accuracy_at_{r:g}": share[0] for r, share in at}
    for student, measured in agreement.items():
        for name, each in measured.items():
            prefix = f"{student}/agreement_{name}"
            share, lower, upper = each["agreement"]
            metrics |= {prefix: share, f"{prefix}_lower": lower, f"{prefix}_upper": upper}
    headline = curves[next(iter(bases)).key]
    metrics["certify/samples_per_image"] = headline["samples_per_image"]
    metrics["certify/seconds_per_image"] = headline["seconds_per_image"]
    return metrics


def _records(stage: Stage, condition: Condition) -> certify.records.Records:
    return certify.read_records(stage.path / "records" / f"{condition.key}.jsonl")


NAMES = {
    "surrogate": "surrogate",
    "target_white_box": "target, by its weights",
    "target": "target, by paid queries",
}


def _draw(job: Job, stage: Stage, bases: list[Condition]) -> None:
    """All subjects in one picture."""
    lines = {}
    for condition in bases:
        records = _records(stage, condition)
        furthest = max(0.25, 1.1 * float(records.radius.max()))
        line = certify.curves.certified_accuracy(records, np.linspace(0, furthest, 400))
        lines[NAMES[subject_of(condition)]] = line
    certify.curves.plot(
        lines,
        stage.path / "certified_accuracy.png",
        title=f"{job.data.name}: certified accuracy, no denoiser",
    )
