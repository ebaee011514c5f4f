"""DUCD, third part: do the answers tell which images the target was trained on?

The same candidates are put to the target and to every surrogate. The attacker knows their true labels and has images
of the same kind to train reference models on; none of those is a candidate or was seen by any model under attack.
The target's answers are evaluation queries: clean images that need no fresh answer, so that those paid before are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.stages.ducd.surrogates import Student, probabilities
from certdef.stages.job import Job
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage
from surrogates.membership import Rate

HEADLINE = "rmia"
Labeled = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W), labels (N,)


@dataclass(frozen=True)
class Candidates:
    """Labeled images: of the target's training set, of no training set, of the population, and for references."""

    members: Labeled
    nonmembers: Labeled
    population: Labeled
    shadow: Labeled


@dataclass(frozen=True)
class Inference:
    """How well one attack tells members from others, by one model's answers."""

    auc: Share
    rates: tuple[Rate, ...]


@dataclass(frozen=True, kw_only=True)
class ReferencesResult(StageResult):
    """How many reference models the attacker trained, and on how many images each."""

    images: int
    references: int


@dataclass(frozen=True, kw_only=True)
class MembershipResult(StageResult):
    """Every attack on every model.

    Attributes:
        attacks: By model, then by attack.
        benefit: AUC on the target minus AUC on a surrogate, paired, by surrogate and attack.
        shrinkage: What the last surrogate gives away beyond the first, by attack.
    """

    candidates: int
    population: int
    references: int
    reference_images: int
    headline: str
    attacks: dict[str, dict[str, Inference]]
    benefit: dict[str, dict[str, Share]]
    shrinkage: dict[str, Share]


def draw_candidates(config: RunConfig, data: Splits) -> Candidates:
    """Members at random from the target's training set, so that a query pool holds its share of them."""
    count, ducd = len(data.target_labels), config.ducd
    chosen = np.sort(np.random.default_rng(config.seed).permutation(count)[: ducd.candidates])
    ends = [ducd.candidates, ducd.candidates + ducd.population]
    images, labels = np.split(data.audit_images, ends), np.split(data.audit_labels, ends)
    nonmembers, population, shadow = zip(images, labels, strict=True)
    members = data.target_images[chosen], data.target_labels[chosen]
    return Candidates(members, nonmembers, population, shadow)


def audit_queries(config: RunConfig, data: Splits) -> int:
    """Queries of agreement, clean and under the noise, and where certdef trains the target of membership inference."""
    audited = 2 * config.ducd.candidates + config.ducd.population
    return 2 * len(data.heldout_images) + (audited if config.target.uri is None else 0)


def check_audit(config: RunConfig, data: Splits) -> None:
    """Refuse a split or a budget that does not do for the audit, before anything is spent."""
    ducd, need = config.ducd, audit_queries(config, data)
    if config.target.uri is None:
        if ducd.candidates > len(data.target_images):
            raise ConfigError(
                f"ducd.candidates is {ducd.candidates}, but the target has only {len(data.target_images)} training "
                "images: lower it"
            )
        least = ducd.candidates + ducd.population + len(data.classes)
        if config.data.audit_images < least:
            raise ConfigError(
                f"data.audit_images is {config.data.audit_images}: {ducd.candidates} non-members, a population of "
                f"{ducd.population} and images to train references on need at least {least}, better "
                f"{ducd.candidates + ducd.population + len(data.target_images)}"
            )
    if need > config.ledger.evaluation:
        raise ConfigError(
            f"ledger.evaluation is {config.ledger.evaluation}: agreement and membership inference take up to {need} "
            "queries; raise it or lower ducd.candidates or data.heldout_images"
        )


def train_references(job: Job) -> tuple[list[nn.Module], Stage[ReferencesResult]]:
    """The attacker's own models, each trained on its own draw of as many images as the target had."""
    config, name = job.config, job.config.surrogate.model
    split = [config.ducd.candidates, config.ducd.population, config.ducd.references]
    size = [job.data.audit_digest, len(job.data.target_labels)]
    stage = job.stage("references", ReferencesResult, name, config.target.epochs, *split, *size)
    folders = [stage.path / f"reference-{number}" for number in range(config.ducd.references)]

    def train() -> ReferencesResult:
        images, labels = draw_candidates(config, job.data).shadow
        count = min(len(job.data.target_labels), len(labels))
        for number, folder in enumerate(folders):
            if not (folder / "model.json").is_file():  # else trained before an interruption
                model = _reference(job, (images, labels), count, number)
                storage.save_classifier(folder, model)
        params = {"model": name, "epochs": config.target.epochs, "images": count}
        return ReferencesResult(images=count, references=len(folders), params=params)

    job.run(stage, train)
    return [storage.load_model(folder, job.device) for folder in folders], stage


