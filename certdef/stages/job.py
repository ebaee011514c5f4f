"""What every stage is given, and the few things that all of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import certify
import surrogates
from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.tracking.mlflow import Tracker
from certdef.tracking.workspace import Stage


@dataclass
class Job:
    """One run of the pipeline: configuration, images, device, MLflow, ledger, and a bar factory like tqdm."""

    config: RunConfig
    data: Splits
    device: torch.device
    tracker: Tracker
    ledger: surrogates.QueryLedger
    progress: Callable

    @property
    def base(self) -> list[Any]:
        """What every stage depends on."""
        target = self.config.target
        # Another form of asking is another target, whatever its address.
        form = [target.form] if target.uri and target.form else []
        return [asdict(self.config.data), target.uri, self.config.seed, self.device.type, *form]

    def stage(self, name: str, *depends_on: Any) -> Stage:
        """The folder of a stage whose result depends on these values and on the job's own."""
        return Stage(self.config.workspace, name, *self.base, *depends_on)

    def seeded(self, build: Callable[[], nn.Module], seed: int | None = None) -> nn.Module:
        """Build a module whose weights depend on the seed alone; the global generator is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed if seed is None else seed)
            return build()


def interval(right: int, count: int) -> list[float]:
    """Share and its 95% Clopper-Pearson interval: [share, lower, upper]."""
    low, high = certify.binomial_interval(right, count)
    return [right / count, float(low), float(high)]


def versions() -> dict[str, str]:
    """Versions of the packages that a count depends on."""
    return {name: version(name) for name in ("certdef", "torch", "numpy", "scipy")}
