"""The deployed black box: a user's own by URI, or one that its own split trains, logged in MLflow and loaded back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import surrogates
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.purifiers import plain_name
from certdef.data.matching import match_labels
from certdef.data.sets import Splits
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier, train_svc
from certdef.stages.job import Job, Shelf
from certdef.stages.ledger import check_ledger
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import tracking_uri
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage
from surrogates.ledger.reader import read_statement


@dataclass(frozen=True, kw_only=True)
class TargetResult(StageResult):
    """Where the target is, what it answers, and its accuracy on the held-out images."""

    uri: str
    identity: str
    output_kind: str
    accuracy: Share
    answers: tuple[int, ...] | None = (
        None  # to the held-out images, where these have no labels: then they are right
    )


def open_target(job: Job) -> tuple[surrogates.Target, Stage[TargetResult]]:
    """Open the target, training it first where the job has none. From here on it is queried through the ledger alone.

    From here on, too, the labels of the job's images are classes of the target.
    """
    config, stage = job.config.target, target_stage(job)
    opened = [] if job.own_target is None else [_ready(job, job.own_target)]
    if stage.done and not config.uri and not _loads(stage.result.uri):
        if job.prepared or job.finished:
            raise ConfigError(
                f"target {stage.result.uri!r} can't be loaded: give the tracking store that it was logged to, "
                "--tracking.uri or MLFLOW_TRACKING_URI"
            )
        stage.clear()  # the tracking store that it was logged to is gone

    def evaluate() -> TargetResult:
        uri = config.uri or _train_and_log(job, stage)
        if not opened:
            opened.append(_open(job, uri))
        return _evaluated(job, opened[0], uri)

    job.run(stage, evaluate)
    if stage.result.answers is not None:
        job.data = job.data.answered(np.array(stage.result.answers))
    target = opened[0] if opened else _open(job, config.uri or stage.result.uri)
    target.kind.settle(stage.result.output_kind)  # as its first answer told it
    return target, stage


def target_stage(job: Shelf) -> Stage[TargetResult]:
    """The stage of the target, whether it is done or not."""
    config, data = job.config.target, job.data
    own = [without_password(config.uri), config.form] if config.uri else [config.training, data.target_digest]
    return job.stage("target", TargetResult, own, data.heldout_digest, tracking_uri(job.config))


def _evaluated(job: Job, target: surrogates.Target, uri: str) -> TargetResult:
    """Query the held-out images once."""
    paid = job.ledger.attach(target, purpose="evaluation")
    data, answers = job.data, paid.query(job.data.heldout_images).labels
    labels = data.heldout_labels if data.labeled else answers
    accuracy = Share.of(int((answers == labels).sum()), len(answers))
    description = {
        "uri": without_password(uri),
        "identity": target.identity,
        "output_kind": target.output_kind,
        "preprocessing": target.preprocessing or "none",
        "deterministic": _deterministic(job),
    } | data.remarks
    # Without labels it is right by definition, which is no figure.
    named = metrics.with_interval(metrics.CLEAN_ACCURACY.format(subject="target"), accuracy)
    return TargetResult(
        uri=description["uri"],
        identity=target.identity,
        output_kind=target.output_kind,
        accuracy=accuracy,
        answers=None if data.labeled else tuple(answers.tolist()),
        params=description,
        metrics=named if data.labeled else {},
    )


def _open(job: Job, uri: str) -> surrogates.Target:
    """The target that is trained here."""
    target = surrogates.open_target(uri, input_shape=job.data.image_shape, **_trained_options(job))
    job.data = match_labels(job.data, None, target.num_classes, job.config.data.labels)
    return _ready(job, target)


def _ready(job: Job, target: surrogates.Target) -> surrogates.Target:
    """The target, once it may pay from the job's ledger."""
    check_ledger(Path(job.ledger.path), target.identity)
    job.legacy.target = target.identity
    return target


def _trained_options(job: Job) -> dict[str, Any]:
    """How a target that certdef trained is opened."""
    identity = trained_identity(job.config, job.data, job.device.type)
    if job.ledger.bill().identity == job.legacy.trained_target:
        identity = job.legacy.trained_target
    return {"identity": identity, "output_kind": job.config.target.output_kind or "probabilities"}


def trained_identity(config: RunConfig, data: Splits, device: str) -> str:
    """The name of a target that is trained here. Training is deterministic, so a ledger knows it wherever it was logged."""
    decides = (config.seed, device, config.target.training, data.target_digest)
    return f"{config.target.kind}:{fingerprint(*decides)}"


def ledger_file(config: RunConfig, data: Splits, legacy: Legacy) -> Path:
    """The ledger of a job: of several targets that are trained in one folder (--seed 1) each has a file of its own."""
    path = config.ledger_path
    if config.ledger.path or config.target.uri or not path.is_file():
        return path
    owner = read_statement(path).identity
    if owner is None:
        return path
    identity = trained_identity(config, data, legacy.device)
    if owner in (identity, legacy.trained_target):
        return path
    return path.with_stem(f"{path.stem}-{plain_name(identity)}")


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
