"""The votes of one condition: asked for, paid or free, recorded image by image, and the curve that they prove.

Every image is recorded as soon as it is done, and every paid vote is kept by the ledger as a receipt of what decides
it, so an interrupted or changed job goes on with the same counts and pays for no draw twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import certify
import surrogates
from certdef.config.job import CertifyConfig, ConfigError
from certdef.data.sets import digest
from certdef.stages.conditions import Condition, guided_budget, images_of
from certdef.stages.job import Certification, versions
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from certify.voting import Computed
from surrogates.distillation.inference import images_at_once

CHUNK = 256  # draws that share a seed
PAID_BATCH = (
    2 * CHUNK
)  # noisy images before a target at once: of eight images, so that the first are soon done


@dataclass(frozen=True)
class BaseClassifier:
    """What is smoothed: images (B, C, H, W) -> scores or labels; `n` draws an image; a guide saves paid ones."""

    base: Callable[[Tensor], Any]
    num_classes: int
    n: int
    guide: nn.Module | None = None


@dataclass(frozen=True)
class CertifiedCurve:
    """Certified accuracy of one condition at radius 0 and at the configured radii, with what it took."""

    subject: str
    law: str
    denoised: bool
    headline: bool
    noise: dict[str, Any]
    sound: bool
    n: int
    samples_per_image: float
    images: int
    accuracy_at_0: Share
    accuracy: tuple[Share, ...]
    abstained: float
    seconds_per_image: float

    @property
    def shares(self) -> tuple[Share, ...]:
        """From radius 0 on."""
        return (self.accuracy_at_0, *self.accuracy)


def paid_classifier(
    job: Certification,
    target: surrogates.Target,
    stage: Stage,
    condition: Condition,
    denoiser: nn.Module | None = None,
    denoiser_key: str = "none",
    kind: str = "certification",
) -> Callable[[Tensor], np.ndarray]:
    """The target as a base classifier. A receipt is kept for what decides the noisy pixels, whoever draws them.

    Those of another kind than certificates are apart: a certificate never has votes that chose its noise.
    """
    decides = (job.config.seed, job.device.type, condition.noise.describe(), denoiser_key)
    plain = not isinstance(denoiser, Computed)  # as every denoiser of version 0.1.0
    paid = job.ledger.attach(
        target,
        purpose="certification",
        experiment=f"{kind}/{fingerprint(*decides)}",
        formerly=job.legacy.experiment(stage.name, condition.key) if plain else [],
    )

    def answer(noisy: Tensor) -> np.ndarray:
        draws = noisy.cpu()
        if denoiser is not None:
            # A copy: what a denoiser writes into its input is not what was drawn.
            return paid.query(denoiser(noisy.clone()).cpu(), draws=draws).labels
        # Noise leaves [0, 1]; clipping it is up to the target.
        return paid.query(draws, bounded=False, draws=draws).labels

    size = images_at_once(job.data.image_shape, CHUNK)

    def classify(noisy: Tensor) -> np.ndarray:
        return np.concatenate([answer(part) for part in noisy.split(size)])

    return classify


def paid_batch(job: Certification) -> int:
    """Noisy images that a target gets at once; one chunk of one image where version 0.1 kept its receipts by such."""
    return CHUNK if job.ledger.store.former_sizes("certification") else PAID_BATCH


def certify_condition(
    job: Certification,
    condition: Condition,
    classifier: BaseClassifier,
    stage: Stage,
    arithmetic: dict[str, dict[str, Any]] | None = None,
) -> CertifiedCurve:
    """Certify the held-out images that are not recorded yet; returns the figures of all of them.

    With a guide every image is certified again: what the ledger kept costs nothing, and each calibrates the next.
    `arithmetic` is that of the classifier's parts, for the records; unset, plain float32.

    Raises:
        DriftError: The target has changed. Nothing stays recorded of it: what is good is in the ledger.
    """
    config, guided = job.config.certify, classifier.guide is not None
    log = record_condition(job, condition, classifier, stage, stage.path, arithmetic)
    labels = job.data.heldout_labels
    return _curve(condition, log, labels, classifier.n, 0 if guided else config.selection, config.radii)


def record_condition(
    job: Certification,
    condition: Condition,
    classifier: BaseClassifier,
    stage: Stage,
    folder: Path,
    arithmetic: dict[str, dict[str, Any]] | None = None,
) -> certify.RecordLog:
    """Record the images of a condition that are not recorded yet, of a shard its own; returns the log, closed.

    Args:
        job, condition, classifier, stage, arithmetic: As for certify_condition.
        folder: Whose `records` they are kept in.

    Raises:
        DriftError: As there.
    """
    stem = folder / "records" / condition.key
    private = job.config.target.is_private
    stem.parent.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    try:
        log = _record(job, condition, classifier, stage, stem, arithmetic or {})
        if condition.paid and job.ledger.canaries is not None:
            job.ledger.canaries.finish()  # they vouch for all of these votes
    except surrogates.DriftError:
        for records in stem.parent.glob("target-*"):
            records.unlink()
        raise
    return log


def _record(
    job: Certification,
    condition: Condition,
    classifier: BaseClassifier,
    stage: Stage,
    stem: Path,
    arithmetic: dict[str, dict[str, Any]],
) -> certify.RecordLog:
    """Record the images of a condition that are not recorded yet; returns the log, closed."""
    data, guided = job.data, classifier.guide is not None
    count = images_of(job.config, condition, len(data.heldout_images))
    wanted = job.shard.own(count) if job.shard else [*range(count)]
    header = _header(job, condition, classifier, stage) | ({"arithmetic": arithmetic} if arithmetic else {})
    with certify.RecordLog(stem, header) as log:
        if job.config.target.is_private:
            for path in (log.path, log.tsv_path):
                path.chmod(0o600)
        left = [index for index in wanted if index not in log.done]
        done = 0 if guided else len(wanted) - len(left)
        bar = job.progress(total=len(wanted), initial=done, desc=f"certify {condition.key}", unit="image")

        def record(index: int, certificate: certify.Certificate, seconds: float) -> None:
            image = digest(data.heldout_images[index])
            row = None if data.heldout_rows is None else int(data.heldout_rows[index])
            label = int(data.heldout_labels[index])
            log.append(index, label, certificate, seconds, image=image, row=row)

        def keep(index: int, certificate: certify.Certificate, seconds: float) -> None:
            record(index, certificate, seconds)
            bar.update()

        if left and guided:
            for index, certificate, seconds in _guided(job, condition, classifier, count, bar):
                if index in left:
                    record(index, certificate, seconds)
        elif left:
            _certify_smoothed(job, condition, classifier, left, keep)
        bar.close()
    return log


def _header(
    job: Certification, condition: Condition, classifier: BaseClassifier, stage: Stage
) -> dict[str, Any]:
    """What the records say of how they were drawn."""
    config = job.config.certify
    known = {"known_class": True} if config.known_class else {}
    bound = {"bound": config.bound} if config.bound != CertifyConfig.bound else {}
    return {
        "subject": condition.subject,
        "denoiser": condition.purifier or "none",
        "noise": condition.noise.describe(),
        "n0": config.selection,
        "n": classifier.n,
        "alpha": config.alpha,
        "method": "guided" if classifier.guide else config.method,
        **known,
        **bound,
        "seed": job.config.seed,
        "chunk_size": CHUNK,
        "stage": stage.fingerprint,
        "versions": versions(),
    } | job.data.remarks


def _guided(
    job: Certification,
    condition: Condition,
    classifier: BaseClassifier,
    count: int,
    bar: Any,
) -> Iterator[tuple[int, certify.Certificate, float]]:
    """Certify with the surrogate as guide: index, certificate, seconds an image."""
    config, guide = job.config.certify, classifier.guide
    assert guide is not None

    def update(index: int, certificate: certify.Certificate) -> None:
        bar.update()

    budget = next(iter(guided_budget(job.config)), None)
    started = time.perf_counter()
    certificates = certify.certify_guided(
        classifier.base,
        guide,
        torch.from_numpy(job.data.heldout_images[:count]),
        condition.noise,
        classifier.num_classes,
        radii=config.radii,
        n=classifier.n,
        alpha=config.alpha,
        budget=budget,
        seed=job.config.seed,
        device=job.device,
        on_certificate=update,
    )
    seconds = (time.perf_counter() - started) / count
    for index, certificate in enumerate(certificates):
        yield index, certificate, seconds


def _certify_smoothed(
    job: Certification,
    condition: Condition,
    classifier: BaseClassifier,
    left: list[int],
    keep: Callable[[int, certify.Certificate, float], None],
) -> None:
    """Certify the images that are left, each kept as soon as it is done."""
    config = job.config.certify
    smoothed = certify.SmoothedClassifier(
        classifier.base,
        condition.noise,
        classifier.num_classes,
        subject=condition.subject,
        device=job.device,
        seed=job.config.seed,
        batch_size=images_at_once(
            job.data.image_shape, paid_batch(job) if condition.paid else config.batch_size
        ),
        chunk_size=CHUNK,
    )
    images = torch.from_numpy(job.data.heldout_images[left])
    options: dict[str, Any] = {
        "n0": config.n0,
        "n": classifier.n,
        "alpha": config.alpha,
        "method": config.method,
        "bound": config.bound,
        "known_class": job.data.heldout_labels[left] if config.known_class else None,
    }
    if "sequential" in config.method:  # a guide, which stops too, is the target's alone
        options["radii"] = (0.0, *config.radii)  # the tables begin at radius 0
    if config.backend and not condition.paid:  # the ledger pays in this process
        cluster: dict[str, Any] = {
            "backend": config.backend,
            "workers": config.workers,
            "scheduler": config.scheduler,
        }
        certify.certify_parallel(smoothed, images, indices=left, on_certificate=keep, **cluster, **options)
    else:
        smoothed.certify(images, indices=left, on_certificate=keep, **options)


def _curve(
    condition: Condition,
    log: certify.RecordLog,
    labels: np.ndarray,
    n: int,
    selection: int,
    radii: tuple[float, ...],
) -> CertifiedCurve:
    """What the records of a condition say; ConfigError unless they are of images with these labels (N,)."""
    records = certify.read_records(log.path)
    if records.idx.max(initial=0) >= len(labels) or np.any(labels[records.idx] != records.label):
        raise ConfigError(
            f"{str(log.path)!r} has images that are not this job's: put it back, or delete it; paid votes are in the ledger"
        )
    assert records.counts is not None  # a .jsonl keeps them
    at = certify.curves.certified_accuracy(records, [0.0, *radii])
    columns = (column.tolist() for column in (at.accuracy, at.lower, at.upper))
    shares = [Share(*row) for row in zip(*columns, strict=True)]
    return CertifiedCurve(
        subject=condition.subject,
        law=condition.law,
        denoised=condition.denoised,
        headline=condition.headline,
        noise=condition.noise.describe(),
        sound=records.sound,
        n=n,
        samples_per_image=float(selection + np.mean(np.sum(records.counts, axis=1))),
        images=len(records),
        accuracy_at_0=shares[0],
        accuracy=tuple(shares[1:]),
        abstained=float(np.mean(records.predict == certify.ABSTAIN)),
        seconds_per_image=float(np.mean(certify.read_records(log.tsv_path).seconds)),
    )
