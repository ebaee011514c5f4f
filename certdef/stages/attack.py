"""PGD on the surrogate, transferred to the target, each with and without the purifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

import surrogates
from certdef.attacks import gradient
from certdef.config.job import ConfigError, RunConfig
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

BATCH = 100  # images purified at a time: a diffusion chain takes memory

# What each column is: the attacker knows the surrogate's weights, and neither the target's nor the denoiser.
ATTACKS = {
    "surrogate": "white_box_pgd_surrogate",
    "surrogate_purified": "blind_pgd_surrogate_purified",
    "target": "transfer_pgd_target",
    "target_purified": "transfer_pgd_target_purified",
}


@dataclass(frozen=True)
class AttackRow:
    """Accuracy under one L-infinity budget, without and with the purifier."""

    eps: float
    surrogate: Share
    surrogate_purified: Share
    target: Share
    target_purified: Share


@dataclass(frozen=True, kw_only=True)
class AttackResult(StageResult):
    """A row an eps; the first is eps 0, the clean control through the same defenses."""

    rows: tuple[AttackRow, ...]
    images: int


def attack(
    job: Job, target: surrogates.Target, surrogate: nn.Module, purifier: Purifier, depends_on: list[Stage]
) -> Stage[AttackResult]:
    """Accuracy with intervals at each eps."""
    config, data = job.config.attack, job.data
    defense = [other.fingerprint for other in depends_on]
    stage = job.stage("attack", AttackResult, asdict(config), data.heldout_digest, target.subject, *defense)
    return job.run(stage, lambda: _attack(job, target, surrogate, purifier, stage))


def _attack(
    job: Job, target: surrogates.Target, surrogate: nn.Module, purifier: Purifier, stage: Stage
) -> AttackResult:
    config, data, seed = job.config.attack, job.data, job.config.seed
    count = min(config.images, len(data.heldout_images))
    images, labels = (torch.from_numpy(each[:count]) for each in (data.heldout_images, data.heldout_labels))
    defense = purifier.defense(torch.Generator(job.device).manual_seed(seed)).to(job.device)
    paid = job.ledger.attach(
        target,
        purpose="attack",
        experiment=f"attack/{seed}",
        formerly=job.legacy.experiment(stage.name),
    )
    known = job.ledger.attach(target, purpose="evaluation")

    def row(eps: float) -> AttackRow:
        attacked = images
        if eps:
            attacked = gradient.pgd(
                surrogate, images, labels, eps=eps, steps=config.steps, seed=seed, progress=job.progress
            )
        with torch.inference_mode():
            purified = torch.cat(
                [defense(batch.to(job.device, copy=True)) for batch in attacked.split(BATCH)]
            )
            predicted = {
                "surrogate": _labels(surrogate, attacked.to(job.device)),
                "surrogate_purified": _labels(surrogate, purified),
                "target": torch.from_numpy((paid if eps else known).query(attacked).labels),
                "target_purified": torch.from_numpy(paid.query(purified.cpu()).labels),
            }
        correct = {name: int((each == labels).sum()) for name, each in predicted.items()}
        return AttackRow(eps, **{name: Share.of(hits, count) for name, hits in correct.items()})

    rows = tuple(row(eps) for eps in (0.0, *config.eps))
    return AttackResult(
        rows=rows,
        images=count,
        params=asdict(config) | data.remarks,
        metrics={
            metrics.ATTACK_AT_EPS.format(attack=name, eps=each.eps): getattr(each, column).value
            for each in rows
            for column, name in ATTACKS.items()
        },
    )


def _labels(classifier: nn.Module, images: Tensor) -> Tensor:
    return classifier(images.clone()).argmax(1).cpu()


def attack_queries(config: RunConfig, heldout: int) -> int:
    """Queries of the attack: every image at each eps, with and without the purifier, and the purified clean ones."""
    return min(config.attack.images, heldout) * (2 * len(config.attack.eps) + 1)


def check_attack_budget(config: RunConfig, heldout: int) -> None:
    """Refuse an attack budget that the attack does not fit in, before anything is spent."""
    levels, budget = len(config.attack.eps), config.ledger.attack
    count, need = min(config.attack.images, heldout), attack_queries(config, heldout)
    if need > budget:
        raise ConfigError(
            f"ledger.attack is {budget}: {count} images at {levels} eps, with and without the purifier, need {need}; "
            "raise it or lower attack.images"
        )
