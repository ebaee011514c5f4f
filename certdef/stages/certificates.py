"""Certificates for both subjects: the target by paid queries, the surrogate for free.

Every image is recorded as soon as it is done, and every paid batch is kept by the ledger as a receipt of this
experiment, so an interrupted job goes on with the same counts and pays for nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import certify
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.purifiers.catalogue import CATALOGUE, title
from certdef.stages.job import Job, versions
from certdef.stages.purifier import Purifier
from certdef.tracking.workspace import Stage

STOPPING = ("sequential", "group_sequential")  # methods that decide the configured radii and stop
CHUNK = 256  # draws that share a seed; a paid batch is one chunk of one image


@dataclass(frozen=True)
class Condition:
    """One smoothed classifier: a subject under a noise law, with or without a purifier between noise and classifier."""

    subject: str  # target or surrogate
    law: str
    purifier: str | None
    noise: certify.NoiseLaw
    headline: bool = False
    white_box: bool = False  # the target by its own weights, free of queries

    @property
    def denoised(self) -> bool:
        return self.purifier is not None

    @property
    def paid(self) -> bool:
        return self.subject == "target" and not self.white_box

    @property
    def key(self) -> str:
        subject = f"{self.subject}-white-box" if self.white_box else self.subject
        return f"{subject}-{self.law}-{self.purifier or 'none'}"

    @property
    def metric_prefix(self) -> str:
        return self.subject if self.headline else self.key.replace("-", "/")

    @property
    def title(self) -> str:
        return f"{self.law} noise, {title(self.purifier) if self.purifier else 'no denoiser'}"


def conditions(config: RunConfig) -> list[Condition]:
    """Both subjects under each law with and without the purifier, the headline first; beside them a Gaussian of the
    first law's mean sigma, with Cohen's radius. Of a purifier that is no denoiser, the rows without are left."""
    laws = [(law.label, noise_law(law)) for law in config.certify.laws]
    first = laws[0][0]
    gaussian = certify.Gaussian(laws[0][1].mean_sigma)
    name = config.purifier if CATALOGUE[config.purifier].denoiser else None
    found = []
    for subject in ("target", "surrogate"):
        for label, noise in laws:
            found.append(Condition(subject, label, name, noise, headline=label == first))
            if name:
                found.append(Condition(subject, label, None, noise))
        found.append(Condition(subject, "gaussian", name, gaussian))
    return found


def target_draws(config: RunConfig, paid: int | None = None) -> int:
    """Draws an image that the certification budget allows the target, at most those of the surrogate.

    `paid` is the number of smoothed targets, by default that of the main job.

    Raises:
        ConfigError: The budget is too small to certify anything; says which one would do.
    """
    if paid is None:
        paid = sum(condition.paid for condition in conditions(config))
    if config.certify.guide == "budget":  # the budget is the set's, not the image's
        return _within_reach(config, config.certify.n)
    images = config.certify.target_images * paid
    n = min(config.certify.n, config.ledger.certification // images - config.certify.n0)
    least = certify.bounds.smallest_n(0.5, config.certify.alpha)
    if n < least:
        raise ConfigError(
            f"ledger.certification is {config.ledger.certification}: {paid} smoothed targets x "
            f"{config.certify.target_images} images need {config.certify.n0} + {least} draws each, at least "
            f"{images * (config.certify.n0 + least)}; raise it or lower certify.target_images"
        )
    return _within_reach(config, n)


def _within_reach(config: RunConfig, n: int) -> int:
    """Refuse a guide where n votes could prove none of the radii."""
    if config.certify.guide != "off":
        for condition in conditions(config):
            certify.guided.reachable_radii(condition.noise, config.certify.radii, n, config.certify.alpha)
    return n


def certify_subjects(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    purifier: Purifier,
    depends_on: list[Stage],
) -> Stage:
    """Certify every condition, then draw the curves."""
    config = job.config.certify
    draws = target_draws(job.config)
    stage = job.stage("certify", config.settings, draws, *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            every = conditions(job.config)
            curves, metrics = {}, {}
            for condition in every:
                denoiser = purifier.denoiser(condition.law) if condition.denoised else None
                stand_in = nn.Sequential(denoiser, surrogate) if denoiser else surrogate
                if condition.paid:
                    base = paid_classifier(job, target, stage, condition, denoiser)
                else:
                    base = stand_in
                curves[condition.key] = found = certify_condition(
                    job, condition, base, target.num_classes, stage, draws if condition.paid else config.n,
                    guide=stand_in if condition.paid and config.guide != "off" else None,
                )  # fmt: skip
                metrics |= {
                    f"{condition.metric_prefix}/certified_accuracy_at_{radius:g}": share[0]
                    for radius, share in zip(
                        [0, *config.radii], [found["accuracy_at_0"], *found["accuracy"]], strict=True
                    )
                }
            headline = curves[
                next(each.key for each in every if each.headline and each.subject == "surrogate")
            ]
            metrics["certify/samples_per_image"] = headline["samples_per_image"]
            metrics["certify/seconds_per_image"] = headline["seconds_per_image"]
            _draw(job, stage, every)
            stage.finish({
                "draws_target": draws,
                "draws_surrogate": config.n,
                "curves": curves,
                "radii": list(config.radii),
                "params": config.settings | {"n_target": draws},
                "metrics": metrics,
                "artifacts": ["*.png", "records/*"],
            })  # fmt: skip
    return stage


def paid_classifier(
    job: Job, target: surrogates.Target, stage: Stage, condition: Condition, denoiser: nn.Module | None = None
) -> Callable[[Tensor], np.ndarray]:
    """The target as a base classifier, each batch charged as this experiment's."""
    experiment = f"{stage.fingerprint}/{condition.key}"
    asked = job.ledger.attach(target, purpose="certification", experiment=experiment)

    def classify(noisy: Tensor) -> np.ndarray:
        if denoiser is not None:
            return asked.query(denoiser(noisy).cpu()).labels
        # Noise leaves [0, 1]; clipping it is up to the target.
        return asked.query(noisy.cpu(), bounded=False).labels

    return classify


