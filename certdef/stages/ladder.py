"""The threat ladder for every configured purifier: system x rung, once for the surrogate and once for the target.

The surrogate stands in the target's place with its weights known, so every rung can be tried and none costs a query. The
target is attacked as what it is, a black box: transfers and attacks by answers alone, each query paid. Beside them the
certificate of the smoothed surrogate, under the strongest attack on it that we have. Each system is a stage of its own:
one more is climbed without climbing, or paying, the others again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import certify
import surrogates
from certdef.attacks import query as query_attacks
from certdef.attacks import smoothed as smoothed_attack
from certdef.attacks import threat_ladder as ladder
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.report import figures as pictures
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.tracking.workspace import Stage, write_json

SUBJECTS = ("surrogate", "target")
VOTES = 300  # draws of a prediction under attack, at most
# What only the curve of the smoothed surrogate, or nothing that is measured, depends on.
CURVE = ("smoothed_images", "smoothed_draws")
ELSEWHERE = ("enabled", "systems")


def ladder_systems(config: RunConfig) -> list[str]:
    """The purifiers that are compared: none, the job's own, and those of ladder.systems."""
    return list(dict.fromkeys(["none", config.purifier, *config.ladder.systems]))


def climb_ladder(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    surrogate_stage: Stage,
    systems: dict[str, Purifier | None],
) -> Stage:
    """Climb with each system, by name, None for no purifier; then tables, picture, and the certificate under attack.

    The job's own purifier is the headline: its figures are attack/<rung>/accuracy.
    """
    config = job.config
    climbed = {
        name: _climb(job, target, surrogate, surrogate_stage, name, purifier)
        for name, purifier in systems.items()
    }
    own = systems[config.purifier]
    made = [other.fingerprint for other in (surrogate_stage, *own.stages)]
    stage = job.stage(
        "ladder", _curve_settings(config), made, [each.fingerprint for each in climbed.values()]
    )
    with job.tracker.stage(stage):
        if not stage.done:
            found = {
                subject: {name: _rungs(each.path / f"{subject}.json") for name, each in climbed.items()}
                for subject in SUBJECTS
            }
            curve = _smoothed(job, surrogate, own.denoiser())
            (stage.path / "ladder.png").write_bytes(pictures.ladder_plot(found, curve, config.ladder.eps))
            tables = {subject: ladder.table(rungs) for subject, rungs in found.items()}
            (stage.path / "ladder.md").write_text(
                "\n\n".join(f"{k}\n\n{v}" for k, v in tables.items()) + "\n"
            )
            stage.finish({
                "systems": {name: each.result["subjects"] for name, each in climbed.items()},
                "own": config.purifier,
                "tables": tables,
                "curve": curve,
                "eps": config.ladder.eps,
                "params": {"systems": list(systems)} | _curve_settings(config),
                "metrics": _metrics(found, config.purifier, curve),
                "artifacts": ["*.png", "*.md"],
            })  # fmt: skip
    return stage


def check_ladder_budget(config: RunConfig, heldout: int) -> None:
    """Refuse, before anything is spent, an attack budget that ladder and attack do not fit in, and a missing package."""
    if config.ladder.decision_queries:
        query_attacks.check_hop_skip_jump()
    names, images = ladder_systems(config), min(config.ladder.target_images, heldout)
    ladders = sum(
        ladder.most_queries(config.ladder, images, purified=name != "none", noisy=name != "none")
        for name in names
    )
    attack = min(config.attack.images, heldout) * (2 * len(config.attack.eps) + 1)
    if ladders + attack > config.ledger.attack:
        raise ConfigError(
            f"ledger.attack is {config.ledger.attack}: the ladder may ask {ladders} queries ({len(names)} systems x {images} "
            f"images) and the attack {attack}; raise it to {ladders + attack}, or lower ladder.target_images, "
            "ladder.square_queries or ladder.decision_queries"
        )


def _climb(
    job: Job,
    target: surrogates.Target,
    surrogate: nn.Module,
    surrogate_stage: Stage,
    name: str,
    purifier: Purifier | None,
) -> Stage:
    """One system against every attacker, as both subjects."""
    config, data = job.config.ladder, job.data
    settings = {key: value for key, value in asdict(config).items() if key not in (*CURVE, *ELSEWHERE)}
    made = purifier.stages if purifier else []
    stage = job.stage(f"ladder-{name}", settings, *(other.fingerprint for other in (surrogate_stage, *made)))
    with job.tracker.stage(stage):
        if not stage.done:
            front = purifier.defence(torch.Generator(job.device)).to(job.device) if purifier else None
            asked = job.ledger.attach(target, purpose="attack", experiment=stage.fingerprint)
            as_subject = {
                "surrogate": (ladder.System(surrogate, front), config.images),
                "target": (ladder.System(asked, front, surrogate=surrogate), config.target_images),
            }
            shown = {}
            for subject, (system, images) in as_subject.items():
                path, count = stage.path / f"{subject}.json", min(images, len(data.heldout_images))
                if not path.is_file():
                    rungs = ladder.climb(
                        system,
                        torch.from_numpy(data.heldout_images[:count]),
                        torch.from_numpy(data.heldout_labels[:count]),
                        config,
                        seed=job.config.seed,
                        device=job.device,
                        progress=lambda rungs, desc, what=f"{name}, {subject}": job.progress(
                            rungs, desc=f"{desc} {what}"
                        ),
                    )
                    write_json(path, ladder.plain(rungs))
                shown[subject] = _shown(_rungs(path), count)
            stage.finish({"subjects": shown, "params": settings})
    return stage


def _rungs(path: Any) -> list[ladder.Rung]:
    return [ladder.Rung(**row | {"right": tuple(row["right"])}) for row in json.loads(path.read_text())]


def _shown(rungs: list[ladder.Rung], images: int) -> dict[str, Any]:
    least = ladder.headline(rungs)
    return {
        "rungs": [
            {key: value for key, value in row.items() if key != "right"} for row in ladder.plain(rungs)
        ],
        "headline": {"rung": least.name, "knows": least.knows, "accuracy": least.accuracy},
        "alarms": ladder.alarms(rungs),
        "images": images,
        "queries": sum(rung.queries for rung in rungs),
    }


def _metrics(
    found: dict[str, dict[str, list[ladder.Rung]]], own: str, curve: list[dict[str, Any]]
) -> dict[str, float]:
    """attack/<rung>/accuracy, with target/ before the rung for the target and the name of a system that is not the job's."""
    metrics = {f"attack/smoothed_pgd_l2_at_{row['radius']:g}/accuracy": row["attacked"][0] for row in curve}
    for subject, systems in found.items():
        for name, rungs in systems.items():
            prefix = "attack/" + "target/" * (subject == "target") + f"{name}/" * (name != own)
            metrics |= {f"{prefix}{rung.name}/accuracy": rung.accuracy[0] for rung in rungs if rung.accuracy}
            metrics[f"{prefix}lowest/accuracy"] = ladder.headline(rungs).accuracy[0]
            metrics[f"{prefix}alarms"] = len(ladder.alarms(rungs))
    return metrics


def _curve_settings(config: RunConfig) -> dict[str, Any]:
    certified = {name: getattr(config.certify, name) for name in ("n0", "n", "alpha", "radii")}
    own = {name: getattr(config.ladder, name) for name in CURVE}
    return certified | own | {"law": asdict(config.certify.laws[0])}


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
