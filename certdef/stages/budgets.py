"""Agreement against queries, for several strategies, budgets and seeds. A finished cell is never trained or paid for again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

import surrogates
from certdef.config.job import ConfigError, RunConfig, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.purifiers.networks.nim import NIM
from certdef.report import budget_curves
from certdef.report.budget_curves import Cell
from certdef.stages.denoiser import pretrained
from certdef.stages.job import Job
from certdef.stages.surrogate import encoder_for, selection_of, train_surrogate
from certdef.tracking.workspace import Stage, fingerprint, write_json


def check_budgets(
    config: RunConfig, budgets: Sequence[int], strategies: Sequence[str], seeds: int, pool: int
) -> None:
    """Refuse a table that can't be filled before anything is asked.

    Raises:
        ConfigError: No budget, one that is not positive, above the pool or above ledger.training; no seed.
        surrogates.SurrogateError: A strategy that does not exist.
    """
    if not budgets or not strategies or seeds < 1:
        raise ConfigError(
            f"budgets {list(budgets)}, strategies {list(strategies)}, seeds {seeds}: name at least one of each"
        )
    for strategy in strategies:
        selection_of(replace(config.surrogate, strategy=strategy))
    for budget in budgets:
        if not 1 <= budget <= pool:
            raise ConfigError(
                f"a budget is {budget}: use 1 to {pool}, the images of the pool (data.pool_images)"
            )
    if max(budgets) > config.ledger.training:
        raise ConfigError(
            f"ledger.training is {config.ledger.training}, less than the largest budget {max(budgets)}: raise it to "
            f"that, or to {min(pool, seeds * len(strategies) * max(budgets))} for {seeds} seeds that share no image"
        )


def trace_budgets(
    job: Job, target: surrogates.Target, budgets: Sequence[int], strategies: Sequence[str], seeds: int
) -> Stage:
    """Distil one surrogate a cell, all from one ledger, and measure each on the held-out images."""
    check_budgets(job.config, budgets, strategies, seeds, len(job.data.pool))
    config, law = job.config.surrogate, job.config.certify.laws[0]
    nim, denoiser = encoder_for(job, config), pretrained(job, law)
    needs_nim = [] if nim is None and denoiser is None else [asdict(job.config.nim), denoiser is not None]
    settings = [asdict(replace(config, strategy="random")), target.identity, asdict(law), *needs_nim]
    cells_stage = job.stage("budget-cells", *settings)  # a larger table finds the cells of a smaller one
    table = [sorted(budgets), list(strategies), seeds]
    stage = job.stage(
        f"budgets-{fingerprint(*table)[:6]}", *settings, *table
    )  # each table has a run of its own
    with job.tracker.stage(stage):
        if not stage.done:
            wanted = [
                (strategy, budget, job.config.seed + number)
                for number in range(seeds)
                for strategy in strategies
                for budget in sorted(budgets)
            ]
            cells = []
            for strategy, budget, seed in job.progress(wanted, desc="budgets"):
                now = replace(config, strategy=strategy)
                cells.append(_cell(job, target, now, budget, seed, nim, denoiser, cells_stage))
            (stage.path / "budgets.csv").write_text(budget_curves.as_csv(cells))
            (stage.path / "budgets.md").write_text(budget_curves.as_markdown(cells) + "\n")
            (stage.path / "budgets.png").write_bytes(budget_curves.plot(cells))
            stage.finish({
                "cells": budget_curves.plain(cells),
                "table": budget_curves.as_markdown(cells),
                "params": asdict(config) | {
                    "budgets": table[0], "strategies": list(strategies), "seeds": seeds,
                },
                "metrics": {
                    "budgets/queries_nominal": sum(cell.queries for cell in cells),
                    "budgets/queries_charged": sum(cell.charged for cell in cells),
                },
                "points": budget_curves.metrics(cells),
                "artifacts": ["budgets.*"],
            })  # fmt: skip
    return stage


def _cell(
    job: Job,
    target: surrogates.Target,
    config: SurrogateConfig,
    budget: int,
    seed: int,
    nim: NIM | None,
    denoiser: NIM | None,
    stage: Stage,
) -> Cell:
    """One surrogate, or what is known of it; an interrupted one goes on where it was."""
    name = f"{config.strategy}-{budget}-{seed}"
    path, begun = stage.path / f"{name}.json", stage.path / f"{name}.begun"
    if path.is_file():
        return Cell(**json.loads(path.read_text()))
    if not begun.is_file():  # an interruption must not hide what was charged before it
        write_json(begun, job.ledger.bill()["training"].spent)
    surrogate = train_surrogate(
        job, target, config, budget=budget, seed=seed, nim=nim, checkpoint=stage.path / f"{name}.pt"
    )
    charged = job.ledger.bill()["training"].spent - json.loads(begun.read_text())
    cell = Cell(
        config.strategy,
        budget,
        seed,
        surrogate.queries,
        charged,
        _agreement(job, target, surrogate, denoiser),
    )
    write_json(path, vars(cell))
    for left in (begun, *stage.path.glob(f"{name}*.pt")):
        left.unlink()
    return cell


def _agreement(
    job: Job, target: surrogates.Target, surrogate: surrogates.Surrogate, denoiser: NIM | None
) -> dict[str, list[float]]:
    """[share, lower, upper] by condition. Every cell asks about the same images, which are paid for once."""
    asked = job.ledger.attach(target, purpose="evaluation")
    images, noise = job.data.heldout_images, noise_law(job.config.certify.laws[0])
    found = {
        "clean": surrogates.fidelity(surrogate, asked, images),
        "noisy": surrogates.fidelity(surrogate, asked, images, noise, seed=job.config.seed),
    }
    if denoiser is not None:
        clean = torch.from_numpy(images)
        generator = torch.Generator().manual_seed(job.config.seed)
        noisy = clean + noise.sample(tuple(clean.shape), generator=generator)
        found["denoised"] = surrogates.fidelity(surrogate, asked, _denoised(denoiser, noisy, job.device))
    return {name: [each.agreement, each.lower, each.upper] for name, each in found.items()}


def _denoised(denoiser: nn.Module, noisy: torch.Tensor, device: torch.device) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([denoiser(part.to(device)).cpu() for part in noisy.split(256)])
