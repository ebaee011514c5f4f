"""DUCD, third part: can it be told from the answers which images the target was trained on?

The same candidates are put to the target and to every surrogate. The attacker knows their true labels and has images
of the same kind to train reference models on; none of those is a candidate or was shown to any model under attack.
The target's answers are evaluation queries: clean images that need no fresh answer, so that those asked before are free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.data.sets import Splits
from certdef.models import storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.report import figures as pictures
from certdef.stages.ducd.surrogates import Student
from certdef.stages.job import Job
from certdef.tracking.workspace import Stage


@dataclass(frozen=True)
class Candidates:
    """Labelled images: of the target's training set, of no training set, of the population, and for references."""

    members: tuple[np.ndarray, np.ndarray]
    nonmembers: tuple[np.ndarray, np.ndarray]
    population: tuple[np.ndarray, np.ndarray]
    shadow: tuple[np.ndarray, np.ndarray]


def draw_candidates(config: RunConfig, data: Splits) -> Candidates:
    """Members at random from the target's training set, so that a query pool holds its share of them."""
    count, ducd = len(data.target_labels), config.ducd
    chosen = np.sort(np.random.default_rng(config.seed).permutation(count)[: ducd.candidates])
    parts = [
        tuple(np.split(each, np.cumsum([ducd.candidates, ducd.population])))
        for each in (data.audit_images, data.audit_labels)
    ]
    nonmembers, population, shadow = zip(*parts, strict=True)
    return Candidates(
        (data.target_images[chosen], data.target_labels[chosen]), nonmembers, population, shadow
    )


def check_audit(config: RunConfig, data: Splits) -> None:
    """Refuse a split or a budget that does not do for the audit, before anything is spent."""
    ducd, need = config.ducd, 2 * len(data.heldout_images)  # agreement, clean and under the noise
    if config.target.uri is None:
        if ducd.candidates > len(data.target_images):
            raise ConfigError(
                f"ducd.candidates is {ducd.candidates}, but the target has only {len(data.target_images)} training "
                "images: lower it"
            )
        least = ducd.candidates + ducd.population + len(data.classes)
        if config.data.audit_images < least:
            raise ConfigError(
                f"data.audit_images is {config.data.audit_images}: {ducd.candidates} non-members, a population of "
                f"{ducd.population} and images to train references on need at least {least}, better "
                f"{ducd.candidates + ducd.population + len(data.target_images)}"
            )
        need += 2 * ducd.candidates + ducd.population
    if need > config.ledger.evaluation:
        raise ConfigError(
            f"ledger.evaluation is {config.ledger.evaluation}: agreement and membership inference ask up to {need} "
            "images; raise it or lower ducd.candidates or data.heldout_images"
        )


def train_references(job: Job) -> tuple[list[nn.Module], Stage]:
    """The attacker's own models, each trained on its own draw of as many images as the target had."""
    config, data = job.config, job.data
    images, labels = draw_candidates(config, data).shadow
    count = min(len(data.target_labels), len(labels))
    name = config.surrogate.model
    split = [config.ducd.candidates, config.ducd.population, config.ducd.references]
    stage = job.stage("references", name, config.target.epochs, *split)
    folders = [stage.path / f"reference-{number}" for number in range(config.ducd.references)]
    with job.tracker.stage(stage):
        if not stage.done:
            for number, folder in enumerate(folders):
                if (folder / "model.json").is_file():
                    continue  # trained before an interruption
                seed = config.seed + 1 + number
                chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
                model = job.seeded(
                    lambda: build_classifier(name, data.image_shape, len(data.classes)), seed
                )  # not from the weights that the target started from
                train_classifier(
                    model,
                    images[chosen],
                    labels[chosen],
                    epochs=config.target.epochs,
                    seed=seed,
                    device=job.device,
                    progress=partial(job.progress, desc=f"train reference {number + 1} of {len(folders)}"),
                )
                storage.save_classifier(folder, model)
            stage.finish({
                "images": count,
                "references": len(folders),
                "params": {"model": name, "epochs": config.target.epochs, "images": count},
            })  # fmt: skip
    return [storage.load_model(folder, job.device) for folder in folders], stage


