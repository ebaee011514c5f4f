"""Stages of a benchmark, kept in the job of a preset: figures as plain values, and networks that are trained once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import surrogates
from certdef import stages
from certdef.models import storage
from certdef.stages import Job, NetworkResult
from certdef.stages.surrogate import train_surrogate
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage


@dataclass(frozen=True, kw_only=True)
class Figures(StageResult):
    """What a benchmark measured.

    Attributes:
        figures: Plain values, as JSON has them.
    """

    figures: dict[str, Any] = field(default_factory=dict)


def kept(job: Job, name: str, key: list[Any], compute: Callable[[Stage[Figures]], Figures]) -> Stage[Figures]:
    """A stage that depends on the key and on the job's images, done once: compute(stage) -> figures."""
    stage = job.stage(name, Figures, *key, *_images(job))
    return job.run(stage, lambda: compute(stage))


def trained(
    job: Job,
    name: str,
    key: list[Any],
    build: Callable[[], nn.Module],
    train: Callable[[Any, Stage], list[float]],
) -> tuple[Any, Stage[NetworkResult]]:
    """A network that depends on the key and on the job's images, trained once: train(network, stage) -> losses."""
    return stages.trained_once(job, name, [*key, *_images(job)], build, train)


def surrogate_of(
    job: Job, target: surrogates.Target, stage: Stage, recipe: surrogates.Recipe, seed: int, pool: Any = None
) -> nn.Module:
    """A surrogate from the job's training answers, trained once; a stage keeps it. `pool` is queried; unset, the job's."""
    folder = stage.path / "model"
    if not (folder / "model.json").is_file():
        model = train_surrogate(
            job,
            target,
            replace(job.config.surrogate, validation=None),
            budget=job.config.ledger.training,
            seed=seed,
            encoder=None,
            checkpoint=stage.path / "checkpoint.pt",
            pool=pool,
            recipe=recipe,
        )
        storage.save_classifier(folder, model.model)
    return storage.load_model(folder, job.device)


def _images(job: Job) -> list[str]:
    return [job.data.target_digest, job.data.pool_digest, job.data.heldout_digest]
