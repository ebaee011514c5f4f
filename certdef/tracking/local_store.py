"""A new local store of MLflow: migrated under another name, under a lock, so that nobody ever sees half of one.

MLflow migrates a new SQLite file step by step, some seconds long. Killed meanwhile it leaves a file that it never opens
again, and of two processes that begin at once both can fail.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from certdef.config.job import ConfigError

SCHEME = "sqlite:///"
PATIENCE = 300  # seconds that another process may take to make the store
POLL = 0.1


def make_local_store(uri: str) -> None:
    """Create the SQLite store of a URI, unless it is there; any other URI is none of our business.

    Raises:
        ConfigError: Another process has been creating it for minutes.
    """
    if not is_missing(uri):
        return
    path = _path(uri)
    with _alone(path.with_name(f"{path.name}.lock"), uri):
        if not _is_made(path):
            _migrate(path)


def is_missing(uri: str) -> bool:
    """Whether a URI is that of an SQLite store that nobody has made yet: MLflow would make it when it is asked anything."""
    return uri.startswith(SCHEME) and not _is_made(_path(uri))


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(SCHEME).partition("?")[0])


def _is_made(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _migrate(path: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f"{path.name}.new")
    for left in path.parent.glob(f"{new.name}*"):  # by a process that was killed
        left.unlink()
    store = SqlAlchemyStore(f"{SCHEME}{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    os.replace(new, path)


@contextmanager
def _alone(lock: Path, uri: str) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when this process ends, however it ends."""
    with lock.open("w") as handle:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"tracking store {uri!r} is being created by another process, since more than {PATIENCE} s: end "
                        "that one, or choose another with --tracking.uri"
                    ) from error
                time.sleep(POLL)
        yield


def holds_no_run(uri: str) -> bool:
    """Whether a local store is an SQLite database without any run, e.g. one whose first migration was cut short."""
    path = _path(uri).absolute()
    if not uri.startswith(SCHEME) or not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            return "runs" not in tables or db.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    except sqlite3.Error:
        return False
