"""The one way in: both formats, checked line by line, and every bound computed again from its votes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import CertifyError
from certify.records.jsonl import BOM, Log, parse_log
from certify.records.proofs import unproven
from certify.records.rows import Row, damaged
from certify.records.table import Records
from certify.records.tsv import parse_tsv


def read_records(path: str | Path) -> Records:
    """Read a ``.jsonl`` record or a log in the field's TSV format (times as h:mm:ss.ffffff or seconds).

    A last line that was cut off while it was written is left out. Of a ``.jsonl``, the bounds and radii are computed
    again from the votes, as far as the method and the law allow.

    Raises:
        CertifyError: Names the line that is no valid record: values out of range or that contradict each other or
            the header, an image that comes twice, a bound that its votes do not give.
    """
    path = Path(path)
    data = read_file(path)
    if not data.removeprefix(BOM).startswith(b"{"):
        return _columns(parse_tsv(path, data.removeprefix(BOM).decode(errors="replace")))
    log = parse_log(path, data)
    check_proofs(path, log)
    return with_votes(log)


def read_file(path: Path) -> bytes:
    """The content of a record file, or CertifyError."""
    if not path.is_file():
        raise CertifyError(f"no record file at {path}: give the .jsonl or .tsv file itself")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertifyError(f"{path} can't be read ({error.strerror}): give another file") from None


def check_proofs(path: Path, log: Log) -> None:
    """Raise CertifyError for the first record whose bound or radius does not follow from its votes."""
    wrong = not_proven(log)
    if np.any(wrong):
        first = int(np.argmax(wrong))
        fault = f"radius {log.rows[first]['radius']:g} and p_lower do not follow from its votes"
        raise damaged(path, first + 2, fault)


def not_proven(log: Log) -> NDArray[np.bool_]:
    """Which records (M,) have a bound or a radius that their votes do not give."""
    records, methods = with_votes(log), np.array([row["method"] for row in log.rows])
    wrong = np.zeros(len(records), dtype=bool)
    for method in set(methods.tolist()):
        rows = np.flatnonzero(methods == method)
        wrong[rows] = unproven(records.take(rows), method, records.noise or {})
    return wrong


def with_votes(log: Log) -> Records:
    """The records of a ``.jsonl`` as columns."""
    rows, named = log.rows, log.config.get("noise")
    methods = sorted({row["method"] for row in rows})
    return Records(
        **_claims(rows),
        p_lower=_column(rows, "p_lower", np.float64),
        counts=_column(rows, "counts", np.int64).reshape(len(rows), -1 if rows else 0),
        config=log.config,
        selected=_column(rows, "selected", np.int64),
        method=", ".join(methods) or None,
        sound=all(row["sound"] for row in rows),
        alpha=_column(rows, "alpha", np.float64),
        n0=_column(rows, "n0", np.int64),
        noise=next(
            filter(None, [*(row["noise"] for row in rows), named if isinstance(named, dict) else None]), None
        ),
        known_class=any(row.get("known_class", False) for row in rows),
        uniform=_column(rows, "uniform", np.float64) if rows and "uniform" in rows[0] else None,
        image=_where_all_have_it(rows, "image", np.str_),
        row=_where_all_have_it(rows, "row", np.int64),
    )


def _where_all_have_it(rows: list[Row], name: str, dtype: type) -> NDArray[Any] | None:
    return _column(rows, name, dtype) if rows and all(name in row for row in rows) else None


def _columns(rows: list[Row]) -> Records:
    return Records(**_claims(rows))


def _claims(rows: list[Row]) -> dict[str, Any]:
    return {
        "idx": _column(rows, "idx", np.int64),
        "label": _column(rows, "label", np.int64),
        "predict": _column(rows, "predict", np.int64),
        "radius": _column(rows, "radius", np.float64),
        "correct": _column(rows, "correct", np.bool_),
        "seconds": np.array([row.get("seconds", np.nan) for row in rows], dtype=np.float64),
    }


def _column(rows: list[Row], name: str, dtype: type) -> NDArray[Any]:
    return np.array([row[name] for row in rows], dtype=dtype)
