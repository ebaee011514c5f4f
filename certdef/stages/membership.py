"""Membership inference on the user's own target, by lists of the user's own: who was trained on, and who was not.

The target's answers are evaluation queries, paid once. The attack on the loss needs nothing else. Where the job has a surrogate
that none of these images was queried for, it is the reference of RMIA: how hard an image is, by a model that never saw it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.lists import Lists, listed_images, read_lists
from certdef.data.sets import Splits, digest
from certdef.stages.ducd.surrogates import probabilities
from certdef.stages.job import Job
from certdef.stages.students import held_out_queries
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

LOG = logging.getLogger("certdef")
ALARM = 0.01  # of the p-value from which on the lists are said to differ
VERBS = ("run", "certify")


@dataclass(frozen=True)
class LowRate:
    """At a threshold that at most a share `fpr` of the non-members passes.

    Attributes:
        fpr: What is allowed.
        passed: Non-members that pass, with the exact interval for this threshold.
        found: Members that pass, likewise.
        possible: Whether there are enough non-members for this rate: at least 1 / fpr.
    """

    fpr: float
    passed: Share
    found: Share
    possible: bool


@dataclass(frozen=True)
class Inferred:
    """One attack: the area under its ROC curve with the 95% DeLong interval, and its power at low false positive rates."""

    auc: Share
    rates: tuple[LowRate, ...]


@dataclass(frozen=True)
class Alike:
    """Whether images and labels alone tell the lists apart, without the target; 0.5 is a coin."""

    auc: Share
    p: float
    images: int

    @property
    def differ(self) -> bool:
        """Whether they do, at a level of 1%: then the attacks measure that, too."""
        return self.p < ALARM


@dataclass(frozen=True, kw_only=True)
class OwnMembershipResult(StageResult):
    """Every attack on the target.

    Attributes:
        members, nonmembers: Numbers of images.
        digests: Of the two lists.
        answers: What the target answers: labels alone say less than probabilities.
        attacks: By name.
        alike: The lists without the target.
        warnings: What voids or weakens the figures.
    """

    members: int
    nonmembers: int
    digests: dict[str, str]
    answers: str
    attacks: dict[str, Inferred]
    alike: Alike
    warnings: tuple[str, ...] = ()


def membership_queries(config: RunConfig, verb: str = "run") -> int:
    """Queries that it takes at most."""
    return listed_images(config) if verb in VERBS else 0


def check_lists(config: RunConfig, data: Splits, target: surrogates.Target) -> Lists | None:
    """The lists in the target's classes, before anything is queried; None where none are given.

    Raises:
        ConfigError: Lists that can't be used, or that the budget is too small for.
    """
    if not config.membership.wanted or config.ducd.enabled or config.udc.enabled:
        return None
    # Where the target does not name its classes, those of the images are in its order by now.
    names = target.class_names or (data.classes if data.named else None)
    lists = read_lists(config, data.image_shape, names, target.num_classes)
    need = held_out_queries(config, len(data.heldout_images)) + len(lists)
    if need > config.ledger.evaluation:
        raise ConfigError(
            f"ledger.evaluation is {config.ledger.evaluation}: the held-out images and the {len(lists)} images of membership.members "
            f"and membership.nonmembers may take {need} queries; raise it"
        )
    return lists


def infer_membership(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module | None,
    surrogate_stage: Stage | None,
) -> list[Stage[OwnMembershipResult]]:
    """Attack the target where lists are given; else nothing.

    Args:
        job: The job.
        target: By paid queries.
        surrogate: RMIA's reference; None where the job has none.
        surrogate_stage: What made it.
    """
    if job.lists is None:
        return []
    key = [job.lists.digests, target.subject, surrogate_stage.fingerprint if surrogate_stage else "none"]
    stage = job.stage("membership-own", OwnMembershipResult, *key, job.data.heldout_digest)
    lists = job.lists
    return [job.run(stage, lambda: _inferred(job, lists, target, surrogate, stage))]


def _inferred(
    job: Job, lists: Lists, target: surrogates.Target, surrogate: nn.Module | None, stage: Stage
) -> OwnMembershipResult:
    alike = surrogates.told_apart(lists.members, lists.nonmembers, seed=job.config.seed)
    population = None if surrogate is None else _population(job, lists)
    reference = surrogate if population is not None else None
    audit = surrogates.MembershipAudit(
        lists.members,
        lists.nonmembers,
        references=[] if reference is None else [partial(probabilities, reference)],
        population=population,
    )
    found = audit(job.ledger.attach(target, purpose="evaluation"))
    scores = {f"{name}/members": each.member_scores for name, each in found.items()}
    scores |= {f"{name}/nonmembers": each.nonmember_scores for name, each in found.items()}
    np.savez_compressed(stage.path / "scores.npz", **scores)  # type: ignore[arg-type]  # its flags have other names
    if job.config.target.is_private:
        (stage.path / "scores.npz").chmod(0o600)
    seen = Alike(Share(alike.auc, alike.lower, alike.upper), alike.p, alike.images)
    warnings = tuple(_warnings(lists, seen, target, surrogate is not None and population is None))
    for line in warnings:
        LOG.warning(line)
    figures = {"membership/lists/auc": seen.auc.value}
    for name, each in found.items():
        auc = Share(each.auc, each.lower, each.upper)
        figures |= metrics.with_interval(metrics.MEMBERSHIP_AUC.format(attack=name, model="target"), auc)
        for rate in each.rates:
            named = metrics.MEMBERSHIP_RATE.format(attack=name, model="target", rate=rate.fpr)
            figures[named] = rate.tpr
    return OwnMembershipResult(
        members=len(lists.members[1]),
        nonmembers=len(lists.nonmembers[1]),
        digests=lists.digests,
        answers=target.output_kind,
        attacks={name: _attack(each) for name, each in found.items()},
        alike=seen,
        warnings=warnings,
        params={"members": len(lists.members[1]), "nonmembers": len(lists.nonmembers[1])},
        metrics=figures,
    )


def _attack(found: surrogates.Membership) -> Inferred:
    count = len(found.nonmember_scores)
    rates = [
        LowRate(
            fpr=rate.fpr,
            passed=Share.of(round(rate.attained * count), count),
            found=Share(rate.tpr, rate.lower, rate.upper),
            possible=count * rate.fpr >= 1 - 1e-9,
        )
        for rate in found.rates
    ]
    return Inferred(Share(found.auc, found.lower, found.upper), tuple(rates))


def _population(job: Job, lists: Lists) -> tuple[np.ndarray, np.ndarray] | None:
    """Held-out images that are no candidates, for RMIA; None without such, or where the surrogate saw a candidate."""
    candidates = {digest(each) for images in (lists.members[0], lists.nonmembers[0]) for each in images}
    if not job.data.labeled or any(digest(each) in candidates for each in job.data.pool):
        return None
    free = np.array([digest(each) not in candidates for each in job.data.heldout_images])
    if free.sum() < 2:
        return None
    return job.data.heldout_images[free], job.data.heldout_labels[free]


def _warnings(lists: Lists, alike: Alike, target: surrogates.Target, unused: bool) -> Sequence[str]:
    lines = []
    if alike.differ:
        lines.append(
            f"members and non-members can be told apart without the target (AUC {alike.auc.value:.3f} [{alike.auc.lower:.3f}, "
            f"{alike.auc.upper:.3f}], p {alike.p:.1g}): they are not of one distribution, and membership inference measures that, too"
        )
    if len(lists.nonmembers[1]) < 100:
        lines.append(
            f"membership.nonmembers has {len(lists.nonmembers[1])} images: a true positive rate at 1% false positives needs 100"
        )
    if target.output_kind == "labels":
        lines.append(
            "the target answers labels alone: the attack sees whether it is right, and no confidence"
        )
    if unused:
        lines.append(
            "no RMIA: it needs labeled held-out images that are no candidates, and a surrogate that was queried for none"
        )
    return lines
