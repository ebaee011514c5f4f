"""UDC, the training: the restoration, a diffusion model of what the camera sees, how far to diffuse, and the fine-tunings.

The published fine-tuning is on purified inputs, here half of them attacked. Two controls lack one of the two, with the same
recipe on the same crops: purified inputs without attacks, and the same attacked inputs without the purifier, which is plain
adversarial training. So the figures show how much is the purifier's and how much is adversarial training's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits
from certdef.purifiers.diffpure import DiffPure
from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape, train_diffusion
from certdef.restoration import (
    RestorationNetwork,
    RestorationShape,
    choose_level,
    finetune_restoration,
    pgd,
    purify_varied,
    ssim,
    train_restoration,
    under_display,
)
from certdef.stages.job import Job
from certdef.stages.networks import NetworkResult, trained_once
from certdef.stages.udc.photographs import DISPLAY, Photographs, generator, seed_of
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage
from surrogates.distillation.training import FitOptions, Training

# What each seed of a job is for; 0 and 1 are the photographs'.
CHOICE, ATTACKED, VARIED = 7, 8, 9
FINETUNE_STEPS = 10  # of PGD on the inputs of the fine-tuning


class Inputs(NamedTuple):
    """What a network is fine-tuned on: whether half of the inputs are attacked, whether all are purified, by which stage."""

    attacked: bool
    purified: bool
    stage: str


FINETUNINGS = {
    "fine_tuned": Inputs(attacked=True, purified=True, stage="udc-finetuned"),
    "clean_tuned": Inputs(attacked=False, purified=True, stage="udc-finetuned-clean"),
    "adversarial": Inputs(attacked=True, purified=False, stage="udc-finetuned-unpurified"),
}


@dataclass(frozen=True, kw_only=True)
class LevelResult(StageResult):
    """The chosen t, and the mean PSNR in dB of restored training crops at every t that was tried.

    Attributes:
        t: Noise steps of the purifier.
        clean: By t, of clean crops.
        attacked: By t, of attacked crops.
    """

    t: int
    clean: dict[int, float]
    attacked: dict[int, float]


@dataclass(frozen=True)
class Defense:
    """The restoration before and after every fine-tuning, and the purifier of its inputs.

    Attributes:
        network: The restoration that is attacked.
        finetuned: The same after each fine-tuning, by the names of FINETUNINGS.
        diffusion: The purifier's network.
        t: Noise steps of the purifier.
        steps: Its reverse steps.
        stages: What trained and chose them, in order.
    """

    network: RestorationNetwork
    finetuned: dict[str, RestorationNetwork]
    diffusion: DiffusionNetwork
    t: int
    steps: int | None
    stages: tuple[Stage[Any], ...]

    def purifier(self, draws: torch.Generator) -> DiffPure:
        """The purifier, with a generator of its noise."""
        return DiffPure(self.diffusion, self.t, self.steps, draws)


@dataclass(frozen=True)
class Recipes:
    """How the three networks are trained."""

    restoration: Training
    diffusion: Training
    finetuning: Training


def recipes(config: RunConfig) -> Recipes:
    """The configured recipes.

    Raises:
        ConfigError: A value out of its range.
    """
    udc, diffusion = config.udc, config.diffusion
    try:
        return Recipes(
            Training(udc.epochs, udc.batch_size, udc.learning_rate),
            Training(diffusion.epochs, diffusion.batch_size, diffusion.learning_rate, ema=diffusion.ema),
            Training(udc.finetune_epochs, udc.batch_size, udc.finetune_learning_rate),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_udc(config: RunConfig, data: Splits) -> None:
    """Refuse what the UDC job can't do, before anything is trained.

    Raises:
        ConfigError: A value out of its range, or a missing package.
    """
    recipes(config)
    try:
        RestorationNetwork(_restoration_shape(config))
        DiffusionNetwork(_diffusion_shape(config))
        truth = torch.from_numpy(data.heldout_images[:2])
        ssim(under_display(truth, torch.Generator().manual_seed(0), DISPLAY), truth)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def train_defense(job: Job, photographs: Photographs) -> Defense:
    """Train the restoration and the purifier, choose how far to diffuse, and fine-tune thrice; each only if not done."""
    network, restoration = _train_restoration(job, photographs)
    diffusion, purifier = _train_purifier(job, photographs)
    parts = (restoration, purifier)
    level = _choose_level(job, photographs, network, diffusion, parts)
    steps = job.config.diffusion.steps
    longest, eps = job.config.udc.longest, job.config.udc.eps_255

    @cache
    def half_attacked() -> torch.Tensor:
        return _half_attacked(job, photographs, network)

    def inputs(kind: Inputs) -> torch.Tensor:
        images = half_attacked() if kind.attacked else photographs.degraded
        return _purify_around(job, diffusion, level.result.t, images) if kind.purified else images

    finetuned, stages = {}, []
    for name, kind in FINETUNINGS.items():
        rests_on = [longest, level.fingerprint] if kind.purified else [eps, restoration.fingerprint]
        finetuned[name], stage = _finetune(
            job, kind.stage, rests_on, network, photographs.truth, partial(inputs, kind)
        )
        stages.append(stage)
    return Defense(network, finetuned, diffusion, level.result.t, steps, (*parts, level, *stages))


def _train_restoration(job: Job, photographs: Photographs) -> tuple[RestorationNetwork, Stage[NetworkResult]]:
    recipe = recipes(job.config).restoration
    shape = _restoration_shape(job.config)
    key = [job.data.pool_digest, asdict(DISPLAY), asdict(shape), asdict(recipe)]

    def train(network: RestorationNetwork, stage: Stage) -> list[float]:
        return train_restoration(network, photographs.truth, recipe, display=DISPLAY, **_options(job, stage))

    return trained_once(job, "udc-restoration", key, lambda: RestorationNetwork(shape), train)


def _train_purifier(job: Job, photographs: Photographs) -> tuple[DiffusionNetwork, Stage[NetworkResult]]:
    """A diffusion model of degraded photographs, which are what the purifier purifies."""
    config, recipe = job.config, recipes(job.config).diffusion
    longest = config.udc.longest
    shape = _diffusion_shape(job.config)
    key = [job.data.pool_digest, asdict(DISPLAY), asdict(shape), asdict(recipe), longest]

    def train(network: DiffusionNetwork, stage: Stage) -> list[float]:
        degraded = photographs.degraded
        return train_diffusion(network, degraded, recipe, longest=longest, **_options(job, stage))

    return trained_once(job, "udc-diffusion", key, lambda: DiffusionNetwork(shape), train)


def _choose_level(
    job: Job,
    photographs: Photographs,
    network: RestorationNetwork,
    diffusion: DiffusionNetwork,
    parts: tuple[Stage, ...],
) -> Stage[LevelResult]:
    """How far to diffuse, on attacked training crops."""
    udc, grid, steps = job.config.udc, job.config.diffusion.grid, job.config.diffusion.steps
    settings = {"grid": grid, "steps": steps, "eps_255": udc.eps_255, "clean_loss": udc.clean_loss}
    key = [settings, udc.choice_crops, *(part.fingerprint for part in parts)]
    stage = job.stage("udc-level", LevelResult, *key)

    def choose() -> LevelResult:
        truth, degraded = (part[: udc.choice_crops] for part in (photographs.truth, photographs.degraded))
        seed = seed_of(job.config, CHOICE)
        attacked = [pgd(network, degraded, truth, eps=eps / 255, seed=seed) for eps in udc.eps_255]

        def purifier(t: int) -> DiffPure:
            return DiffPure(diffusion, t, steps, generator(job, 0))

        level = choose_level(purifier, network, degraded, attacked, truth, grid, loss=udc.clean_loss)
        return LevelResult(
            t=level.t,
            clean=level.clean,
            attacked=level.attacked,
            params={"t": level.t} | settings,
            metrics={metrics.UDC_LEVEL: level.t},
        )

    return job.run(stage, choose)


def _finetune(
    job: Job,
    name: str,
    rests_on: list[Any],
    network: RestorationNetwork,
    truth: torch.Tensor,
    inputs: Callable[[], torch.Tensor],
) -> tuple[RestorationNetwork, Stage[NetworkResult]]:
    """Fine-tune a copy of the network, inputs to truth, in a stage of this name; `rests_on` is what the inputs depend on."""
    recipe = recipes(job.config).finetuning

    def train(finetuned: RestorationNetwork, stage: Stage) -> list[float]:
        return finetune_restoration(finetuned, inputs(), truth, recipe, **_options(job, stage))

    return trained_once(job, name, [asdict(recipe), *rests_on], lambda: copy.deepcopy(network), train)


def _purify_around(job: Job, diffusion: DiffusionNetwork, t: int, images: torch.Tensor) -> torch.Tensor:
    """The images purified, each at a level of its own around the chosen t."""
    levels = [max(1, t // 2), t, min(2 * t, job.config.udc.longest)]

    def purifier(at: int) -> DiffPure:
        return DiffPure(diffusion, at, job.config.diffusion.steps, generator(job, 0))

    return purify_varied(purifier, images, levels, seed=seed_of(job.config, VARIED))


def _half_attacked(job: Job, photographs: Photographs, network: RestorationNetwork) -> torch.Tensor:
    """The degraded training crops, the first half of them attacked, in equal parts at every budget."""
    inputs, half = photographs.degraded.clone(), len(photographs.degraded) // 2
    budgets, first = job.config.udc.eps_255, 0
    for eps, truth in zip(budgets, photographs.truth[:half].tensor_split(len(budgets)), strict=True):
        rows = slice(first, first := first + len(truth))
        seed, steps = seed_of(job.config, ATTACKED), FINETUNE_STEPS
        inputs[rows] = pgd(network, inputs[rows], truth, eps=eps / 255, steps=steps, seed=seed)
    return inputs


def _restoration_shape(config: RunConfig) -> RestorationShape:
    udc = config.udc
    return RestorationShape((1, udc.size, udc.size), udc.width, udc.depth)


def _diffusion_shape(config: RunConfig) -> DiffusionShape:
    return DiffusionShape((1, config.udc.size, config.udc.size), config.diffusion.channels)


def _options(job: Job, stage: Stage) -> FitOptions:
    """Seed, device, checkpoint and progress, as every training function takes them."""
    progress = partial(job.progress, desc=f"train {stage.name}")
    checkpoint = stage.path / "checkpoint.pt"
    return {"seed": job.config.seed, "device": job.device, "checkpoint": checkpoint, "progress": progress}
