"""The denoisers of De^3, pre-trained on the unlabelled pool: they cost no query and see no label.

Each noise law that is certified has its own, pre-trained under that law: the smoothing noise is the training noise.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch

from certdef import serving, storage
from certdef.config import ConfigError, RunConfig, SigmaLaw
from certdef.noise_laws import noise_law
from certdef.purifiers.nim import NIM, NIMShape, pretrain_nim
from certdef.stages.job import Job
from certdef.workspace import Stage


def build_denoiser(config: RunConfig, image_shape: tuple[int, int, int]) -> NIM:
    """An untrained NIM of the configured size; ConfigError if the image is not a whole number of patches."""
    sizes = {
        name: getattr(config.nim, name) for name in NIMShape.__dataclass_fields__ if name != "image_shape"
    }
    try:
        return NIM(NIMShape(image_shape, **sizes))
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def pretrain_denoisers(job: Job) -> tuple[dict[str, NIM], list[Stage]]:
    """One NIM a law, by the law's label; the first is the headline's."""
    made = [pretrain_denoiser(job, law) for law in job.config.certify.laws]
    return {law.label: model for law, (model, _) in zip(job.config.certify.laws, made, strict=True)}, [
        stage for _, stage in made
    ]


def pretrained(job: Job, law: SigmaLaw) -> NIM | None:
    """The denoiser of a law where it is done already."""
    stage = _stage(job, law)
    return storage.load_model(stage.path / "model", job.device) if stage.done else None


def pretrain_denoiser(job: Job, law: SigmaLaw) -> tuple[NIM, Stage]:
    """Pre-train under one law; an interrupted pre-training ends at the same weights."""
    config, data = job.config.nim, job.data
    stage = _stage(job, law)
    with job.tracker.stage(stage):
        if not stage.done:
            model = job.seeded(lambda: build_denoiser(job.config, data.image_shape))
            history = pretrain_nim(
                model,
                torch.from_numpy(data.pool),
                noise_law(law),
                epochs=config.epochs,
                batch_size=config.batch_size,
                base_learning_rate=config.base_learning_rate,
                warmup=config.warmup,
                seed=job.config.seed,
                device=job.device,
                checkpoint=stage.path / "checkpoint.pt",
                progress=partial(job.progress, desc=f"pre-train NIM, {law.label} noise"),
            )
            storage.save_nim(stage.path / "model", model)
            parameters = sum(weight.numel() for weight in model.parameters())
            stage.finish({
                "uri": serving.log_served(stage.path / "model", stage.name, data.heldout_images[:2]),
                "parameters": parameters,
                "params": asdict(config) | asdict(law) | {"parameters": parameters},
                "metrics": {f"{stage.name}/loss_last": history[-1]},
                "series": {f"{stage.name}/loss": history},
            })  # fmt: skip
    return storage.load_model(stage.path / "model", job.device), stage


def _stage(job: Job, law: SigmaLaw) -> Stage:
    name = "nim" if law == job.config.certify.laws[0] else f"nim-{law.label}"
    return job.stage(name, asdict(job.config.nim), asdict(law))
