"""The networks of the purifiers: how each is built as configured, and trained once on the unlabelled pool.

None costs a query, and none sees a label but the surrogate's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from certdef.attacks import gradient as attacks
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import data_root
from certdef.models.classifiers import build_classifier, features, train_classifier
from certdef.purifiers.catalogue import CATALOGUE
from certdef.stages.denoiser import build_denoiser, pretrain_denoiser, pretrain_mim
from certdef.stages.job import Job
from certdef.stages.trained_once import trained_once
from certdef.tracking.workspace import Stage
from surrogates.distillation.training import Training

BATCH, CROP = 512, 32


def needed(name: str, config: RunConfig) -> list[str]:
    """The networks of a purifier as the catalogue calls them; a denoiser only where a task asks for one."""
    return [
        need
        for need in CATALOGUE[name].networks
        if need != "denoiser" or "denoising" in config.reversal.tasks
    ]


def untrained(
    config: RunConfig, image_shape: tuple[int, int, int], need: str, classifier: nn.Module
) -> nn.Module:
    """A network of the catalogue as configured, before any training; ValueError or ConfigError names what can't be used."""
    if need in ("denoiser", "nim", "nim-simmim", "mim"):
        return build_denoiser(config, image_shape, masked=need == "mim", linear_head=need == "nim-simmim")
    if need in ("blind_spot", "blind_spot_noisy"):
        from certdef.purifiers.networks.blind_spot import BlindSpotNetwork, BlindSpotShape

        return BlindSpotNetwork(
            BlindSpotShape(image_shape, config.blind_spot.filters, config.blind_spot.blocks)
        )
    if need == "tasks":
        from certdef.purifiers.networks.tasks import TaskNetwork, TaskShape

        device = next(classifier.parameters()).device
        with torch.inference_mode():
            width = features(classifier, torch.zeros(1, *image_shape, device=device)).shape[1]
        bank = min(TaskShape.bank, config.data.pool_images // 2)
        return TaskNetwork(TaskShape(image_shape, width, config.reversal.tasks, bank=bank, seed=config.seed))
    if need == "diffusion":
        from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape, load_pretrained

        if config.diffusion.pretrained:
            return load_pretrained(config.diffusion.pretrained, image_shape)
        return DiffusionNetwork(DiffusionShape(image_shape, channels=config.diffusion.channels))
    return build_classifier(**classifier.built)


def _blind_spot(job: Job, surrogate: nn.Module, _: Stage) -> tuple[nn.Module, Stage]:
    """NCIS's network, which restores what the smoothing took away."""
    from certdef.purifiers.gaussian import GaussianSmoothing

    gs = job.config.gs
    smoothing = GaussianSmoothing(gs.kernel, gs.sigma, gs.passes)
    return _trained_blind_spot(job, "blind-spot", [asdict(gs)], smoothing=smoothing)


def _noisy_blind_spot(job: Job, law: Any) -> tuple[nn.Module, Stage]:
    """A denoiser for one law, trained on noisy images alone."""
    return _trained_blind_spot(job, f"blind-spot-{law.label}", [asdict(law)], noise=noise_law(law))


def _trained_blind_spot(job: Job, name: str, depends_on: list[Any], **how: Any) -> tuple[nn.Module, Stage]:
    from certdef.data.natural import natural_crops
    from certdef.purifiers.networks.blind_spot import train_blind_spot

    config, shape = job.config.blind_spot, job.data.image_shape
    images = torch.from_numpy(job.data.pool)
    if config.images == "natural":
        root = data_root(job.config.data)
        # Photographs shrunk too: the images of most data sets have more detail in a pixel.
        images = natural_crops(
            root, shape[0], min(CROP, *shape[1:]), config.crops, job.config.seed, scales=(1, 2, 3)
        )

    def train(network: nn.Module, stage: Stage) -> list[float]:
        return train_blind_spot(network, images, training_of(config), **how, **_where(job, stage, name))

    build_it = partial(untrained, job.config, shape, "blind_spot", None)
    return trained_once(job, name, [_made_by(config, "iterations"), *depends_on], build_it, train)


def _denoiser(job: Job, surrogate: nn.Module, _: Stage) -> tuple[nn.Module, Stage]:
    """The headline's NIM, for the denoising task."""
    return pretrain_denoiser(job, job.config.certify.laws[0])


def _tasks(job: Job, surrogate: nn.Module, surrogate_stage: Stage) -> tuple[nn.Module, Stage]:
    from certdef.purifiers.networks.tasks import train_tasks

    config, pool = job.config.reversal, torch.from_numpy(job.data.pool)
    depends_on = [_made_by(config, "eps", "steps", "step_255"), surrogate_stage.fingerprint]
    denoiser = None
    if "denoising" in config.tasks:
        denoiser, stage_of_it = _denoiser(job, surrogate, surrogate_stage)
        depends_on.append(stage_of_it.fingerprint)

    def train(network: nn.Module, stage: Stage) -> list[float]:
        return train_tasks(
            network, surrogate, pool, training_of(config), denoiser=denoiser, **_where(job, stage, "tasks")
        )

    build_it = partial(untrained, job.config, job.data.image_shape, "tasks", surrogate)
    return trained_once(job, "tasks", depends_on, build_it, train)


def _diffusion(job: Job, surrogate: nn.Module, _: Stage) -> tuple[nn.Module, Stage]:
    from certdef.purifiers.networks.diffusion import train_diffusion

    config, pool = job.config.diffusion, torch.from_numpy(job.data.pool)

    def train(network: nn.Module, stage: Stage) -> list[float]:
        if config.pretrained:
            return []
        return train_diffusion(
            network, pool, training_of(config, ema=config.ema), **_where(job, stage, "diffusion")
        )

    used_later = ("t", "steps", "grid", "choice_images", "guidance", "robust_epochs")
    build_it = partial(untrained, job.config, job.data.image_shape, "diffusion", surrogate)
    return trained_once(job, "diffusion", [_made_by(config, *used_later)], build_it, train)


def _robust(job: Job, surrogate: nn.Module, surrogate_stage: Stage) -> tuple[nn.Module, Stage]:
    """AGDM's auxiliary network: the surrogate's architecture, trained against attacks with the surrogate's labels."""
    pool = torch.from_numpy(job.data.pool)
    eps, epochs = max(job.config.attack.eps[0], 1 / 255), job.config.diffusion.robust_epochs

    def perturb(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return attacks.pgd(model, images, labels, eps=eps, steps=5, seed=job.config.seed).to(images.device)

    def train(model: nn.Module, stage: Stage) -> list[float]:
        labels = torch.cat([labels_of(surrogate, batch.to(job.device)) for batch in pool.split(BATCH)])
        train_classifier(
            model, job.data.pool, labels.numpy(), epochs=epochs, seed=job.config.seed, device=job.device,
            augment=job.config.target.augment, perturb=perturb, progress=partial(job.progress, desc="train the robust network"),
        )  # fmt: skip
        return []

    build_it = partial(untrained, job.config, job.data.image_shape, "robust", surrogate)
    return trained_once(job, "robust", [surrogate_stage.fingerprint, eps, epochs], build_it, train)


def labels_of(classifier: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return classifier(images).argmax(1).cpu()


def training_of(config: Any, **more: Any) -> Training:
    """The recipe of a purifier's configuration; ConfigError names what can't be used."""
    try:
        return Training(config.epochs, config.batch_size, config.learning_rate, **more)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _where(job: Job, stage: Stage, what: str) -> dict[str, Any]:
    return {
        "seed": job.config.seed,
        "device": job.device,
        "checkpoint": stage.path / "checkpoint.pt",
        "progress": partial(job.progress, desc=f"train {what}"),
    }


def _made_by(config: Any, *used_later: str) -> dict[str, Any]:
    """What a network's weights depend on: its configuration without what is only used after training."""
    return {key: value for key, value in asdict(config).items() if key not in used_later}


# What the catalogue calls them: shared ones, and those that each noise law has of its own.
SHARED: dict[str, Callable] = {
    "denoiser": _denoiser,
    "mim": lambda job, surrogate, stage: pretrain_mim(job),
    "blind_spot": _blind_spot,
    "tasks": _tasks,
    "diffusion": _diffusion,
    "robust": _robust,
}
PER_LAW: dict[str, Callable] = {
    "nim": pretrain_denoiser,
    "nim-simmim": partial(pretrain_denoiser, linear_head=True),
    "blind_spot_noisy": _noisy_blind_spot,
}
