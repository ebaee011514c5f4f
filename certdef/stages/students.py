"""The surrogates as they are certified: each trained under the noise of its votes and behind its denoiser.

All learn from the answers that the surrogate was distilled from, at no further query. That one agrees with the target and
remains the attacker and the guide: what is trained to stay the same under noise agrees less with a target that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

import surrogates
from certdef.config.job import RunConfig, SigmaLaw, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.config.objects import is_given
from certdef.config.own_target import NONE
from certdef.config.purifiers import plain_name
from certdef.models import storage
from certdef.purifiers.registry import find_purifier
from certdef.stages.conditions import Condition, conditions, unchosen
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.stages.surrogate import (
    SurrogateResult,
    certified_recipe,
    pretrained_encoder,
    queried_images,
    share_of,
    train_surrogate,
)
from certdef.tracking import metrics
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

WITHOUT_STUDENTS = ("distill", "budgets", "attack", "purify")  # verbs that certify no surrogate
CERTIFIED = "certified"  # surrogate.noise: train as certified


@dataclass(frozen=True, kw_only=True)
class CertifiedSurrogateResult(StageResult):
    """A surrogate as it is certified, and how often it agrees with the target under one noise draw an image.

    Attributes:
        law: Label of the noise law that it is trained and certified under.
        purifier: Whose denoiser stands between the noise and it; None without one.
        loss: Name of the distance from the answers.
        queries: Answers that it learned from; all were paid for by the surrogate.
        headline: Whether its condition is the headline.
        agreement_with_clean: With the target's answer to the clean image.
        agreement_same_input: With the target's answer to the same noisy, denoised image; under the first law only.
    """

    law: str
    purifier: str | None = None
    loss: str
    queries: int
    headline: bool
    agreement_with_clean: Share
    agreement_same_input: Share | None = None


@dataclass(frozen=True)
class Students:
    """Which network is certified under which condition.

    Attributes:
        surrogate: The one of every condition that has none of its own; None where the target is certified alone.
        first_law: Label of the law whose networks the Gaussian beside the laws has, and a chosen law that is none of the job's.
        trained: As they are certified, by the law's label and whether they stand behind the denoiser.
        stages: Of these, the headline's first.
    """

    surrogate: nn.Module | None
    first_law: str
    trained: Mapping[tuple[str, bool], nn.Module] = field(default_factory=dict)
    stages: tuple[Stage[CertifiedSurrogateResult], ...] = ()

    def of(self, condition: Condition) -> nn.Module | None:
        """The surrogate of a condition, without the denoiser."""
        first = self.trained.get((self.first_law, condition.denoised), self.surrogate)
        return self.trained.get((condition.law, condition.denoised), first)

    @property
    def headline(self) -> nn.Module | None:
        """The surrogate of the headline, behind the denoiser where there is one."""
        bare = self.trained.get((self.first_law, False), self.surrogate)
        return self.trained.get((self.first_law, True), bare)

    @property
    def headline_stages(self) -> tuple[Stage[CertifiedSurrogateResult], ...]:
        """The stage of the headline's surrogate, where it has one of its own."""
        return self.stages[:1]


def train_students(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module | None,
    stage: Stage[SurrogateResult] | None,
    purifier: Purifier,
) -> Students:
    """The surrogates that are certified, trained unless a run has done it; without surrogate.noise certified, the surrogate."""
    config = job.config
    first = Students(surrogate, config.headline_law)
    if surrogate is None or stage is None or not trains_students(config.surrogate):
        return first
    trained: dict[tuple[str, bool], nn.Module] = {}
    stages = []
    laws = {law.label: law for law in config.certify.laws}
    for condition in conditions(unchosen(config)):  # a choice that they depended on would be circular
        if condition.subject == "surrogate" and condition.law in laws:
            own = _student(job, target, stage, purifier, condition, laws[condition.law])
            stages.append(own)
            model = storage.load_model(own.path / "model", job.device)
            trained[condition.law, condition.denoised] = model
    return Students(surrogate, config.headline_law, trained, tuple(stages))


def trains_students(surrogate: SurrogateConfig) -> bool:
    """Whether surrogates are trained as they are certified: not where the surrogate was given."""
    return surrogate.noise == CERTIFIED and not is_given(surrogate)


def held_out_queries(config: RunConfig, held_out: int, verb: str = "run") -> int:
    """Queries of accuracy and agreement on so many held-out images: clean, under the noise, and denoised."""
    if config.surrogate.model == NONE:
        return held_out
    trained = verb not in WITHOUT_STUDENTS and trains_students(config.surrogate)
    return held_out * (2 + (trained and find_purifier(config.purifier).denoiser is not None))


def _student(
    job: Job,
    target: surrogates.Target,
    surrogate: Stage[SurrogateResult],
    purifier: Purifier,
    condition: Condition,
    law: SigmaLaw,
) -> Stage[CertifiedSurrogateResult]:
    config, behind = job.config, condition.purifier if condition.denoised else None
    key = [config.surrogate.certified, config.ledger.training, target.subject, surrogate.fingerprint]
    key += [law.parameters, purifier.denoiser_key(law.label) if behind else "none", job.data.heldout_digest]
    name = f"student-{law.label}-{plain_name(behind or 'none')}"
    stage = job.stage(name, CertifiedSurrogateResult, *key, law == config.certify.laws[0])
    denoiser = purifier.denoiser(law.label) if behind else None
    return job.run(stage, lambda: _train(job, target, surrogate, condition, denoiser, law, stage))


def _train(
    job: Job,
    target: surrogates.Target,
    surrogate: Stage[SurrogateResult],
    condition: Condition,
    denoiser: nn.Module | None,
    law: SigmaLaw,
    stage: Stage,
) -> CertifiedSurrogateResult:
    config, data, noise = job.config.surrogate, job.data, noise_law(law)
    images = queried_images(job, surrogate)
    student = train_surrogate(
        job,
        target,
        config,
        budget=len(images),
        seed=job.config.seed,
        encoder=pretrained_encoder(job, config),
        checkpoint=stage.path / "checkpoint.pt",
        pool=images,
        recipe=certified_recipe(config, noise, denoiser),
    )
    storage.save_classifier(stage.path / "model", student.model)
    paid = job.ledger.attach(target, purpose="evaluation")

    def agreement(reference: str) -> Share:
        return share_of(
            surrogates.fidelity(
                student,
                paid,
                data.heldout_images,
                noise,
                denoiser=denoiser,
                reference=reference,
                seed=job.config.seed,
            )
        )

    measured = {metrics.WITH_CLEAN: agreement("clean")}
    if law == job.config.certify.laws[0]:
        measured[metrics.SAME_INPUT] = agreement("same")
    figures: dict[str, float] = {}
    for what, share in measured.items():
        name = metrics.AGREEMENT.format(subject=condition.metric_prefix, images=what)
        figures |= metrics.with_interval(name, share)
    return CertifiedSurrogateResult(
        law=law.label,
        purifier=condition.purifier,
        loss=student.loss,
        queries=student.queries,
        headline=condition.headline,
        agreement_with_clean=measured[metrics.WITH_CLEAN],
        agreement_same_input=measured.get(metrics.SAME_INPUT),
        params=config.certified
        | {"loss": student.loss, "law": law.label, "purifier": condition.purifier or "none"},
        metrics=figures,
        series={metrics.LOSS.format(stage=stage.name): tuple(student.history)},
        artifacts=("model/*",),
    )
