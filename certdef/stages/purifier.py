"""The purifier of a job: its networks together, the model that is kept of it, and images through it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from certdef.config.job import ConfigError, RunConfig, SigmaLaw
from certdef.config.objects import is_object
from certdef.config.own_target import NONE
from certdef.config.purifiers import plain_name
from certdef.models import serving, storage
from certdef.purifiers import trial
from certdef.purifiers.base import NetworkSpec, Parts, Plan, PurifierSpec, Tuning
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.registry import find_purifier, is_foreign
from certdef.stages.job import Job, Shelf
from certdef.stages.networks import (
    Defended,
    Trained,
    finetuned,
    network_stage,
    train_network,
    training_run,
    untrained_copy,
)
from certdef.stages.parts import build_network
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import images_at_once
from surrogates.files import replacing

BATCH = 100  # images purified at a time: a diffusion chain takes memory


@dataclass(frozen=True, kw_only=True)
class PurifierResult(StageResult):
    """A purifier as a model in MLflow.

    Attributes:
        uri: Of the model: images in, images out; None for a module of the user's own, which nobody else could load.
    """

    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class TuningResult(StageResult):
    """Settings that a purifier chose for a classifier: they are among `params`."""


@dataclass
class Purifier:
    """A purifier with its networks: those that all noise laws share, and those that each law has of its own.

    Attributes:
        spec: Which purifier.
        settings: Its settings, tuned ones included.
        first_law: Label of the law whose networks the defense takes.
        classifier: The defended classifier, if the purifier is given it.
        shared: Networks of no law, or of the first one, by role.
        by_law: Networks that each law has of its own, by label and role.
        stages: Everything that was trained, tuned and kept for it.
    """

    spec: PurifierSpec
    settings: dict[str, Any]
    first_law: str
    classifier: nn.Module | None = None
    shared: dict[str, Trained] = field(default_factory=dict)
    by_law: dict[str, dict[str, Trained]] = field(default_factory=dict)
    stages: list[Stage[Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def title(self) -> str:
        return self.spec.title

    def trained(self, law: str | None = None) -> dict[str, Trained]:
        """The trained networks under a law; an unknown one, e.g. the comparison's, has those of the first law."""
        return self.shared | self.by_law.get(law or self.first_law, self.by_law.get(self.first_law, {}))

    def networks(self, law: str | None = None) -> dict[str, nn.Module]:
        """The networks under a law, with the classifier where the purifier is given it."""
        given = {} if self.classifier is None else {"classifier": self.classifier}
        return given | {role: each.network for role, each in self.trained(law).items()}

    def defense(self, generator: torch.Generator | None = None) -> nn.Module:
        """Images -> images, as a defense of its own."""
        return self.spec.build(Parts(self.settings, self.networks(), generator))

    def denoiser(self, law: str | None = None) -> nn.Module | None:
        """What stands between the noise and the classifier; None where the purifier has no such part."""
        part = self.spec.denoiser
        return part.build(Parts(self.settings, self.networks(law))) if part else None

    def proxies(self) -> list[nn.Module]:
        """Modules whose gradients an attacker may follow in the place of the purifier's."""
        parts = Parts(self.settings, self.networks())
        if self.spec.proxies is not None:
            return self.spec.proxies(parts)
        denoiser = self.denoiser()
        return [] if denoiser is None else [denoiser]

    def denoiser_key(self, law: str | None = None) -> str:
        """Identifies what stands between the noise and the classifier under a law, and nothing else."""
        part = self.spec.denoiser
        if part is None:
            return "none"
        settings = {
            name: value
            for name, value in self.settings.items()
            if part.settings is None or name in part.settings
        }
        stages = [
            each.stage.fingerprint
            for role, each in self.trained(law).items()
            if part.networks is None or role in part.networks
        ]
        return fingerprint(part.kind or self.name, settings, stages)


