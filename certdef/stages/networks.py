"""Networks that are trained once: weights as safetensors in the stage's folder and in MLflow, loaded ever after.

None costs a query, and none sees a label but the surrogate's. What is trained is in certdef/purifiers/networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from certdef.config.job import SigmaLaw
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks.denoisers import NIM_MAE, NIM_SIMMIM
from certdef.stages.job import Job, Shelf
from certdef.stages.parts import build_network, provenance, publish
from certdef.tracking.metrics import LAST_LOSS, LOSS
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

N = TypeVar("N", bound=nn.Module)


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
    name: str,
    key: list[Any],
    build: Callable[[], N],
    train: Callable[[Any, Stage[NetworkResult]], list[float]],
    params: dict[str, Any] | None = None,
    *,
    served: bool = False,
    kind: str | None = None,
    files: Sequence[Path] = (),
    said: Mapping[str, Any] | None = None,
) -> tuple[N, Stage[NetworkResult]]:
    """The network of a stage, in eval mode on the job's device; trained only if no run has done it.

    Args:
        job: Its seed is that of the untrained weights.
        name: Of the stage.
        key: What the weights depend on beside the seed and the kind of device, JSON-able.
        build: Builds the untrained network.
        train: train(network, stage) trains in place and returns the loss of each epoch; the stage's folder is there.
        params: For MLflow.
        served: Log it in MLflow as a model that can be served: images in, images out.
        kind: How the names begin of all stages that have the same network by the same key.
        files: What the weights depend on beside the key, by its contents.
        said: What is kept beside the weights of how they came about; unset, nothing.
    """
    stage = job.stage(name, NetworkResult, *key, kind=kind, files=files)
    network, reused = job.seeded(build), "reused" in (said or {})

    def compute() -> NetworkResult:
        history = train(network.to(job.device), stage)
        storage.save_network(stage.path / "model", network, **(said or {}))
        parameters = sum(weight.numel() for weight in network.parameters())
        example = job.data.heldout_images[:2]
        uri = serving.log_served(stage.path / "model", name, example) if served else None
        return NetworkResult(
            parameters=parameters,
            uri=uri,
            params=(params or {}) | {"parameters": parameters},
            metrics={LAST_LOSS.format(stage=name): history[-1]} if history else {},
            series={LOSS.format(stage=name): tuple(history)},
            artifacts=() if uri or reused else ("model/*",),  # what is reused is kept by whoever trained it
        )

    job.run(stage, compute)
    publish(job, stage, stage.result.uri)
    storage.load_weights(stage.path / "model", network)
    return network.to(job.device).eval(), stage


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
    networks = {role: each.network for role, each in needs.items()}
    plan = Plan(config, job.data.image_shape, law, networks=networks)
    if defended is not None:
        plan = replace(
            plan, classifier=defended.classifier, new_classifier=untrained_copy(defended.classifier)
        )
    settings, given = spec.settings(config), spec.reused(config)
    said = provenance(spec.role, settings, job.data.pool_digest if spec.uses_pool(config) else None, law)
    network, stage = trained_once(
        job,
        spec.stage_name(config, law),
        network_key(job, spec, law, defended, needs),
        lambda: build_network(spec, plan),
        lambda network, stage: [] if given else spec.train(network, training_run(job, plan, stage)),
        settings | ({"weights": given} if given else {}) | (asdict(law) if law else {}),
        served=spec.served and not given,
        kind=spec.stage,
        files=spec.files(config, job.data.image_shape[0]),
        said=(said | {"reused": given} if given else said) if spec.weights else None,
    )
    return Trained(network, stage)


def finetuned(spec: NetworkSpec) -> NetworkSpec:
    """A network that goes on from the trained one of the same role, under another law."""
    train = spec.finetune
    assert train is not None
    return replace(
        spec,
        weights=None,
        stage=f"{spec.stage}-finetuned",
        every_label=True,
        build=lambda plan: copy.deepcopy(plan.networks[spec.role]),
        train=train,
        settings=lambda config: spec.settings(config) | {"epochs": config.nim.finetune_epochs},
        needs=lambda config: (spec,),
    )


def network_key(
    job: Shelf,
    spec: NetworkSpec,
    law: SigmaLaw | None,
    defended: Defended | None = None,
    needs: Mapping[str, Trained] | None = None,
) -> list[Any]:
    """What decides a network's weights beside its files: neither the target nor the label of the law."""
    key: list[Any] = [spec.settings(job.config), list(job.data.image_shape), law and law.parameters]
    key += [job.data.pool_digest] if spec.uses_pool(job.config) else []
    key += [defended.stage.fingerprint] if spec.sees_classifier and defended else []
    return key + [each.stage.fingerprint for each in (needs or {}).values()]


def network_stage(
    job: Shelf, spec: NetworkSpec, law: SigmaLaw | None, defended: Defended | None = None
) -> Stage[NetworkResult]:
    """The stage of a network that needs no other one, whether it is done or not."""
    key = network_key(job, spec, law, defended)
    files = spec.files(job.config, job.data.image_shape[0])
    return job.stage(spec.stage_name(job.config, law), NetworkResult, *key, kind=spec.stage, files=files)


def untrained_copy(classifier: Any) -> Callable[[], nn.Module]:
    """Builds another classifier of the same architecture; `classifier` is one of build_classifier."""
    return partial(build_classifier, **classifier.built)


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
) -> tuple[nn.Module, Stage[NetworkResult]]:
    """NIM-MAE under one law, or with a linear head NIM-SimMIM; an interrupted pre-training ends at the same weights."""
    trained = train_network(job, NIM_SIMMIM if linear_head else NIM_MAE, law)
    return trained.network, trained.stage


def pretrained(job: Job, law: SigmaLaw) -> nn.Module | None:
    """The NIM-MAE of a law where it is done already."""
    stage = network_stage(job, NIM_MAE, law)
    return storage.load_model(stage.path / "model", job.device) if stage.done else None
