"""What a purifier and a network say of themselves: frozen records, and the part of a job that they are built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from certdef.config.job import RunConfig, SigmaLaw
from certdef.config.parts import reused
from surrogates.distillation.inference import images_at_once
from surrogates.distillation.training import FitOptions

Networks = Mapping[str, nn.Module]  # by role
Network = TypeVar("Network", bound=nn.Module)
BATCH = 512


@dataclass(frozen=True)
class Parts:
    """What a purifier is built from.

    Args:
        settings: Plain values, pixels in [0, 1].
        networks: Its networks, by role.
        generator: Source of the noise that it draws; unset, torch's default.
    """

    settings: Mapping[str, Any]
    networks: Networks = field(default_factory=dict)
    generator: torch.Generator | None = None

    def network(self, role: str, kind: type[Network]) -> Network:
        """The network of a role, of the class that it has there."""
        network = self.networks[role]
        assert isinstance(network, kind)
        return network


@dataclass(frozen=True)
class Plan:
    """What a network is built from.

    Args:
        config: The job as configured.
        image_shape: (C, H, W).
        law: The noise law, of a network that has one.
        classifier: The classifier that is defended, of a network that sees it; untrained where only sizes are checked.
        new_classifier: Builds an untrained one of the same architecture.
        networks: The networks that this one needs, by role.
    """

    config: RunConfig
    image_shape: tuple[int, int, int]
    law: SigmaLaw | None = None
    classifier: nn.Module | None = None
    new_classifier: Callable[[], nn.Module] | None = None
    networks: Networks = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRun:
    """What a network is trained with, and a setting is tuned with.

    Args:
        plan: What the network was built from.
        pool: Unlabeled images (N, C, H, W) in [0, 1].
        device: Where to train.
        checkpoint: File from which an interrupted training resumes.
        progress: Wraps the epochs, like tqdm.
        train_classifier: certdef.models.train_classifier, for a classifier that is trained against attacks.
    """

    plan: Plan
    pool: Tensor
    device: torch.device
    checkpoint: Path
    progress: Callable
    train_classifier: Callable[..., nn.Module]

    @property
    def config(self) -> RunConfig:
        return self.plan.config

    @property
    def options(self) -> FitOptions:
        """Seed, device, checkpoint and progress, as every training function takes them."""
        where: FitOptions = {"device": self.device, "checkpoint": self.checkpoint, "progress": self.progress}
        return {"seed": self.config.seed, **where}

    def labels(self, images: Tensor) -> Tensor:
        """The defended classifier's labels (N,) of images (N, C, H, W)."""
        classifier = self.plan.classifier
        assert classifier is not None
        with torch.inference_mode():
            batches = [
                classifier(batch.to(self.device, copy=True)).argmax(1)
                for batch in images.split(images_at_once(images.shape[1:], BATCH))
            ]
        return torch.cat(batches).cpu()


@dataclass(frozen=True)
class NetworkSpec:
    """A network that purifiers share: how it is built and trained, and what its weights depend on.

    Args:
        role: Its name among the networks of a purifier, and of its weights in a saved model (`<role>.safetensors`).
        stage: Name of its stage.
        build: Builds it untrained; ValueError names what cannot be used.
        train: Trains it in place and returns the mean loss of each epoch.
        settings: The part of the configuration that decides its weights, JSON-able.
        laws: Whether it knows no noise law, is trained under the first one, or once under each.
        every_label: The stage's name has the law's label for the first law too.
        needs: Networks that are trained before it.
        sees_classifier: Its weights depend on the classifier that is defended.
        uses_pool: Whether its weights depend on the pool.
        files: The files that its weights depend on, of a configuration and a number of color channels.
        check: Refuses, before anything is paid for, a configuration that it cannot be trained with.
        served: It is logged in MLflow as a model that can be served: images in, images out.
        weights: The option that may name a trained one of another job in its place, dotted; unset, none does.
        finetune: Trains it further under its plan's law, in place, as train does; unset, that is not done.
    """

    role: str
    stage: str
    build: Callable[[Plan], nn.Module]
    train: Callable[[Any, TrainingRun], list[float]]
    settings: Callable[[RunConfig], Any]
    laws: Literal["none", "first", "each"] = "none"
    every_label: bool = False
    needs: Callable[[RunConfig], tuple[NetworkSpec, ...]] = lambda config: ()
    sees_classifier: bool = False
    uses_pool: Callable[[RunConfig], bool] = lambda config: True
    files: Callable[[RunConfig, int], Sequence[Path]] = lambda config, channels: ()
    check: Callable[[RunConfig], None] = lambda config: None
    served: bool = False
    weights: str | None = None
    finetune: Callable[[Any, TrainingRun], list[float]] | None = None

    def reused(self, config: RunConfig) -> str | None:
        """What names a trained network of another job, which a job takes in its place; None where it trains its own."""
        return reused(config).get(self.weights) if self.weights else None

    def stage_name(self, config: RunConfig, law: SigmaLaw | None) -> str:
        """Name of its stage under a law: the first law has the plain name."""
        if law is None or (law == config.certify.laws[0] and not self.every_label):
            return self.stage
        return f"{self.stage}-{law.label}"


