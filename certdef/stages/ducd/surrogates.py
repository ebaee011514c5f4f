"""DUCD, first part: surrogates distilled from query pools that overlap the target's training set more or less.

The first one is certified. The others are there to show what the choice of the pool does to membership inference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor, nn

import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits, digest
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier
from certdef.stages.job import Job
from certdef.stages.surrogate import OTHER_WEIGHTS, recipe_of
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage


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


def distill_students(job: Job, target: surrogates.Target) -> list[Student]:
    """One surrogate an overlap, from the same seed and recipe."""
    return [_student(job, target, overlap) for overlap in job.config.ducd.overlaps]


def _student(job: Job, target: surrogates.Target, overlap: float) -> Student:
    name = student_name(overlap)
    pool = query_pool(job.data, overlap)
    key = [asdict(job.config.surrogate), overlap, target.subject, digest(pool)]
    stage = job.stage(name, StudentResult, *key)
    job.run(stage, lambda: _distill(job, target, stage, pool, overlap))
    return Student(overlap, storage.load_model(stage.path / "model", job.device), stage)


def _distill(
    job: Job, target: surrogates.Target, stage: Stage, pool: np.ndarray, overlap: float
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
        recipe=recipe_of(config),
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
        params=asdict(config) | {"loss": surrogate.loss, "overlap": overlap},
        metrics={metrics.QUERIES.format(subject=stage.name): surrogate.queries},
        series={metrics.LOSS.format(stage=stage.name): tuple(surrogate.history)},
    )
