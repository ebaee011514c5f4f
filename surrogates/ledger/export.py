"""Every query of a ledger's file as a table, in Parquet or CSV, while other processes go on writing."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surrogates.errors import LedgerError
from surrogates.ledger.integrity import check_answers
from surrogates.ledger.packing import Kept, join, label_type
from surrogates.ledger.reader import reading, subject
from surrogates.ledger.schema import KEY_BYTES, KEYS_A_ROW, PLACE_BITS, SCHEMA_VERSION, version_of

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".parquet", ".csv")
ROWS_A_TABLE = 65_536  # so many rows, or a batch more, are in memory at once

BATCHES = """
SELECT purpose, state, reserved_at, sent_at, settled_at, reason, id, size, keys
FROM batches LEFT JOIN asked ON batch = id ORDER BY id
"""


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> int:
    """Write every query of a ledger's file to a table, and return their number.

    One row a query, in the order of reservation: purpose, state, batch, position in it, key (hex; in ledgers of version
    0.1 a batch for certification, attack or canary has one), label, score_0 ... score_K-1 where scores were kept, reserved_at, sent_at,
    settled_at (UTC) and the reason where there was no answer. Needs pyarrow.

    Args:
        path: The ledger.
        out: A .parquet or .csv file.
        progress: A factory like tqdm.

    Raises:
        LedgerError: No ledger or a damaged one, no such ending or directory, or no pyarrow.
    """
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise LedgerError(f"export must be a {' or '.join(ENDINGS)} file, got {out}: change its ending")
    if not out.parent.is_dir():
        raise LedgerError(f"export {out} has no directory: create {out.parent} or give another path")
    try:
        from pyarrow import csv, parquet
    except ImportError as error:
        raise LedgerError("an export needs pyarrow: pip install pyarrow") from error
    with reading(path) as db:
        _, num_classes = subject(db)
        if version_of(db) == SCHEMA_VERSION:
            check_answers(db, Path(path), label_type(num_classes or 2).itemsize)
        schema = _schema(db, num_classes or 0)
        part = out.with_name(f"{out.name}.part")
        rows = 0
        try:
            with (csv.CSVWriter if out.suffix == ".csv" else parquet.ParquetWriter)(part, schema) as writer:
                for table in _tables(db, schema, num_classes or 2, progress):
                    writer.write_table(table)
                    rows += len(table)
            part.replace(out)
        except OSError as error:
            raise LedgerError(f"export {out} cannot be written ({error.strerror or error})") from error
        finally:
            part.unlink(missing_ok=True)
    return rows


def _schema(db: sqlite3.Connection, num_classes: int) -> "pyarrow.Schema":
    import pyarrow

    moment = pyarrow.timestamp("us", tz="UTC")
    scored = db.execute("SELECT EXISTS (SELECT 1 FROM answers WHERE scores IS NOT NULL)").fetchone()[0]
    return pyarrow.schema(
        [
            ("purpose", pyarrow.string()),
            ("state", pyarrow.string()),
            ("reserved_at", moment),
            ("sent_at", moment),
            ("settled_at", moment),
            ("reason", pyarrow.string()),
            ("batch", pyarrow.int64()),
            ("position", pyarrow.int64()),
            ("key", pyarrow.string()),
            ("label", pyarrow.int64()),
            *((f"score_{k}", pyarrow.float32()) for k in range(num_classes if scored else 0)),
        ]
    )


def _tables(
    db: sqlite3.Connection,
    schema: "pyarrow.Schema",
    num_classes: int,
    progress: Callable[..., Iterable[Any]] | None,
) -> Iterator["pyarrow.Table"]:
    """Yield the rows of a few batches at a time."""
    import pyarrow

    batches: list[tuple] = []
    rows = 0
    total = db.execute("SELECT count(*) FROM batches").fetchone()[0]
    every: Iterable[tuple] = db.execute(BATCHES)
    for batch in progress(every, total=total, desc="export", unit="batch") if progress else every:
        batches.append(batch)
        rows += batch[7]
        if rows >= ROWS_A_TABLE:
            yield pyarrow.table(_columns(db, batches, schema, num_classes), schema)
            batches, rows = [], 0
    yield pyarrow.table(_columns(db, batches, schema, num_classes), schema)


def _columns(
    db: sqlite3.Connection, batches: list[tuple], schema: "pyarrow.Schema", num_classes: int
) -> list["pyarrow.Array"]:
    import pyarrow

    sizes = np.array([batch[7] for batch in batches], dtype=np.int64)
    owner = np.repeat(np.arange(len(batches)), sizes)  # the batch of each row
    starts = np.cumsum(sizes) - sizes
    labels = np.zeros(len(owner), dtype=np.int64)
    scores = np.zeros((len(owner), len(schema) - schema.get_field_index("label") - 1), dtype=np.float32)
    labeled, scored = np.zeros(len(owner), dtype=bool), np.zeros(len(owner), dtype=bool)
    keys: list[str | None] = []
    for (*_, batch, size, blob), start in zip(batches, starts, strict=True):
        keys += _hexadecimal(blob, size)
        packed, table = answers_of(db, batch)
        if packed:
            rows = slice(start, start + size)
            labels[rows], labeled[rows] = np.frombuffer(packed, label_type(num_classes)), True
            if table is not None:
                scores[rows], scored[rows] = np.frombuffer(table, "<f4").reshape(size, -1), True

    def moments(column: int) -> "pyarrow.Array":
        whole = [None if batch[column] is None else round(1e6 * batch[column]) for batch in batches]
        return pyarrow.array(whole, pyarrow.timestamp("us", tz="UTC")).take(owner)

    def words(column: int) -> "pyarrow.Array":
        return pyarrow.array([batch[column] for batch in batches], pyarrow.string()).take(owner)

    return [
        *(words(0), words(1), moments(2), moments(3), moments(4), words(5)),
        pyarrow.array(np.array([batch[6] for batch in batches], dtype=np.int64)[owner]),
        pyarrow.array(np.arange(len(owner)) - starts[owner]),
        pyarrow.array(keys, pyarrow.string()),
        pyarrow.array(labels, mask=~labeled),
        *(pyarrow.array(column, mask=~scored) for column in np.ascontiguousarray(scores.T)),
    ]


def _hexadecimal(blob: bytes | None, size: int) -> list[str | None]:
    """Return the key of each query: a batch has one for each image, in version 0.1 perhaps one for all; a lost attempt none."""
    if blob is None:
        return [None] * size
    keys: list[str | None] = [
        blob[start : start + KEY_BYTES].hex() for start in range(0, len(blob), KEY_BYTES)
    ]
    return keys if len(keys) == size else keys * size


def answers_of(db: sqlite3.Connection, batch: int) -> Kept:
    """Return the answers of a batch, empty where there are none."""
    first, after = ((number << PLACE_BITS) // KEYS_A_ROW for number in (batch, batch + 1))
    query = "SELECT labels, scores FROM answers WHERE id >= ? AND id < ? ORDER BY id"
    return join(db.execute(query, (first, after)).fetchall())
