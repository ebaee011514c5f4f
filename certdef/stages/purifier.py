"""The purifier of a job: its networks, trained once on the unlabelled pool, and the model that is kept of it.

It costs no query and sees no label but the surrogate's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from certdef import attacks, serving, storage
from certdef.config import ConfigError, RunConfig
from certdef.data import data_root
from certdef.models import build_classifier, features, surrogate_model, train_classifier
from certdef.noise_laws import noise_law
from certdef.purifiers import build
from certdef.purifiers.catalogue import CATALOGUE
from certdef.purifiers.training import Training
from certdef.stages.denoiser import build_denoiser, pretrain_denoiser, pretrain_mim
from certdef.stages.job import Job
from certdef.stages.kept import kept
from certdef.workspace import Stage

ROBUST_EPOCHS = 8  # of AGDM's adversarially trained network
BATCH = 512


@dataclass
class Purifier:
    """A purifier with its networks: shared ones, and those that each noise law has of its own."""

    name: str
    settings: dict[str, Any]
    headline_law: str
    shared: dict[str, nn.Module] = field(default_factory=dict)
    by_law: dict[str, dict[str, nn.Module]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    def networks(self, law: str | None = None) -> dict[str, nn.Module]:
        """All networks under a law of noise; an unknown one, e.g. the comparison's, has those of the headline."""
        return self.shared | self.by_law.get(law or self.headline_law, self.by_law.get(self.headline_law, {}))

    def defence(self, generator: torch.Generator | None = None) -> nn.Module:
        """Images -> images, as a defence of its own."""
        return build.purifier(self.name, self.settings, self.networks(), generator)

    def denoiser(self, law: str | None = None) -> nn.Module | None:
        """What stands between the noise and the classifier; None where the purifier has no such part."""
        return build.denoiser(self.name, self.settings, self.networks(law))


def prepare_purifier(job: Job, name: str, surrogate: nn.Module, surrogate_stage: Stage) -> Purifier:
    """Train what the purifier needs and is not there yet, and log the whole as a model: images in, images out."""
    made = Purifier(name, build.settings(name, job.config), job.config.headline_law)
    for need in CATALOGUE[name].networks:
        if need in PER_LAW:
            for law in job.config.certify.laws:
                network, stage = PER_LAW[need](job, law)
                made.by_law.setdefault(law.label, {})[need] = network
                made.stages.append(stage)
        elif need == "classifier":
            made.shared[need] = surrogate
        elif need == "uad_step":
            stage = _choose_step(job, surrogate, made.shared["diffusion"], [surrogate_stage, *made.stages])
            made.settings = made.settings | {"t": stage.result["t"]}
            made.stages.append(stage)
        else:
            made.shared[need], stage = SHARED[need](job, surrogate, surrogate_stage)
            made.stages.append(stage)
    made.stages.append(_keep(job, made, surrogate_stage))
    return made


def _keep(job: Job, made: Purifier, surrogate_stage: Stage) -> Stage:
    stage = job.stage(
        f"purifier-{made.name}", made.settings, surrogate_stage.fingerprint, *(other.fingerprint for other in made.stages)
    )  # fmt: skip
    with job.tracker.stage(stage):
        if not stage.done:
            storage.save_purifier(stage.path / "model", made.name, made.settings, made.networks())
            uri = serving.log_served(stage.path / "model", "purifier", job.data.heldout_images[:2])
            stage.finish({"uri": uri, "params": {"purifier": made.name} | made.settings})
    return stage


def _blind_spot(job: Job, surrogate: nn.Module, _: Stage) -> tuple[nn.Module, Stage]:
    """NCIS's network, which restores what the smoothing took away."""
    from certdef.purifiers.gaussian import GaussianSmoothing

    gs = job.config.gs
    return _trained_blind_spot(
        job, "blind-spot", [asdict(gs)], smoothing=GaussianSmoothing(gs.kernel, gs.sigma, gs.passes)
    )


def _noisy_blind_spot(job: Job, law: Any) -> tuple[nn.Module, Stage]:
    """A denoiser for one law, trained on noisy images alone."""
    return _trained_blind_spot(job, f"blind-spot-{law.label}", [asdict(law)], noise=noise_law(law))


def _trained_blind_spot(job: Job, name: str, depends_on: list[Any], **how: Any) -> tuple[nn.Module, Stage]:
    from certdef.natural import natural_crops
    from certdef.purifiers.blind_spot import BlindSpotNetwork, BlindSpotShape, train_blind_spot

    config, shape = job.config.blind_spot, job.data.image_shape
    images = torch.from_numpy(job.data.pool)
    if config.images == "natural":
        root = data_root(job.config.data)
        images = natural_crops(root, shape[0], min(shape[1:]), config.crops, job.config.seed)

    def train(network: nn.Module, stage: Stage) -> list[float]:
        return train_blind_spot(network, images, _training(config), **how, **_where(job, stage, name))

    sizes = BlindSpotShape(shape, config.filters, config.blocks)
    return kept(
        job, name, [_made_by(config, "iterations"), *depends_on], lambda: BlindSpotNetwork(sizes), train
    )