def audit_membership(
    job: Job, target: surrogates.Target, students: list[Student], references: tuple[list[nn.Module], Stage]
) -> Stage:
    """Every attack on the target and on every surrogate, and how much less a surrogate gives away."""
    config, ducd = job.config, job.config.ducd
    models, trained = references
    stage = job.stage(
        "membership", ducd.candidates, ducd.population, ducd.rmia_a, target.identity, trained.fingerprint,
        *(student.stage.fingerprint for student in students),
    )  # fmt: skip
    with job.tracker.stage(stage):
        if not stage.done:
            candidates = draw_candidates(config, job.data)
            audit = surrogates.MembershipAudit(
                candidates.members,
                candidates.nonmembers,
                references=[partial(_probabilities, model) for model in models],
                population=candidates.population,
                a=ducd.rmia_a,
            )
            asked = job.ledger.attach(target, purpose="evaluation")
            found = {"target": audit(asked)} | {each.name: audit(each.probabilities) for each in students}
            _keep_scores(stage, found)
            headline = "rmia"
            titles = ["target", *(f"surrogate, {100 * each.overlap:g}% overlap" for each in students)]
            curves = {title: row[headline].roc() for title, row in zip(titles, found.values(), strict=True)}
            (stage.path / "membership_roc.png").write_bytes(pictures.membership_plot(curves, ducd.candidates))
            stage.finish({
                "candidates": ducd.candidates,
                "population": ducd.population,
                "references": len(models),
                "reference_images": trained.result["images"],
                "headline": headline,
                "attacks": {name: {attack: _plain(each) for attack, each in row.items()} for name, row in found.items()},
                "benefit": _benefit(found),
                "shrinkage": _shrinkage([found[each.name] for each in students]),
                "params": {key: getattr(ducd, key) for key in ("candidates", "population", "references", "rmia_a")},
                "metrics": _metrics(found),
                "artifacts": ["*.png", "scores.npz"],
            })  # fmt: skip
    return stage


def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return model(images.to(device)).double().softmax(1).cpu()


def _benefit(found: dict[str, dict[str, surrogates.Membership]]) -> dict[str, dict[str, list[float]]]:
    """AUC on the target minus AUC on each surrogate, with the paired 95% interval, by attack."""
    return {
        name: {
            attack: list(surrogates.auc_difference(found["target"][attack], each))
            for attack, each in row.items()
        }
        for name, row in found.items()
        if name != "target"
    }


def _shrinkage(rows: list[dict[str, surrogates.Membership]]) -> dict[str, list[float]]:
    """What the last surrogate gives away beyond the first: AUC difference with the paired 95% interval, by attack."""
    first, last = rows[0], rows[-1]
    return {attack: list(surrogates.auc_difference(last[attack], first[attack])) for attack in first}


def _plain(found: surrogates.Membership) -> dict[str, Any]:
    return {
        "auc": [found.auc, found.lower, found.upper],
        "rates": [asdict(rate) for rate in found.rates],
    }


def _metrics(found: dict[str, dict[str, surrogates.Membership]]) -> dict[str, float]:
    metrics = {}
    for name, row in found.items():
        for attack, each in row.items():
            prefix = f"membership/{attack}/{name}"
            metrics[f"{prefix}/auc"] = each.auc
            metrics |= {f"{prefix}/tpr_at_fpr_{rate.fpr:g}": rate.tpr for rate in each.rates}
    return metrics


def _keep_scores(stage: Stage, found: dict[str, dict[str, surrogates.Membership]]) -> None:
    """All scores, so that other figures can be computed from them later."""
    arrays = {
        f"{name}/{attack}/{group}": getattr(each, f"{group}_scores")
        for name, row in found.items()
        for attack, each in row.items()
        for group in ("member", "nonmember")
    }
    np.savez_compressed(stage.path / "scores.npz", **arrays)
