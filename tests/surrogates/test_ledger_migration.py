"""A ledger of version 0.1 opens with every answer and every charge; nothing in it is paid again."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from surrogates import LedgerError, QueryLedger
from surrogates.ledger import migration
from surrogates.ledger.reader import read_statement
from tests.surrogates.test_ledger import CLASSES, Service, database, opened, pool, states

# Written by version 0.1, which was killed with one batch sent and one reserved.
DUMP = Path(__file__).with_name("ledger_of_0.1.sql")
BUDGET = {"training": 15, "certification": 5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.executescript(DUMP.read_text())
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    return path


def version(path: Path) -> int:
    with database(path) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def test_nothing_is_paid_again(path: Path) -> None:
    assert (read_statement(path).total.answered, version(path)) == (11, 2)  # reading changes nothing
    service = Service()
    with QueryLedger(path, BUDGET) as ledger:
        assert ledger.attach(opened(service, batch_size=4)).query(pool(6)).labels.tolist() == [*range(6)]
        votes = ledger.attach(opened(service), purpose="certification", experiment="e")
        assert votes.query(pool(5, first=20)).labels.tolist() == [(20 + k) % CLASSES for k in range(5)]
        assert service.served == []
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.unknown, charge.refused, charge.in_flight) == (6, 3 + 4, 2, 0)
        ledger.attach(opened(service)).query(pool(2, first=80))
        assert ledger.bill()["training"].largest == 15
    assert version(path) == 3
    assert states(path) == {"answered": 6 + 5 + 2, "unknown": 7, "refused": 2}
    QueryLedger(path, BUDGET).close()


def test_a_file_that_an_earlier_version_has_open_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "READER_SECONDS", 0.1)
    before = path.read_bytes()
    with database(path) as older:
        older.execute("SELECT * FROM subject").fetchall()
        with pytest.raises(LedgerError, match="another process has it open: let that process end"):
            QueryLedger(path, BUDGET)
        assert path.read_bytes() == before
    QueryLedger(path, BUDGET).close()
    assert version(path) == 3


def test_a_migration_that_is_cut_short_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(migration, "COPY", migration.COPY + "SELECT no_such_function();\n")
        with pytest.raises(LedgerError, match="no such function"):
            QueryLedger(path, BUDGET)
    assert version(path) == 2
    test_nothing_is_paid_again(path)


def test_a_reader_after_a_killed_migration_undoes_it_or_is_told_how(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, sys\n"
        "from surrogates.ledger import QueryLedger, migration\n"
        "real = migration.execute\n"
        "def killed(db, script):\n"
        "    real(db, script)\n"
        "    db.execute('PRAGMA cache_size = 1')\n"
        "    db.execute('CREATE TABLE large AS SELECT randomblob(1000000)')  # reaches the disk\n"
        "    os.kill(os.getpid(), 9)\n"
        "migration.execute = killed\n"
        "QueryLedger(sys.argv[1], 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with monkeypatch.context() as may_not_write:
        may_not_write.setattr(os, "access", lambda *_: False)
        with pytest.raises(LedgerError, match="killed while it changed the tables: query the ledger"):
            read_statement(path)
    assert (read_statement(path).total.answered, version(path)) == (11, 2)
    QueryLedger(path, BUDGET).close()
    assert (read_statement(path).total.answered, version(path)) == (11, 3)
