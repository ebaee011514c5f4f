"""AGDM's auxiliary network: the architecture of the defended classifier, trained against attacks with its labels.

The latents that it compares are of the input and of clean estimates on the way back from t noise steps. So half of what it is
trained on is diffused by up to t steps, and attacked there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from certdef.attacks import gradient as attacks
from certdef.config.job import RunConfig
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork, inside, outside

STEPS = 5  # of PGD, for each batch


def _build(plan: Plan) -> nn.Module:
    assert plan.new_classifier is not None
    return plan.new_classifier()


def _train(network: nn.Module, run: TrainingRun) -> list[float]:
    config, diffusion = run.config, run.plan.networks.get("diffusion")
    draws = torch.Generator(run.device).manual_seed(config.seed)

    def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if isinstance(diffusion, DiffusionNetwork):
            images = half_diffused(diffusion, images, config.diffusion.t, draws)
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


def half_diffused(
    network: DiffusionNetwork, images: Tensor, longest: int, generator: torch.Generator
) -> Tensor:
    """Every second of the images (N, C, H, W) after 1 to `longest` noise steps, in [0, 1]; the others as they are."""
    count, device = len(images), images.device
    t = torch.randint(1, longest + 1, (count,), generator=generator, device=device)
    noise = torch.randn(images.shape, generator=generator, device=device)
    diffused = outside(network.diffuse(inside(images), t, noise))
    second = torch.arange(count, device=device) % 2 == 1
    return torch.where(second[:, None, None, None], diffused, images)


def _eps(config: RunConfig) -> float:
    """The smallest configured L-infinity budget, in [0, 1] pixel units, at least one 8-bit level."""
    return max(config.attack.eps[0], 1 / 255)


def _settings(config: RunConfig) -> dict[str, Any]:
    settings = {
        "eps": _eps(config),
        "epochs": config.diffusion.robust_epochs,
        "augment": config.target.augment,
    }
    return settings | ({"longest": config.diffusion.t} if config.diffusion.robust_diffused else {})


ROBUST = NetworkSpec(
    "robust",
    "robust",
    _build,
    _train,
    _settings,
    needs=lambda config: (DIFFUSION,) if config.diffusion.robust_diffused else (),
    sees_classifier=True,
)
