"""The networks of De^3 in a job: pre-trained on the unlabeled pool, at the cost of no query.

Each noise law that is certified has its own, pre-trained under that law: the smoothing noise is the training noise.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks.nim import MIM, NIM, MIMShape, NIMShape, nim_training, pretrain_nim


def configured_sizes(config: RunConfig) -> dict[str, Any]:
    """The sizes of a NIMShape as configured, but for the image's: those of timm's encoder where one is named.

    Raises:
        ConfigError: timm has no such encoder.
    """
    known = {each.name for each in fields(NIMShape)} - {"image_shape"}
    sizes = {name: value for name, value in asdict(config.nim).items() if name in known}
    if not config.nim.encoder:
        return sizes
    from certdef.purifiers.networks.timm_encoders import encoder_sizes

    try:
        return sizes | encoder_sizes(config.nim.encoder) | {"patch_size": config.nim.patch_size}
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def _build(plan: Plan, *, masked: bool = False, linear_head: bool = False) -> NIM:
    sizes = configured_sizes(plan.config) | ({"decoder_depth": 0} if linear_head else {})
    try:
        if masked:
            return MIM(MIMShape(plan.image_shape, **sizes))
        return NIM(NIMShape(plan.image_shape, **sizes))
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def _train(model: NIM, run: TrainingRun) -> list[float]:
    config, law = run.config.nim, run.plan.law
    if config.encoder and config.weights:
        from certdef.purifiers.networks.timm_encoders import load_encoder

        try:
            load_encoder(model, config.encoder, None if config.weights == "timm" else config.weights)
        except ValueError as error:
            raise ConfigError(f"nim.weights: {error}") from error
    training = nim_training(
        config.epochs,
        config.batch_size,
        config.base_learning_rate,
        warmup=config.warmup,
        ema=config.ema,
        precision=config.precision,
    )
    return pretrain_nim(model, run.pool, law and noise_law(law), training, **run.options)


def _files(config: RunConfig, channels: int) -> list[Path]:
    """The file of the weights that the encoder starts from, if it is one."""
    named = Path(config.nim.weights or "timm")
    return [named] if config.nim.encoder and named.is_file() else []


NIM_MAE = NetworkSpec(
    "nim", "nim", _build, _train, lambda config: asdict(config.nim), laws="each", files=_files, served=True
)
NIM_SIMMIM = replace(NIM_MAE, role="nim-simmim", stage="nim-simmim", build=partial(_build, linear_head=True))
MASKED = replace(NIM_MAE, role="mim", stage="mim", build=partial(_build, masked=True), laws="none")
