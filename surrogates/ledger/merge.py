"""Ledgers of one target that paid apart, on several machines: their batches joined in one file, each of them once.

A batch is known by what no two have in common: its purpose, size, owner, the moment of its reservation and its keys. So a
ledger that has taken another's batches takes nothing when it is asked again, and two ledgers that both began with the batches
of a third have these once.
"""

import hashlib
import os
import sqlite3
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.integrity import (
    check_answers,
    checksum_of_answers,
    checksum_of_keys,
    damaged,
)
from surrogates.ledger.ledger import QueryLedger
from surrogates.ledger.packing import label_type
from surrogates.ledger.reader import reading, subject
from surrogates.ledger.schema import KEYS_A_ROW, PLACE_BITS, SCHEMA_VERSION, version_of

SEEN = "SELECT purpose, size, owner, reserved_at, keys, id, checksum FROM batches LEFT JOIN asked ON batch = id ORDER BY id"
FATES = "purpose, size, state, charged_when_sent, owner, reserved_at, sent_at, settled_at, reason"
SHIFT = (
    PLACE_BITS - (KEYS_A_ROW - 1).bit_length()
)  # a batch's first row of answers is its number, shifted by so many bits


def absorb(ledger: QueryLedger, other: str | os.PathLike[str]) -> int:
    """Take over the batches of another ledger of the same target, with their answers; returns how many were new.

    The other file is only read. All of it is taken in one transaction, or nothing is: who was interrupted begins again.
    What is taken counts against the budgets of `ledger`, whose own queries go on as before.

    Args:
        ledger: Open; unless it is empty it has the target of the other.
        other: The file of another ledger, which nobody queries meanwhile.

    Raises:
        LedgerError: No ledger or a damaged one, one of another version or target, or one with queries in flight.
    """
    path = Path(other)
    with reading(path) as source:
        if version_of(source) != SCHEMA_VERSION:
            raise LedgerError(
                f"ledger {path} was written by version 0.1: query it once with this version, which migrates it"
            )
        identity, num_classes = subject(source)
        if identity is None or num_classes is None:
            return 0
        check_answers(source, path, label_type(num_classes).itemsize)
        flying = source.execute(
            "SELECT coalesce(sum(size), 0) FROM batches WHERE settled_at IS NULL"
        ).fetchone()[0]
        if flying:
            raise LedgerError(
                f"ledger {path} has {flying} queries in flight: wait for its job, or start that again if it was killed"
            )
        ledger.store.claim(identity, num_classes)
        with ledger.store.file.transaction() as db:
            return _take(db, source, path)


def _take(db: sqlite3.Connection, source: sqlite3.Connection, path: Path) -> int:
    own = {_name(row): row[5] for row in db.execute(SEEN)}
    places: dict[int, int] = {}  # batch there -> batch here
    new = 0
    for row in source.execute(SEEN):
        batch, keys = row[5], row[4]
        if keys is not None and row[6] != checksum_of_keys(batch, keys):
            raise damaged(path, f"the keys of batch {batch}")
        here = own.get(_name(row))
        if here is None:
            here = _copy(db, source, batch, keys)
            new += 1
        places[batch] = here
    _take_checks(db, source, places)
    return new


def _name(row: tuple) -> bytes:
    """What a batch is known by, in few bytes: there may be millions."""
    purpose, size, owner, reserved_at, keys = row[:5]
    parts = hashlib.sha256(repr((purpose, size, owner, reserved_at)).encode())
    parts.update(keys or b"")
    return parts.digest()[:16]


def _copy(db: sqlite3.Connection, source: sqlite3.Connection, batch: int, keys: bytes | None) -> int:
    """Append a batch with its keys and answers; returns its number here, which their checksums take in."""
    values = source.execute(f"SELECT {FATES} FROM batches WHERE id = ?", (batch,)).fetchone()
    here = db.execute(f"INSERT INTO batches ({FATES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values).lastrowid
    assert here is not None
    if keys is not None:
        db.execute("INSERT INTO asked VALUES (?, ?, ?)", (here, keys, checksum_of_keys(here, keys)))
    first = batch << SHIFT
    rows = source.execute(
        "SELECT id, keys, labels, scores FROM answers WHERE id >= ? AND id < ?", (first, first + (1 << SHIFT))
    )
    moved = [((here << SHIFT) + row - first, *answer) for row, *answer in rows]
    db.executemany(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?)", ((*row, checksum_of_answers(*row)) for row in moved)
    )
    return here


def _take_checks(db: sqlite3.Connection, source: sqlite3.Connection, places: dict[int, int]) -> None:
    """Append the canary checks that are new, each about the batch that it was about."""
    own = {at for (at,) in db.execute("SELECT at FROM checks")}
    exists = source.execute("SELECT count(*) FROM sqlite_master WHERE name = 'checks'").fetchone()[0]
    checks = source.execute("SELECT batch, changed, at FROM checks ORDER BY id").fetchall() if exists else []
    db.executemany(
        "INSERT INTO checks (batch, changed, at) VALUES (?, ?, ?)",
        ((places.get(batch, 0), changed, at) for batch, changed, at in checks if at not in own),
    )
