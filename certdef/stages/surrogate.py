"""The white-box stand-in, distilled from the target's answers alone: the one that agrees with it.

It attacks and guides. Those that are certified are trained as they are certified, in certdef/stages/students.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import nn

import certify
import surrogates
from certdef.config.job import ConfigError, SurrogateConfig, without_password
from certdef.config.noise_laws import noise_law
from certdef.config.objects import is_object
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.networks.nim import NIM, NIMClassifier
from certdef.stages.job import Job, Shelf
from certdef.stages.networks import pretrain_denoiser
from certdef.stages.parts import check_surrogate, load_surrogate, provenance, publish
from certdef.tracking import metrics
from certdef.tracking.checked_json import read_json, write_json
from certdef.tracking.parts import part_key
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage
from surrogates.distillation.distill import check_student
from surrogates.distillation.selection import select_random

# A target that is trained here starts from the weights of the job's seed, which nobody outside would know: a student
# of the same architecture that started from them too would agree with it more than it has learned.
OTHER_WEIGHTS = 1_000_003
QUERIED = "queried.json"  # which images of the pool the surrogate was trained on
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

    uri: str | None = None  # a module of your own is not logged, nor is one of another job
    weights: str | None = None  # what names that one
    distilled_from: str | None = None  # another target than this one, of which it learned nothing
    queries: int
    loss: str
    agreement_clean: Share
    agreement_noisy: Share


def distill(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage[SurrogateResult]]:
    """Pay for answers within the training budget, train on them, and measure how often the two agree."""
    if job.config.surrogate.weights is not None:
        return _of_another_job(job, target, job.config.surrogate.weights)
    if is_object(job.config.surrogate.model):
        return _as_given(job, target)
    encoder, stage = pretrained_encoder(job, job.config.surrogate), surrogate_stage(job, target)
    job.run(stage, lambda: _distill(job, target, stage, encoder))
    publish(job, stage, stage.result.uri)
    return storage.load_model(stage.path / "model", job.device), stage


def surrogate_stage(job: Shelf, target: surrogates.Target) -> Stage[SurrogateResult]:
    """The stage of the surrogate, whether it is done or not."""
    config, data, law = job.config.surrogate, job.data, job.config.certify.laws[0]
    if config.weights is not None:
        given = [part_key(job.config, config.weights), target.subject, law.parameters]
        return job.stage("surrogate", SurrogateResult, given, data.heldout_digest)
    if is_object(config.model):
        own = [config.model, target.subject, law.parameters]
        return job.stage("surrogate", SurrogateResult, own, data.heldout_digest)
    key = [config.agreeing, job.config.ledger.training, target.subject, law.parameters, data.pool_digest]
    starts_from = [NIM_MAE.settings(job.config)] if _needs_encoder(config) else []
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


def _of_another_job(
    job: Job, target: surrogates.Target, given: str
) -> tuple[nn.Module, Stage[SurrogateResult]]:
    """A surrogate that another job distilled: nothing is trained, and its agreement with this job's target is measured."""
    check_surrogate(job.config, job.data.image_shape, target.num_classes)
    model, said = load_surrogate(job.config, given)
    model, stage = model.to(job.device), surrogate_stage(job, target)
    identity, teacher = without_password(target.identity), said.get("distilled_from")

    def measure() -> SurrogateResult:
        kept = {name: said[name] for name in ("part", "recipe", "pool", "distilled_from") if name in said}
        storage.save_classifier(stage.path / "model", model, **kept, reused=given)
        agreement, figures = _agreement(job, target, model)
        return SurrogateResult(
            weights=given,
            distilled_from=teacher if teacher != identity else None,
            queries=0,
            loss="none",
            agreement_clean=agreement["clean"],
            agreement_noisy=agreement["noisy"],
            params={"weights": given, "distilled_from": teacher or "not known"},
            metrics=figures,
        )

    return model, job.run(stage, measure)


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
    said = provenance("surrogate", config.agreeing | {"queries": surrogate.queries}, data.pool_digest)
    said |= {"distilled_from": without_password(target.identity)}
    storage.save_classifier(stage.path / "model", surrogate.model, **said)
    write_json(stage.path / QUERIED, {"pool_indices": list(surrogate.pool_indices)})
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
        params=config.agreeing | {"loss": surrogate.loss},
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
    pool: np.ndarray | None = None,
    recipe: surrogates.Recipe | None = None,
    start: nn.Module | None = None,
) -> surrogates.Surrogate:
    """Distill as configured, paying from the training budget of the job's ledger.

    Args:
        job: The job.
        target: The target that it pays.
        config: The surrogate as configured.
        budget: Queries.
        seed: Of the training.
        encoder: The pre-trained denoiser, of a surrogate that starts from its encoder.
        checkpoint: File from which an interrupted training goes on.
        pool: Images that are all queried, (N, C, H, W); unset, the budget is spent on the job's pool by the strategy.
        recipe: How it is trained; unset, to agree with the target.
        start: A trained surrogate from whose weights it goes on; unset, it starts anew.
    """

    def build() -> nn.Module:
        model = build_classifier(surrogate_model(job.config), job.data.image_shape, target.num_classes)
        if isinstance(model, NIMClassifier) and encoder is not None:
            model.load_state_dict(NIMClassifier(encoder, target.num_classes).cpu().state_dict())
        if start is not None:
            model.load_state_dict(start.state_dict())
        return model

    committee = [OTHER_WEIGHTS * (2 + number) + seed for number in range(config.committee)]
    return surrogates.distill(
        job.ledger.attach(target),
        job.data.pool if pool is None else pool,
        job.seeded(build, OTHER_WEIGHTS + seed),
        budget=budget,
        query_batch=min(config.query_batch, budget),
        selection="random" if pool is not None else _selection(config, encoder),
        committee=[job.seeded(build, weights) for weights in committee],
        recipe=recipe or recipe_of(config),
        loss=config.loss,
        seed=seed,
        device=job.device,
        checkpoint=checkpoint,
        validation=None if pool is not None else config.validation,
        progress=job.progress,
    )


