"""The white-box stand-in, distilled from the target's answers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import scipy.stats
import torch
from torch import nn

import certify
import surrogates
from certdef.config.job import ConfigError, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.purifiers.networks.nim import NIM, NIMClassifier
from certdef.stages.denoiser import pretrain_denoiser
from certdef.stages.job import Job
from certdef.tracking.workspace import Stage

# A target that is trained here starts from the weights of the job's seed, which nobody outside would know: a student
# of the same architecture that started from them too would agree with it more than it has learned.
OTHER_WEIGHTS = 1_000_003


def distil(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage]:
    """Pay for answers within the training budget, train on them, and measure how often the two agree."""
    config, data = job.config.surrogate, job.data
    law = job.config.certify.laws[0]
    nim = encoder_for(job, config)
    needs_nim = [] if nim is None else [asdict(job.config.nim)]
    stage = job.stage(
        "surrogate", asdict(config), job.config.ledger.training, target.identity, asdict(law), *needs_nim
    )
    with job.tracker.stage(stage):
        if not stage.done:
            surrogate = train_surrogate(
                job,
                target,
                config,
                budget=job.config.ledger.training,
                seed=job.config.seed,
                nim=nim,
                checkpoint=stage.path / "checkpoint.pt",
            )
            storage.save_classifier(stage.path / "model", surrogate.model)
            asked = job.ledger.attach(target, purpose="evaluation")
            agreement = {
                "clean": surrogates.fidelity(surrogate, asked, data.heldout_images),
                "noisy": surrogates.fidelity(
                    surrogate, asked, data.heldout_images, noise_law(law), seed=job.config.seed
                ),
            }
            uri = serving.log_served(stage.path / "model", "surrogate", data.heldout_images[:2])
            metrics = {"surrogate/queries": surrogate.queries}
            if surrogate.held_out_agreement is not None:
                metrics["surrogate/agreement_validation"] = surrogate.held_out_agreement
            for kind, found in agreement.items():
                metrics |= {
                    f"surrogate/agreement_{kind}": found.agreement,
                    f"surrogate/agreement_{kind}_lower": found.lower,
                    f"surrogate/agreement_{kind}_upper": found.upper,
                }
            stage.finish({
                "uri": uri,
                "queries": surrogate.queries,
                "loss": surrogate.loss,
                "agreement_clean": _triple(agreement["clean"]),
                "agreement_noisy": _triple(agreement["noisy"]),
                "params": asdict(config) | {"loss": surrogate.loss},
                "metrics": metrics,
                "series": {"surrogate/loss": list(surrogate.history)},
            })  # fmt: skip
    return storage.load_model(stage.path / "model", job.device), stage


def train_surrogate(
    job: Job,
    target: surrogates.Target,
    config: SurrogateConfig,
    *,
    budget: int,
    seed: int,
    nim: NIM | None,
    checkpoint: Path,
) -> surrogates.Surrogate:
    """Distil as configured, paying from the training budget of the job's ledger."""

    def build() -> nn.Module:
        model = build_classifier(surrogate_model(job.config), job.data.image_shape, target.num_classes)
        if isinstance(model, NIMClassifier) and nim is not None:
            model.load_state_dict(NIMClassifier(nim, target.num_classes).cpu().state_dict())
        return model

    return surrogates.distill(
        job.ledger.attach(target),
        job.data.pool,
        job.seeded(build, OTHER_WEIGHTS + seed),
        budget=budget,
        query_batch=min(config.query_batch, budget),
        selection=selection_of(config, _encoder(nim) if config.features == "nim" else None),
        committee=[
            job.seeded(build, OTHER_WEIGHTS * (2 + number) + seed) for number in range(config.committee)
        ],
        recipe=recipe_of(config),
        loss=config.loss,
        seed=seed,
        device=job.device,
        checkpoint=checkpoint,
        validation=config.validation,
        progress=job.progress,
    )


def recipe_of(config: SurrogateConfig) -> surrogates.Recipe:
    """The configured training; surrogates.SurrogateError names what can't be used."""
    same = ("epochs", "batch_size", "learning_rate", "weight_decay", "shift", "ema", "patience", "precision",
            "unlabelled_weight", "unlabelled_ratio")  # fmt: skip
    return surrogates.Recipe(
        noise=_augmentation(config.noise_255 / 255), **{name: getattr(config, name) for name in same}
    )


def selection_of(
    config: SurrogateConfig, features: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> surrogates.Selection:
    """The configured selection; surrogates.SurrogateError names what can't be used."""
    return surrogates.Selection(
        config.strategy,
        rounds=config.rounds,
        start=config.start,
        round_epochs=config.round_epochs,
        features=features,
    )


def encoder_for(job: Job, config: SurrogateConfig) -> NIM | None:
    """The headline's denoiser, pre-trained if it is not yet, where the surrogate starts from its encoder or looks with it."""
    if config.model != "nim" and config.features != "nim":
        return None
    return pretrain_denoiser(job, job.config.certify.laws[0])[0]


def _encoder(nim: NIM | None) -> Callable[[torch.Tensor], torch.Tensor]:
    if nim is None:
        raise ConfigError("surrogate.features is 'nim', but there is no denoiser: use student")
    device = next(nim.parameters()).device
    return lambda images: nim.encode(images.to(device)).mean(dim=1)


def _augmentation(highest_sigma: float) -> certify.NoiseLaw | None:
    """Training images are shown under sigma ~ U(0, highest), as when a classifier is tuned behind De^3."""
    return certify.GaussianScaleMixture(scipy.stats.uniform(0, highest_sigma)) if highest_sigma else None


def _triple(found: surrogates.Fidelity) -> list[float]:
    return [found.agreement, found.lower, found.upper]
