"""Networks that are trained once: weights as safetensors in the stage's folder and in MLflow, loaded ever after.

None costs a query, and none sees a label but the surrogate's. What is trained is in certdef/purifiers/networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from certdef.config.job import SigmaLaw
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks.denoisers import NIM_MAE, NIM_SIMMIM
from certdef.purifiers.networks.nim import NIM
from certdef.stages.job import Job
from certdef.tracking.metrics import LAST_LOSS, LOSS
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage


@dataclass(frozen=True, kw_only=True)
class NetworkResult(StageResult):
    """A trained network.

    Attributes:
        parameters: How many numbers were trained.
        uri: Of the model in MLflow, where it can be served.
    """

    parameters: int
    uri: str | None = None


@dataclass(frozen=True)
class Trained:
    """A network with the stage that trained it."""

    network: nn.Module
    stage: Stage[NetworkResult]


@dataclass(frozen=True)
class Defended:
    """The classifier that a purifier defends, with the stage that trained it."""

    classifier: nn.Module
    stage: Stage[Any]


def trained_once(
    job: Job,
    stage: Stage[NetworkResult],
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], list[float]],
    params: dict[str, Any] | None = None,
    *,
    served: bool = False,
) -> nn.Module:
    """The network of a stage, in eval mode on the job's device; trained only if no run has done it.

    Args:
        job: Its seed is that of the untrained weights.
        stage: `job.stage(name, NetworkResult, ...)` with what the weights depend on.
        build: Builds the untrained network.
        train: Trains it in place and returns the loss of each epoch; the stage's folder is there.
        params: For MLflow.
        served: Log it in MLflow as a model that can be served: images in, images out.
    """
    network = job.seeded(build)

    def compute() -> NetworkResult:
        history = train(network.to(job.device))
        storage.save_network(stage.path / "model", network)
        uri = None
        if served:
            uri = serving.log_served(stage.path / "model", stage.name, job.data.heldout_images[:2])
        parameters = sum(weight.numel() for weight in network.parameters())
        return NetworkResult(
            parameters=parameters,
            uri=uri,
            params=(params or {}) | {"parameters": parameters},
            metrics={LAST_LOSS.format(stage=stage.name): history[-1]} if history else {},
            series={LOSS.format(stage=stage.name): tuple(history)},
            artifacts=() if uri else ("model/*",),
        )

    job.run(stage, compute)
    storage.load_weights(stage.path / "model", network)
    return network.to(job.device).eval()


def train_network(
    job: Job,
    spec: NetworkSpec,
    law: SigmaLaw | None = None,
    defended: Defended | None = None,
    needs: Mapping[str, Trained] | None = None,
) -> Trained:
    """One of the purifiers' networks, trained unless a run has done it: of this job or of one for another target.

    Args:
        job: The job.
        spec: The network.
        law: Its noise law; unset, the first one, if it knows one.
        defended: The classifier, for a network that sees it.
        needs: The networks that it needs, by role.
    """
    config, needs = job.config, needs or {}
    if law is None and spec.laws != "none":
        law = config.certify.laws[0]
    stage = network_stage(job, spec, law, defended, needs)
    plan = Plan(
        config, job.data.image_shape, law, networks={role: each.network for role, each in needs.items()}
    )
    if defended is not None:
        again = partial(build_classifier, **defended.classifier.built)  # type: ignore[arg-type]
        plan = replace(plan, classifier=defended.classifier, new_classifier=again)

    def train(network: nn.Module) -> list[float]:
        return spec.train(network, training_run(job, plan, stage))

    settings = spec.settings(config) | (asdict(law) if law else {})
    network = trained_once(job, stage, lambda: spec.build(plan), train, settings, served=spec.served)
    return Trained(network, stage)


def network_stage(
    job: Job,
    spec: NetworkSpec,
    law: SigmaLaw | None,
    defended: Defended | None = None,
    needs: Mapping[str, Trained] | None = None,
) -> Stage[NetworkResult]:
    """The stage of a network, named by what decides its weights: neither the target nor the label of the law."""
    key: list[Any] = [spec.settings(job.config), list(job.data.image_shape), law and law.parameters]
    key += [job.data.pool_digest] if spec.uses_pool(job.config) else []
    key += [defended.stage.fingerprint] if spec.sees_classifier and defended else []
    key += [each.stage.fingerprint for each in (needs or {}).values()]
    return job.stage(spec.stage_name(job.config, law), NetworkResult, *key, kind=spec.stage)


def training_run(job: Job, plan: Plan, stage: Stage[Any]) -> TrainingRun:
    """What a network of this stage is trained with."""
    return TrainingRun(
        plan,
        torch.from_numpy(job.data.pool),
        job.device,
        stage.path / "checkpoint.pt",
        partial(job.progress, desc=f"train {stage.name}"),
        train_classifier,
    )


def pretrain_denoiser(
    job: Job, law: SigmaLaw, *, linear_head: bool = False
) -> tuple[NIM, Stage[NetworkResult]]:
    """NIM-MAE under one law, or with a linear head NIM-SimMIM; an interrupted pre-training ends at the same weights."""
    trained = train_network(job, NIM_SIMMIM if linear_head else NIM_MAE, law)
    assert isinstance(trained.network, NIM)
    return trained.network, trained.stage


def pretrained(job: Job, law: SigmaLaw) -> NIM | None:
    """The NIM-MAE of a law where it is done already."""
    stage = network_stage(job, NIM_MAE, law)
    return storage.load_model(stage.path / "model", job.device) if stage.done else None
