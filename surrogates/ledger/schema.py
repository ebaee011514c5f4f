"""The tables of a ledger's file, and how they are created."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.drift import CHECKS

APPLICATION_ID = 0x6C656467
SCHEMA_VERSION = 2
BUSY_SECONDS = 60
KEY_BYTES = 32
# Key k of batch b is at place (b << PLACE_BITS) + k, and its answer is in row place // KEYS_A_ROW. Few keys a row
# keep the reading of one answer short, where there are many classes; few rows a batch keep its writing short.
PLACE_BITS = 24
KEYS_A_ROW = 16

SCHEMA = """
CREATE TABLE subject (identity TEXT NOT NULL, num_classes INTEGER NOT NULL);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'sent', 'answered', 'unknown', 'refused')),
    charged_when_sent INTEGER NOT NULL,
    host TEXT NOT NULL, pid INTEGER NOT NULL, born REAL NOT NULL, thread INTEGER NOT NULL,
    reserved_at REAL NOT NULL, sent_at REAL, settled_at REAL, reason TEXT
);
CREATE INDEX in_flight ON batches (id) WHERE settled_at IS NULL;
CREATE TABLE asked (batch INTEGER PRIMARY KEY, keys BLOB NOT NULL);
CREATE TABLE answers (id INTEGER PRIMARY KEY, keys INTEGER NOT NULL, labels BLOB NOT NULL, scores BLOB);
CREATE TABLE tally (
    purpose TEXT, state TEXT, queries INTEGER NOT NULL, PRIMARY KEY (purpose, state)
) WITHOUT ROWID;
CREATE TRIGGER tally_new AFTER INSERT ON batches BEGIN
    INSERT INTO tally VALUES (NEW.purpose, NEW.state, NEW.size)
        ON CONFLICT DO UPDATE SET queries = queries + NEW.size;
END;
CREATE TRIGGER tally_move AFTER UPDATE OF state ON batches BEGIN
    UPDATE tally SET queries = queries - OLD.size WHERE purpose = OLD.purpose AND state = OLD.state;
    INSERT INTO tally VALUES (NEW.purpose, NEW.state, NEW.size)
        ON CONFLICT DO UPDATE SET queries = queries + NEW.size;
END;
"""


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file.

    Raises:
        LedgerError: The file has those of another version.
    """
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _statements(SCHEMA):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    check_version(db, path)
    db.execute(CHECKS)  # files of version 0.1 have no such table


def check_version(db: sqlite3.Connection, path: Path) -> None:
    """Check that the file has the tables of this version.

    Raises:
        LedgerError: It has not.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"ledger {path} has schema {version}, expected {SCHEMA_VERSION}: "
            "use the version of this package that wrote it, or a new file"
        )


def enter_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, waiting for processes that do the same: SQLite does not wait here by itself."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements, keeping triggers whole (executescript would commit the transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
