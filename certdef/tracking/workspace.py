"""Where a job keeps what it made, so that interrupted work resumes and finished work is never repeated.

A stage's folder is named by the fingerprint of everything that its result depends on. `result.json` is written last:
a folder without it is unfinished and is resumed, one with it is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import certdef
from certdef.config.job import ConfigError


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Stage:
    """One stage's folder: `path` for its files, `result` once it is done, `reused` if it was done before."""

    def __init__(self, root: Path, name: str, *depends_on: Any):
        self.name = name
        self.fingerprint = fingerprint(name, certdef.__version__, *depends_on)
        self.path = root / f"{name}-{self.fingerprint}"
        self.path.mkdir(parents=True, exist_ok=True)
        self.reused = self.done

    @property
    def done(self) -> bool:
        return (self.path / "result.json").is_file()

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        write_json(self.path / "result.json", result)
        return result

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.reused = False


def forget(root: Path) -> None:
    """Remove what the stages of every job made; the ledger and every paid answer stay."""
    for folder in root.glob("*-" + "[0-9a-f]" * 16):
        shutil.rmtree(folder)
    shutil.rmtree(root / "jobs", ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


@contextmanager
def locked(folder: Path):
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