@dataclass(frozen=True)
class About:
    """What a purifier is, in words.

    Args:
        line: What it does.
        source: Where it is published.
        threat: The attacker that it was proposed against.
        papers: Keys of certdef.report.citations.PAPERS, or whole references.
        title: Its name in tables and pictures; unset, its name.
    """

    line: str
    source: str
    threat: str
    papers: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Denoiser:
    """What stands between the noise and the classifier of a smoothed vote: a function of the noisy image alone.

    Args:
        name: What it is, in words.
        build: Builds it. It draws no noise: that of the law is added once.
        kind: The same for denoisers that work alike, by the same networks and settings; unset, the purifier's name.
        settings: The settings that it depends on; unset, all.
        networks: The roles of the networks that it depends on; unset, all.
    """

    name: str
    build: Callable[[Parts], nn.Module]
    kind: str = ""
    settings: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Tuned:
    """Settings that were chosen for a classifier.

    Args:
        settings: Those that take the place of the configured ones.
        params: What the choice depends on, for MLflow.
        curves: The values that decided it: (step, value) pairs by name.
    """

    settings: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """Settings that are chosen once the networks are trained, without labels and without queries.

    Args:
        stage: Name of its stage, and of its metrics.
        depends_on: What decides the choice beside the networks and the classifier, JSON-able.
        choose: Chooses, from the purifier's configured parts.
    """

    stage: str
    depends_on: Callable[[RunConfig], Any]
    choose: Callable[[Parts, TrainingRun], Tuned]


@dataclass(frozen=True)
class PurifierSpec:
    """A purifier by name. A module of certdef.purifiers holds one as `PURIFIER`, and is thereby registered.

    Args:
        name: As in `--purifier NAME`: the file's name with - in the place of _.
        about: The purifier in words.
        build: Builds it: images (N, C, H, W) -> (N, C, H, W) in [0, 1].
        settings: Its settings as configured: plain values, pixels in [0, 1].
        networks: The networks of a configuration, in the order in which they are trained.
        denoiser: Its part in a smoothed vote; unset, none.
        differentiable: Whether a gradient passes; unset, autograd decides.
        sees_classifier: It is given the defended classifier, as the network `classifier`.
        tuning: Settings that are chosen after training.
        proxies: Builds modules like it, whose gradients an attacker may follow in its place; unset, its denoiser.
    """

    name: str
    about: About
    build: Callable[[Parts], nn.Module]
    settings: Callable[[RunConfig], dict[str, Any]] = lambda config: {}
    networks: Callable[[RunConfig], tuple[NetworkSpec, ...]] = lambda config: ()
    denoiser: Denoiser | None = None
    differentiable: bool | None = None
    sees_classifier: bool = False
    tuning: Tuning | None = None
    proxies: Callable[[Parts], list[nn.Module]] | None = None

    @property
    def title(self) -> str:
        """Its name as tables and pictures print it."""
        return self.about.title or self.name
