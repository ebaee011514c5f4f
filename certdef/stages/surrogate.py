"""The white-box stand-in, distilled from the target's answers alone."""

from __future__ import annotations

from dataclasses import asdict

import scipy.stats
from torch import nn

import certify
import surrogates
from certdef import serving, storage
from certdef.models import build_classifier
from certdef.noise_laws import noise_law
from certdef.stages.job import Job
from certdef.workspace import Stage


def distil(job: Job, target: surrogates.Target) -> tuple[nn.Module, Stage]:
    """Pay for answers within the training budget, train on them, and measure how often the two agree."""
    config, data = job.config.surrogate, job.data
    law = job.config.certify.laws[0]
    stage = job.stage("surrogate", asdict(config), job.config.ledger.training, target.identity, asdict(law))
    with job.tracker.stage(stage):
        if not stage.done:
            model = job.seeded(lambda: build_classifier(config.model, data.image_shape, target.num_classes))
            surrogate = surrogates.distill(
                job.ledger.attach(target),
                data.pool,
                model,
                budget=job.config.ledger.training,
                query_batch=config.query_batch,
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                shift=config.shift,
                noise=_augmentation(config.noise_255 / 255),
                seed=job.config.seed,
                device=job.device,
                checkpoint=stage.path / "checkpoint.pt",
                progress=job.progress,
            )
            storage.save_classifier(
                stage.path / "model", model, config.model, data.image_shape, target.num_classes
            )
            asked = job.ledger.attach(target, purpose="evaluation")
            agreement = {
                "clean": surrogates.fidelity(surrogate, asked, data.heldout_images),
                "noisy": surrogates.fidelity(
                    surrogate, asked, data.heldout_images, noise_law(law), seed=job.config.seed
                ),
            }
            uri = serving.log_served(stage.path / "model", "surrogate", data.heldout_images[:2])
            metrics = {"surrogate/queries": surrogate.queries}
            for name, found in agreement.items():
                metrics |= {
                    f"surrogate/agreement_{name}": found.agreement,
                    f"surrogate/agreement_{name}_lower": found.lower,
                    f"surrogate/agreement_{name}_upper": found.upper,
                }
            stage.finish({
                "uri": uri,
                "queries": surrogate.queries,
                "loss": surrogate.loss,
                "agreement_clean": _triple(agreement["clean"]),
                "agreement_noisy": _triple(agreement["noisy"]),
                "params": asdict(config) | {"loss": surrogate.loss},
                "metrics": metrics,
                "series": {"surrogate/loss": list(surrogate.history)},
            })  # fmt: skip
    return storage.load_model(stage.path / "model", job.device), stage


def _augmentation(highest_sigma: float) -> certify.NoiseLaw | None:
    """Training images are shown under sigma ~ U(0, highest), as when a classifier is tuned behind De^3."""
    return certify.GaussianScaleMixture(scipy.stats.uniform(0, highest_sigma)) if highest_sigma else None


def _triple(found: surrogates.Fidelity) -> list[float]:
    return [found.agreement, found.lower, found.upper]