def _tasks(job: Job, surrogate: nn.Module, surrogate_stage: Stage) -> tuple[nn.Module, Stage]:
    from certdef.purifiers.tasks import TaskNetwork, TaskShape, train_tasks

    config, pool = job.config.reversal, torch.from_numpy(job.data.pool)
    with torch.inference_mode():
        width = features(surrogate, pool[:1].to(job.device)).shape[1]
    shape = TaskShape(
        job.data.image_shape,
        width,
        config.tasks,
        bank=min(TaskShape.bank, len(pool) // 2),
        seed=job.config.seed,
    )

    def train(network: nn.Module, stage: Stage) -> list[float]:
        return train_tasks(network, surrogate, pool, _training(config), **_where(job, stage, "tasks"))

    depends_on = [_made_by(config, "eps", "steps", "step_255"), surrogate_stage.fingerprint]
    return kept(job, "tasks", depends_on, lambda: TaskNetwork(shape), train)


def _diffusion(job: Job, surrogate: nn.Module, _: Stage) -> tuple[nn.Module, Stage]:
    from certdef.purifiers.diffusion import (
        DiffusionNetwork,
        DiffusionShape,
        load_pretrained,
        train_diffusion,
    )

    config, pool, shape = job.config.diffusion, torch.from_numpy(job.data.pool), job.data.image_shape

    def make() -> nn.Module:
        if config.pretrained:
            return load_pretrained(config.pretrained, shape)
        return DiffusionNetwork(DiffusionShape(shape, channels=config.channels))

    def train(network: nn.Module, stage: Stage) -> list[float]:
        if config.pretrained:
            return []
        return train_diffusion(
            network, pool, _training(config, ema=config.ema), **_where(job, stage, "diffusion")
        )

    used_later = ("t", "steps", "grid", "choice_images", "guidance")
    return kept(job, "diffusion", [_made_by(config, *used_later)], make, train)


def _robust(job: Job, surrogate: nn.Module, surrogate_stage: Stage) -> tuple[nn.Module, Stage]:
    """AGDM's auxiliary network: the surrogate's architecture, trained against attacks with the surrogate's labels."""
    pool, classes = torch.from_numpy(job.data.pool), len(job.data.classes)
    eps, epochs = max(job.config.attack.eps[0], 1 / 255), ROBUST_EPOCHS

    def perturb(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return attacks.pgd(model, images, labels, eps=eps, steps=5, seed=job.config.seed).to(images.device)

    def train(model: nn.Module, stage: Stage) -> list[float]:
        labels = torch.cat([_labels(surrogate, batch.to(job.device)) for batch in pool.split(BATCH)])
        train_classifier(
            model, job.data.pool, labels.numpy(), epochs=epochs, seed=job.config.seed, device=job.device,
            augment=job.config.target.augment, perturb=perturb, progress=job.progress, desc="train the robust network",
        )  # fmt: skip
        return []

    return kept(
        job, "robust", [surrogate_stage.fingerprint, eps, epochs],
        lambda: build_classifier(surrogate_model(job.config), job.data.image_shape, classes), train,
    )  # fmt: skip


SHARED: dict[str, Callable] = {
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


def _choose_step(job: Job, surrogate: nn.Module, diffusion: nn.Module, depends_on: list[Stage]) -> Stage:
    """UAD-RS: the step t at which purified attacked images look most like clean ones to the surrogate; no labels."""
    from certdef.purifiers.anls import anls

    config, attack = job.config.diffusion, job.config.attack
    eps = max(attack.eps)
    stage = job.stage(
        "uad-step", list(config.grid), config.steps, config.choice_images, eps, attack.steps,
        *(other.fingerprint for other in depends_on),
    )  # fmt: skip
    with job.tracker.stage(stage):
        if not stage.done:
            clean = torch.from_numpy(job.data.pool)
            shown = clean[: config.choice_images]
            labels = _labels(surrogate, shown.to(job.device))
            attacked = attacks.pgd(
                surrogate,
                shown,
                labels,
                eps=eps,
                steps=attack.steps,
                seed=job.config.seed,
                progress=job.progress,
            )
            choice = anls(
                diffusion, surrogate, clean, attacked, config.grid, steps=config.steps, seed=job.config.seed,
                progress=job.progress,
            )  # fmt: skip
            stage.finish({
                "t": choice.t,
                "params": {"t": choice.t, "eps": eps},
                "points": {"uad-step/distance": [[t, distance] for t, distance in choice.distances.items()]},
                "metrics": {"uad-step/t": choice.t},
            })  # fmt: skip
    return stage


def purify_images(job: Job, purifier: Purifier, images: np.ndarray, path: Path) -> dict[str, Any]:
    """Write purified images (N, C, H, W) to an .npz; says how much they changed. The noise depends on the seed."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    module = purifier.defence(generator).to(job.device)
    with torch.inference_mode():
        purified = torch.cat([
            module(batch.to(job.device)).cpu()
            for batch in job.progress(torch.from_numpy(images).split(100), desc=f"purify with {purifier.name}")
        ]).numpy()  # fmt: skip
    np.savez_compressed(path, images=purified)
    change = np.abs(purified - images)
    return {
        "purifier": purifier.name, "images": len(images), "path": str(path),
        "mean_change": float(change.mean()), "largest_change": float(change.max()),
    }  # fmt: skip


def check_purifier(config: RunConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse, before anything is trained, what the purifier can't be built with."""
    needs = CATALOGUE[config.purifier].networks
    if "diffusion" in needs:
        from importlib.util import find_spec

        if find_spec("diffusers") is None:
            raise ConfigError(
                f"purifier {config.purifier!r} needs diffusers, which is missing: pip install 'certdef[diffusion]'"
            )
    if {"nim", "nim-simmim", "mim"} & set(needs) or "nim" in (
        config.surrogate.model,
        config.surrogate.features,
    ):
        build_denoiser(config, image_shape)
    if "blind_spot" in needs and config.blind_spot.images == "natural":
        folder = data_root(config.data) / "natural"
        if not folder.is_dir():
            raise ConfigError(f"no {str(folder)!r}: use --blind_spot.images pool, or another --data.root")


def _labels(classifier: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return classifier(images).argmax(1).cpu()


def _training(config: Any, **more: Any) -> Training:
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
