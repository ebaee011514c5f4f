"""DUCD, second part: one noise for all images, then surrogate and target certified under it, side by side.

The noise is chosen on held-out images that are not certified afterwards, by the surrogate alone: it costs no query.
The target is certified by paid queries and, where certdef trained it, also by its own weights, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import certify
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.stages.certificates import cost_metrics
from certdef.stages.conditions import Condition, target_draws
from certdef.stages.ducd.surrogates import Student
from certdef.stages.job import Job
from certdef.stages.surrogate import measure_agreement, share_of
from certdef.stages.votes import BaseClassifier, CertifiedCurve, certify_condition, paid_classifier
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage


@dataclass(frozen=True)
class Candidate:
    """A noise, and the surrogate's certified accuracy under it at each radius."""

    noise: dict[str, Any]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NoiseResult(StageResult):
    """The candidates by label, which was chosen, and on how many images."""

    chosen: str
    candidates: dict[str, Candidate]
    radii: tuple[float, ...]
    images: int
    draws: int


@dataclass(frozen=True)
class Choice:
    """The chosen noise by its label, and the stage that chose it."""

    label: str
    noise: certify.NoiseLaw
    stage: Stage[NoiseResult]


@dataclass(frozen=True)
class Agreement:
    """How often a surrogate agrees with the target, and a one-sided bound of how often it does not."""

    agreement: Share
    disagreement_upper: float
    images: int


@dataclass(frozen=True)
class Carried:
    """Of images certified correctly for the surrogate, how many are so for the target too: pairs a radius."""

    images: int
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Verdicts:
    """What the certified surrogate's verdicts are worth for the target, counted image by image.

    Attributes:
        certified: Certified verdicts of the surrogate.
        against_target: Those that the target's own answer to the clean image contradicts.
        against_upper: One-sided 95% upper bound of their share.
        carried: By each way of querying the target.
    """

    certified: int
    against_target: int
    against_upper: float
    carried: dict[str, Carried]


@dataclass(frozen=True, kw_only=True)
class ComparisonResult(StageResult):
    """Surrogate and target under the chosen noise, side by side."""

    noise: str
    law: dict[str, Any]
    conditions: dict[str, str]
    curves: dict[str, CertifiedCurve]
    radii: tuple[float, ...]
    draws_target: int
    draws_surrogate: int
    agreement: dict[str, dict[str, Agreement]]
    verdicts: Verdicts


def candidate_noises(config: RunConfig) -> dict[str, certify.NoiseLaw]:
    """Every noise that may be chosen, by its label: Gaussians of constant sigma first, then certify.laws."""
    levels = config.ducd.gaussians_255
    constant: dict[str, certify.NoiseLaw] = {
        f"gaussian-{level:g}": certify.Gaussian(level / 255) for level in levels
    }
    return constant | {law.label: noise_law(law) for law in config.certify.laws}


def check_choice(config: RunConfig, data: Splits) -> None:
    """Refuse noise laws, a split or a budget that can't be used, before anything is spent."""
    if len(candidate_noises(config)) < len(config.ducd.gaussians_255) + len(config.certify.laws):
        raise ConfigError("certify.laws has a label of a Gaussian of ducd.gaussians_255: rename it")
    if config.certify.guide != "off":
        raise ConfigError(
            f"certify.guide is {config.certify.guide!r}: the DUCD job compares votes without a guide; use off"
        )
    if config.certify.known_class:
        raise ConfigError(
            "certify.known_class is True: the DUCD job asks which class the surrogate's vote chooses; use false"
        )
    held_out = len(data.heldout_images)
    need = config.certify.images + config.ducd.choice_images
    if need > held_out:
        raise ConfigError(
            f"data.heldout_images is {held_out}: {config.ducd.choice_images} images that choose the noise and "
            f"{config.certify.images} that are certified need {need}; raise it or lower one of them"
        )
    target_draws(config, paid=1)


def choose_noise(job: Job, student: Student, num_classes: int) -> Choice:
    """The candidate with the highest certified accuracy of the surrogate on the last held-out images."""
    config = job.config
    noises = candidate_noises(config)
    described = {label: noise.describe() for label, noise in noises.items()}
    size = [config.ducd.choice_images, config.ducd.choice_n, config.certify.settings]
    key = [described, *size, job.data.heldout_digest, student.stage.fingerprint]
    stage = job.stage("noise", NoiseResult, *key)
    job.run(stage, lambda: _choose_noise(job, student, noises, num_classes))
    return Choice(stage.result.chosen, noises[stage.result.chosen], stage)


def _choose_noise(
    job: Job, student: Student, noises: dict[str, certify.NoiseLaw], num_classes: int
) -> NoiseResult:
    config, data, count = job.config, job.data, len(job.data.heldout_images)
    last = range(count - config.ducd.choice_images, count)
    choice = certify.choose_noise(
        list(noises.values()),
        student.model,
        torch.from_numpy(data.heldout_images[last]),
        data.heldout_labels[last],
        num_classes,
        config.certify.radii,
        indices=last,
        n0=config.certify.n0,
        n=config.ducd.choice_n,
        alpha=config.certify.alpha,
        seed=config.seed,
        device=job.device,
        batch_size=config.certify.batch_size,
    )
    choice.check_fresh(range(config.certify.images))
    chosen = next(name for name, noise in noises.items() if noise is choice.noise)
    table = dict(zip(noises, choice.accuracy.tolist(), strict=True))
    return NoiseResult(
        chosen=chosen,
        candidates={name: Candidate(noise.describe(), tuple(table[name])) for name, noise in noises.items()},
        radii=tuple(choice.radii.tolist()),
        images=len(last),
        draws=choice.draws,
        params={"chosen": chosen, "candidates": ", ".join(noises), "images": len(last)},
        metrics={metrics.NOISE_CHOICE.format(law=name): float(np.mean(row)) for name, row in table.items()},
    )


