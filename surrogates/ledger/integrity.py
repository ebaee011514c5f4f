"""Damage to a ledger's file is noticed: when it is opened, or at the latest when a damaged answer is read."""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surrogates.errors import LedgerError

REMEDIES = {
    sqlite3.SQLITE_FULL: "make room on the disk",
    sqlite3.SQLITE_CORRUPT: "restore a copy of it, or begin a new file",
    sqlite3.SQLITE_BUSY: "another process holds it: end or continue that one",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
    sqlite3.SQLITE_READONLY_ROLLBACK: "a process was killed while it changed the tables: query the ledger, which undoes that",
}
# Queries whose batches do not add up to the running tally; none in a sound file.
ASTRAY = """
SELECT count(*) FROM (
    SELECT purpose, state, sum(size) AS queries FROM batches GROUP BY purpose, state
    UNION ALL SELECT purpose, state, -queries FROM tally
) GROUP BY purpose, state HAVING sum(queries) != 0
"""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn faults of the database and of the file system into one line.

    Raises:
        LedgerError: There was one.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # Python cannot even read SQLite's message
        raise damaged(path, "a text in it is not UTF-8") from error
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorcode", 0)
        remedy = REMEDIES.get(code) or REMEDIES.get(
            code & 0xFF, "give the path of a ledger, or of a new file that can be written"
        )
        reason = " ".join(str(error).split())
        raise LedgerError(f"ledger {path} cannot be used ({reason}): {remedy}") from error


def check_undamaged(db: sqlite3.Connection, path: Path) -> None:
    """Check the structure of a file, the constraints of its tables and its sums, inside one transaction.

    Raises:
        LedgerError: Something is damaged.
    """
    finding = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if finding != "ok":
        raise damaged(path, " ".join(str(finding).split()))
    if db.execute(ASTRAY).fetchone():
        raise damaged(path, "its batches do not add up to its tally")
    if db.execute("SELECT count(*) FROM subject").fetchone()[0] > 1:
        raise damaged(path, "it belongs to two targets")


def check_answers(db: sqlite3.Connection, path: Path, label_bytes: int) -> None:
    """Check every kept answer, inside one transaction.

    Args:
        label_bytes: Size of one label.

    Raises:
        LedgerError: One is damaged or missing.
    """
    db.create_function("checksum_of_answers", 4, checksum_of_answers, deterministic=True)
    wrong = db.execute(
        "SELECT id FROM answers WHERE checksum != checksum_of_answers(id, keys, labels, scores) LIMIT 1"
    ).fetchone()
    if wrong:
        raise damaged(path, f"answers {wrong[0]}")
    kept = db.execute("SELECT coalesce(sum(length(labels)), 0) FROM answers").fetchone()[0]
    answered = db.execute("SELECT coalesce(sum(size), 0) FROM batches WHERE state = 'answered'").fetchone()[0]
    if kept != answered * label_bytes:
        raise damaged(path, "answers are missing")


def checksum_of_keys(batch: int, keys: bytes) -> int:
    """Return the checksum that is kept with the keys of a batch."""
    return zlib.crc32(keys, batch & 0xFFFFFFFF)


def checksum_of_answers(row: int, keys: int, labels: bytes, scores: bytes | None) -> int:
    """Return the checksum that is kept with a row of answers."""
    start = zlib.crc32(b"%d %d %d" % (row, keys, scores is not None))
    return zlib.crc32(scores or b"", zlib.crc32(labels, start))


def damaged(path: Path, finding: str) -> LedgerError:
    """Return the error for a damaged file."""
    return LedgerError(f"ledger {path} is damaged ({finding}): restore a copy of it, or begin a new file")
