"""The stages of a job. Each reads its stage folder if it is done, else does the work and leaves it there.

A stage's `result.json` holds plain values: params, metrics, series and artifacts for MLflow, and the figures that the
report shows. The order, and what depends on what, is in `pipeline.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

import certify
import surrogates
from certdef import attacks, serving, storage
from certdef.config import ConfigError, RunConfig
from certdef.data import Splits
from certdef.models import build_classifier, train_classifier, train_svc
from certdef.noise_laws import noise_law
from certdef.purifiers.nim import NIM, DeCubed, NIMShape, pretrain_nim
from certdef.tracking import Tracker, tracking_uri
from certdef.workspace import Stage, fingerprint


@dataclass
class Job:
    """What every stage is given."""

    config: RunConfig
    data: Splits
    device: torch.device
    tracker: Tracker
    ledger: surrogates.QueryLedger
    progress: Callable  # tqdm, or a silent stand-in

    @property
    def base(self) -> list[Any]:
        """What every stage depends on."""
        return [asdict(self.config.data), self.config.seed, self.device.type]

    def stage(self, name: str, *depends_on: Any) -> Stage:
        return Stage(self.config.workspace, name, *self.base, *depends_on)


# --- the black box ---------------------------------------------------------------------------------------------------


def open_black_box(job: Job) -> tuple[surrogates.Target, Stage]:
    """The deployed classifier: yours by URI, or one trained on its own split, logged in MLflow and loaded back."""
    config, data = job.config.target, job.data
    stage = job.stage("target", asdict(config), tracking_uri(job.config))
    num_classes = config.num_classes or len(data.classes)
    # Training is deterministic, so the name does too: a ledger recognises the same target wherever it was logged.
    identity = None if config.uri else f"{config.kind}:{fingerprint(*job.base, asdict(config))}"
    with job.tracker.stage(stage):
        uri = config.uri or (stage.result["uri"] if stage.done else None)
        if uri and not config.uri and not _loads(uri):
            stage.clear()  # the tracking store it was logged to is gone
            uri = None
        uri = uri or (_log_svc(job) if config.kind == "svc" else _log_cnn(job, stage, num_classes))
        target = surrogates.open_target(
            uri,
            num_classes=num_classes,
            identity=identity,
            output_kind=None if config.uri else "probabilities",
            input_shape=data.image_shape,
        )
        if not stage.done:
            asked = job.ledger.attach(target, purpose="evaluation")
            right = int((asked.query(data.heldout_images).labels == data.heldout_labels).sum())
            accuracy = interval(right, len(data.heldout_labels))
            stage.finish({
                "uri": uri, "identity": target.identity, "output_kind": target.output_kind, "accuracy": accuracy,
                "params": {"uri": uri, "kind": config.kind if not config.uri else "given", "identity": target.identity},
                "metrics": {"target/clean_accuracy": accuracy[0]},
            })  # fmt: skip
    return target, stage


def _loads(uri: str) -> bool:
    try:
        surrogates.open_target(uri, num_classes=2)
    except surrogates.TargetError:
        return False
    return True


def _log_svc(job: Job) -> str:
    machine = train_svc(job.data.target_images, job.data.target_labels, job.config.seed)
    return serving.log_estimator(machine, "target", math.prod(job.data.image_shape), len(job.data.classes))


def _log_cnn(job: Job, stage: Stage, num_classes: int) -> str:
    model = seeded(job, lambda: build_classifier("cnn", job.data.image_shape, num_classes))
    train_classifier(
        model, job.data.target_images, job.data.target_labels, epochs=job.config.target.epochs, seed=job.config.seed,
        device=job.device, progress=job.progress,
    )  # fmt: skip
    storage.save_classifier(stage.path / "model", model, "cnn", job.data.image_shape, num_classes)
    return serving.log_served(stage.path / "model", "target", job.data.heldout_images[:2])


# --- the surrogate ---------------------------------------------------------------------------------------------------


def distil(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage]:
    """Distil the stand-in from the target's answers alone, and measure how often the two agree."""
    config, data = job.config.surrogate, job.data
    stage = job.stage(
        "surrogate",
        asdict(config),
        job.config.ledger.training,
        target.identity,
        asdict(job.config.certify.laws[0]),
    )
    with job.tracker.stage(stage):
        if not stage.done:
            model = seeded(
                job, lambda: build_classifier(config.model, data.image_shape, target.num_classes)
            ).to(job.device)
            noise = (
                certify.GaussianScaleMixture(scipy.stats.uniform(0, config.noise_255 / 255))
                if config.noise_255
                else None
            )
            surrogate = surrogates.distill(
                job.ledger.attach(target), data.pool, model, budget=job.config.ledger.training, query_batch=config.query_batch,
                epochs=config.epochs, batch_size=config.batch_size, learning_rate=config.learning_rate,
                weight_decay=config.weight_decay, shift=config.shift, noise=noise, seed=job.config.seed, device=job.device,
                checkpoint=stage.path / "checkpoint.pt", progress=job.progress,
            )  # fmt: skip
            storage.save_classifier(
                stage.path / "model", model, config.model, data.image_shape, target.num_classes
            )
            asked = job.ledger.attach(target, purpose="evaluation")
            clean = surrogates.fidelity(surrogate, asked, data.heldout_images)
            noisy = surrogates.fidelity(
                surrogate,
                asked,
                data.heldout_images,
                noise_law(job.config.certify.laws[0]),
                seed=job.config.seed,
            )
            uri = serving.log_served(stage.path / "model", "surrogate", data.heldout_images[:2])
            stage.finish({
                "uri": uri, "queries": surrogate.queries, "loss": surrogate.loss,
                "agreement_clean": [clean.agreement, clean.lower, clean.upper],
                "agreement_noisy": [noisy.agreement, noisy.lower, noisy.upper],
                "params": asdict(config) | {"loss": surrogate.loss},
                "metrics": {
                    "surrogate/agreement_clean": clean.agreement, "surrogate/agreement_clean_lower": clean.lower,
                    "surrogate/agreement_clean_upper": clean.upper, "surrogate/agreement_noisy": noisy.agreement,
                    "surrogate/agreement_noisy_lower": noisy.lower, "surrogate/agreement_noisy_upper": noisy.upper,
                    "surrogate/queries": surrogate.queries,
                },
                "series": {"surrogate/loss": list(surrogate.history)},
            })  # fmt: skip
    return storage.load_model(stage.path / "model", job.device), stage


