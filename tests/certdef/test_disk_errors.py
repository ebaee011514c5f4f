"""A full disk and missing permissions are one line, whoever noticed them. Each error here is the library's own."""

import errno
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.config.load import load_config
from certdef.stages import ledger_file
from certdef.stages.ledger import check_ledger
from certdef.tracking.checked_json import write_json
from certdef.tracking.disk_errors import disk_errors
from certdef.tracking.mlflow import check_store
from surrogates import LedgerError, QueryLedger
from surrogates.distillation.checkpoint import TrainingCheckpoint
from surrogates.ledger.merge import absorb
from surrogates.ledger.reader import read_statement

FULL = "/dev/full"  # every write to it fails with ENOSPC


def full_sqlite(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA max_page_count = 4")
        db.execute("CREATE TABLE kept (value BLOB)")
        db.execute("INSERT INTO kept VALUES (zeroblob(100000))")


def full_mlflow(path):
    from mlflow.exceptions import MlflowException

    try:
        full_sqlite(path)
    except sqlite3.Error as error:
        raise MlflowException(f"(sqlite3.OperationalError) {error}") from None


def full_while_another_is_handled(path):
    try:
        with open(FULL, "wb", buffering=0) as file:
            file.write(b"x")
    except OSError:
        raise KeyError("a run that could not be ended either")  # noqa: B904 - as cleaning up raises it


def full_torch(path):
    with open(FULL, "wb", buffering=0) as file:
        torch.save({"weights": torch.zeros(1000)}, file)


def full_numpy(path):
    with open(FULL, "wb", buffering=0) as file:
        np.savez_compressed(file, images=np.zeros(10_000))


@pytest.mark.parametrize(
    "write",
    [
        full_sqlite,
        full_mlflow,
        full_while_another_is_handled,
        full_torch,
        full_numpy,
    ],
    ids=["sqlite", "mlflow", "while handling", "torch", "numpy"],
)
def test_a_full_disk_is_one_line(tmp_path, write):
    said = pytest.raises(ConfigError, match="free some space, and the same command goes on")
    with said as error, disk_errors(tmp_path):
        write(tmp_path / "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_missing_permissions_are_one_line(tmp_path, number):
    said = pytest.raises(ConfigError, match=r"'/x/y' .*give this user the right")
    with said as error, disk_errors(tmp_path):
        raise OSError(number, os.strerror(number), "/x/y")
    assert "\n" not in str(error.value)


def test_an_error_that_says_what_to_do_keeps_its_own_remedy(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    said = r"can't be written \(Read-only .*--tracking.uri$"
    with pytest.raises(ConfigError, match=said), disk_errors(tmp_path):
        check_store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")


def test_other_errors_pass(tmp_path):
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "none", "x"), RuntimeError("")):
        with pytest.raises(type(error)), disk_errors(tmp_path):
            raise error


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    """The disk is full when the file is forced to it, as on a network file system."""
    write_json(tmp_path / "result.json", {"count": 1})
    before = (tmp_path / "result.json").read_bytes()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint = TrainingCheckpoint(tmp_path / "checkpoint.pt", model, optimizer, torch.Generator())
    checkpoint.save(0)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: write_json(tmp_path / "result.json", {"count": 2}), lambda: checkpoint.save(1)):
        with pytest.raises(ConfigError, match="free some space"), disk_errors(tmp_path):
            write()
    assert (tmp_path / "result.json").read_bytes() == before
    assert checkpoint.load() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "result.json"]


def in_wal_mode(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")


def with_half_a_change(path, ledger=False):
    """A process was killed while it changed the tables: its journal says how they were."""
    if ledger:
        QueryLedger(path, 10).close()
    fill = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN IMMEDIATE", "CREATE TABLE half (value)"):
    db.execute(statement)
db.executemany("INSERT INTO half VALUES (zeroblob(4000))", [()] * 100)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", fill, path]).returncode == 9
    assert path.with_name(f"{path.name}-journal").stat().st_size


BEGUN = {
    "empty": lambda path: path.touch(),
    "with a journal": lambda path: (
        path.touch(),
        path.with_name("ledger.db-journal").write_bytes(bytes(512)),
    ),
    "in WAL mode": in_wal_mode,
    "half its tables": with_half_a_change,
    "half a migration": partial(with_half_a_change, ledger=True),
}


@pytest.mark.parametrize("begin", BEGUN.values(), ids=BEGUN)
def test_a_ledger_that_a_killed_job_had_only_begun_is_the_jobs_own(begin, tmp_path, capsys):
    config = load_config(work_dir=str(tmp_path))
    path = config.ledger_path
    begin(path)
    assert ledger_file(config, None, None) == path  # whose target it is, it need not be asked
    check_ledger(path, "http://service")
    assert read_statement(path).total.largest == 0
    assert main(["ledger", str(path), "--digest"]) == 0
    assert "target   none yet" in capsys.readouterr().out
    with QueryLedger(path, 10) as ledger:
        assert absorb(ledger, path) == 0


def test_a_ledger_that_is_being_made_is_no_foreign_program_s(tmp_path, monkeypatch):
    """Its tables come between two looks of a reader: all its looks are at one moment."""
    path = tmp_path / "ledger.db"
    in_wal_mode(path)
    connect = sqlite3.connect

    class Overtaken(sqlite3.Connection):
        def execute(self, statement, *rest):
            cursor = super().execute(statement, *rest)
            if "sqlite_master" in statement or "application_id" in statement:
                monkeypatch.setattr(sqlite3, "connect", connect)
                QueryLedger(path, 10).close()
            return cursor

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Overtaken))
    assert read_statement(path).identity is None


def test_a_text_is_no_ledger(tmp_path):
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(LedgerError, match="not a database"):
        read_statement(tmp_path / "text.db")
