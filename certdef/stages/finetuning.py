"""The surrogate that stands behind a purifier where it is attacked: fine-tuned on purified images.

A classifier has not seen what a purifier leaves of an image. De^3 was published with one that has (You et al., NeurIPS 2023,
arXiv 2302.01056). It learns from the answers that the surrogate was distilled from, at no further query. The surrogate that
agrees with the target stays what purifiers see, what is transferred to the target, and the guide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

import surrogates
from certdef.config.own_target import NONE
from certdef.config.purifiers import plain_name
from certdef.models import storage
from certdef.stages.job import Job
from certdef.stages.networks import Defended
from certdef.stages.purifier import Purifier
from certdef.stages.surrogate import (
    pretrained_encoder,
    queried_images,
    recipe_of,
    share_of,
    train_surrogate,
)
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

RATE = 0.3  # of the surrogate's learning rate


@dataclass(frozen=True, kw_only=True)
class FinetunedResult(StageResult):
    """A surrogate fine-tuned on purified images, and how often it gives the target's answer to the clean image for a purified one.

    Attributes:
        purifier: Whose images it was trained on.
        queries: Answers that it learned from; all were paid for by the surrogate.
        agreement_before: Of the surrogate that it started from.
        agreement: Its own.
    """

    purifier: str
    queries: int
    agreement_before: Share
    agreement: Share


def finetune_surrogate(
    job: Job, target: surrogates.Target, surrogate: Defended, purifier: Purifier
) -> Defended:
    """The surrogate behind a purifier, fine-tuned unless a run has done it; without surrogate.finetune_epochs, the surrogate."""
    if job.config.surrogate.finetune_epochs == 0 or purifier.name == NONE:
        return surrogate
    config, data = job.config.surrogate, job.data
    key = [config.agreeing, config.finetune_epochs, target.subject, surrogate.stage.fingerprint]
    key += [purifier.settings, [each.fingerprint for each in purifier.stages], data.heldout_digest]
    stage = job.stage(f"finetuned-{plain_name(purifier.name)}", FinetunedResult, *key)
    job.run(stage, lambda: _finetune(job, target, surrogate, purifier, stage))
    return Defended(storage.load_model(stage.path / "model", job.device), stage)


def _finetune(
    job: Job,
    target: surrogates.Target,
    surrogate: Defended,
    purifier: Purifier,
    stage: Stage[FinetunedResult],
) -> FinetunedResult:
    config, seed = job.config.surrogate, job.config.seed
    images = queried_images(job, surrogate.stage)
    recipe = replace(
        recipe_of(config),
        epochs=config.finetune_epochs,
        learning_rate=RATE * config.learning_rate,
        noise=None,  # the defense draws its own
        denoiser=_defense(job, purifier),
        patience=None,
    )
    tuned = train_surrogate(
        job,
        target,
        replace(config, committee=0),  # every image has an answer
        budget=len(images),
        seed=seed,
        encoder=pretrained_encoder(job, config),
        checkpoint=stage.path / "checkpoint.pt",
        pool=images,
        recipe=recipe,
        start=surrogate.classifier,
    )
    storage.save_classifier(stage.path / "model", tuned.model)
    before, after = (_agreement(job, target, each, purifier) for each in (surrogate.classifier, tuned.model))
    name = metrics.AGREEMENT.format(subject="surrogate", images=metrics.FINETUNED)
    return FinetunedResult(
        purifier=purifier.name,
        queries=tuned.queries,
        agreement_before=before,
        agreement=after,
        params={
            "purifier": purifier.name,
            "epochs": recipe.epochs,
            "learning_rate": recipe.learning_rate,
            "loss": tuned.loss,
        }
        | purifier.settings,
        metrics=metrics.with_interval(name, after),
        series={metrics.LOSS.format(stage=stage.name): tuple(tuned.history)},
        artifacts=("model/*",),
    )


def _defense(job: Job, purifier: Purifier) -> nn.Module:
    """The purifier as it defends; its noise starts at the seed of the job."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    return purifier.defense(generator).to(job.device)


def _agreement(job: Job, target: surrogates.Target, classifier: nn.Module, purifier: Purifier) -> Share:
    """With the target's answers to the clean held-out images, which the surrogate's own agreement has paid for."""
    paid = job.ledger.attach(target, purpose="evaluation")
    defense = _defense(job, purifier)
    images = job.data.heldout_images
    return share_of(surrogates.fidelity(classifier, paid, images, denoiser=defense, reference="clean"))