def compare_subjects(
    job: Job, target: surrogates.Target, target_stage: Stage, students: list[Student], choice: Choice
) -> Stage[ComparisonResult]:
    """Certify the first surrogate and the target under the chosen noise; measure how far they agree."""
    config, draws = job.config.certify, target_draws(job.config, paid=1)
    job.legacy.draws = draws
    parts = [choice.stage.fingerprint, *(student.stage.fingerprint for student in students)]
    key = [config.settings, draws, choice.label, job.data.heldout_digest, *parts]
    stage = job.stage("comparison", ComparisonResult, *key)
    return job.run(stage, lambda: _compare(job, target, target_stage, students, choice, stage))


def _compare(
    job: Job,
    target: surrogates.Target,
    target_stage: Stage,
    students: list[Student],
    choice: Choice,
    stage: Stage,
) -> ComparisonResult:
    config, draws = job.config.certify, target_draws(job.config, paid=1)
    bases = _bases(job, target, target_stage, students[0], choice, stage)
    curves = {each.key: certify_condition(job, each, base, stage) for each, base in bases.items()}
    agreement = {each.name: _agreement(job, target, each, choice.noise) for each in students}
    records = {each.key: certify.read_records(stage.path / "records" / f"{each.key}.jsonl") for each in bases}
    return ComparisonResult(
        noise=choice.label,
        law=choice.noise.describe(),
        conditions={subject_of(condition): condition.key for condition in bases},
        curves=curves,
        radii=config.radii,
        draws_target=draws,
        draws_surrogate=config.n,
        agreement=agreement,
        verdicts=_verdicts(job, target, records, list(bases)),
        params=config.settings | {"n_target": draws, "noise": choice.label},
        metrics=_metrics(job, list(bases), curves, agreement),
        artifacts=("*.png", "records/*"),
    )


def subject_of(condition: Condition) -> str:
    """surrogate, target_white_box or target: who is certified, and by what."""
    return "target_white_box" if condition.white_box else condition.subject


def _bases(
    job: Job,
    target: surrogates.Target,
    target_stage: Stage,
    student: Student,
    choice: Choice,
    stage: Stage,
) -> dict[Condition, BaseClassifier]:
    """Each smoothed classifier with what is smoothed; the target's own weights only where they are ours."""
    config, classes = job.config, target.num_classes
    surrogate = Condition("surrogate", choice.label, None, choice.noise, headline=True)
    paid = Condition("target", choice.label, None, choice.noise, headline=True)
    bases = {surrogate: BaseClassifier(student.model, classes, config.certify.n)}
    if (target_stage.path / "model" / "model.json").is_file():
        weights = storage.load_model(target_stage.path / "model", job.device)
        white_box = Condition("target", choice.label, None, choice.noise, white_box=True)
        bases[white_box] = BaseClassifier(weights, classes, config.certify.n)
    draws = target_draws(config, paid=1)
    return bases | {paid: BaseClassifier(paid_classifier(job, target, stage, paid), classes, draws)}


def _agreement(
    job: Job, target: surrogates.Target, student: Student, noise: certify.NoiseLaw
) -> dict[str, Agreement]:
    measured = measure_agreement(job, target, student.model, noise)
    paid = job.ledger.attach(target, purpose="evaluation")
    measured["noisy_with_clean"] = surrogates.fidelity(
        student.model, paid, job.data.heldout_images, noise, reference="clean", seed=job.config.seed
    )
    return {
        name: Agreement(share_of(each), each.disagreement_upper, each.n) for name, each in measured.items()
    }


def _verdicts(
    job: Job, target: surrogates.Target, records: dict[str, certify.records.Records], bases: list[Condition]
) -> Verdicts:
    ours = records[bases[0].key]
    paid = job.ledger.attach(target, purpose="evaluation")
    answers = paid.query(job.data.heldout_images[ours.idx]).labels
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
            rows.append((len(here & there), len(here)))
        carried[subject_of(condition)] = Carried(int(both.sum()), tuple(rows))
    upper = float(certify.binomial_upper_bound(against, total, 0.05)) if total else 1.0
    return Verdicts(total, against, upper, carried)


def _metrics(
    job: Job,
    bases: list[Condition],
    curves: dict[str, CertifiedCurve],
    agreement: dict[str, dict[str, Agreement]],
) -> dict[str, float]:
    figures: dict[str, float] = {}
    radii = [0, *job.config.certify.radii]
    for condition in bases:
        shares = curves[condition.key].shares
        figures |= metrics.certified_accuracy(subject_of(condition), radii, shares)
    for student, measured in agreement.items():
        for images, each in measured.items():
            name = metrics.AGREEMENT.format(subject=student, images=images)
            figures |= metrics.with_interval(name, each.agreement)
    return figures | cost_metrics(curves[bases[0].key])
