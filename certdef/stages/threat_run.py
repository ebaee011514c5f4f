"""The runner of all threats: subjects, budget, receipts, result, MLflow; a threat itself only proves and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.stages.job import Job
from certdef.stages.students import CertifiedSurrogateResult, trains_students
from certdef.stages.surrogate import (
    SurrogateResult,
    certified_recipe,
    pretrained_encoder,
    queried_images,
    share_of,
    train_surrogate,
)
from certdef.stages.threat import Asked, Threat, ThreatCurve, ThreatResult
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import images_at_once

PAID_BATCH = 512  # images before a target at once


def images_of(config: RunConfig, subject: str, heldout: int) -> int:
    """How many of the held-out images, the first ones, are certified of a subject."""
    wanted = config.certify.target_images if subject == "target" else config.certify.images
    return min(wanted, heldout)


def settled(config: RunConfig, data: Splits, threat: Threat, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is proven, once it is known to be within the budget. Nothing is queried.

    Raises:
        ConfigError: An option that can't be used, or a budget that certifies nothing.
    """
    settings = threat.settings(config, options, data.image_shape)
    images = images_of(config, "target", len(data.heldout_images))
    most = images * threat.most_queries(config, settings)
    if most > config.ledger.certification:
        raise ConfigError(
            f"ledger.certification is {config.ledger.certification:,}: threat {threat.name} may ask for {most:,} answers "
            f"({images} images x {most // images:,}); raise it to that, or lower certify.target_images or {threat.costs}"
        )
    return settings


def certify_threat(
    job: Job,
    threat: Threat,
    settings: dict[str, Any],
    options: Mapping[str, Any],
    target: surrogates.Target,
    surrogate: nn.Module | None = None,
    surrogate_stage: Stage[SurrogateResult] | None = None,
) -> list[Stage]:
    """Prove something against a threat: of the target by paid queries, of its surrogate, where the job has one, for free.

    Args:
        job: The job.
        threat: What is proven against.
        settings: As `settled` gave them.
        options: From which they follow; other ones are another run in MLflow, of the same job.
        target: The target, opened.
        surrogate: Its stand-in.
        surrogate_stage: The stage that made it.

    Returns:
        The stage of the surrogate that was trained for it, where one was, and that of the result.
    """
    before: list[Stage] = threat.prepare(job, settings)
    name = "-".join([f"threat-{threat.name}", *([fingerprint(dict(options))[:6]] if options else [])])
    white_box, trained = surrogate, False
    if surrogate is not None and surrogate_stage is not None:
        own = _student(job, threat, settings, name, target, surrogate_stage)
        if own is not None:
            before.append(own)
            white_box, trained = storage.load_model(own.path / "model", job.device), True
    config, certified = job.config, white_box is not None and not threat.guide_only
    counts = {
        subject: images_of(config, subject, len(job.data.heldout_images))
        for subject in ("target", *(["surrogate"] if certified else []))
    }
    made_by = [each.fingerprint for each in (*before, *([surrogate_stage] if surrogate_stage else []))]
    key = [settings, counts, config.certify.known_class, target.subject, job.data.heldout_digest, made_by]
    stage = job.stage(name, ThreatResult, *key, kind=f"threat-{threat.name}")

    def prove() -> ThreatResult:
        curves: dict[str, ThreatCurve] = {}
        for subject, images in counts.items():
            base: Any = white_box
            if subject == "target":
                base = paid_answers(job, threat, settings, target)
            asked = Asked(
                job,
                stage,
                subject,
                base,
                target.num_classes,
                settings,
                tuple(settings["grid"]),
                images,
                surrogate,
            )
            curve = threat.prove(asked)
            curves[subject] = ThreatCurve(
                **{**vars(curve), "trained_for": trained and subject == "surrogate"}
            )
            if subject == "target" and job.ledger.canaries is not None:
                job.ledger.canaries.finish()  # they vouch for all of these answers
        return result_of(job, threat, settings, curves, target.identity)

    return [*before, job.run(stage, prove)]


