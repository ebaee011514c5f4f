"""Fellow students of the surrogate: others of the same paid answers, which attack the target together with it.

What several students agree on transfers better than what one has learned (Liu et al., "Delving into transferable adversarial
examples and black-box attacks", ICLR 2017). No query is spent: the ledger has the answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

import surrogates
from certdef.config.objects import is_given
from certdef.models import storage
from certdef.stages.job import Job
from certdef.stages.surrogate import (
    SurrogateResult,
    pretrained_encoder,
    queried_images,
    recipe_of,
    train_surrogate,
)
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

OTHER_SEEDS = 7_919  # apart, from weights and batches of their own


@dataclass(frozen=True, kw_only=True)
class FellowResult(StageResult):
    """A fellow student: how many answers it learned from, all of them paid for by the surrogate."""

    queries: int


@dataclass(frozen=True)
class Fellows:
    """Fellow students and their stages."""

    models: tuple[nn.Module, ...] = ()
    stages: tuple[Stage[FellowResult], ...] = ()


def train_fellows(job: Job, target: surrogates.Target, surrogate: Stage[SurrogateResult]) -> Fellows:
    """ladder.students further students, trained unless a run has done it; none where the surrogate was given."""
    config = job.config
    if is_given(config.surrogate):
        return Fellows()
    stages = tuple(_fellow(job, target, surrogate, number) for number in range(1, config.ladder.students + 1))
    models = tuple(storage.load_model(stage.path / "model", job.device) for stage in stages)
    return Fellows(models, stages)


def _fellow(
    job: Job, target: surrogates.Target, surrogate: Stage[SurrogateResult], number: int
) -> Stage[FellowResult]:
    stage = job.stage(f"fellow-{number}", FellowResult, surrogate.fingerprint)

    def train() -> FellowResult:
        config, images = job.config.surrogate, queried_images(job, surrogate)
        student = train_surrogate(
            job,
            target,
            config,
            budget=len(images),
            seed=job.config.seed + OTHER_SEEDS * number,
            encoder=pretrained_encoder(job, config),
            checkpoint=stage.path / "checkpoint.pt",
            pool=images,
            recipe=replace(recipe_of(config), patience=None),
        )
        storage.save_classifier(stage.path / "model", student.model)
        return FellowResult(
            queries=student.queries,
            params={"loss": student.loss, "number": number},
            series={metrics.LOSS.format(stage=stage.name): tuple(student.history)},
            artifacts=("model/*",),
        )

    return job.run(stage, train)
