"""What every stage is given, and the one runner of all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import surrogates
from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig
from certdef.config.shard import Shard
from certdef.data.lists import Lists
from certdef.data.sets import Splits
from certdef.tracking.checked_json import file_digest
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import Tracker
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

CERTIFY = "certify"  # the stage of the certificates
R = TypeVar("R", bound=StageResult)
N = TypeVar("N", bound=nn.Module)


@dataclass(kw_only=True)
class Shelf:
    """The stages of a job in its folder: looked up, not run.

    Attributes:
        config: What the job does.
        data: Its images.
        device: Where networks run.
        legacy: The names that stages had in version 0.1.0.
    """

    config: RunConfig
    data: Splits
    device: torch.device
    legacy: Legacy

    def stage(
        self,
        name: str,
        result_type: type[R],
        *key: Any,
        kind: str | None = None,
        files: Sequence[Path] = (),
    ) -> Stage[R]:
        """Look up a stage. Its result depends on the key (JSON-able values), the contents of files, the seed and the kind
        of device alone.

        Raises:
            ConfigError: The stage is done, and a file that it wrote was changed or lost since.
        """
        root, seed = self.config.workspace, self.config.seed
        contents = [file_digest(path) for path in files]
        stage = Stage(
            root, name, result_type, seed, self.device.type, *key, *([contents] if files else []), kind=kind
        )
        if files and not stage.path.exists():  # version 0.1 left the contents out of the key
            former = Stage(root, name, result_type, seed, self.device.type, *key, kind=kind)
            self.legacy.adopt(former)
            stage = former if former.made_from(contents) else stage
        self.legacy.adopt(stage)
        if stage.done:
            stage.check()
        return stage


@dataclass(kw_only=True)
class Certification(Shelf):
    """What votes and certificates need. Nothing of it is tracked, so that it also serves who tracks by himself.

    Attributes:
        ledger: Pays for every query.
        progress: A factory of progress bars like tqdm.
        shard: The part of the certificates that is done here; None for all of them.
    """

    ledger: surrogates.QueryLedger
    progress: Callable[..., Any]
    shard: Shard | None = None


@dataclass(kw_only=True)
class Job(Certification):
    """One run of the pipeline.

    Attributes:
        tracker: Its MLflow runs.
        draw: Draws a result into the folder of its stage.
        own_target: The user's own target, opened; None where one is trained here.
        lists: Images that this target was trained on, and others; None where membership inference is not asked for.
        prepared: Whether all that comes before the certificates must be done already.
        finished: Whether every stage must be done already.
    """

    tracker: Tracker
    draw: Callable[[StageResult, Path], None]
    own_target: surrogates.Target | None = None
    lists: Lists | None = None
    prepared: bool = False
    finished: bool = False

    def run(self, stage: Stage[R], compute: Callable[[], R]) -> Stage[R]:
        """Do a stage unless it is done, in an MLflow run of its own: folder, result, figures, tracking.

        Raises:
            ConfigError: It is not done, and the job is to be finished, or prepared and the stage comes before the certificates.
        """
        if self.finished and not stage.done:
            raise not_finished(self.config, stage.name)
        if self.prepared and not stage.done and stage.name != CERTIFY:
            raise not_prepared(self.config, stage.name)
        with self.tracker.stage(stage):
            if not stage.done:
                stage.begin()
                result = compute()
                if self.ledger.canaries is not None:
                    self.ledger.canaries.finish()  # nothing is kept of a target that has changed
                self.draw(result, stage.path)
                stage.finish(result)
        return stage

    def seeded(self, build: Callable[[], N], seed: int | None = None) -> N:
        """Build a module whose weights depend on the seed alone; the global generator is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed if seed is None else seed)
            return build()


def not_prepared(config: RunConfig, stage: str) -> ConfigError:
    """The error for a shard whose job is not prepared: each would train and pay for the same."""
    return ConfigError(
        f"{stage} is not done in work_dir {str(config.workspace)!r}: run certdef certify --prepare with the same options "
        "there first, on one machine"
    )


def not_finished(config: RunConfig, stage: str) -> ConfigError:
    """The error for a report, which trains and pays for nothing."""
    alone = config.target.uri is not None and config.surrogate.model != own_target.NONE
    hint = ". If certdef certify certified your target alone, add --surrogate.model none" if alone else ""
    return ConfigError(
        f"{stage} is not done in work_dir {str(config.workspace)!r}: report only writes the page of a finished job; "
        f"do the job first, certdef run with the same options{hint}"
    )


def versions() -> dict[str, str]:
    """Versions of the packages that a count depends on."""
    return {name: version(name) for name in ("certdef", "torch", "numpy", "scipy")}
