"""DUCD, first part: surrogates distilled from query pools that overlap the target's training set more or less.

The first one is certified. The others are there to show what the choice of the pool does to membership inference.
With surrogate.noise certified, a pilot that is trained under uniform noise chooses the noise, and all of them are trained
under the chosen one, from the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

import certify
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits, digest
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier
from certdef.stages.job import Job
from certdef.stages.students import CERTIFIED
from certdef.stages.surrogate import OTHER_WEIGHTS, certified_recipe, recipe_of
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

PILOT = "pilot"  # the stage of the surrogate that only chooses the noise


@dataclass(frozen=True, kw_only=True)
class StudentResult(StageResult):
    """What a surrogate cost, and the share of its queries that the target was trained on."""

    uri: str
    overlap: float
    queries: int
    loss: str


@dataclass(frozen=True)
class Student:
    """A surrogate by the share of its queries that the target was trained on."""

    overlap: float
    model: nn.Module
    stage: Stage[StudentResult]

    @property
    def name(self) -> str:
        """The name of its stage."""
        return self.stage.name

    def probabilities(self, images: Tensor) -> Tensor:
        """Rows of probabilities (N, K), float64, for images (N, C, H, W)."""
        return probabilities(self.model, images)


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Rows of probabilities (N, K), float64, of a model that answers logits, for images (N, C, H, W)."""
    device = next(model.parameters()).device
    return model(images.to(device, copy=True)).double().softmax(1).cpu()


def query_pool(data: Splits, overlap: float) -> np.ndarray:
    """As many images as our pool has, the share `overlap` of them taken from the target's training set."""
    theirs = round(overlap * len(data.pool))
    return np.concatenate([data.target_images[:theirs], data.pool[: len(data.pool) - theirs]])


def pool_queries(config: RunConfig, size: int) -> int:
    """Queries of all pools of so many images: they are nested, and no image is paid for twice."""
    overlaps = config.ducd.overlaps
    return round(max(overlaps) * size) + size - round(min(overlaps) * size)


def check_pools(config: RunConfig, data: Splits) -> None:
    """Refuse pools that do not exist or can't be paid for, before anything is spent."""
    size, overlaps = len(data.pool), config.ducd.overlaps
    if config.surrogate.model == "nim":
        raise ConfigError(
            "surrogate.model is 'nim', but the DUCD job trains no denoiser: use cnn, mlp or a timm model name"
        )
    if config.target.uri and max(overlaps) > 0:
        raise ConfigError(
            f"ducd.overlaps is {list(overlaps)}: which images your own target was trained on is not known; use [0]"
        )
    theirs, need = round(max(overlaps) * size), pool_queries(config, size)
    if theirs > len(data.target_images):
        raise ConfigError(
            f"ducd.overlaps is {list(overlaps)}: {theirs} of {size} queried images can't come from "
            f"{len(data.target_images)} training images of the target; lower data.pool_images"
        )
    if need > config.ledger.training:
        raise ConfigError(
            f"ledger.training is {config.ledger.training}: query pools of {size} images at overlaps {list(overlaps)} "
            f"need {need}; raise it or lower data.pool_images"
        )


def student_name(overlap: float) -> str:
    """What the stage and the model of an overlap are called."""
    return f"surrogate-overlap-{100 * overlap:g}".replace(".", "_")  # MLflow's names of models have no dots


def distill_pilot(job: Job, target: surrogates.Target) -> Student:
    """The surrogate that chooses the noise: the first one, or where they are trained under the chosen noise, a pilot."""
    pilot = job.config.surrogate.noise == CERTIFIED
    return _student(job, target, job.config.ducd.overlaps[0], PILOT if pilot else None)


def distill_students(
    job: Job, target: surrogates.Target, pilot: Student, chosen: certify.NoiseLaw
) -> list[Student]:
    """One surrogate an overlap, from the same seed and recipe: as certified under the chosen noise, if so configured."""
    overlaps = job.config.ducd.overlaps
    if job.config.surrogate.noise == CERTIFIED:
        return [_student(job, target, each, noise=chosen) for each in overlaps]
    return [pilot, *(_student(job, target, each) for each in overlaps[1:])]


def _student(
    job: Job,
    target: surrogates.Target,
    overlap: float,
    name: str | None = None,
    noise: certify.NoiseLaw | None = None,
) -> Student:
    config, pool = job.config.surrogate, query_pool(job.data, overlap)
    key: list[Any] = [config.agreeing, overlap, target.subject, digest(pool)]
    if noise is not None:
        key += [noise.describe(), config.consistency, config.entropy]
    # A pilot is the surrogate of a job that trains under uniform noise, and has its folder where there is one.
    stage = job.stage(name or student_name(overlap), StudentResult, *key, kind=student_name(overlap))
    recipe = recipe_of(config) if noise is None else certified_recipe(config, noise)
    job.run(stage, lambda: _distill(job, target, stage, pool, overlap, recipe))
    return Student(overlap, storage.load_model(stage.path / "model", job.device), stage)


def _distill(
    job: Job,
    target: surrogates.Target,
    stage: Stage,
    pool: np.ndarray,
    overlap: float,
    recipe: surrogates.Recipe,
) -> StudentResult:
    config, data = job.config.surrogate, job.data
    model = job.seeded(
        lambda: build_classifier(config.model, data.image_shape, target.num_classes),
        OTHER_WEIGHTS + job.config.seed,
    )
    surrogate = surrogates.distill(
        job.ledger.attach(target),
        pool,
        model,
        budget=len(pool),  # all of it: there is nothing to select
        query_batch=min(config.query_batch, len(pool)),
        recipe=recipe,
        loss=config.loss,
        seed=job.config.seed,
        device=job.device,
        checkpoint=stage.path / "checkpoint.pt",
        validation=config.validation,
        progress=job.progress,
    )
    storage.save_classifier(stage.path / "model", model)
    return StudentResult(
        uri=serving.log_served(stage.path / "model", stage.name, data.heldout_images[:2]),
        overlap=overlap,
        queries=surrogate.queries,
        loss=surrogate.loss,
        params=config.certified | {"loss": surrogate.loss, "overlap": overlap},
        metrics={metrics.QUERIES.format(subject=stage.name): surrogate.queries},
        series={metrics.LOSS.format(stage=stage.name): tuple(surrogate.history)},
    )
