"""The purifier of a job: its networks together, the model that is kept of it, and images through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from certdef.attacks import gradient as attacks
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import data_root
from certdef.models import serving, storage
from certdef.purifiers import build
from certdef.stages.denoiser import build_denoiser
from certdef.stages.job import Job
from certdef.stages.networks import PER_LAW, SHARED, labels_of, needed, training_of, untrained
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage, fingerprint


@dataclass(frozen=True, kw_only=True)
class PurifierResult(StageResult):
    """Where the purifier was logged."""

    uri: str


@dataclass(frozen=True, kw_only=True)
class StepResult(StageResult):
    """The step that UAD-RS chose."""

    t: int


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

    def defense(self, generator: torch.Generator | None = None) -> nn.Module:
        """Images -> images, as a defence of its own."""
        return build.purifier(self.name, self.settings, self.networks(), generator)

    def denoiser_key(self, law: str | None = None) -> str:
        """Identifies the denoiser under a law."""
        return fingerprint(self.name, law, [stage.fingerprint for stage in self.stages])

    def denoiser(self, law: str | None = None) -> nn.Module | None:
        """What stands between the noise and the classifier; None where the purifier has no such part."""
        return build.denoiser(self.name, self.settings, self.networks(law))


def prepare_purifier(job: Job, name: str, surrogate: nn.Module, surrogate_stage: Stage) -> Purifier:
    """Train what the purifier needs and is not there yet, and log the whole as a model: images in, images out."""
    made = Purifier(name, build.settings(name, job.config), job.config.headline_law)
    for need in needed(name, job.config):
        if need in PER_LAW:
            for law in job.config.certify.laws:
                network, stage = PER_LAW[need](job, law)
                made.by_law.setdefault(law.label, {})[need] = network
                made.stages.append(stage)
        elif need == "classifier":
            made.shared[need] = surrogate
        elif need == "uad_step":
            stage = _choose_step(job, surrogate, made.shared["diffusion"], [surrogate_stage, *made.stages])
            made.settings = made.settings | {"t": stage.result.t}
            made.stages.append(stage)
        else:
            made.shared[need], stage = SHARED[need](job, surrogate, surrogate_stage)
            made.stages.append(stage)
    made.stages.append(_keep(job, made, surrogate_stage))
    return made


def _keep(job: Job, made: Purifier, surrogate_stage: Stage) -> Stage:
    key = [made.settings, *(other.fingerprint for other in made.stages)]
    stage = job.stage(f"purifier-{made.name}", PurifierResult, *key)

    def save() -> PurifierResult:
        storage.save_purifier(stage.path / "model", made.name, made.settings, made.networks())
        uri = serving.log_served(stage.path / "model", "purifier", job.data.heldout_images[:2])
        return PurifierResult(uri=uri, params={"purifier": made.name} | made.settings)

    return job.run(stage, save)


def _choose_step(job: Job, surrogate: nn.Module, diffusion: nn.Module, depends_on: list[Stage]) -> Stage:
    """UAD-RS: the step t at which purified attacked images look most like clean ones to the surrogate; no labels."""
    from certdef.purifiers.anls import anls

    config, attack = job.config.diffusion, job.config.attack
    eps = max(attack.eps)
    key = [list(config.grid), config.steps, config.choice_images, eps, attack.steps]
    stage = job.stage("uad-step", StepResult, *key, *(other.fingerprint for other in depends_on))

    def choose() -> StepResult:
        clean = torch.from_numpy(job.data.pool)
        shown = clean[: config.choice_images]
        labels = labels_of(surrogate, shown.to(job.device))
        settings = {"eps": eps, "steps": attack.steps, "seed": job.config.seed, "progress": job.progress}
        attacked = attacks.pgd(surrogate, shown, labels, **settings)
        chain = {"steps": config.steps, "seed": job.config.seed, "progress": job.progress}
        choice = anls(diffusion, surrogate, clean, attacked, config.grid, **chain)
        return StepResult(
            t=choice.t,
            params={"t": choice.t, "eps": eps},
            points={"uad-step/distance": tuple(choice.distances.items())},
            metrics={"uad-step/t": choice.t},
        )

    return job.run(stage, choose)


def purify_images(job: Job, purifier: Purifier, images: np.ndarray, path: Path) -> dict[str, Any]:
    """Write purified images (N, C, H, W) to an .npz; says how much they changed. The noise depends on the seed."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    module = purifier.defense(generator).to(job.device)
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


def check_purifier(config: RunConfig, image_shape: tuple[int, int, int], classifier: nn.Module) -> None:
    """Refuse, before anything is trained or paid for, what the purifier can't be made of.

    Raises:
        ConfigError: A missing package or folder, or a value that a network, its training or the purifier refuses.
    """
    name, needs = config.purifier, needed(config.purifier, config)
    if "diffusion" in needs and find_spec("diffusers") is None:
        raise ConfigError(
            f"purifier {name!r} needs diffusers, which is missing: pip install 'certdef[diffusion]'"
        )
    if {"blind_spot", "blind_spot_noisy"} & set(needs) and config.blind_spot.images == "natural":
        folder = data_root(config.data) / "natural"
        if not folder.is_dir():
            raise ConfigError(f"no {str(folder)!r}: use --blind_spot.images pool, or another --data.root")
    try:
        if "nim" in (config.surrogate.model, config.surrogate.features):
            build_denoiser(config, image_shape)
        networks = {
            need: classifier if need == "classifier" else untrained(config, image_shape, need, classifier)
            for need in needs
            if need != "uad_step"
        }
        build.purifier(name, build.settings(name, config), networks)
        for need, section in {
            "blind_spot": "blind_spot",
            "tasks": "reversal",
            "diffusion": "diffusion",
        }.items():
            if need in needs or f"{need}_noisy" in needs:
                training_of(getattr(config, section))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"purifier {name!r}: {error}") from error
