"""PGD on the surrogate, transferred to the target, each with and without the purifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

import surrogates
from certdef.attacks import gradient
from certdef.config.job import ConfigError, RunConfig
from certdef.config.own_target import NONE
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult, as_frame
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import images_at_once, predict

if TYPE_CHECKING:
    import pandas

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
    """Accuracy under one L-infinity budget, without and, where the job has one, with the purifier."""

    eps: float
    surrogate: Share
    target: Share
    surrogate_purified: Share | None = None
    target_purified: Share | None = None


@dataclass(frozen=True, kw_only=True)
class AttackResult(StageResult):
    """A row an eps; the first is eps 0, the clean control through the same defenses."""

    rows: tuple[AttackRow, ...]
    images: int

    def to_frame(self) -> pandas.DataFrame:
        """A row an eps: accuracy with its limits, without and with the purifier."""
        return as_frame(vars(row) for row in self.rows)


def attack(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    purifier: Purifier,
    depends_on: list[Stage],
    behind: nn.Module | None = None,
) -> Stage[AttackResult]:
    """Accuracy with intervals at each eps.

    Args:
        job: The job.
        target: It pays from its ledger.
        surrogate: The one that is attacked, and whose adversarial images go to the target.
        purifier: The defense of both.
        depends_on: The stages that trained them.
        behind: The surrogate that stands behind the purifier, attacked by itself; unset, the same.
    """
    config, data = job.config.attack, job.data
    defense = [other.fingerprint for other in depends_on]
    stage = job.stage("attack", AttackResult, asdict(config), data.heldout_digest, target.subject, *defense)
    return job.run(stage, lambda: _attack(job, target, surrogate, behind or surrogate, purifier, stage))


def _attack(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    behind: nn.Module,
    purifier: Purifier,
    stage: Stage,
) -> AttackResult:
    config, data, seed = job.config.attack, job.data, job.config.seed
    count = min(config.images, len(data.heldout_images))
    images, labels = (torch.from_numpy(each[:count]) for each in (data.heldout_images, data.heldout_labels))
    batch = images_at_once(data.image_shape, BATCH)
    of_target, of_surrogate = (
        purifier.defense(torch.Generator(job.device).manual_seed(seed)).to(job.device) for _ in range(2)
    )
    paid = job.ledger.attach(
        target,
        purpose="attack",
        experiment=f"attack/{seed}",
        formerly=job.legacy.experiment(stage.name),
    )
    known = job.ledger.attach(target, purpose="evaluation")

    def attacked_by(model: nn.Module, eps: float) -> torch.Tensor:
        if not eps:
            return images
        return gradient.pgd(
            model, images, labels, eps=eps, steps=config.steps, seed=seed, progress=job.progress
        )

    def purified(defense: nn.Module, shown: torch.Tensor) -> torch.Tensor:
        return torch.cat([defense(part.to(job.device, copy=True)).cpu() for part in shown.split(batch)])

    def row(eps: float) -> AttackRow:
        attacked = attacked_by(surrogate, eps)
        alone = behind is not surrogate  # then it is attacked by itself
        own = attacked_by(behind, eps) if alone else attacked
        with torch.inference_mode():
            predicted = {
                "surrogate": predict(surrogate, attacked, batch).argmax(1),
                "target": torch.from_numpy((paid if eps else known).query(attacked).labels),
            }
            if purifier.name != NONE:
                before_target = purified(of_target, attacked)
                before_surrogate = purified(of_surrogate, own) if alone else before_target
                predicted |= {
                    "surrogate_purified": predict(behind, before_surrogate, batch).argmax(1),
                    "target_purified": torch.from_numpy(paid.query(before_target).labels),
                }
        correct = {name: int((each == labels).sum()) for name, each in predicted.items()}
        return AttackRow(eps, **{name: Share.of(hits, count) for name, hits in correct.items()})

    rows = tuple(row(eps) for eps in (0.0, *config.eps))
    return AttackResult(
        rows=rows,
        images=count,
        params=asdict(config) | data.remarks,
        metrics={
            metrics.ATTACK_AT_EPS.format(attack=name, eps=each.eps): share.value
            for each in rows
            for column, name in ATTACKS.items()
            if (share := getattr(each, column)) is not None
        },
    )


def attack_queries(config: RunConfig, heldout: int) -> int:
    """Queries of the attack: every image at each eps, with and without the purifier, and the purified clean ones."""
    levels = len(config.attack.eps)
    return min(config.attack.images, heldout) * (levels if config.purifier == NONE else 2 * levels + 1)


def check_attack_budget(config: RunConfig, heldout: int) -> None:
    """Refuse an attack budget that the attack does not fit in, before anything is spent."""
    levels, budget = len(config.attack.eps), config.ledger.attack
    count, need = min(config.attack.images, heldout), attack_queries(config, heldout)
    if need > budget:
        how = "" if config.purifier == NONE else ", with and without the purifier,"
        raise ConfigError(
            f"ledger.attack is {budget}: {count} images at {levels} eps{how} need {need}; "
            "raise it or lower attack.images"
        )
