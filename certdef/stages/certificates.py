"""Certificates for both subjects: the target by paid queries, the surrogate for free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certify
import surrogates
from certdef.config.job import RunConfig, SigmaLaw
from certdef.stages.conditions import (
    Condition,
    conditions,
    denoising,
    guided_budget,
    place_of,
    subjects,
    target_draws,
)
from certdef.stages.job import CERTIFY, Job
from certdef.stages.purifier import Purifier
from certdef.stages.students import Students
from certdef.stages.voters import Voters
from certdef.stages.votes import BaseClassifier, CertifiedCurve, certify_condition
from certdef.tracking import metrics
from certdef.tracking.results import StageResult, as_frame
from certdef.tracking.workspace import Stage

# Columns of the table of certificates.
CERTIFICATE = (
    "condition",
    "subject",
    "law",
    "denoised",
    "idx",
    "label",
    "predict",
    "correct",
    "p_lower",
    "radius",
)

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class CertifyResult(StageResult):
    """A curve for each condition, by its key; radii in [0,1] pixel units.

    Attributes:
        chosen: The laws that were chosen for the headline, by place (place_of); none where the choice is off.
    """

    draws_target: int
    draws_surrogate: int
    curves: dict[str, CertifiedCurve]
    radii: tuple[float, ...]
    chosen: dict[str, SigmaLaw] = field(default_factory=dict)

    def to_frame(self) -> pandas.DataFrame:
        """A row a condition and radius: certified accuracy with its limits, and the votes that it took."""
        return as_frame(
            {
                "condition": key,
                "subject": curve.subject,
                "headline": curve.headline,
                "radius": radius,
                "accuracy": share,
                "images": curve.images,
                "n": curve.n,
                "votes_per_image": curve.samples_per_image,
                "sound": curve.sound,
            }
            for key, curve in self.curves.items()
            for radius, share in zip((0.0, *self.radii), curve.shares, strict=True)
        )

    def tables(self, folder: Path) -> dict[str, dict[str, list[Any]]]:
        """Every certificate, a row an image and condition; radii in [0,1] pixel units."""
        columns: dict[str, list[Any]] = {name: [] for name in CERTIFICATE}
        for key, curve in self.curves.items():
            records = certify.read_records(folder / "records" / f"{key}.jsonl")
            assert records.p_lower is not None  # a .jsonl keeps it
            same = {"condition": key, "subject": curve.subject, "law": curve.law, "denoised": curve.denoised}
            for name in CERTIFICATE:
                each = [same[name]] * len(records) if name in same else getattr(records, name).tolist()
                columns[name] += each
        return {"certificates.json": columns} if columns["idx"] else {}


@dataclass(frozen=True)
class Ballot:
    """All that is ready before the first vote: who votes, under which chosen laws, for which stage."""

    stage: Stage[CertifyResult]
    voters: Voters
    chosen: Mapping[str, SigmaLaw]


def prepare_votes(
    job: Job,
    target: surrogates.Target,
    students: Students,
    purifier: Purifier,
    depends_on: list[Stage],
    chosen: Mapping[str, SigmaLaw] | None = None,
) -> Ballot:
    """Look up the stage of the certificates, and who votes for it. No vote is asked for.

    Args:
        job: What is certified.
        target: By paid queries.
        students: For free.
        purifier: What stands between noise and classifier.
        depends_on: The stages that made these.
        chosen: The laws that were chosen for the headline, by place; none where the choice is off.
    """
    config, draws, chosen = job.config.certify, target_draws(job.config), chosen or {}
    job.legacy.draws = draws
    classifier = [target.subject, *(other.fingerprint for other in (*depends_on, *students.stages))]
    voters = Voters.of(job, target, students, purifier)
    key: list[Any] = [voters.engines.chosen] if voters.engines.chosen else []
    if voters.baseline is not None:
        key.append(voters.baseline.identity)
    if chosen:
        key += [{place: law.parameters for place, law in chosen.items()}, config.choice_images]
    stage = certify_stage(job, config.settings, draws, job.data.heldout_digest, *classifier, *key)
    return Ballot(stage, voters, chosen)


def certify_subjects(job: Job, ballot: Ballot) -> Stage[CertifyResult]:
    """Certify every condition, each surrogate's by the student that was trained for it; without a surrogate the target's alone."""
    return job.run(ballot.stage, lambda: _certify_subjects(job, ballot.voters, ballot.stage, ballot.chosen))


def certify_stage(job: Job, *key: Any) -> Stage[CertifyResult]:
    """Look up the stage by its key and, where a guide has a budget, by that."""
    former = job.stage(CERTIFY, CertifyResult, *key)
    budget = guided_budget(job.config)
    if not budget:
        return former
    stage = job.stage(CERTIFY, CertifyResult, *key, *budget)
    # Version 0.1 left the budget out. The votes tell it: who stopped below a budget stops there with a larger one too.
    if former.done and not stage.path.exists() and _most_votes(job.config, former.path) == budget[0]:
        former.path.rename(stage.path)
        stage.reused = True
    return stage


def _most_votes(config: RunConfig, folder: Path) -> int:
    """The most votes that a smoothed target got."""
    votes = [0]
    for condition in conditions(config):
        path = folder / "records" / f"{condition.key}.jsonl"
        if condition.paid and path.is_file():
            records = certify.read_records(path)
            assert records.n0 is not None  # a .jsonl keeps them
            assert records.counts is not None
            votes.append(int(records.n0.sum() + records.counts.sum()))
    return max(votes)


def classifiers(
    job: Job, voters: Voters, stage: Stage, chosen: Mapping[str, SigmaLaw]
) -> Iterator[tuple[Condition, BaseClassifier]]:
    """What is smoothed under each condition."""
    config = job.config.certify
    for condition in conditions(job.config, chosen):
        guide = voters.guide(condition) if condition.paid and config.guide != "off" else None
        n = target_draws(job.config) if condition.paid else config.n
        base = voters.classifier(condition, stage)
        yield condition, BaseClassifier(base, voters.target.num_classes, n, guide)


def _certify_subjects(
    job: Job,
    voters: Voters,
    stage: Stage,
    chosen: Mapping[str, SigmaLaw],
) -> CertifyResult:
    config = job.config.certify
    curves: dict[str, CertifiedCurve] = {}
    figures: dict[str, float] = {}
    for condition, classifier in classifiers(job, voters, stage, chosen):
        curve = certify_condition(job, condition, classifier, stage, voters.engines.chosen)
        curves[condition.key] = curve
        figures |= metrics.certified_accuracy(condition.metric_prefix, [0, *config.radii], curve.shares)
        if condition.headline and condition.subject == subjects(job.config)[-1]:
            figures |= cost_metrics(curve)
    guided = {} if voters.baseline is None else {"baseline": voters.baseline.identity}
    return CertifyResult(
        draws_target=target_draws(job.config),
        draws_surrogate=config.n,
        curves=curves,
        radii=config.radii,
        chosen=dict(chosen),
        params=config.settings
        | {"n_target": target_draws(job.config), "engine": config.engine}
        | guided
        | job.data.remarks,
        metrics=figures,
        artifacts=("*.png", "records/*"),
    )


def headline_law(config: RunConfig, result: CertifyResult, subject: str) -> SigmaLaw:
    """The law of a subject's first row: the chosen one, or the first of the job."""
    place = place_of(subject, denoising(config)[0])
    return result.chosen.get(place, config.certify.laws[0])


def cost_metrics(curve: CertifiedCurve) -> dict[str, float]:
    """What a certificate of this curve took."""
    return {
        metrics.SAMPLES_PER_IMAGE: curve.samples_per_image,
        metrics.SECONDS_PER_IMAGE: curve.seconds_per_image,
    }
