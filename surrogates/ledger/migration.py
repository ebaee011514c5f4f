"""Ledgers of earlier versions: schema 2 becomes schema 3, with every answer and every charge."""

import sqlite3
import time
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.integrity import checksum_of_answers, checksum_of_keys
from surrogates.ledger.schema import SCHEMA_VERSION, TABLES, execute, version_of

READER_SECONDS = 5.0  # so long a reader may have the file open

OLD = 2
SET_ASIDE = """
DROP TRIGGER tally_new;
DROP TRIGGER tally_move;
DROP INDEX in_flight;
DROP TABLE tally;
ALTER TABLE batches RENAME TO old_batches;
ALTER TABLE asked RENAME TO old_asked;
ALTER TABLE answers RENAME TO old_answers;
"""
# Nobody has the file open, so that the process of a batch in flight has ended.
COPY = """
INSERT INTO batches
    SELECT id, purpose, size,
        CASE WHEN state NOT IN ('reserved', 'sent') THEN state
             WHEN state = 'sent' AND charged_when_sent THEN 'unknown' ELSE 'refused' END,
        charged_when_sent, 0, reserved_at, sent_at, coalesce(settled_at, sent_at, reserved_at),
        CASE WHEN state IN ('reserved', 'sent') THEN 'its process ended before the answer was kept' ELSE reason END
    FROM old_batches ORDER BY id;
INSERT INTO asked SELECT batch, keys, checksum_of_keys(batch, keys) FROM old_asked ORDER BY batch;
INSERT INTO answers
    SELECT id, keys, labels, scores, checksum_of_answers(id, keys, labels, scores) FROM old_answers ORDER BY id;
DROP TABLE old_batches;
DROP TABLE old_asked;
DROP TABLE old_answers;
"""


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file of schema 2 to this version, in one transaction; one of this version stays as it is.

    Raises:
        LedgerError: Another process has the file open.
    """
    if version_of(db) != OLD:
        return
    _leave_wal(db, path)
    db.create_function("checksum_of_keys", 2, checksum_of_keys, deterministic=True)
    db.create_function("checksum_of_answers", 4, checksum_of_answers, deterministic=True)
    db.execute("BEGIN EXCLUSIVE")
    try:
        execute(db, SET_ASIDE + TABLES + COPY)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _leave_wal(db: sqlite3.Connection, path: Path) -> None:
    """Leave WAL mode, which SQLite allows to the only process that has the file open."""
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = DELETE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise LedgerError(
                    f"ledger {path} was written by an earlier version, and another process has it open: "
                    "let that process end, then try again"
                ) from error
            time.sleep(0.02)
