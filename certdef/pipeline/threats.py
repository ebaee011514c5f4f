"""The verb `certify --threat NAME`: target and surrogate against one threat, and the page of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from certdef import stages
from certdef.config.job import RunConfig
from certdef.config.own_target import NONE
from certdef.config.threats import chosen_options
from certdef.objects.named import Objects
from certdef.pipeline.opening import open_job
from certdef.stages import Job, job_checks
from certdef.stages.threat import find_threat
from certdef.stages.threat_run import certify_threat, settled
from certdef.tracking.workspace import Stage

Finish = Callable[[Job, list[Stage]], Any]


def certify_against(
    config: RunConfig,
    objects: Objects,
    name: str,
    options: Mapping[str, Any],
    finish: Finish,
    *,
    progress: bool,
    fresh: bool,
) -> Any:
    """Do first what is missing: the target, and its surrogate where the job has one; no denoiser is trained.

    Args:
        config: The job.
        objects: What it was given beside.
        name: Of the threat.
        options: Of the threat.
        finish: finish(job, stages) makes the summary.
        progress: Show a bar for every long stage.
        fresh: Train and certify anew.
    """
    threat = find_threat(name)
    chosen = chosen_options(name, options)
    threat.check_options(chosen)
    checks = job_checks.against_threat(config)
    with open_job(
        config, progress, fresh, verb="certify", checks=checks, objects=objects, planned=False
    ) as job:
        settings = settled(job, threat, chosen)
        target, target_stage = stages.open_target(job)
        done: list[Stage] = [target_stage]
        if job.config.surrogate.model == NONE:
            return finish(job, [*done, *certify_threat(job, threat, settings, target)])
        surrogate, surrogate_stage = stages.distill(job, target)
        done.append(surrogate_stage)
        proven = certify_threat(job, threat, settings, target, surrogate, surrogate_stage)
        return finish(job, [*done, *proven])
