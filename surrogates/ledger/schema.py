"""The tables of a ledger's file, and how they are created."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.drift import CHECKS
from surrogates.ledger.integrity import damaged

APPLICATION_ID = 0x6C656467
SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)  # 2: versions up to 0.1; the file is migrated when it is next queried
BUSY_SECONDS = 60
KEY_BYTES = 32
# Key k of batch b is at place (b << PLACE_BITS) + k, and its answer is in row place // KEYS_A_ROW. Few keys a row
# keep the reading of one answer short, where there are many classes; few rows a batch keep its writing short.
PLACE_BITS = 24
KEYS_A_ROW = 16

SUBJECT = """
CREATE TABLE subject (identity TEXT NOT NULL, num_classes INTEGER NOT NULL);
"""
# `owner` is the byte that the process of a batch has locked, see owners.py. The checks let damage be noticed.
TABLES = """
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL,
    size INTEGER NOT NULL CHECK (typeof(size) = 'integer' AND size > 0),
    state TEXT NOT NULL CHECK (state IN ('reserved', 'sent', 'answered', 'unknown', 'refused')),
    charged_when_sent INTEGER NOT NULL CHECK (charged_when_sent IN (0, 1)),
    owner INTEGER NOT NULL CHECK (typeof(owner) = 'integer'),
    reserved_at REAL NOT NULL CHECK (reserved_at BETWEEN 0 AND 1e11),
    sent_at REAL CHECK (sent_at BETWEEN 0 AND 1e11),
    settled_at REAL CHECK (settled_at BETWEEN 0 AND 1e11),
    reason TEXT,
    CHECK ((settled_at IS NULL) = (state IN ('reserved', 'sent')))
);
CREATE INDEX in_flight ON batches (id) WHERE settled_at IS NULL;
CREATE TABLE asked (
    batch INTEGER PRIMARY KEY,
    keys BLOB NOT NULL CHECK (typeof(keys) = 'blob'),
    checksum INTEGER NOT NULL
);
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    keys INTEGER NOT NULL CHECK (typeof(keys) = 'integer'),
    labels BLOB NOT NULL CHECK (typeof(labels) = 'blob'),
    scores BLOB CHECK (typeof(scores) IN ('blob', 'null')),
    checksum INTEGER NOT NULL
);
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
        execute(db, SUBJECT + TABLES)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    version = version_of(db)
    if version != SCHEMA_VERSION:
        raise unknown_version(path, version)
    db.execute(CHECKS)  # files of version 0.1 have no such table
    if _tables(db) != _own_tables():
        raise damaged(path, "its tables are not those of a ledger")


def _tables(db: sqlite3.Connection) -> frozenset[str]:
    """Return the statements that tables, indices and triggers were created by: a flipped bit there changes what they do."""
    return frozenset(sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))


@cache
def _own_tables() -> frozenset[str]:
    with closing(sqlite3.connect(":memory:")) as db:
        execute(db, SUBJECT + TABLES + CHECKS + ";")
        return _tables(db)


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of a file's tables, 0 where it has none."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def unknown_version(path: Path, version: int) -> LedgerError:
    """Return the error for tables of another version."""
    return LedgerError(
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


def execute(db: sqlite3.Connection, script: str) -> None:
    """Execute the statements of a script, triggers whole (executescript would commit the transaction)."""
    for statement in _statements(script):
        db.execute(statement)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