def queried_images(job: Job, stage: Stage[SurrogateResult]) -> np.ndarray:
    """The images (N, C, H, W) that a surrogate was trained on; the ledger has their answers.

    Raises:
        ConfigError: An earlier version trained it, and kept not which images its strategy chose.
    """
    config, pool = job.config.surrogate, job.data.pool
    if (stage.path / QUERIED).is_file():
        return pool[read_json(stage.path / QUERIED)["pool_indices"]]
    if config.strategy != "random":
        raise ConfigError(
            f"surrogate.strategy is {config.strategy!r}, and {str(stage.path)!r} does not say which images it chose: "
            "--fresh trains the surrogate again, from the same answers, or use --surrogate.noise uniform"
        )
    count = min(job.config.ledger.training, len(pool))
    return pool[select_random(len(pool), count, torch.Generator().manual_seed(job.config.seed)).numpy()]


def recipe_of(config: SurrogateConfig) -> surrogates.Recipe:
    """The configured training of a surrogate that agrees; surrogates.SurrogateError names what can't be used."""
    noise = None if config.noise == "none" else _augmentation(config.noise_255 / 255)
    return surrogates.Recipe(noise=noise, **{name: getattr(config, name) for name in SAME_NAMES})


def certified_recipe(
    config: SurrogateConfig, noise: certify.NoiseLaw, denoiser: nn.Module | None = None
) -> surrogates.Recipe:
    """The training of a surrogate as it is certified: under the noise of the vote, behind its denoiser.

    It has no patience, which would choose the epoch that agrees most on clean images.
    """
    return replace(
        recipe_of(config),
        noise=noise,
        denoiser=denoiser,
        consistency=config.consistency,
        entropy=config.entropy,
        patience=None,
    )


def _selection(config: SurrogateConfig, encoder: NIM | None) -> surrogates.Selection:
    return selection_of(config, _features(encoder) if config.features == "nim" else None)


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
