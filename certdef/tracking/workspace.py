"""Where a job keeps what it computed, so that interrupted work resumes and finished work is never repeated.

A stage's folder is named by the fingerprint of what decides its result, and of nothing else. `result.json` is written
last: a folder without it is unfinished and is resumed, one with it is done. It has the SHA-256 of itself and of every
other file that the stage wrote: what was changed or lost since is never taken for a result.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from certdef.config.job import ConfigError
from certdef.tracking.checked_json import MEND, check_digests, digests, fingerprint, read_json, write_json
from certdef.tracking.results import StageResult

R = TypeVar("R", bound=StageResult)
RESULT, BEGUN, CONTENTS = "result.json", "stage.json", "contents.json"
FINGERPRINT = "[0-9a-f]" * 16
# What version 0.1, which marked no folder, left in one that it did not finish.
UNMARKED = re.compile(
    r"contents\.json|model|records|reference-\d+|(surrogate|target)\.json|checkpoint\..+|[a-z_]+-\d+-\d+\.(json|begun|.*pt)"
)


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

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, {'done' if self.done else 'not done'}, {str(self.path)!r})"

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.path / RESULT).is_file()

    @cached_property
    def result(self) -> R:
        """The result of a stage that is done.

        Raises:
            ConfigError: It was changed or cut after it was written.
        """
        from pydantic import ValidationError

        plain = read_json(self.path / RESULT)
        try:
            return self.result_type.from_json(plain)
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{str(self.path / RESULT)!r} is damaged ({entry}: {first['msg']}): {MEND}"
            ) from error

    def made_from(self, contents: list[str]) -> bool:
        """Whether a stage that is there may have been made from files of these digests: noted at the first question."""
        noted = self.path / CONTENTS
        if self.path.is_dir() and not noted.is_file():
            write_json(noted, {"contents": contents})
        return noted.is_file() and read_json(noted)["contents"] == contents

    def begin(self) -> None:
        """Make the folder and mark it as ours; what a killed job was writing is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.rglob("*.tmp"):
            left.unlink()
        if not (self.path / BEGUN).is_file():
            others = [] if _is_ours(self.path) else [each.name for each in self.path.iterdir()]
            write_json(self.path / BEGUN, {"stage": self.name, "others": sorted(others)})

    def finish(self, result: R) -> None:
        """Write the result: from now on the stage is done."""
        names = [name for name in _written(self.path) if not name.endswith(".pt")]  # checkpoints have served
        write_json(self.path / RESULT, result.to_json() | {"files": digests(self.path, names)})

    def check(self) -> None:
        """Refuse a stage that is done, and whose files are no longer what it wrote.

        Raises:
            ConfigError: Names the file, and the remedy.
        """
        check_digests(self.path, read_json(self.path / RESULT).get("files", {}))  # version 0.1 kept none

    def clear(self) -> None:
        """Forget what the stage computed."""
        _clear(self.path)
        self.__dict__.pop("result", None)
        self.reused = False


def forget(root: Path) -> None:
    """Remove what the stages of every job computed, and nothing else: the ledger and every paid answer stay."""
    for folder in root.glob(f"*-{FINGERPRINT}"):
        if folder.is_dir() and not folder.is_symlink() and _is_ours(folder):
            _clear(folder)
    for path in (root / "jobs").glob(f"{FINGERPRINT}.json"):
        path.unlink()
    _remove_if_empty(root / "jobs")


def _is_ours(folder: Path) -> bool:
    """Whether a stage made a folder: it is marked, or holds what version 0.1 wrote and nothing else."""
    if (folder / BEGUN).is_file() or {"params", "metrics", "artifacts"} <= _entries(folder / RESULT).keys():
        return True
    names = [each.name for each in folder.iterdir() if each.name != RESULT]
    return bool(names) and all(map(UNMARKED.fullmatch, names))


def _clear(folder: Path) -> None:
    """Remove what a stage wrote, and the folders that are empty then."""
    kept = _entries(folder / RESULT).get("files")
    for name in _written(folder):
        if (
            kept is None or name in kept or name.endswith(".pt")
        ):  # anything else came after the stage was done
            (folder / name).unlink()
    for name in (RESULT, BEGUN):
        (folder / name).unlink(missing_ok=True)
    for inner in sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True):
        _remove_if_empty(inner)
    _remove_if_empty(folder)


def _written(folder: Path) -> list[str]:
    """The files in a stage's folder, but for its marker, its result and what was there before it."""
    others = {BEGUN, RESULT, *_entries(folder / BEGUN).get("others", [])}
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in paths if path.parts[0] not in others]


def _entries(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is missing or damaged, which must not keep it from being removed."""
    with suppress(OSError, ValueError, RecursionError):
        plain = json.loads(path.read_text())
        return plain if isinstance(plain, dict) else {}
    return {}


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the work directory; ConfigError if it can't be written or another job holds it.

    Args:
        folder: The work directory.
        shared: Several may hold it so at once, as shards do, which write elsewhere.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+")  # noqa: SIM115  readable, as NFS asks of a shared lock
    except OSError as error:
        raise ConfigError(
            f"work_dir {str(folder)!r} can't be written ({error.strerror}): choose another with --work-dir"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"work_dir {str(folder)!r} is in use by another certdef: wait for it, or choose another with --work-dir"
            ) from error
        yield
