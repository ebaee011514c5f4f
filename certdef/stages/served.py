"""The model that is served: the smoothed surrogate behind its purifier, registered in MLflow."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from certdef.models import serving, storage
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.tracking.workspace import Stage


def register(
    job: Job, num_classes: int, surrogate: nn.Module, purifier: Purifier, depends_on: list[Stage]
) -> Stage:
    """Register the certified classifier under the headline law, as a pyfunc model."""
    config, data = job.config.certify, job.data
    name = job.config.registered_model
    stage = job.stage("served", config.settings, name, *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            storage.save_certified(
                stage.path / "model", surrogate, purifier.name, purifier.settings, purifier.networks(),
                image_shape=list(data.image_shape), num_classes=num_classes, classes=list(data.classes),
                law=asdict(config.laws[0]), defaults={"n0": config.n0, "n": config.n, "alpha": config.alpha},
            )  # fmt: skip
            uri = serving.log_served(stage.path / "model", "certified", data.heldout_images[:2], name)
            stage.finish({"uri": uri, "registered_model": name, "params": {"registered_model": name}})
    return stage
