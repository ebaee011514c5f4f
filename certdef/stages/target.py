"""The deployed black box: yours by URI, or one that its own split trains, logged in MLflow and loaded back."""

from __future__ import annotations

import math
from functools import partial

import surrogates
from certdef.config.job import ConfigError, without_password
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier, train_svc
from certdef.stages.job import Job, interval
from certdef.tracking.mlflow import tracking_uri
from certdef.tracking.workspace import Stage, fingerprint

CANARIES = 4


def open_black_box(job: Job) -> tuple[surrogates.Target, Stage]:
    """Open the target. From here on it is reached through the ledger alone."""
    config, data = job.config.target, job.data
    depends_on = config.training if config.uri is None else [config.uri, config.form]
    stage = job.stage("target", depends_on, tracking_uri(job.config))
    with job.tracker.stage(stage):
        uri = config.uri or (stage.result["uri"] if stage.done else None)
        if uri and not config.uri and not _loads(uri):
            stage.clear()  # the tracking store that it was logged to is gone
            uri = None
        uri = uri or _train_and_log(job, stage)
        target = _open(job, uri)
        if config.uri and target.charged_when_sent and config.canary_every:
            job.ledger.canaries = surrogates.Canaries(
                data.heldout_images[:CANARIES], every=config.canary_every
            )
        if not stage.done:
            asked = job.ledger.attach(target, purpose="evaluation")
            right = int((asked.query(data.heldout_images).labels == data.heldout_labels).sum())
            accuracy = interval(right, len(data.heldout_labels))
            about = {
                "uri": without_password(uri),
                "identity": target.identity,
                "output_kind": target.output_kind,
                "preprocessing": target.preprocessing or "none",
                "deterministic": _deterministic(job),
            }
            stage.finish({
                "uri": about["uri"],
                "identity": target.identity,
                "output_kind": target.output_kind,
                "accuracy": accuracy,
                "params": about,
                "metrics": {
                    "target/clean_accuracy": accuracy[0],
                    "target/clean_accuracy_lower": accuracy[1],
                    "target/clean_accuracy_upper": accuracy[2],
                },
            })  # fmt: skip
    return target, stage


def _open(job: Job, uri: str) -> surrogates.Target:
    """Open what the URI names; refuse, before it is asked, a target that lacks some of the data's classes."""
    config, classes = job.config.target, len(job.data.classes)
    given = config.uri is not None
    try:
        target = surrogates.open_target(
            uri,
            # Training is deterministic, so this name is too: a ledger knows the target wherever it was logged.
            identity=None if given else f"{config.kind}:{fingerprint(*job.base, config.training)}",
            input_shape=job.data.image_shape,
            **(
                config.form | config.transport
                if given
                else {"output_kind": config.output_kind or "probabilities"}
            ),
        )
    except surrogates.TargetError as error:
        if given and "num_classes" in str(error):
            raise ConfigError(
                f"target {without_password(uri)!r} does not tell its number of classes: give --target.num_classes"
            ) from error
        raise
    if target.num_classes < classes:
        raise ConfigError(
            f"target {without_password(uri)!r} answers {target.num_classes} classes, but the labels of {job.data.name} go up to "
            f"{classes - 1}: give the data that it was made for"
        )
    return target


def _deterministic(job: Job) -> str:
    """What the canaries say; nobody asks a model in this process twice."""
    asked = None if job.ledger.canaries is None else job.ledger.canaries.deterministic
    return {True: "yes", False: "no", None: "not asked"}[asked]


def _loads(uri: str) -> bool:
    """Whether a target that an earlier run logged is still there."""
    try:
        surrogates.open_target(uri)
    except surrogates.TargetError:
        return False
    return True


def _train_and_log(job: Job, stage: Stage) -> str:
    data, num_classes = job.data, len(job.data.classes)
    if job.config.target.kind == "svc":
        machine = train_svc(data.target_images, data.target_labels, job.config.seed)
        return serving.log_estimator(machine, "target", math.prod(data.image_shape), num_classes)
    kind = job.config.target.kind
    model = job.seeded(lambda: build_classifier(kind, data.image_shape, num_classes))
    train_classifier(
        model,
        data.target_images,
        data.target_labels,
        epochs=job.config.target.epochs,
        augment=job.config.target.augment,
        seed=job.config.seed,
        device=job.device,
        progress=partial(job.progress, desc="train target"),
    )
    storage.save_classifier(
        stage.path / "model",
        model,
        answers=job.config.target.output_kind or "probabilities",
    )
    return serving.log_served(stage.path / "model", "target", data.heldout_images[:2])
