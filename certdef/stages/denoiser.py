"""The denoisers of De^3, pre-trained on the unlabelled pool: they cost no query and see no label.

Each noise law that is certified has its own, pre-trained under that law: the smoothing noise is the training noise.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch

from certdef.config.job import ConfigError, RunConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.models import storage
from certdef.purifiers.networks.nim import MIM, NIM, MIMShape, NIMShape, pretrain_nim
from certdef.purifiers.networks.timm_encoders import encoder_sizes, load_encoder
from certdef.stages.job import Job
from certdef.stages.trained_once import NetworkResult, trained_once
from certdef.tracking.workspace import Stage


def build_denoiser(
    config: RunConfig, image_shape: tuple[int, int, int], *, masked: bool = False, linear_head: bool = False
) -> NIM:
    """An untrained NIM, or MIM, of the configured size.

    Raises:
        ConfigError: The image is not a whole number of patches, or timm has no such encoder.
    """
    known = {each.name for each in fields(NIMShape)} - {"image_shape"}
    sizes = {name: value for name, value in asdict(config.nim).items() if name in known}
    if linear_head:
        sizes["decoder_depth"] = 0
    try:
        if config.nim.encoder:
            sizes |= encoder_sizes(config.nim.encoder) | {"patch_size": config.nim.patch_size}
        return MIM(MIMShape(image_shape, **sizes)) if masked else NIM(NIMShape(image_shape, **sizes))
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def pretrained(job: Job, law: SigmaLaw) -> NIM | None:
    """The denoiser of a law where it is done already."""
    name, *key = _named(job, law)
    stage = job.stage(name, NetworkResult, *key)
    return storage.load_model(stage.path / "model", job.device) if stage.done else None


def pretrain_denoiser(job: Job, law: SigmaLaw, *, linear_head: bool = False) -> tuple[NIM, Stage]:
    """NIM-MAE under one law, or with a linear head NIM-SimMIM; an interrupted pre-training ends at the same weights."""
    name, *depends_on = _named(job, law, "nim-simmim" if linear_head else "nim")
    return _pretrain(job, name, depends_on, law, linear_head=linear_head)


def pretrain_mim(job: Job) -> tuple[NIM, Stage]:
    """The masked baseline, which knows no law of noise."""
    return _pretrain(job, "mim", [asdict(job.config.nim), job.data.pool_digest], None, masked=True)


def _pretrain(
    job: Job, name: str, depends_on: list[Any], law: SigmaLaw | None, **form: bool
) -> tuple[NIM, Stage]:
    config = job.config.nim

    def train(model: NIM, stage: Stage) -> list[float]:
        if config.encoder and config.weights:
            _load(model, config.encoder, config.weights)
        return pretrain_nim(
            model,
            torch.from_numpy(job.data.pool),
            law and noise_law(law),
            epochs=config.epochs,
            batch_size=config.batch_size,
            base_learning_rate=config.base_learning_rate,
            warmup=config.warmup,
            ema=config.ema,
            precision=config.precision,
            seed=job.config.seed,
            device=job.device,
            checkpoint=stage.path / "checkpoint.pt",
            progress=partial(job.progress, desc=f"pre-train {name}"),
        )

    return trained_once(
        job, name, depends_on, lambda: build_denoiser(job.config, job.data.image_shape, **form), train,
        asdict(config) | (asdict(law) if law else {}), serve=True,
    )  # fmt: skip


def _load(model: NIM, encoder: str, weights: str) -> None:
    try:
        load_encoder(model, encoder, None if weights == "timm" else weights)
    except ValueError as error:
        raise ConfigError(f"nim.weights: {error}") from error


def _named(job: Job, law: SigmaLaw, kind: str = "nim") -> list[Any]:
    """Name of the stage of a law's denoiser, and what it depends on."""
    name = kind if law == job.config.certify.laws[0] else f"{kind}-{law.label}"
    return [name, asdict(job.config.nim), law.parameters, job.data.pool_digest]