def result_of(
    job: Job, threat: Threat, settings: dict[str, Any], curves: dict[str, ThreatCurve], identity: str
) -> ThreatResult:
    """The result of a threat, with its figures for MLflow."""
    grid = tuple(settings["grid"])
    figures: dict[str, float] = {}
    for subject, curve in curves.items():
        figures |= metrics.against_threat(threat.name, subject, grid, curve.accuracy)
        figures[metrics.THREAT_QUERIES.format(threat=threat.name, subject=subject)] = curve.queries_per_image
    alpha = 0.0 if threat.kind == "alpha = 0" else float(settings.get("alpha", job.config.certify.alpha))
    return ThreatResult(
        threat=threat.name,
        title=threat.title,
        statement=threat.statement,
        limits=threat.limits,
        kind=threat.kind,
        parameter=threat.parameter,
        unit=threat.unit,
        grid=grid,
        alpha=alpha,
        settings=settings,
        curves=curves,
        identity=identity,
        images_digest=job.data.heldout_digest,
        papers=threat.papers,
        params={"threat": threat.name, "kind": threat.kind, "alpha": alpha, **settings} | job.data.remarks,
        metrics=figures,
        artifacts=("*.png", "records/*"),
    )


def paid_answers(
    job: Job, threat: Threat, settings: Mapping[str, Any], target: surrogates.Target
) -> Callable[[Tensor], np.ndarray]:
    """The target as a base classifier: labels (B,) of images (B, C, H, W), each paid from the certification budget.

    A receipt is kept for what decides the images, and for nothing else: another grid or n finds what was paid.
    """
    decides = (job.config.seed, job.device.type, threat.name, threat.draws(settings))
    paid = job.ledger.attach(target, purpose="certification", experiment=f"threat/{fingerprint(*decides)}")
    size = images_at_once(job.data.image_shape, PAID_BATCH)

    def classify(images: Tensor) -> np.ndarray:
        # Transformed images may leave [0, 1]; clipping them is up to the target.
        parts = [
            paid.query(part.cpu(), bounded=False, draws=part.cpu()).labels for part in images.split(size)
        ]
        return np.concatenate(parts)

    return classify


def _student(
    job: Job,
    threat: Threat,
    settings: Mapping[str, Any],
    name: str,
    target: surrogates.Target,
    surrogate: Stage[SurrogateResult],
) -> Stage[CertifiedSurrogateResult] | None:
    """The surrogate as it is certified: trained under the threat's law, from the same answers; None where it has no law."""
    config, law = job.config, threat.law(settings)
    if law is None or not trains_students(config.surrogate):
        return None
    key = [config.surrogate.certified, config.ledger.training, target.subject, surrogate.fingerprint]
    key += [law.describe(), job.data.heldout_digest]
    kind = f"student-threat-{threat.name}"
    stage = job.stage(f"student-{name}", CertifiedSurrogateResult, *key, kind=kind)

    def train() -> CertifiedSurrogateResult:
        images = queried_images(job, surrogate)
        student = train_surrogate(
            job,
            target,
            config.surrogate,
            budget=len(images),
            seed=config.seed,
            encoder=pretrained_encoder(job, config.surrogate),
            checkpoint=stage.path / "checkpoint.pt",
            pool=images,
            recipe=certified_recipe(config.surrogate, law),
        )
        storage.save_classifier(stage.path / "model", student.model)
        paid = job.ledger.attach(target, purpose="evaluation")
        agreement = share_of(
            surrogates.fidelity(
                student, paid, job.data.heldout_images, law, reference="clean", seed=config.seed
            )
        )
        name = metrics.AGREEMENT.format(subject=f"surrogate/{stage.name}", images=metrics.WITH_CLEAN)
        return CertifiedSurrogateResult(
            law=threat.name,
            loss=student.loss,
            queries=student.queries,
            headline=False,
            agreement_with_clean=agreement,
            params=config.surrogate.certified | {"loss": student.loss, "law": threat.name},
            metrics=metrics.with_interval(name, agreement),
            series={metrics.LOSS.format(stage=stage.name): tuple(student.history)},
            artifacts=("model/*",),
        )

    return job.run(stage, train)
