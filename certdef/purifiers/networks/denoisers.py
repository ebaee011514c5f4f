"""The networks of De^3 in a job: pre-trained on the unlabeled pool, at the cost of no query.

Each noise law that is certified has its own, pre-trained under that law: the smoothing noise is the training noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.parts import is_part
from certdef.config.purifiers import LEAVES
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks import shipped
from certdef.purifiers.networks.leaves import CROP
from certdef.purifiers.networks.nim import (
    MIM,
    NIM,
    MIMShape,
    NIMShape,
    PretrainOptions,
    nim_training,
    pretrain_nim,
)
from certdef.purifiers.networks.tiles import TiledNIM, TiledShape, random_squares
from certdef.tracking.parts import part_key, read_part

FINER = 0.1  # of the rate, where the training starts from the shipped denoiser


def configured_sizes(config: RunConfig) -> dict[str, Any]:
    """The sizes of a NIMShape as configured, but for the image's: those of timm's encoder where one is named, and those of a
    network of another job.

    Raises:
        ConfigError: timm has no such encoder, or that network is no plain NIM.
    """
    known = {each.name for each in fields(NIMShape)} - {"image_shape"}
    given = config.nim.weights
    if given is not None and is_part(given):
        described = next(iter(read_part(config, given)["networks"].values()))
        if described["type"] != NIM.__name__:
            raise ConfigError(
                f"nim.weights is {given!r}, a {described['type']}: a surrogate with a NIM's encoder needs a plain one"
            )
        return {name: value for name, value in described.items() if name in known}
    sizes = {name: value for name, value in asdict(config.nim).items() if name in known}
    if not config.nim.encoder:
        return sizes
    from certdef.purifiers.networks.timm_encoders import encoder_sizes

    try:
        return sizes | encoder_sizes(config.nim.encoder) | {"patch_size": config.nim.patch_size}
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def _build(plan: Plan, *, masked: bool = False, linear_head: bool = False) -> nn.Module:
    config = plan.config.nim
    if config.weights == LEAVES and (masked or linear_head):
        raise ConfigError("nim.weights is 'leaves': only the purifier de3 starts from it, unset it")
    if config.tile and masked:
        raise ConfigError(f"nim.tile is {config.tile}: the masked baseline sees whole images, unset it")
    sizes = configured_sizes(plan.config) | ({"decoder_depth": 0} if linear_head else {})
    try:
        if config.weights == LEAVES:
            return shipped.LEAVES.build(plan)
        if masked:
            return MIM(MIMShape(plan.image_shape, **sizes))
        if config.tile:
            return TiledNIM(TiledShape(plan.image_shape, **sizes, tile=config.tile))
        return NIM(NIMShape(plan.image_shape, **sizes))
    except ValueError as error:
        raise ConfigError(f"nim: {error}") from error


def _train(model: Any, run: TrainingRun) -> list[float]:
    config = run.config.nim
    if config.encoder and config.weights:
        from certdef.purifiers.networks.timm_encoders import load_encoder

        try:
            whole = model.nim if config.tile else model
            load_encoder(whole, config.encoder, None if config.weights == "timm" else config.weights)
        except ValueError as error:
            raise ConfigError(f"nim.weights: {error}") from error
    return _pretrain(model, run, config.epochs, config.base_learning_rate)


def _finetune(model: Any, run: TrainingRun) -> list[float]:
    """The same loss under another law, from the trained weights on."""
    config = run.config.nim
    return _pretrain(model, run, config.finetune_epochs, config.base_learning_rate / 2)


def _pretrain(model: Any, run: TrainingRun, epochs: int, rate: float) -> list[float]:
    config, law, options = run.config.nim, run.plan.law, PretrainOptions()
    if config.weights == LEAVES:
        rate *= FINER
        side = min(CROP, *run.plan.image_shape[1:])
        options = {"squares": _squares(side), "distance": nn.functional.l1_loss}
    elif config.tile:
        model, options = model.nim, {"squares": _squares(config.tile)}
    training = nim_training(
        epochs, config.batch_size, rate, warmup=config.warmup, ema=config.ema, precision=config.precision
    )
    return pretrain_nim(model, run.pool, law and noise_law(law), training, **options, **run.options)


def _squares(side: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Draws squares of images to train on."""
    return lambda images, generator: random_squares(images, side, generator)


def _files(config: RunConfig, channels: int) -> list[Path]:
    """The file of the weights that the training starts from, if it is one."""
    if config.nim.weights == LEAVES:
        return [shipped.WEIGHTS]
    named = Path(config.nim.weights or "timm")
    return [named] if config.nim.encoder and named.is_file() else []


def _settings(config: RunConfig) -> dict[str, Any]:
    given = config.nim.weights
    return part_key(config, given) if given is not None and is_part(given) else config.nim.settings


NIM_MAE = NetworkSpec(
    "nim",
    "nim",
    _build,
    _train,
    _settings,
    laws="each",
    uses_pool=lambda config: not is_part(config.nim.weights),
    files=_files,
    served=True,
    weights="nim.weights",
    finetune=_finetune,
)
NIM_SIMMIM = replace(NIM_MAE, role="nim-simmim", stage="nim-simmim", build=partial(_build, linear_head=True))
MASKED = replace(
    NIM_MAE, role="mim", stage="mim", build=partial(_build, masked=True), laws="none", finetune=None
)
