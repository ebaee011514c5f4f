"""Networks that are trained once: weights as safetensors in the stage's folder and in MLflow, loaded ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from certdef.models import serving, storage
from certdef.stages.job import Job
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage


@dataclass(frozen=True, kw_only=True)
class NetworkResult(StageResult):
    """How large the network is, and where it was logged if it can be served."""

    parameters: int
    uri: str | None = None


def trained_once(
    job: Job,
    name: str,
    depends_on: list[Any],
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module, Stage], list[float]],
    params: dict[str, Any] | None = None,
    *,
    serve: bool = False,
) -> tuple[nn.Module, Stage]:
    """The network of a stage, in eval mode on the job's device; trained only if no run has done it.

    Args:
        depends_on: JSON-able values that the weights depend on, beside the job's own.
        build: Makes the untrained network; the seed of its weights is the job's.
        train: train(network, stage) -> the loss of each epoch; stage.path / "checkpoint.pt" is a place for a checkpoint.
        params: For MLflow.
        serve: Log it in MLflow as a model that can be served: images in, images out.
    """
    stage = job.stage(name, NetworkResult, *depends_on)
    network = job.seeded(build)

    def fit() -> NetworkResult:
        history = train(network.to(job.device), stage)
        storage.save_network(stage.path / "model", network)
        weights = sum(weight.numel() for weight in network.parameters())
        uri = serving.log_served(stage.path / "model", name, job.data.heldout_images[:2]) if serve else None
        return NetworkResult(
            uri=uri,
            parameters=weights,
            params=(params or {}) | {"parameters": weights},
            metrics={metrics.LAST_LOSS.format(stage=name): history[-1]} if history else {},
            series={metrics.LOSS.format(stage=name): tuple(history)},
            artifacts=() if uri else ("model/*",),
        )

    job.run(stage, fit)
    storage.load_weights(stage.path / "model", network)
    return network.to(job.device).eval(), stage