def ready_denoiser(job: Shelf, law: SigmaLaw) -> nn.Module | None:
    """What stands between the noise and the classifier, where its networks are trained already and know no classifier."""
    spec = find_purifier(job.config.purifier)
    if spec.denoiser is None:
        return None
    networks: dict[str, nn.Module] = {}
    for network in spec.networks(job.config):
        if network.sees_classifier or network.needs(job.config):
            return None
        stage = network_stage(job, network, None if network.laws == "none" else law)
        if not stage.done:
            return None
        networks[network.role] = storage.load_model(stage.path / "model", job.device)
    return spec.denoiser.build(Parts(spec.settings(job.config), networks))


def prepare_purifier(
    job: Job, name: str, surrogate: nn.Module | None = None, surrogate_stage: Stage[Any] | None = None
) -> Purifier:
    """Train what the purifier needs and is not there yet, and log the whole as a model: images in, images out.

    Without a surrogate a purifier sees no classifier.
    """
    spec, config = find_purifier(name), job.config
    defended = Defended(surrogate, surrogate_stage) if surrogate and surrogate_stage else None
    classifier = surrogate if spec.sees_classifier else None
    purifier = Purifier(spec, spec.settings(config), config.headline_law, classifier)
    for network in spec.networks(config):
        for law in laws_of(network, config):
            label = law.label if law is not None and network.laws == "each" else None
            own = purifier.shared if label is None else purifier.by_law.setdefault(label, {})
            needs = {each.role: (purifier.shared | own)[each.role] for each in network.needs(config)}
            sees = defended if network.sees_classifier else None
            own[network.role] = train_network(job, network, law, sees, needs)
            purifier.stages.append(own[network.role].stage)
    if spec.tuning and defended:
        purifier.stages.append(_tune(job, purifier, spec.tuning, defended))
    if name != NONE:
        purifier.stages.append(_keep(job, purifier, defended))
    return purifier


def finetune_denoiser(job: Job, purifier: Purifier, chosen: Iterable[SigmaLaw]) -> Purifier:
    """The purifier with networks of its own for each chosen law that is none of the job's.

    Each goes on from the network of the first law, on the pool, at no query. The choice was made with that one, on held-out
    images; so what is certified afterwards is as independent of it as before.
    """
    further = finetuned_networks(job.config, purifier.spec)
    known = {law.label for law in job.config.certify.laws}
    by_law, stages = dict(purifier.by_law), [*purifier.stages]
    for law in {law.label: law for law in chosen if further and law.label not in known}.values():
        first = purifier.trained()
        own = {
            each.role: train_network(job, each, law, needs={each.role: first[each.role]}) for each in further
        }
        by_law[law.label] = purifier.by_law.get(purifier.first_law, {}) | own
        stages += [each.stage for each in own.values()]
    return replace(purifier, by_law=by_law, stages=stages)


def finetuned_networks(config: RunConfig, spec: PurifierSpec) -> list[NetworkSpec]:
    """The networks that are trained further under a chosen law."""
    if not (config.nim.finetune_epochs and config.certify.candidates and spec.denoiser):
        return []
    return [finetuned(each) for each in spec.networks(config) if each.finetune]


def laws_of(network: NetworkSpec, config: RunConfig) -> tuple[SigmaLaw | None, ...]:
    """The noise laws that a network is trained under, each by itself; (None,) for no law."""
    laws: dict[str, tuple[SigmaLaw | None, ...]] = {
        "none": (None,),
        "first": config.certify.laws[:1],
        "each": config.certify.laws,
    }
    return laws[network.laws]


def _tune(job: Job, purifier: Purifier, tuning: Tuning, defended: Defended) -> Stage[TuningResult]:
    """Choose the purifier's tuned settings."""
    stage = job.stage(
        tuning.stage,
        TuningResult,
        tuning.depends_on(job.config),
        job.data.pool_digest,
        defended.stage.fingerprint,
        [each.fingerprint for each in purifier.stages],
    )

    def metric(name: str) -> str:
        return metrics.TUNED.format(stage=tuning.stage, name=name)

    def compute() -> TuningResult:
        plan = Plan(job.config, job.data.image_shape, classifier=defended.classifier)
        tuned = tuning.choose(Parts(purifier.settings, purifier.networks()), training_run(job, plan, stage))
        return TuningResult(
            params=tuned.settings | tuned.params,
            metrics={metric(name): value for name, value in tuned.settings.items()},
            points={metric(name): tuple(curve) for name, curve in tuned.curves.items()},
        )

    params = job.run(stage, compute).result.params
    purifier.settings |= {name: params[name] for name in purifier.settings if name in params}
    return stage


