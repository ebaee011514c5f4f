"""Agreement against queries, for several strategies, budgets and seeds. A finished cell is never trained or paid for again.

A cell is one surrogate: a strategy, a budget and a seed. Of its seeds a strategy shows the median and the spread; the
interval is the median seed's, over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import surrogates
from certdef.config.job import ConfigError, RunConfig, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.networks.nim import NIM
from certdef.stages.job import Job
from certdef.stages.networks import pretrained
from certdef.stages.surrogate import (
    measure_agreement,
    pretrained_encoder,
    selection_of,
    share_of,
    train_surrogate,
)
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint, read_json, write_json
from certdef.tracking.results import Share, StageResult, as_frame
from certdef.tracking.workspace import Stage

if TYPE_CHECKING:
    import pandas

CONDITIONS = ("clean", "noisy", "denoised")


@dataclass(frozen=True)
class Cell:
    """One surrogate: its query budget, what the ledger charged for it, and its agreement by condition.

    The ledger charges nothing for images that an earlier cell queried.
    """

    strategy: str
    budget: int
    seed: int
    queries: int
    charged: int
    agreement: dict[str, Share]


@dataclass(frozen=True)
class Point:
    """The seeds of one strategy and budget: median agreement with its interval, lowest and highest seed."""

    queries: int
    median: float
    lower: float
    upper: float
    lowest: float
    highest: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class BudgetsResult(StageResult):
    """Every cell of the table."""

    cells: tuple[Cell, ...]

    def to_frame(self) -> pandas.DataFrame:
        """A row a surrogate: its budget, what was charged for it, and its agreement by condition, with limits."""
        return as_frame(
            {name: getattr(cell, name) for name in ("strategy", "budget", "seed", "queries", "charged")}
            | {f"agreement_{name}": share for name, share in cell.agreement.items()}
            for cell in self.cells
        )


def check_budgets(
    config: RunConfig, budgets: Sequence[int], strategies: Sequence[str], seeds: int, pool: int
) -> None:
    """Refuse a table that can't be filled before any query.

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
) -> Stage[BudgetsResult]:
    """Distill one surrogate a cell, all from one ledger, and measure each on the held-out images."""
    check_budgets(job.config, budgets, strategies, seeds, len(job.data.pool))
    config, law = job.config.surrogate, job.config.certify.laws[0]
    encoder, denoiser = pretrained_encoder(job, config), pretrained(job, law)
    settings: list[Any] = [replace(config, strategy="random").agreeing, target.subject, law.parameters]
    settings += [job.data.pool_digest, job.data.heldout_digest]
    if encoder is not None or denoiser is not None:
        settings += [NIM_MAE.settings(job.config), denoiser is not None]
    cells = job.stage("budget-cells", StageResult, *settings)  # a larger table finds those of a smaller one
    table = [sorted(budgets), list(strategies), seeds]
    name = f"budgets-{fingerprint(*table)[:6]}"  # each table has a run of its own
    stage = job.stage(name, BudgetsResult, *settings, *table)

    def fill() -> BudgetsResult:
        cells.begin()
        order = [
            (strategy, budget, job.config.seed + number)
            for number in range(seeds)
            for strategy in strategies
            for budget in sorted(budgets)
        ]
        every = []
        for strategy, budget, seed in job.progress(order, desc="budgets"):
            now = replace(config, strategy=strategy)
            every.append(_cell(job, target, now, budget, seed, (encoder, denoiser), cells))
        return BudgetsResult(
            cells=tuple(every),
            params=config.agreeing | dict(zip(("budgets", "strategies", "seeds"), table, strict=True)),
            metrics={
                metrics.NOMINAL_QUERIES: sum(cell.queries for cell in every),
                metrics.CHARGED_QUERIES: sum(cell.charged for cell in every),
            },
            points=curve_points(every),
            artifacts=("budgets.*",),
        )

    return job.run(stage, fill)