# --- the denoiser ----------------------------------------------------------------------------------------------------


def pretrain_denoiser(job: Job) -> tuple[NIM, Stage]:
    """Pre-train the denoiser of De^3 on the unlabelled pool. It costs no query and sees no label."""
    config, data = job.config.nim, job.data
    stage = job.stage("nim", asdict(config))
    with job.tracker.stage(stage):
        if not stage.done:
            shape = NIMShape(
                data.image_shape,
                **{
                    name: getattr(config, name)
                    for name in NIMShape.__dataclass_fields__
                    if name != "image_shape"
                },
            )
            try:
                model = seeded(job, lambda: NIM(shape))
            except ValueError as error:
                raise ConfigError(f"nim: {error}") from error
            history = pretrain_nim(
                model, torch.from_numpy(data.pool), noise_law(config.sigma), epochs=config.epochs, batch_size=config.batch_size,
                base_learning_rate=config.base_learning_rate, warmup=config.warmup, seed=job.config.seed, device=job.device,
                checkpoint=stage.path / "checkpoint.pt", progress=job.progress,
            )  # fmt: skip
            storage.save_nim(stage.path / "model", model)
            uri = serving.log_served(stage.path / "model", "nim", data.heldout_images[:2])
            stage.finish({
                "uri": uri, "params": asdict(config), "metrics": {"nim/loss_last": history[-1]}, "series": {"nim/loss": history},
                "parameters": sum(weight.numel() for weight in model.parameters()),
            })  # fmt: skip
    return storage.load_model(stage.path / "model", job.device), stage