def _reference(job: Job, shadow: Labeled, count: int, number: int) -> nn.Module:
    """One reference model, from weights that no other model started from."""
    config, (images, labels) = job.config, shadow
    seed = config.seed + 1 + number
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    shape, classes = job.data.image_shape, len(job.data.classes)
    model = job.seeded(lambda: build_classifier(config.surrogate.model, shape, classes), seed)
    return train_classifier(
        model,
        images[chosen],
        labels[chosen],
        epochs=config.target.epochs,
        seed=seed,
        device=job.device,
        progress=partial(job.progress, desc=f"train reference {number + 1} of {config.ducd.references}"),
    )


def audit_membership(
    job: Job,
    target: surrogates.Target,
    students: list[Student],
    references: tuple[list[nn.Module], Stage[ReferencesResult]],
) -> Stage[MembershipResult]:
    """Every attack on the target and on every surrogate, and how much less a surrogate gives away."""
    ducd, trained = job.config.ducd, references[1]
    models = [target.subject, trained.fingerprint, *(student.stage.fingerprint for student in students)]
    candidates = [ducd.candidates, ducd.population, ducd.rmia_a, job.data.target_digest]
    stage = job.stage("membership", MembershipResult, *candidates, *models)
    return job.run(stage, lambda: _audit(job, target, students, references, stage))


def _audit(
    job: Job,
    target: surrogates.Target,
    students: list[Student],
    references: tuple[list[nn.Module], Stage[ReferencesResult]],
    stage: Stage,
) -> MembershipResult:
    ducd, (models, trained) = job.config.ducd, references
    candidates = draw_candidates(job.config, job.data)
    audit = surrogates.MembershipAudit(
        candidates.members,
        candidates.nonmembers,
        references=[partial(probabilities, model) for model in models],
        population=candidates.population,
        a=ducd.rmia_a,
    )
    paid = job.ledger.attach(target, purpose="evaluation")
    every = {"target": audit(paid)} | {each.name: audit(each.probabilities) for each in students}
    _keep_scores(stage, every)
    first, last = (every[each.name] for each in (students[0], students[-1]))
    return MembershipResult(
        candidates=ducd.candidates,
        population=ducd.population,
        references=len(models),
        reference_images=trained.result.images,
        headline=HEADLINE,
        attacks={
            model: {attack: _inference(each) for attack, each in row.items()} for model, row in every.items()
        },
        benefit={each.name: _differences(every["target"], every[each.name]) for each in students},
        shrinkage=_differences(last, first),
        params={key: getattr(ducd, key) for key in ("candidates", "population", "references", "rmia_a")},
        metrics=_metrics(every),
        artifacts=("*.png", "scores.npz"),
    )


def _differences(
    one: dict[str, surrogates.Membership], other: dict[str, surrogates.Membership]
) -> dict[str, Share]:
    """AUC on one model minus AUC on another, with the paired 95% interval, by attack."""
    return {attack: Share(*surrogates.auc_difference(one[attack], other[attack])) for attack in one}


def _inference(membership: surrogates.Membership) -> Inference:
    auc = Share(membership.auc, membership.lower, membership.upper)
    return Inference(auc, tuple(membership.rates))


def _metrics(every: dict[str, dict[str, surrogates.Membership]]) -> dict[str, float]:
    figures = {}
    for model, row in every.items():
        for attack, each in row.items():
            figures[metrics.MEMBERSHIP_AUC.format(attack=attack, model=model)] = each.auc
            for rate in each.rates:
                name = metrics.MEMBERSHIP_RATE.format(attack=attack, model=model, rate=rate.fpr)
                figures[name] = rate.tpr
    return figures


def _keep_scores(stage: Stage, every: dict[str, dict[str, surrogates.Membership]]) -> None:
    """All scores, so that other figures can be computed from them later."""
    arrays = {
        f"{model}/{attack}/{group}": getattr(each, f"{group}_scores")
        for model, row in every.items()
        for attack, each in row.items()
        for group in ("member", "nonmember")
    }
    np.savez_compressed(stage.path / "scores.npz", **arrays)
