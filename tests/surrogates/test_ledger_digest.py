"""The digest of a ledger: the same for every copy, another for every change, and stable while the ledger grows."""

import shutil
import sqlite3

import numpy as np
import pytest

import surrogates
from surrogates.ledger.digest import ledger_digest


@pytest.fixture
def ledger(tmp_path, logistic):
    """A ledger of 30 answers, and how to ask for more: (path, query)."""
    path = tmp_path / "ledger.db"
    images = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)

    def query(part: slice) -> None:
        target = surrogates.open_target(logistic, identity="digits", input_shape=(1, 8, 8))
        with surrogates.QueryLedger(path, {"evaluation": 100}) as opened:
            opened.attach(target, purpose="evaluation").query(images[part])

    query(slice(30))
    return path, query


def test_copies_and_rewritten_files_have_one_digest(ledger, tmp_path):
    path, _ = ledger
    found = ledger_digest(path)
    assert (found.queries, found.in_flight) == (30, 0)
    shutil.copy(path, tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as db:
        db.execute("VACUUM")
    assert ledger_digest(tmp_path / "copy.db") == found


def test_it_stays_while_the_ledger_grows(ledger):
    path, query = ledger
    before = ledger_digest(path)
    query(slice(30, 60))
    assert ledger_digest(path).sha256 != before.sha256
    assert ledger_digest(path, before.upto) == before
    with pytest.raises(surrogates.LedgerError, match="has batches up to"):
        ledger_digest(path, 10_000)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batches SET settled_at = settled_at + 1 WHERE id = 1",
        "UPDATE batches SET purpose = 'attack' WHERE id = 1",
        "UPDATE subject SET identity = 'another'",
        "UPDATE answers SET labels = zeroblob(length(labels))",
        "UPDATE asked SET keys = zeroblob(length(keys))",
    ],
)
def test_every_change_changes_it(ledger, change):
    path, _ = ledger
    before = ledger_digest(path).sha256
    with sqlite3.connect(path) as db:
        db.execute(change)
    try:
        after = ledger_digest(path).sha256
    except surrogates.LedgerError:  # noticed even before the digest
        after = ""
    assert after != before
