"""AGDM's auxiliary network: the architecture of the defended classifier, trained against attacks with its labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from certdef.attacks import gradient as attacks
from certdef.config.job import RunConfig
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun

STEPS = 5  # of PGD, for each batch


def _build(plan: Plan) -> nn.Module:
    assert plan.new_classifier is not None
    return plan.new_classifier()


def _train(network: nn.Module, run: TrainingRun) -> list[float]:
    config = run.config

    def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attacked = attacks.pgd(model, images, labels, eps=_eps(config), steps=STEPS, seed=config.seed)
        return attacked.to(images.device)

    run.train_classifier(
        network,
        run.pool.numpy(),
        run.labels(run.pool).numpy(),
        epochs=config.diffusion.robust_epochs,
        seed=config.seed,
        device=run.device,
        augment=config.target.augment,
        perturb=perturb,
        progress=run.progress,
    )
    return []


def _eps(config: RunConfig) -> float:
    """The smallest configured L-infinity budget, in [0, 1] pixel units, at least one 8-bit level."""
    return max(config.attack.eps[0], 1 / 255)


def _settings(config: RunConfig) -> dict[str, Any]:
    return {
        "eps": _eps(config),
        "epochs": config.diffusion.robust_epochs,
        "augment": config.target.augment,
    }


ROBUST = NetworkSpec("robust", "robust", _build, _train, _settings, sees_classifier=True)
