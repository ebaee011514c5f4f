"""One number for all that a ledger holds: every query and every answer, whatever the database does with its pages."""

import hashlib
import json
import os
from dataclasses import dataclass

from surrogates.errors import LedgerError
from surrogates.ledger.export import answers_of
from surrogates.ledger.reader import reading, subject

FORMAT = "certdef-ledger-digest-1"

BATCHES = """
SELECT id, purpose, size, state, reserved_at, sent_at, settled_at, reason, keys
FROM batches LEFT JOIN asked ON batch = id WHERE id <= ? ORDER BY id
"""


@dataclass(frozen=True)
class LedgerDigest:
    """The digest of a ledger's first batches.

    Args:
        sha256: 64 hexadecimal digits.
        upto: The last batch that is in it; 0 for an empty ledger. A ledger only grows, so that its digest up to here stays
            the same while later jobs go on paying.
        queries: In these batches.
        in_flight: Of them, queries that were not settled: these are settled later, and the digest changes then.
    """

    sha256: str
    upto: int
    queries: int
    in_flight: int


def ledger_digest(path: str | os.PathLike[str], upto: int | None = None) -> LedgerDigest:
    """Return the SHA-256 over the target and, batch by batch, purpose, size, state, times, reason, keys and answers.

    Two copies of a ledger have the same, also after a backup or a VACUUM; one changed answer changes it.

    Args:
        path: The ledger, which is only read.
        upto: The last batch; unset, all of them.

    Raises:
        LedgerError: No ledger, a damaged one, or one that has no such batch.
    """
    with reading(path) as db:
        last = db.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()[0]
        end = last if upto is None else upto
        if not 0 <= end <= last:
            raise LedgerError(f"ledger {path} has batches up to {last}, not {end}: give one of them, or none")
        total = hashlib.sha256(_line(FORMAT, *subject(db)))
        queries = in_flight = 0
        for *columns, keys in db.execute(BATCHES, (end,)):
            batch, _, size, state, *_ = columns
            labels, scores = answers_of(db, batch)
            parts = (keys or b"", labels, scores or b"")
            total.update(_line(*columns, *(hashlib.sha256(part).hexdigest() for part in parts)))
            queries += size
            in_flight += size * (state in ("reserved", "sent"))
    return LedgerDigest(total.hexdigest(), end, queries, in_flight)


def _line(*values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"
