"""The threat ladder: one defended classifier under attackers who know more and more, each under its own name.

A purifier is worth what the strongest attacker leaves of it: the headline is the worst case over attacks, image by image.
Every accuracy is one evaluation of each image with a 95% Clopper-Pearson interval.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import certify
from certdef.attacks.attacker import FAR_QUERIES, NOISY_SQUARE, Attacker
from certdef.attacks.evaluation import (
    DW_BOX,
    THREAT_MODELS,
    AttackEvaluation,
    Evaluations,
    single_attacks,
    worst_case,
)
from certdef.attacks.gradient import forked
from certdef.attacks.gradient_masking import FAR
from certdef.attacks.system import System, reseed
from certdef.config.attacks import LadderConfig
from surrogates.distillation.inference import images_at_once

__all__ = ["System", "evaluate", "most_queries"]


def evaluate(
    system: System,
    images: Tensor,
    labels: Tensor,
    settings: LadderConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable | None = None,
) -> Evaluations:
    """Evaluate a system under every attack that applies, in the order of THREAT_MODELS.

    With known weights the attacks by gradients and by queries; with a target the transfers from the surrogate, and from it
    and further students together, and the attacks by queries. With a purifier that draws noise also nes, one_draw, dw_box,
    resubmission and the controls of as many submissions. Last, where there is an attack, the worst case over those that
    submit an image once.

    Args:
        system: What is attacked.
        images: (N, C, H, W) in [0, 1].
        labels: The truth, (N,).
        settings: Budgets of the attacks.
        seed: Of the attacks and of every noise that the purifier draws from a generator of its own.
        device: Where the modules run.
        progress: Wraps the attacks, like tqdm.
    """
    attacker = Attacker(system, images, labels, settings, torch.device(device))
    number = {name: at for at, name in enumerate(THREAT_MODELS)}
    names = [name for name in number if name in attacker.applicable()]
    for name in progress(names, desc="ladder") if progress else names:
        attacker.evaluations.append(_evaluated(attacker, name, seed * len(THREAT_MODELS) + number[name]))
    found = attacker.evaluations
    return Evaluations([*found, worst_case(found)] if single_attacks(found) else found)


def most_queries(settings: LadderConfig, images: int, *, purified: bool, noisy: bool) -> int:
    """The most that a ladder may query of a target, evaluations included.

    Args:
        settings: Budgets of the attacks.
        images: How many are attacked.
        purified: Whether the target stands behind a purifier.
        noisy: Whether the purifier draws noise.
    """
    by_queries = (1 + noisy) * (settings.square_queries > 0) + (settings.decision_queries > 0)
    transfers = 1 + purified + (settings.students > 0)
    few = -(-settings.square_queries // NOISY_SQUARE)
    spent = (
        settings.square_queries + few * noisy + settings.decision_queries
    )  # nes, and few squares, where noise is drawn
    clean_and_large_eps, far = 2, min(settings.square_queries, FAR_QUERIES) + (settings.square_queries > 0)
    again = (2 * settings.resubmissions + transfers + by_queries) * noisy
    return images * (clean_and_large_eps + far + transfers + by_queries + spent + again)


def _evaluated(attacker: Attacker, name: str, seed: int) -> AttackEvaluation:
    """Attack, then classify what the attack returns."""
    settings, knows = attacker.settings, THREAT_MODELS[name]
    eps = settings.large_eps if name in FAR else 0.0 if name.endswith("clean") else settings.eps
    if reason := attacker.obstacle(name):
        return AttackEvaluation(name, knows, eps, skipped=reason)
    asked, followed = attacker.endpoint.queries, attacker.tally.gradients
    reseed(attacker.system.purifier, seed)
    with forked(seed, attacker.device):
        adversarial = attacker.attack(name, eps, seed)
        if name == DW_BOX:
            right = _right_under_known_noise(attacker, adversarial, seed)
        else:
            right = _right_each_time(attacker, adversarial, _submissions(attacker, name))
    low, high = certify.binomial_interval(sum(right), len(right))
    return AttackEvaluation(
        name,
        knows,
        eps,
        [sum(right) / len(right), float(low), float(high)],
        right,
        attacker.endpoint.queries - asked,
        attacker.tally.gradients - followed,
    )


def _submissions(attacker: Attacker, name: str) -> int:
    """How often each image is submitted to see whether it is right."""
    if name == "worst_case_clean":
        return len(single_attacks(attacker.evaluations))
    return attacker.settings.resubmissions if name.startswith("resubmission") else 1


def _right_each_time(attacker: Attacker, images: Tensor, submissions: int) -> tuple[bool, ...]:
    """Which images are right in every one of so many submissions."""
    right = torch.ones(len(images), dtype=torch.bool)
    for _ in range(submissions):
        right &= attacker.endpoint.query(images, repeats=1)[0] == attacker.every_label
    return tuple(right.tolist())


@torch.no_grad()
def _right_under_known_noise(attacker: Attacker, images: Tensor, seed: int) -> tuple[bool, ...]:
    """Which images are right under the noise that the attacker knew: in the batches that he saw it in."""
    system, size = attacker.whole(seed), images_at_once(images.shape[1:], 256)
    answers = [system(batch.to(attacker.device)).argmax(1).cpu() for batch in images.split(size)]
    return tuple((torch.cat(answers) == attacker.every_label).tolist())