def certify_condition(
    job: Job,
    condition: Condition,
    base: Any,
    num_classes: int,
    stage: Stage,
    n: int,
    guide: nn.Module | None = None,
) -> dict[str, Any]:
    """Certify the held-out images that are not recorded yet; returns the figures of all of them.

    With a `guide` every image is certified again: what the ledger kept costs nothing, and each teaches the next.
    """
    config, data = job.config.certify, job.data
    paid = condition.paid
    count = min(config.target_images if paid else config.images, len(data.heldout_images))
    smoothed = certify.SmoothedClassifier(
        base,
        condition.noise,
        num_classes,
        subject=condition.subject,
        device=job.device,
        seed=job.config.seed,
        batch_size=CHUNK if paid else config.batch_size,
        chunk_size=CHUNK,
    )
    header = {
        "subject": condition.subject,
        "denoiser": condition.purifier or "none",
        "noise": condition.noise.describe(),
        "n0": config.n0,
        "n": n,
        "alpha": config.alpha,
        "method": "guided" if guide else config.method,
        "seed": job.config.seed,
        "chunk_size": CHUNK,
        "stage": stage.fingerprint,
        "versions": versions(),
    }
    stem = stage.path / "records" / condition.key
    stem.parent.mkdir(exist_ok=True)
    with certify.RecordLog(stem, header) as log:
        left = [index for index in range(count) if index not in log.done]
        bar = job.progress(
            total=count, initial=count - len(left), desc=f"certify {condition.key}", unit="image"
        )

        def keep(index: int, certificate: certify.Certificate, seconds: float) -> None:
            log.append(index, int(data.heldout_labels[index]), certificate, seconds)
            bar.update()

        if left and guide is not None:
            budget = job.config.ledger.certification // sum(each.paid for each in conditions(job.config))
            started = time.perf_counter()
            certificates = certify.certify_guided(
                base, guide, torch.from_numpy(data.heldout_images[:count]), condition.noise, num_classes,
                radii=config.radii, n=n, alpha=config.alpha, budget=budget if config.guide == "budget" else None,
                seed=job.config.seed, device=job.device, on_certificate=lambda *_: bar.update(),
            )  # fmt: skip
            seconds = (time.perf_counter() - started) / count
            for index in left:
                log.append(index, int(data.heldout_labels[index]), certificates[index], seconds)
        elif left:
            images = torch.from_numpy(data.heldout_images[left])
            options = {"n0": config.n0, "n": n, "alpha": config.alpha, "method": config.method}
            if config.method in STOPPING:
                options["radii"] = config.radii
            if config.backend and not paid:  # the ledger pays in this process
                options |= {
                    "backend": config.backend,
                    "workers": config.workers,
                    "scheduler": config.scheduler,
                }
                certify.certify_parallel(smoothed, images, indices=left, on_certificate=keep, **options)
            else:
                smoothed.certify(images, indices=left, on_certificate=keep, **options)
        bar.close()
    records = certify.read_records(stem.with_suffix(".jsonl"))
    at = certify.curves.certified_accuracy(records, [0.0, *config.radii])
    shares = np.stack([at.accuracy, at.lower, at.upper], axis=1).tolist()
    return {
        "subject": condition.subject,
        "law": condition.law,
        "denoised": condition.denoised,
        "headline": condition.headline,
        "noise": condition.noise.describe(),
        "sound": condition.noise.sound,
        "n": n,
        "samples_per_image": float((0 if guide else config.n0) + np.mean(np.sum(records.counts, axis=1))),
        "images": count,
        "accuracy_at_0": shares[0],
        "accuracy": shares[1:],
        "abstained": float(np.mean(records.predict == certify.ABSTAIN)),
        "seconds_per_image": float(np.mean(certify.read_records(stem.with_suffix(".tsv")).seconds)),
    }


def _draw(job: Job, stage: Stage, every: list[Condition]) -> None:
    """The headline of both subjects in one picture, and every condition of each subject in its own."""
    lines = {}
    for condition in every:
        records = certify.read_records(stage.path / "records" / f"{condition.key}.jsonl")
        furthest = max(0.25, 1.1 * float(records.radius.max()))
        lines[condition] = certify.curves.certified_accuracy(records, np.linspace(0, furthest, 400))
    headline = {each.subject: line for each, line in lines.items() if each.headline}
    front = next(each.purifier for each in every if each.headline)
    words = f"behind {title(front)}" if front else "without a denoiser"
    certify.curves.plot(
        headline,
        stage.path / "certified_accuracy.png",
        title=f"{job.data.name}: certified accuracy {words}",
    )
    for subject in ("target", "surrogate"):
        named = {each.title: line for each, line in lines.items() if each.subject == subject}
        path = stage.path / f"certified_accuracy_{subject}.png"
        certify.curves.plot(named, path, title=f"{job.data.name}: certified accuracy of the {subject}")
