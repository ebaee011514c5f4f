"""The white-box stand-in, distilled from the target's answers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import scipy.stats
import torch
from torch import nn

import certify
import surrogates
from certdef.config.job import ConfigError, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.config.objects import is_object
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.purifiers.networks.nim import NIM, NIMClassifier
from certdef.stages.job import Job, Shelf
from certdef.stages.networks import pretrain_denoiser
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage
from surrogates.distillation.distill import check_student

# A target that is trained here starts from the weights of the job's seed, which nobody outside would know: a student
# of the same architecture that started from them too would agree with it more than it has learned.
OTHER_WEIGHTS = 1_000_003
SAME_NAMES = (
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "shift",
    "ema",
    "patience",
    "precision",
    "unlabelled_weight",
    "unlabelled_ratio",
)


@dataclass(frozen=True, kw_only=True)
class SurrogateResult(StageResult):
    """What the surrogate cost, and how often it agrees with the target: clean, and under the headline's noise."""

    uri: str | None = None  # a module of your own is not logged
    queries: int
    loss: str
    agreement_clean: Share
    agreement_noisy: Share


def distill(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage[SurrogateResult]]:
    """Pay for answers within the training budget, train on them, and measure how often the two agree."""
    if is_object(job.config.surrogate.model):
        return _as_given(job, target)
    encoder, stage = pretrained_encoder(job, job.config.surrogate), surrogate_stage(job, target)
    job.run(stage, lambda: _distill(job, target, stage, encoder))
    return storage.load_model(stage.path / "model", job.device), stage


def surrogate_stage(job: Shelf, target: surrogates.Target) -> Stage[SurrogateResult]:
    """The stage of the surrogate, whether it is done or not."""
    config, data, law = job.config.surrogate, job.data, job.config.certify.laws[0]
    if is_object(config.model):
        own = [config.model, target.subject, law.parameters]
        return job.stage("surrogate", SurrogateResult, own, data.heldout_digest)
    key = [asdict(config), job.config.ledger.training, target.subject, law.parameters, data.pool_digest]
    starts_from = [job.config.nim.settings] if _needs_encoder(config) else []
    return job.stage("surrogate", SurrogateResult, key, data.heldout_digest, *starts_from)


def _as_given(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage[SurrogateResult]]:
    """A module of the user's own as the stand-in: nothing is trained, and its agreement is measured."""
    name, data = job.config.surrogate.model, job.data
    model = build_classifier(name, data.image_shape, target.num_classes).to(job.device).eval()
    check_student(model, data.heldout_images[:1], target.num_classes, job.device)

    def measure() -> SurrogateResult:
        agreement, figures = _agreement(job, target, model)
        return SurrogateResult(
            queries=0,
            loss="none",
            agreement_clean=agreement["clean"],
            agreement_noisy=agreement["noisy"],
            params={"model": name},
            metrics=figures,
        )

    return model, job.run(surrogate_stage(job, target), measure)


def _agreement(
    job: Job, target: surrogates.Target, surrogate: surrogates.Surrogate | nn.Module
) -> tuple[dict[str, Share], dict[str, float]]:
    """Agreement with the target, clean and under the headline's noise, with its figures for MLflow."""
    measured = measure_agreement(job, target, surrogate, noise_law(job.config.certify.laws[0]))
    agreement = {images: share_of(each) for images, each in measured.items()}
    figures: dict[str, float] = {}
    for images, share in agreement.items():
        name = metrics.AGREEMENT.format(subject="surrogate", images=images)
        figures |= metrics.with_interval(name, share)
    return agreement, figures