# --- certificates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One smoothed classifier: a subject under a noise law, with or without De^3."""

    subject: str  # target or surrogate
    law: str
    denoised: bool
    noise: certify.NoiseLaw

    @property
    def key(self) -> str:
        return f"{self.subject}-{self.law}-{'de3' if self.denoised else 'none'}"


def conditions(config: RunConfig) -> list[Condition]:
    """Both subjects under every law with and without De^3; beside them a Gaussian of the first law's mean sigma."""
    laws = [(law.label, noise_law(law)) for law in config.certify.laws]
    gaussian = certify.Gaussian(laws[0][1].mean_sigma)
    found = []
    for subject in ("target", "surrogate"):
        found += [
            Condition(subject, label, denoised, noise) for label, noise in laws for denoised in (True, False)
        ]
        found.append(Condition(subject, "gaussian", True, gaussian))
    return found


def target_draws(config: RunConfig) -> int:
    """How many draws an image the certification budget allows the target, at most those of the surrogate.

    Raises:
        ConfigError: The budget is too small to certify anything; says which one would do.
    """
    paid = sum(condition.subject == "target" for condition in conditions(config))
    images = config.certify.target_images * paid
    n = min(config.certify.n, config.ledger.certification // images - config.certify.n0)
    least = certify.bounds.smallest_n(0.5, config.certify.alpha)
    if n < least:
        raise ConfigError(
            f"ledger.certification is {config.ledger.certification}: {paid} smoothed targets x {config.certify.target_images} images need "
            f"n0 + {least} draws each, so at least {images * (config.certify.n0 + least)}; raise it or lower certify.target_images"
        )
    return n


def certify_subjects(
    job: Job, target: surrogates.Target, surrogate: nn.Module, denoiser: NIM, depends_on: list[Stage]
) -> Stage:
    """Certify the target by paid queries and the surrogate for free, image by image, never losing a count."""
    config, data = job.config.certify, job.data
    draws = target_draws(job.config)
    stage = job.stage("certify", asdict(config), draws, *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            curves: dict[str, Any] = {}
            metrics: dict[str, float] = {}
            for condition in conditions(job.config):
                n = draws if condition.subject == "target" else config.n
                base = (
                    _paid(job, target, stage, condition, denoiser)
                    if condition.subject == "target"
                    else _free(surrogate, denoiser, condition)
                )
                curves[condition.key] = curve = _certify_condition(job, condition, base, stage, n)
                headline = condition.law == config.laws[0].label and condition.denoised
                prefix = condition.subject if headline else condition.key.replace("-", "/")
                metrics |= {
                    f"{prefix}/certified_accuracy_at_{r:g}": a[0]
                    for r, a in zip(config.radii, curve["accuracy"], strict=True)
                }
                if headline:
                    metrics[f"{condition.subject}/certified_accuracy_at_0"] = curve["accuracy_at_0"][0]
                    if condition.subject == "surrogate":
                        metrics["certify/samples_per_image"] = config.n0 + config.n
                        metrics["certify/seconds_per_image"] = curve["seconds_per_image"]
            _draw_curves(job, stage)
            stage.finish({
                "draws_target": draws, "draws_surrogate": config.n, "curves": curves, "radii": list(config.radii),
                "params": asdict(config) | {"n_target": draws}, "metrics": metrics, "artifacts": ["*.png", "records/*"],
            })  # fmt: skip
    return stage


def _free(surrogate: nn.Module, denoiser: NIM, condition: Condition) -> nn.Module:
    return nn.Sequential(denoiser, surrogate) if condition.denoised else surrogate


def _paid(
    job: Job, target: surrogates.Target, stage: Stage, condition: Condition, denoiser: NIM
) -> Callable[[Tensor], np.ndarray]:
    asked = job.ledger.attach(
        target, purpose="certification", experiment=f"{stage.fingerprint}/{condition.key}"
    )

    def classify(noisy: Tensor) -> np.ndarray:
        if condition.denoised:
            return asked.query(denoiser(noisy).cpu()).labels
        return asked.query(
            noisy.cpu(), bounded=False
        ).labels  # noise leaves [0, 1]; clipping it is the target's business

    return classify


def _certify_condition(job: Job, condition: Condition, base: Any, stage: Stage, n: int) -> dict[str, Any]:
    config, data = job.config.certify, job.data
    count = min(
        config.images if condition.subject == "surrogate" else config.target_images, len(data.heldout_images)
    )
    smoothed = certify.SmoothedClassifier(
        base, condition.noise, len(data.classes), subject=condition.subject, device=job.device, seed=job.config.seed,
        batch_size=256 if condition.subject == "target" else config.batch_size,
    )  # fmt: skip
    header = {
        "subject": condition.subject, "denoiser": "de3" if condition.denoised else "none", "noise": condition.noise.describe(),
        "n0": config.n0, "n": n, "alpha": config.alpha, "seed": job.config.seed, "stage": stage.fingerprint, "versions": versions(),
    }  # fmt: skip
    (stage.path / "records").mkdir(exist_ok=True)
    with certify.RecordLog(stage.path / "records" / condition.key, header) as log:
        left = [index for index in range(count) if index not in log.done]
        bar = job.progress(
            total=count, initial=count - len(left), desc=f"certify {condition.key}", unit="image"
        )

        def keep(index: int, certificate: certify.Certificate, seconds: float) -> None:
            log.append(index, int(data.heldout_labels[index]), certificate, seconds)
            bar.update()

        if left:
            smoothed.certify(
                torch.from_numpy(data.heldout_images[left]),
                n0=config.n0,
                n=n,
                alpha=config.alpha,
                indices=left,
                on_certificate=keep,
            )
        bar.close()
    records = certify.read_records(stage.path / "records" / f"{condition.key}.jsonl")
    at = certify.curves.certified_accuracy(records, [0.0, *config.radii])
    rows = [
        [float(a), float(low), float(high)]
        for a, low, high in zip(at.accuracy, at.lower, at.upper, strict=True)
    ]
    timed = certify.read_records(stage.path / "records" / f"{condition.key}.tsv")
    return {
        "subject": condition.subject, "law": condition.law, "denoised": condition.denoised, "noise": condition.noise.describe(),
        "sound": condition.noise.sound, "n": n, "images": count, "accuracy_at_0": rows[0], "accuracy": rows[1:],
        "abstained": float(np.mean(np.asarray(records.predict) == certify.ABSTAIN)),
        "seconds_per_image": float(np.mean(timed.seconds)),
    }  # fmt: skip


def curve(records: certify.records.Records) -> certify.curves.Curve:
    """The certified-accuracy curve over every radius that the records prove."""
    furthest = max(0.25, 1.1 * float(records.radius.max()))
    return certify.curves.certified_accuracy(records, np.linspace(0, furthest, 400))


def _draw_curves(job: Job, stage: Stage) -> None:
    """The headline of both subjects, and every condition of each subject."""
    found = {
        c: curve(certify.read_records(stage.path / "records" / f"{c.key}.jsonl"))
        for c in conditions(job.config)
    }
    first = job.config.certify.laws[0].label
    headline = {c.subject: line for c, line in found.items() if c.law == first and c.denoised}
    certify.curves.plot(
        headline, stage.path / "certified_accuracy.png", title=f"{job.data.name} behind De^3, {first} noise"
    )
    for subject in ("target", "surrogate"):
        named = {
            f"{c.law} noise, {'De^3' if c.denoised else 'no denoiser'}": line
            for c, line in found.items()
            if c.subject == subject
        }
        certify.curves.plot(
            named, stage.path / f"certified_accuracy_{subject}.png", title=f"{job.data.name}: {subject}"
        )


# --- the attack ------------------------------------------------------------------------------------------------------


def attack(
    job: Job, target: surrogates.Target, surrogate: nn.Module, denoiser: NIM, depends_on: list[Stage]
) -> Stage:
    """PGD on the surrogate, transferred to the target, each with and without De^3 in front."""
    config, data = job.config.attack, job.data
    stage = job.stage("attack", asdict(config), *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            count = min(config.images, len(data.heldout_images))
            need = count * (2 * len(config.eps) + 1)
            if need > job.config.ledger.attack:
                raise ConfigError(
                    f"ledger.attack is {job.config.ledger.attack}: {count} images at {len(config.eps)} eps need {need}; raise it or lower attack.images"
                )
            images, labels = (
                torch.from_numpy(data.heldout_images[:count]),
                torch.from_numpy(data.heldout_labels[:count]),
            )
            generator = torch.Generator(job.device).manual_seed(job.config.seed)
            purifier = DeCubed(denoiser, config.sigma_255 / 255, generator).to(job.device)
            asked = job.ledger.attach(target, purpose="attack", experiment=stage.fingerprint)
            known = job.ledger.attach(target, purpose="evaluation")
            rows = []
            for eps in (0.0, *config.eps):
                shown = (
                    images
                    if eps == 0
                    else attacks.pgd(
                        surrogate,
                        images,
                        labels,
                        eps=eps,
                        steps=config.steps,
                        seed=job.config.seed,
                        progress=job.progress,
                    )
                )
                with torch.inference_mode():
                    purified = purifier(shown.to(job.device))
                    guesses = {
                        "surrogate": surrogate(shown.to(job.device)).argmax(1).cpu().numpy(),
                        "surrogate_de3": surrogate(purified).argmax(1).cpu().numpy(),
                        "target": (known if eps == 0 else asked).query(shown).labels,
                        "target_de3": asked.query(purified.cpu()).labels,
                    }
                rows.append(
                    {"eps": eps}
                    | {
                        name: interval(int((guess == labels.numpy()).sum()), count)
                        for name, guess in guesses.items()
                    }
                )
            metrics = {
                f"attack/{_rung(name)}_eps_{row['eps']:g}/accuracy": row[name][0]
                for row in rows
                for name in row
                if name != "eps"
            }
            stage.finish({"rows": rows, "images": count, "params": asdict(config), "metrics": metrics})
    return stage


def _rung(name: str) -> str:
    return {
        "surrogate": "white_box_pgd_surrogate",
        "surrogate_de3": "blind_pgd_surrogate_de3",
        "target": "transfer_pgd",
        "target_de3": "transfer_pgd_de3",
    }[name]


# --- the model that is served -----------------------------------------------------------------------------------------


def register(job: Job, surrogate: nn.Module, denoiser: NIM, depends_on: list[Stage]) -> Stage:
    """Register the certified classifier: the smoothed surrogate behind De^3, as a pyfunc model."""
    config, data = job.config.certify, job.data
    stage = job.stage(
        "served", asdict(config), job.config.registered_model, *(other.fingerprint for other in depends_on)
    )
    with job.tracker.stage(stage):
        if not stage.done:
            storage.save_certified(stage.path / "model", surrogate, denoiser, {
                "model": job.config.surrogate.model, "nim": vars(denoiser.shape) | {"image_shape": list(data.image_shape)},
                "image_shape": list(data.image_shape), "num_classes": len(data.classes), "classes": list(data.classes),
                "law": asdict(config.laws[0]),
                "defaults": {"n0": config.n0, "n": config.n, "alpha": config.alpha, "seed": job.config.seed},
            })  # fmt: skip
            uri = serving.log_served(
                stage.path / "model", "certified", data.heldout_images[:2], job.config.registered_model
            )
            stage.finish(
                {
                    "uri": uri,
                    "registered_model": job.config.registered_model,
                    "params": {"registered_model": job.config.registered_model},
                }
            )
    return stage


# --- shared ----------------------------------------------------------------------------------------------------------


def interval(right: int, count: int) -> list[float]:
    """Share and its 95% Clopper-Pearson interval: [share, lower, upper]."""
    low, high = certify.binomial_interval(right, count)
    return [right / count, float(low), float(high)]


def seeded(job: Job, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with weights that depend on the job's seed alone; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(job.config.seed)
        return build()


def forget(workspace: Path) -> None:
    """Remove what the stages made; the ledger and every paid answer stay."""
    for result in workspace.glob("*-*/result.json"):
        shutil.rmtree(result.parent)
    shutil.rmtree(workspace / "jobs", ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions that a record depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("certdef", "torch", "numpy", "scipy")}
