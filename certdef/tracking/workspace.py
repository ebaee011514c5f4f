"""Where a job keeps what it computed, so that interrupted work resumes and finished work is never repeated.

A stage's folder is named by the fingerprint of what decides its result, and of nothing else. `result.json` is written
last: a folder without it is unfinished and is resumed, one with it is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from certdef.config.job import ConfigError
from certdef.tracking.results import StageResult

R = TypeVar("R", bound=StageResult)


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Stage(Generic[R]):
    """One stage of a job: its folder, and its typed result once it is done. Looking one up writes nothing.

    Args:
        root: The job's work directory.
        name: What the stage is called, in the folder and in MLflow.
        result_type: The type of its result.
        key: What decides the result, JSON-able.
        kind: How the names begin of all stages that have the same result by the same key; the folder of any of them does.

    Attributes:
        name: What the stage is called.
        fingerprint: Identifies what decides the result.
        path: The folder of its files.
        reused: Whether the stage was done before.
    """

    def __init__(self, root: Path, name: str, result_type: type[R], *key: Any, kind: str | None = None):
        self.name, self.result_type = name, result_type
        self.fingerprint = fingerprint(kind or name, *key)
        self.path = root / f"{name}-{self.fingerprint}"
        if kind is not None and not self.path.exists():
            self.path = next(iter(sorted(root.glob(f"{kind}*-{self.fingerprint}"))), self.path)
        self.reused = self.done

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.path / "result.json").is_file()

    @cached_property
    def result(self) -> R:
        """The result of a stage that is done."""
        return self.result_type.from_json(json.loads((self.path / "result.json").read_text()))

    def finish(self, result: R) -> None:
        """Write the result: from now on the stage is done."""
        write_json(self.path / "result.json", result.to_json())

    def clear(self) -> None:
        """Forget what the stage computed."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.__dict__.pop("result", None)
        self.reused = False


def forget(root: Path) -> None:
    """Remove what the stages of every job computed; the ledger and every paid answer stay."""
    for folder in root.glob("*-" + "[0-9a-f]" * 16):
        shutil.rmtree(folder)
    shutil.rmtree(root / "jobs", ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the work directory; ConfigError if it can't be written or another job holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(
            f"work_dir {str(folder)!r} can't be written ({error.strerror}): choose another with --work-dir"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"work_dir {str(folder)!r} is in use by another certdef: wait for it, or choose another with --work-dir"
            ) from error
        yield
