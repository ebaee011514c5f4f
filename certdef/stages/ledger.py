"""The ledger of a job: opened with its budgets, and refused where it is another target's."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

import surrogates
from certdef.config.job import ConfigError, RunConfig
from surrogates.files import create_private
from surrogates.ledger.reader import reading, subject


def open_ledger(config: RunConfig, path: Path) -> surrogates.QueryLedger:
    """A job's ledger, with the budgets that the job has."""
    budget = {purpose: value for purpose, value in asdict(config.ledger).items() if purpose != "path"}
    if not config.target.uri:
        del budget["preflight"]
    if not (config.target.uri and config.target.canary_every):
        del budget["canary"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.target.is_private:
        create_private(path)
    return surrogates.QueryLedger(path, budget)


def check_ledger(path: Path, identity: str | None) -> None:
    """Refuse a ledger that can't be read, or is another target's: a new target is new budgets, which the user grants.

    Args:
        path: Its file, which need not be there.
        identity: Of the target; unset where it is not known.

    Raises:
        ConfigError: It belongs to another target.
        surrogates.LedgerError: The file is damaged, or no ledger.
    """
    owner = None
    if path.is_file():
        with reading(path) as ledger:
            owner, _ = subject(ledger)
    if identity is None or owner in (None, identity):
        return
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    free = next(name for name in names if not name.exists())
    raise ConfigError(
        f"ledger {str(path)!r} belongs to another target, {owner!r}, and this one is {identity!r}: give it a ledger "
        f"with budgets of its own, --ledger.path {free}"
    )