def _distill(job: Job, target: surrogates.Target, stage: Stage, encoder: NIM | None) -> SurrogateResult:
    config, data = job.config.surrogate, job.data
    surrogate = train_surrogate(
        job,
        target,
        config,
        budget=job.config.ledger.training,
        seed=job.config.seed,
        encoder=encoder,
        checkpoint=stage.path / "checkpoint.pt",
    )
    storage.save_classifier(stage.path / "model", surrogate.model)
    agreement, figures = _agreement(job, target, surrogate)
    figures |= {metrics.QUERIES.format(subject="surrogate"): surrogate.queries}
    if surrogate.held_out_agreement is not None:
        name = metrics.AGREEMENT.format(subject="surrogate", images="validation")
        figures[name] = surrogate.held_out_agreement
    return SurrogateResult(
        uri=serving.log_served(stage.path / "model", "surrogate", data.heldout_images[:2]),
        queries=surrogate.queries,
        loss=surrogate.loss,
        agreement_clean=agreement["clean"],
        agreement_noisy=agreement["noisy"],
        params=asdict(config) | {"loss": surrogate.loss},
        metrics=figures,
        series={metrics.LOSS.format(stage="surrogate"): tuple(surrogate.history)},
    )


def measure_agreement(
    job: Job, target: surrogates.Target, surrogate: surrogates.Surrogate | nn.Module, noise: certify.NoiseLaw
) -> dict[str, surrogates.Fidelity]:
    """Agreement on the held-out images, clean and under one noise draw each. Every surrogate sees the same draws."""
    paid = job.ledger.attach(target, purpose="evaluation")
    measure = partial(surrogates.fidelity, surrogate, paid, job.data.heldout_images)
    return {"clean": measure(), "noisy": measure(noise, seed=job.config.seed)}


def share_of(fidelity: surrogates.Fidelity) -> Share:
    """Agreement with its interval."""
    return Share(fidelity.agreement, fidelity.lower, fidelity.upper)


def train_surrogate(
    job: Job,
    target: surrogates.Target,
    config: SurrogateConfig,
    *,
    budget: int,
    seed: int,
    encoder: NIM | None,
    checkpoint: Path,
) -> surrogates.Surrogate:
    """Distill as configured, paying from the training budget of the job's ledger."""

    def build() -> nn.Module:
        model = build_classifier(surrogate_model(job.config), job.data.image_shape, target.num_classes)
        if isinstance(model, NIMClassifier) and encoder is not None:
            model.load_state_dict(NIMClassifier(encoder, target.num_classes).cpu().state_dict())
        return model

    committee = [OTHER_WEIGHTS * (2 + number) + seed for number in range(config.committee)]
    return surrogates.distill(
        job.ledger.attach(target),
        job.data.pool,
        job.seeded(build, OTHER_WEIGHTS + seed),
        budget=budget,
        query_batch=min(config.query_batch, budget),
        selection=selection_of(config, _features(encoder) if config.features == "nim" else None),
        committee=[job.seeded(build, weights) for weights in committee],
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
    noise = _augmentation(config.noise_255 / 255)
    return surrogates.Recipe(noise=noise, **{name: getattr(config, name) for name in SAME_NAMES})


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


def pretrained_encoder(job: Job, config: SurrogateConfig) -> NIM | None:
    """The headline's denoiser, where the surrogate starts from its encoder or is selected for by its features."""
    if not _needs_encoder(config):
        return None
    encoder = pretrain_denoiser(job, job.config.certify.laws[0])[0]
    assert isinstance(encoder, NIM)  # certdef.config.checks refuses others
    return encoder


def _needs_encoder(config: SurrogateConfig) -> bool:
    return "nim" in (config.model, config.features)


def _features(nim: NIM | None) -> Callable[[torch.Tensor], torch.Tensor]:
    if nim is None:
        raise ConfigError("surrogate.features is 'nim', but there is no denoiser: use student")
    device = next(nim.parameters()).device
    return lambda images: nim.encode(images.to(device)).mean(dim=1)


def _augmentation(highest_sigma: float) -> certify.NoiseLaw | None:
    """Training images are noisy with sigma ~ U(0, highest), as when a classifier is tuned behind De^3."""
    return certify.GaussianScaleMixture(scipy.stats.uniform(0, highest_sigma)) if highest_sigma else None