def _keep(job: Job, purifier: Purifier, defended: Defended | None) -> Stage[PurifierResult]:
    """Save the purifier as it defends, and log it as a model."""
    sees = [defended.stage.fingerprint] if purifier.classifier is not None and defended else []
    stage = job.stage(
        f"purifier-{plain_name(purifier.name)}",
        PurifierResult,
        purifier.settings,
        *sees,
        *(other.fingerprint for other in purifier.stages),
    )

    def compute() -> PurifierResult:
        if is_object(purifier.name):
            return PurifierResult(params={"purifier": purifier.name})
        folder = stage.path / "model"
        storage.save_purifier(folder, purifier.name, purifier.settings, purifier.networks())
        uri = serving.log_served(folder, "purifier", job.data.heldout_images[:2])
        return PurifierResult(uri=uri, params={"purifier": purifier.name} | purifier.settings)

    return job.run(stage, compute)


def purify_images(job: Job, purifier: Purifier, images: np.ndarray, path: Path) -> dict[str, Any]:
    """Write purified images (N, C, H, W) to an .npz; says how much they changed. The noise depends on the seed."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    module = purifier.defense(generator).to(job.device)
    size = images_at_once(images.shape[1:], BATCH)
    batches = job.progress(torch.from_numpy(images).split(size), desc=f"purify with {purifier.name}")
    with torch.inference_mode():
        purified = torch.cat([module(batch.to(job.device, copy=True)).cpu() for batch in batches]).numpy()
    with replacing(path) as file:
        np.savez_compressed(file, images=purified)
    change = np.abs(purified - images)
    return {
        "purifier": purifier.name,
        "images": len(images),
        "path": str(path),
        "mean_change": float(change.mean()),
        "largest_change": float(change.max()),
    }


def check_purifier(
    config: RunConfig, image_shape: tuple[int, int, int], classifier: nn.Module | None
) -> None:
    """Refuse, before anything is trained or paid for, a purifier that cannot be built, and try a foreign one.

    Raises:
        ConfigError: An unknown name, a missing package or folder, a value that a network, its training or the purifier
            refuses, or a foreign purifier that is not what a certificate rests on.
    """
    name = config.purifier
    try:
        if "nim" in (config.surrogate.model, config.surrogate.features):
            build_network(NIM_MAE, Plan(config, image_shape, config.certify.laws[0]))
        spec = find_purifier(name)
        settings, needed = spec.settings(config), spec.networks(config)
        if classifier is None and (
            spec.sees_classifier or spec.tuning or any(n.sees_classifier for n in needed)
        ):
            raise ConfigError(
                f"purifier {name!r} is made for the surrogate, and surrogate.model is none: name a model, or another purifier"
            )
        for network in needed:
            network.check(config)
        networks = untrained_networks(config, image_shape, classifier, needed)
        if spec.sees_classifier and classifier is not None:
            networks["classifier"] = classifier
        parts = Parts(settings, networks, torch.Generator().manual_seed(config.seed))
        module = spec.build(parts).eval()
        if is_foreign(name):
            trial.check_purifier_module(name, module, image_shape)
        if is_foreign(name) and spec.denoiser:
            trial.check_denoiser(name, partial(spec.denoiser.build, parts), image_shape)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"purifier {name!r}: {error}") from error


def untrained_networks(
    config: RunConfig,
    image_shape: tuple[int, int, int],
    classifier: nn.Module | None,
    networks: Iterable[NetworkSpec],
) -> dict[str, nn.Module]:
    """Networks as configured, before any training, by role; ValueError names what cannot be used."""
    again = None if classifier is None else untrained_copy(classifier)
    built: dict[str, nn.Module] = {}
    for network in networks:
        plan = Plan(config, image_shape, laws_of(network, config)[0], classifier, again, built)
        built[network.role] = build_network(network, plan)
    return built
