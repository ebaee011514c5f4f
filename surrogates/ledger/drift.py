"""What a ledger's file knows of its target's changes: checks by canaries, and answers that they cast doubt on.

An answer is good if a canary check that began after it found the target unchanged. Where a check finds a change, what was
answered since the last good one may be of either target: it stays on the bill, is marked by a reason, and is never handed
out again; nothing more is bought until a check is good.
"""

import json
import sqlite3
import time
from collections.abc import Collection

CHECKS = """
CREATE TABLE IF NOT EXISTS checks (
    id INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL CHECK (typeof(batch) = 'integer'),
    changed INTEGER NOT NULL CHECK (changed IN (0, 1)),
    at REAL NOT NULL CHECK (at BETWEEN 0 AND 1e11)
)
"""
MARK = "answered after the last good canary check, by a target that had changed at the next"


def settled_until(db: sqlite3.Connection) -> int:
    """Return the batch up to which every one is settled."""
    flying = db.execute("SELECT min(id) FROM batches WHERE settled_at IS NULL").fetchone()[0]
    last = db.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()[0]
    return last if flying is None else flying - 1


def has_changed(db: sqlite3.Connection) -> bool:
    """Return whether the last check found a change."""
    last = db.execute("SELECT changed FROM checks ORDER BY id DESC LIMIT 1").fetchone()
    return last is not None and bool(last[0])


def marked_among(db: sqlite3.Connection, batches: Collection[int]) -> set[int]:
    """Return those of answered batches that are marked."""
    rows = db.execute(
        "SELECT id FROM batches WHERE reason IS NOT NULL AND id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(batches)),),
    )
    return {batch for (batch,) in rows}


def note_check(db: sqlite3.Connection, until: int, changed: bool) -> int:
    """Note a check that began when batches up to `until` were settled; return how many batches it marks."""
    marked = 0
    if changed or has_changed(db):
        good = db.execute("SELECT coalesce(max(batch), 0) FROM checks WHERE NOT changed").fetchone()[0]
        marked = db.execute(
            "UPDATE batches SET reason = ? WHERE id > ? AND (? OR id <= ?) AND state = 'answered' "
            "AND purpose != 'canary' AND reason IS NULL",
            (MARK, good, changed, until),
        ).rowcount
    db.execute("INSERT INTO checks (batch, changed, at) VALUES (?, ?, ?)", (until, changed, time.time()))
    return marked