def _cell(
    job: Job,
    target: surrogates.Target,
    config: SurrogateConfig,
    budget: int,
    seed: int,
    nims: tuple[NIM | None, nn.Module | None],
    stage: Stage,
) -> Cell:
    """One surrogate, or what is known of it; an interrupted one goes on where it was."""
    name = f"{config.strategy}-{budget}-{seed}"
    path, begun = stage.path / f"{name}.json", stage.path / f"{name}.begun"
    if path.is_file():
        plain = read_json(path)
        return Cell(
            **plain | {"agreement": {key: Share(*value) for key, value in plain["agreement"].items()}}
        )
    if not begun.is_file():  # an interruption must not hide what was charged before it
        write_json(begun, {"spent": job.ledger.bill()["training"].spent})
    encoder, denoiser = nims
    checkpoint = stage.path / f"{name}.pt"
    surrogate = train_surrogate(
        job, target, config, budget=budget, seed=seed, encoder=encoder, checkpoint=checkpoint
    )
    charged = job.ledger.bill()["training"].spent - _spent(begun)
    agreement = _agreement(job, target, surrogate, denoiser)
    cell = Cell(config.strategy, budget, seed, surrogate.queries, charged, agreement)
    write_json(path, asdict(cell))
    for left in (begun, *stage.path.glob(f"{name}*.pt")):
        left.unlink()
    return cell


def _spent(begun: Path) -> int:
    """What had been charged when a cell was begun; version 0.1 kept the bare number."""
    plain: Any = read_json(begun)
    return plain if isinstance(plain, int) else plain["spent"]


def _agreement(
    job: Job, target: surrogates.Target, surrogate: surrogates.Surrogate, denoiser: nn.Module | None
) -> dict[str, Share]:
    """By condition. Every cell queries the same images, which are paid for once."""
    noise = noise_law(job.config.certify.laws[0])
    measured = measure_agreement(job, target, surrogate, noise)
    if denoiser is not None:
        clean = torch.from_numpy(job.data.heldout_images)
        generator = torch.Generator().manual_seed(job.config.seed)
        noisy = clean + noise.sample(tuple(clean.shape), generator=generator)
        paid = job.ledger.attach(target, purpose="evaluation")
        measured["denoised"] = surrogates.fidelity(surrogate, paid, _denoised(denoiser, noisy, job.device))
    return {condition: share_of(each) for condition, each in measured.items()}


def _denoised(denoiser: nn.Module, noisy: torch.Tensor, device: torch.device) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([denoiser(part.to(device, copy=True)).cpu() for part in noisy.split(256)])


def curves(cells: Sequence[Cell], condition: str) -> dict[str, list[Point]]:
    """One curve a strategy, in the order of the cells, its points by number of queries."""
    shares: dict[str, dict[int, list[Share]]] = {}
    for cell in cells:
        if condition in cell.agreement:
            of_strategy = shares.setdefault(cell.strategy, {})
            of_strategy.setdefault(cell.queries, []).append(cell.agreement[condition])
    return {
        strategy: [_point(queries, by_queries[queries]) for queries in sorted(by_queries)]
        for strategy, by_queries in shares.items()
    }


def _point(queries: int, shares: list[Share]) -> Point:
    ordered = sorted(shares)
    median = ordered[(len(ordered) - 1) // 2]  # of an even number, the lower of the middle two
    return Point(queries, *median, ordered[0].value, ordered[-1].value, len(ordered))


def curve_points(cells: Sequence[Cell]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Metric name -> (queries, value): the steps of MLflow are numbers of queries."""
    series = {}
    for condition in CONDITIONS:
        for strategy, points in curves(cells, condition).items():
            name = metrics.BUDGET_AGREEMENT.format(strategy=strategy, condition=condition)
            for suffix, part in (("", "median"), ("_lower", "lower"), ("_upper", "upper")):
                series[name + suffix] = tuple((point.queries, getattr(point, part)) for point in points)
    return series
