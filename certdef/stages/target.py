"""The deployed black box: a user's own by URI, or one that its own split trains, logged in MLflow and loaded back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import surrogates
from certdef.config.job import ConfigError, without_password
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier, train_svc
from certdef.stages.job import Job
from certdef.tracking import metrics
from certdef.tracking.files import fingerprint
from certdef.tracking.mlflow import tracking_uri
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

CANARIES = 4


@dataclass(frozen=True, kw_only=True)
class TargetResult(StageResult):
    """Where the target is, what it answers, and its accuracy on the held-out images."""

    uri: str
    identity: str
    output_kind: str
    accuracy: Share


def open_target(job: Job) -> tuple[surrogates.Target, Stage[TargetResult]]:
    """Open the target, training it first where the job has none. From here on it is queried through the ledger alone."""
    config, data = job.config.target, job.data
    own = [without_password(config.uri), config.form] if config.uri else [config.training, data.target_digest]
    stage = job.stage("target", TargetResult, own, data.heldout_digest, tracking_uri(job.config))
    if stage.done and not config.uri and not _loads(stage.result.uri):
        stage.clear()  # the tracking store that it was logged to is gone
    opened: list[surrogates.Target] = []

    def evaluate() -> TargetResult:
        uri = config.uri or _train_and_log(job, stage)
        opened.append(_open(job, uri))
        return _evaluated(job, opened[0], uri)

    job.run(stage, evaluate)
    target = opened[0] if opened else _open(job, config.uri or stage.result.uri)
    return target, stage


def _evaluated(job: Job, target: surrogates.Target, uri: str) -> TargetResult:
    """Query the held-out images once."""
    paid = job.ledger.attach(target, purpose="evaluation")
    correct = paid.query(job.data.heldout_images).labels == job.data.heldout_labels
    accuracy = Share.of(int(correct.sum()), len(correct))
    description = {
        "uri": without_password(uri),
        "identity": target.identity,
        "output_kind": target.output_kind,
        "preprocessing": target.preprocessing or "none",
        "deterministic": _deterministic(job),
    }
    return TargetResult(
        uri=description["uri"],
        identity=target.identity,
        output_kind=target.output_kind,
        accuracy=accuracy,
        params=description,
        metrics=metrics.with_interval(metrics.CLEAN_ACCURACY.format(subject="target"), accuracy),
    )


def _open(job: Job, uri: str) -> surrogates.Target:
    """Open what the URI names, and watch it; refuse, before any query, a target that lacks some of the data's classes."""
    config, classes = job.config.target, len(job.data.classes)
    try:
        target = surrogates.open_target(uri, input_shape=job.data.image_shape, **_options(job))
    except surrogates.ClassesUnknown as error:
        raise ConfigError(
            f"target {without_password(uri)!r} does not tell its number of classes: give --target.num_classes"
        ) from error
    if target.num_classes < classes:
        raise ConfigError(
            f"target {without_password(uri)!r} answers {target.num_classes} classes, but the labels of {job.data.name} go up to "
            f"{classes - 1}: give the data that it was trained for"
        )
    job.legacy.target = target.identity
    if config.uri and target.charged_when_sent and config.canary_every:
        job.ledger.canaries = surrogates.Canaries(
            job.data.heldout_images[:CANARIES], every=config.canary_every
        )
    return target


def _options(job: Job) -> dict[str, Any]:
    """How the target is opened: as configured, or as certdef trained it."""
    config = job.config.target
    if config.uri:
        return config.form | config.transport
    # Training is deterministic, so this name is too: a ledger knows the target wherever it was logged.
    trained = fingerprint(job.config.seed, job.device.type, config.training, job.data.target_digest)
    identity = f"{config.kind}:{trained}"
    if job.ledger.bill().identity == job.legacy.trained_target:
        identity = job.legacy.trained_target
    return {"identity": identity, "output_kind": config.output_kind or "probabilities"}


def _deterministic(job: Job) -> str:
    """What the canaries say; a model in this process is not queried twice."""
    canaries = job.ledger.canaries
    deterministic = None if canaries is None else canaries.deterministic
    return {True: "yes", False: "no", None: "not known"}[deterministic]


def _loads(uri: str) -> bool:
    """Whether a target that an earlier run logged is still there."""
    try:
        surrogates.open_target(uri)
    except surrogates.TargetError:
        return False
    return True


def _train_and_log(job: Job, stage: Stage) -> str:
    config, data, num_classes = job.config.target, job.data, len(job.data.classes)
    if config.kind == "svc":
        estimator = train_svc(data.target_images, data.target_labels, job.config.seed)
        return serving.log_estimator(estimator, "target", math.prod(data.image_shape), num_classes)
    model = job.seeded(lambda: build_classifier(config.kind, data.image_shape, num_classes))
    train_classifier(
        model,
        data.target_images,
        data.target_labels,
        epochs=config.epochs,
        augment=config.augment,
        seed=job.config.seed,
        device=job.device,
        progress=partial(job.progress, desc="train target"),
    )
    storage.save_classifier(stage.path / "model", model, answers=config.output_kind or "probabilities")
    return serving.log_served(stage.path / "model", "target", data.heldout_images[:2])
