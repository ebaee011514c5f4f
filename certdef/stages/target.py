"""The deployed black box: a user's own by URI, or one that its own split trains, logged in MLflow and loaded back."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import surrogates
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.objects import OBJECT, is_object, object_named
from certdef.config.purifiers import plain_name
from certdef.data.sets import Splits
from certdef.models import serving, storage
from certdef.models.classifiers import build_classifier, train_classifier, train_svc
from certdef.stages.job import Job
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import tracking_uri
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage
from surrogates.ledger.reader import read_statement

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
        target = _opened(job, uri)
    except surrogates.ClassesUnknown as error:
        raise ConfigError(
            f"target {without_password(uri)!r} does not tell its number of classes: give --target.num_classes"
        ) from error
    if target.num_classes < classes:
        raise ConfigError(
            f"target {without_password(uri)!r} answers {target.num_classes} classes, but the labels of {job.data.name} go up to "
            f"{classes - 1}: give the data that it was trained for"
        )
    _check_ledger(job, target)
    job.legacy.target = target.identity
    if config.uri and target.charged_when_sent and config.canary_every:
        job.ledger.canaries = surrogates.Canaries(
            job.data.heldout_images[:CANARIES], every=config.canary_every
        )
    return target


def _opened(job: Job, uri: str) -> surrogates.Target:
    """What an address names, or the object that stands under this name."""
    if not is_object(uri):
        return surrogates.open_target(uri, input_shape=job.data.image_shape, **_options(job))
    thing = object_named(uri, "target")
    if isinstance(thing, surrogates.Target):
        thing.check_shape(job.data.image_shape)
        return surrogates.open_target(thing, **job.config.target.form)
    options: dict[str, Any] = {"identity": uri.removeprefix(OBJECT), "input_shape": job.data.image_shape}
    return surrogates.open_target(thing, **options, **job.config.target.form, **job.config.target.transport)


def _check_ledger(job: Job, target: surrogates.Target) -> None:
    """Refuse the ledger of another target, before any query: a new target is new budgets, which the user grants."""
    owner, path = job.ledger.bill().identity, Path(job.ledger.path)
    if owner in (None, target.identity):
        return
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    free = next(name for name in names if not name.exists())
    raise ConfigError(
        f"ledger {str(path)!r} belongs to another target, {owner!r}, and this one is {target.identity!r}: give it a ledger "
        f"with budgets of its own, --ledger.path {free}"
    )


def _options(job: Job) -> dict[str, Any]:
    """How the target is opened: as configured, or as certdef trained it."""
    config = job.config.target
    if config.uri:
        return config.form | config.transport
    identity = trained_identity(job.config, job.data, job.device.type)
    if job.ledger.bill().identity == job.legacy.trained_target:
        identity = job.legacy.trained_target
    return {"identity": identity, "output_kind": config.output_kind or "probabilities"}


def trained_identity(config: RunConfig, data: Splits, device: str) -> str:
    """The name of a target that is trained here. Training is deterministic, so a ledger knows it wherever it was logged."""
    decides = (config.seed, device, config.target.training, data.target_digest)
    return f"{config.target.kind}:{fingerprint(*decides)}"


def ledger_file(config: RunConfig, data: Splits, legacy: Legacy) -> Path:
    """The ledger of a job: of several targets that are trained in one folder (--seed 1) each has a file of its own."""
    path = config.ledger_path
    if config.ledger.path or config.target.uri or not path.is_file():
        return path
    identity = trained_identity(config, data, legacy.device)
    if read_statement(path).identity in (None, identity, legacy.trained_target):
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
