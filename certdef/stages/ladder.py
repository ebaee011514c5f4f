"""The threat ladder for every configured purifier: system x rung, once for the surrogate and once for the target.

The surrogate stands in the target's place with its weights known, so every rung can be tried and none costs a query. The
target is attacked as what it is, a black box: transfers and attacks by answers alone, each query paid. Beside them the
certificate of the smoothed surrogate, under the strongest attack on it that we have.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import certify
import surrogates
from certdef import black_box, ladder, pictures, smoothed_attack
from certdef.config import ConfigError, RunConfig
from certdef.noise_laws import noise_law
from certdef.stages.job import Job
from certdef.workspace import Stage, write_json

VOTES = 1_000  # draws of a prediction under attack, at most


def ladder_systems(config: RunConfig) -> list[str]:
    """The purifiers that are compared: none, the job's own, and those of ladder.systems."""
    return list(dict.fromkeys(["none", config.purifier, *config.ladder.systems]))


def climb_ladder(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    systems: dict[str, nn.Module | None],
    denoiser: nn.Module | None,
    depends_on: list[Stage],
) -> Stage:
    """Climb with each system; what is finished is kept, so that an interrupted climb goes on at the next one.

    Args:
        systems: Purifiers by name, as defences of their own; None for nothing. The job's own is the headline.
        denoiser: What stands between the noise and the surrogate in the smoothed vote; None for nothing.
    """
    config = job.config.ladder
    settings = _settings(job.config)
    stage = job.stage("ladder", settings, list(systems), *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            subjects: dict[str, dict[str, list[ladder.Rung]]] = {"surrogate": {}, "target": {}}
            for name, purifier in systems.items():
                asked = job.ledger.attach(target, purpose="attack", experiment=f"{stage.fingerprint}/{name}")
                subjects["surrogate"][name] = _climbed(
                    job, stage, f"surrogate-{name}", ladder.System(surrogate, purifier), config.images
                )
                subjects["target"][name] = _climbed(
                    job,
                    stage,
                    f"target-{name}",
                    ladder.System(asked, purifier, surrogate=surrogate),
                    config.target_images,
                )
            curve = _smoothed(job, surrogate, denoiser)
            (stage.path / "ladder.png").write_bytes(pictures.ladder_plot(subjects, curve, config.eps))
            tables = {subject: ladder.table(found) for subject, found in subjects.items()}
            (stage.path / "ladder.md").write_text(
                "\n\n".join(f"{k}\n\n{v}" for k, v in tables.items()) + "\n"
            )
            stage.finish({
                "subjects": {
                    subject: {name: _shown(rungs) for name, rungs in found.items()} for subject, found in subjects.items()
                },
                "tables": tables,
                "curve": curve,
                "eps": config.eps,
                "system": job.config.purifier,
                "params": settings | {"systems": list(systems)},
                "metrics": _metrics(subjects, job.config.purifier, curve),
                "artifacts": ["*.png", "*.md"],
            })  # fmt: skip
    return stage


def check_ladder_budget(config: RunConfig, heldout: int) -> None:
    """Refuse, before anything is spent, an attack budget that ladder and attack do not fit in, and a missing package."""
    if config.ladder.decision_queries:
        black_box.check_hop_skip_jump()
    images = min(config.ladder.target_images, heldout)
    ladders = sum(
        ladder.most_queries(config.ladder, images, purified=name != "none", noisy=name != "none")
        for name in ladder_systems(config)
    )
    attack = min(config.attack.images, heldout) * (2 * len(config.attack.eps) + 1)
    if ladders + attack > config.ledger.attack:
        raise ConfigError(
            f"ledger.attack is {config.ledger.attack}: the ladder may ask {ladders} queries ({len(ladder_systems(config))} systems x "
            f"{images} images) and the attack {attack}; raise it to {ladders + attack}, or lower ladder.target_images, "
            "ladder.square_queries or ladder.decision_queries"
        )


def _climbed(job: Job, stage: Stage, name: str, system: ladder.System, images: int) -> list[ladder.Rung]:
    """The rungs of one system, from the stage's folder if they are there."""
    path = stage.path / f"{name}.json"
    if not path.is_file():
        count = min(images, len(job.data.heldout_images))
        rungs = ladder.climb(
            system,
            torch.from_numpy(job.data.heldout_images[:count]),
            torch.from_numpy(job.data.heldout_labels[:count]),
            job.config.ladder,
            seed=job.config.seed,
            device=job.device,
            progress=lambda names, desc: job.progress(names, desc=f"{desc} {name}"),
        )
        write_json(path, ladder.plain(rungs))
    return [ladder.Rung(**row | {"right": tuple(row["right"])}) for row in json.loads(path.read_text())]


def _smoothed(job: Job, surrogate: nn.Module, denoiser: nn.Module | None) -> list[dict[str, Any]]:
    """Certified accuracy of the smoothed surrogate, and accuracy under attack, at the configured L2 radii."""
    config, certified, data = job.config.ladder, job.config.certify, job.data
    count = min(config.smoothed_images, len(data.heldout_images))
    if not count:
        return []
    base = nn.Sequential(denoiser, surrogate) if denoiser is not None else surrogate
    smoothed = certify.SmoothedClassifier(
        base.eval(), noise_law(certified.laws[0]), len(data.classes), subject="surrogate", device=job.device,
        seed=job.config.seed, batch_size=certified.batch_size,
    )  # fmt: skip
    images, labels = data.heldout_images[:count], data.heldout_labels[:count]
    return smoothed_attack.curve(
        smoothed, torch.from_numpy(images), torch.from_numpy(labels), certified.radii, n0=certified.n0, n=certified.n,
        votes=min(VOTES, certified.n), alpha=certified.alpha, steps=min(10, config.steps), draws=config.smoothed_draws,
        seed=job.config.seed, progress=job.progress,
    )  # fmt: skip


def _settings(config: RunConfig) -> dict[str, Any]:
    """What a figure depends on, beside the systems: they are named with their stages."""
    smoothed = {"law": asdict(config.certify.laws[0])}
    smoothed |= {name: getattr(config.certify, name) for name in ("n0", "n", "alpha", "radii")}
    own = {key: value for key, value in asdict(config.ladder).items() if key not in ("enabled", "systems")}
    return own | {"smoothed": smoothed if config.ladder.smoothed_images else None}


def _shown(rungs: list[ladder.Rung]) -> dict[str, Any]:
    least = ladder.headline(rungs)
    return {
        "rungs": ladder.plain(rungs),
        "headline": {"rung": least.name, "accuracy": least.accuracy},
        "alarms": ladder.alarms(rungs),
        "queries": sum(rung.queries for rung in rungs),
    }


def _metrics(
    subjects: dict[str, dict[str, list[ladder.Rung]]], own: str, curve: list[dict[str, Any]]
) -> dict[str, float]:
    """attack/<rung>/accuracy for the job's own purifier and the surrogate; the target's and other systems' with a prefix."""
    metrics = {}
    for subject, found in subjects.items():
        for name, rungs in found.items():
            prefix = "attack/" + "target/" * (subject == "target") + f"{name}/" * (name != own)
            metrics |= {f"{prefix}{rung.name}/accuracy": rung.accuracy[0] for rung in rungs if rung.accuracy}
            metrics[f"{prefix}headline/accuracy"] = ladder.headline(rungs).accuracy[0]
            metrics[f"{prefix}alarms"] = len(ladder.alarms(rungs))
    for row in curve:
        metrics[f"attack/smoothed_pgd_l2_at_{row['radius']:g}/accuracy"] = row["attacked"][0]
    return metrics
