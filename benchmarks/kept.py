"""Stages of a benchmark, kept in the job of a preset: figures as plain values, and networks that are trained once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from certdef import stages
from certdef.stages import Job, NetworkResult
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


def _images(job: Job) -> list[str]:
    return [job.data.target_digest, job.data.pool_digest, job.data.heldout_digest]
