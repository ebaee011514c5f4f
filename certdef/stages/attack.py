"""PGD on the surrogate, transferred to the target, each with and without the purifier in front."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

import surrogates
from certdef.attacks import gradient as attacks
from certdef.config.job import ConfigError, RunConfig
from certdef.stages.job import Job, interval
from certdef.stages.purifier import Purifier
from certdef.tracking.workspace import Stage

BATCH = 100  # images purified at a time: a diffusion chain takes memory

# What each column is: the attacker knows the surrogate's weights, and neither the target's nor the denoiser.
RUNGS = {
    "surrogate": "white_box_pgd_surrogate",
    "surrogate_purified": "blind_pgd_surrogate_purified",
    "target": "transfer_pgd_target",
    "target_purified": "transfer_pgd_target_purified",
}


def attack(
    job: Job, target: surrogates.Target, surrogate: nn.Module, made: Purifier, depends_on: list[Stage]
) -> Stage:
    """Accuracy with intervals at each eps; eps 0 is the clean control, through the same defences."""
    config, data = job.config.attack, job.data
    stage = job.stage("attack", asdict(config), *(other.fingerprint for other in depends_on))
    with job.tracker.stage(stage):
        if not stage.done:
            count = min(config.images, len(data.heldout_images))
            images = torch.from_numpy(data.heldout_images[:count])
            labels = torch.from_numpy(data.heldout_labels[:count])
            generator = torch.Generator(job.device).manual_seed(job.config.seed)
            purifier = made.defence(generator).to(job.device)
            asked = job.ledger.attach(target, purpose="attack", experiment=stage.fingerprint)
            known = job.ledger.attach(target, purpose="evaluation")
            rows = []
            for eps in (0.0, *config.eps):
                shown = images
                if eps:
                    shown = attacks.pgd(
                        surrogate, images, labels, eps=eps, steps=config.steps, seed=job.config.seed,
                        progress=job.progress,
                    )  # fmt: skip
                with torch.inference_mode():
                    purified = torch.cat([purifier(batch.to(job.device)) for batch in shown.split(BATCH)])
                    guesses = {
                        "surrogate": surrogate(shown.to(job.device)).argmax(1).cpu().numpy(),
                        "surrogate_purified": surrogate(purified).argmax(1).cpu().numpy(),
                        "target": (asked if eps else known).query(shown).labels,
                        "target_purified": asked.query(purified.cpu()).labels,
                    }
                right = {name: int((guess == labels.numpy()).sum()) for name, guess in guesses.items()}
                rows.append({"eps": eps} | {name: interval(hits, count) for name, hits in right.items()})
            metrics = {
                f"attack/{rung}_eps_{row['eps']:g}/accuracy": row[name][0]
                for row in rows
                for name, rung in RUNGS.items()
            }
            stage.finish({"rows": rows, "images": count, "params": asdict(config), "metrics": metrics})
    return stage


def check_attack_budget(config: RunConfig, heldout: int) -> None:
    """Refuse an attack budget that the attack does not fit in, before anything is spent."""
    levels, budget = len(config.attack.eps), config.ledger.attack
    count = min(config.attack.images, heldout)
    need = count * (2 * levels + 1)
    if need > budget:
        raise ConfigError(
            f"ledger.attack is {budget}: {count} images at {levels} eps, with and without the purifier, need {need}; "
            "raise it or lower attack.images"
        )
