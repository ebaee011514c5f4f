"""What a job will take, before it takes it: queries by purpose, the radii within reach, and what the surrogate foretells.

Queries come from the functions that the job itself plans with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import certify
import surrogates
from certdef.config.candidates import candidate_laws
from certdef.config.job import RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.objects import is_given, is_object
from certdef.config.own_target import NONE
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.stages.attack import attack_queries
from certdef.stages.conditions import certification_queries, conditions, largest_radius, target_draws
from certdef.stages.ducd.membership import audit_queries
from certdef.stages.ducd.surrogates import pool_queries
from certdef.stages.job import Shelf
from certdef.stages.ladder import ladder_queries
from certdef.stages.membership import membership_queries
from certdef.stages.own_target import CANARIES
from certdef.stages.preflight import IMAGES
from certdef.stages.purifier import ready_denoiser
from certdef.stages.robustness import robustness_queries
from certdef.stages.students import held_out_queries
from certdef.stages.surrogate import surrogate_stage
from certdef.stages.target import target_stage
from certdef.tracking.results import Share

CHECKED_STAGES = 5  # stages that query, and check a service at their end
VOTES = 500  # of the surrogate, an image
VOTED_IMAGES = 20
# What each verb pays for beside preflight and canaries.
PAID = {
    "distill": ("training", "evaluation"),
    "budgets": ("training", "evaluation"),
    "certify": ("training", "evaluation", "certification"),
    "attack": ("training", "evaluation", "attack"),
    "purify": ("training", "evaluation"),
}


@dataclass(frozen=True)
class Reach:
    """The largest radius that a unanimous vote of the target proves under a law of noise."""

    law: str
    n: int
    radius: float


def expected_queries(
    config: RunConfig, data: Splits, target: surrogates.Target | None, verb: str = "run"
) -> dict[str, int]:
    """Queries by purpose that a verb of the job takes, at most; what the ledger has already is not paid again.

    Args:
        config: The job.
        data: Its images.
        target: The user's own target; None where one is trained here.
        verb: run, or a part of it.
    """
    heldout = len(data.heldout_images)
    if config.udc.enabled or verb == "pretrain":
        return {}
    if verb == "robustness":
        expected = {"evaluation": heldout, "certification": robustness_queries(config, heldout)}
    elif config.ducd.enabled:
        expected = {
            "training": pool_queries(config, len(data.pool)),
            "evaluation": audit_queries(config, data),
            "certification": certification_queries(config, heldout, paid=1),
        }
    else:
        expected = {
            "training": min(config.ledger.training, len(data.pool)),
            "evaluation": held_out_queries(config, heldout, verb) + membership_queries(config, verb),
            "certification": certification_queries(config, heldout),
            "attack": attack_queries(config, heldout),
        }
        if config.surrogate.model == NONE:
            expected |= {"training": 0, "attack": 0}
        elif is_given(config.surrogate):
            expected["training"] = 0
        if config.ladder.enabled:
            expected["attack"] += ladder_queries(config, heldout)
    expected = {purpose: expected[purpose] for purpose in PAID.get(verb, expected) if expected.get(purpose)}
    if target is not None:
        checks = sum(expected.values()) // max(1, config.target.canary_every) + 2 * CHECKED_STAGES
        if target.charged_when_sent and config.target.canary_every:
            expected["canary"] = min(config.ledger.canary, CANARIES * checks)
        each = 1 if data.labeled else 2  # without a label an image is seen again
        expected["preflight"] = min(config.ledger.preflight, IMAGES, each * heldout)
    return expected


def reaches(config: RunConfig) -> list[Reach]:
    """How far the target's certificates can go: under each law, candidates first, at the draws that its budget allows."""
    if config.udc.enabled:
        return []
    draws = target_draws(config, paid=1 if config.ducd.enabled else None)
    candidates = () if config.ducd.enabled else candidate_laws(config.certify)
    laws: dict[str, certify.NoiseLaw] = {law.label: noise_law(law) for law in candidates}
    laws |= {each.law: each.noise for each in conditions(config) if each.paid and each.law not in laws}
    reach = {law: largest_radius(noise, draws, config.certify.alpha) for law, noise in laws.items()}
    return [Reach(law, draws, radius) for law, radius in reach.items()]


def foretell(job: Shelf, target: surrogates.Target, n: int) -> dict[str, tuple[Share, ...]]:
    """Certified shares at the configured radii that the target had if it voted as its surrogate does; no query.

    A few votes a held-out image give the share of its top class, under the first law; what n votes of that share prove is
    what is foretold. Empty where no surrogate is distilled yet.

    Args:
        job: Where the surrogate is.
        target: The target that it stands in for.
        n: Draws that the target gets.
    """
    stage, law = surrogate_stage(job, target), job.config.certify.laws[0]
    if not stage.done or is_object(job.config.surrogate.model):
        return {}
    answers = None if job.data.labeled else target_stage(job)
    if answers is not None and not answers.done:
        return {}
    labels = job.data.heldout_labels if answers is None else np.array(answers.result.answers)
    config, noise = job.config.certify, noise_law(law)
    surrogate, denoiser = storage.load_model(stage.path / "model", job.device), ready_denoiser(job, law)
    classifier = surrogate if denoiser is None else nn.Sequential(denoiser, surrogate)
    count = min(VOTED_IMAGES, config.target_images, len(job.data.heldout_images))
    smoothed = certify.SmoothedClassifier(
        classifier,
        noise,
        target.num_classes,
        device=job.device,
        seed=job.config.seed,
        batch_size=config.batch_size,
    )
    images = torch.from_numpy(job.data.heldout_images[:count])
    found = smoothed.certify(images, n0=config.n0, n=VOTES, alpha=config.alpha)
    counts = np.stack([each.counts for each in found])
    right = counts.argmax(axis=1) == labels[:count]
    radii = np.array([_radius(max(row) / sum(row), noise, n, config.alpha) for row in counts.tolist()])
    behind = "none" if denoiser is None else job.config.purifier
    shares = (Share.of(int((right & (radii >= radius)).sum()), count) for radius in config.radii)
    return {behind: tuple(shares)}


def _radius(share: float, noise: certify.NoiseLaw, n: int, alpha: float) -> float:
    """The radius that n votes prove, of which such a share is the top class's; below 0 where they prove nothing."""
    bound = certify.binomial_lower_bound(int(share * n), n, alpha)
    return float(noise.radius(bound)) if bound > 0.5 else -1.0
