"""The model that is served: the smoothed surrogate behind its purifier, registered in MLflow."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from certdef.config.job import SigmaLaw
from certdef.models import serving, storage
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage


@dataclass(frozen=True, kw_only=True)
class ServedResult(StageResult):
    """Where the certified classifier was logged, and under which name it is registered."""

    uri: str
    registered_model: str


def register(
    job: Job,
    num_classes: int,
    surrogate: nn.Module,
    purifier: Purifier,
    depends_on: list[Stage],
    headline: SigmaLaw,
) -> Stage[ServedResult]:
    """Register the certified classifier under the surrogate's headline law, as a pyfunc model."""
    config, name = job.config.certify, job.config.registered_model
    defaults = {"n0": config.n0, "n": config.n, "alpha": config.alpha}
    law = asdict(headline)
    parts = [other.fingerprint for other in depends_on]
    stage = job.stage("served", ServedResult, name, law, defaults, list(job.data.classes), *parts)

    def save() -> ServedResult:
        storage.save_certified(
            stage.path / "model",
            surrogate,
            purifier.name,
            purifier.settings,
            purifier.networks(headline.label),
            image_shape=list(job.data.image_shape),
            num_classes=num_classes,
            classes=list(job.data.classes),
            law=law,
            defaults=defaults,
        )
        uri = serving.log_served(stage.path / "model", "certified", job.data.heldout_images[:2], name)
        return ServedResult(uri=uri, registered_model=name, params={"registered_model": name})

    return job.run(stage, save)
