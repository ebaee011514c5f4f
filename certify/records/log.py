"""Per-image records of a certification run: append-only, resumable, re-certifiable from raw counts.

``RecordLog`` keeps two files in step. ``<stem>.jsonl`` is the record: a header line with the whole
configuration, then one JSON object an image in full precision, without timing, so that a resumed run writes
the same bytes. ``<stem>.tsv`` is the same in the field's format (idx, label, predict, radius, correct, time),
for other people's scripts. ``read_records`` reads both kinds.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from certify.certificate import Certificate
from certify.errors import CertifyError, check_count
from certify.records.tsv import recover_tsv, replace_file, tsv_line, tsv_rows

FORMAT = "certify-records-1"


@dataclass(frozen=True)
class Records:
    """Records of M images, in the order of the file; what a ``.tsv`` does not hold is None.

    Attributes:
        idx, label, predict: (M,).
        radius: (M,), 0 where abstained.
        correct: (M,).
        seconds: (M,), NaN where not recorded.
        p_lower: (M,).
        counts: (M, K).
        config: Of the header.
        selected: (M,), the class that was bounded, also where abstained.
        method: How the votes were drawn and bounded.
        sound: No radius is approximate.
    """

    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    p_lower: NDArray[np.float64] | None = None
    counts: NDArray[np.int64] | None = None
    config: dict[str, Any] | None = None
    selected: NDArray[np.int64] | None = None
    method: str | None = None
    sound: bool = True

    def __len__(self) -> int:
        return len(self.idx)


class RecordLog:
    """Append certificates to ``<path_stem>.jsonl`` and ``.tsv``; opening an existing log resumes it.

    A context manager. A line torn by a crash is cut off.

    Args:
        path_stem: Path without suffix.
        config: A JSON-able dict with everything that determines the votes (noise, n0, n, alpha, seed, model hash,
            versions); a log with another configuration is refused.
        sync_every: Force the files to disk after this many records (1: each).

    Raises:
        CertifyError: A file is not a record log, is damaged inside, or belongs to another configuration.
    """

    def __init__(self, path_stem: str | Path, config: dict[str, Any], *, sync_every: int = 1) -> None:
        self._sync_every = check_count("sync_every", sync_every)
        stem = Path(path_stem)
        self.path, self.tsv_path = stem.with_name(stem.name + ".jsonl"), stem.with_name(stem.name + ".tsv")
        if not isinstance(config, dict):
            raise CertifyError(f"config must be a dict, got {type(config).__name__}: name every setting")
        header = _json_line({"format": FORMAT, "config": config}, sort_keys=True)
        stem.parent.mkdir(parents=True, exist_ok=True)
        rows = _recover(self.path, header)
        self._done = {row["idx"] for row in rows}
        recover_tsv(self.tsv_path, rows)
        self._jsonl = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        self._tsv = open(self.tsv_path, "ab")  # noqa: SIM115
        self._unsynced = 0

    @property
    def done(self) -> set[int]:
        """Indices of the images that are recorded."""
        return set(self._done)

    def append(self, idx: int, label: int, certificate: Certificate, seconds: float) -> None:
        """Record the certificate of image ``idx`` with true ``label``; ``seconds`` goes to the TSV only.

        Raises:
            CertifyError: The image is recorded already.
        """
        if idx in self._done:
            raise CertifyError(f"image {idx} is already in {self.path}: skip the indices in log.done")
        row = {
            "idx": int(idx),
            "label": int(label),
            "predict": certificate.prediction,
            "radius": certificate.radius,
            "p_lower": certificate.p_lower,
            "counts": list(certificate.counts),
            "n0": certificate.n0,
            "n": certificate.n,
            "alpha": certificate.alpha,
            "method": certificate.method,
            "sound": certificate.sound,
            "selected": certificate.selected,
            "correct": int(certificate.prediction == label),
        }
        line = _json_line(row)
        # The TSV goes first: a crash may leave a row too many there, which is dropped, but never one too few.
        self._tsv.write(tsv_line(row, seconds))
        self._tsv.flush()
        self._jsonl.write(line)
        self._jsonl.flush()
        self._done.add(row["idx"])
        self._unsynced += 1
        if self._unsynced >= self._sync_every:
            self._sync()

    def close(self) -> None:
        """Force everything to disk and close the files."""
        if not self._jsonl.closed:
            self._sync()
            self._jsonl.close()
            self._tsv.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._tsv.fileno())
        os.fsync(self._jsonl.fileno())
        self._unsynced = 0


def read_records(path: str | Path) -> Records:
    """Read a ``.jsonl`` record or a log in the field's TSV format (times as h:mm:ss.ffffff or seconds).

    Raises:
        CertifyError: Names the line that cannot be read; a torn last line of a ``.jsonl`` is skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise CertifyError(f"no record file at {path}: give the .jsonl or .tsv file itself")
    data = path.read_bytes()
    if not data.startswith(b"{"):
        return _records(tsv_rows(path, data.decode(errors="replace")))
    header, *lines = data[: data.rfind(b"\n") + 1].split(b"\n")
    config = _header(path, header)["config"]
    rows = _jsonl_rows(path, lines[:-1])
    records = _records(rows)
    counts = np.array([row["counts"] for row in rows], dtype=np.int64)
    p_lower = np.array([row["p_lower"] for row in rows], dtype=np.float64)
    methods = {row.get("method", "fixed") for row in rows}
    return replace(
        records,
        p_lower=p_lower,
        counts=counts,
        config=config,
        selected=np.array([row.get("selected", row["predict"]) for row in rows], dtype=np.int64),
        method=methods.pop() if len(methods) == 1 else ", ".join(sorted(methods)) or None,
        sound=all(row.get("sound", True) for row in rows),
    )


def _records(rows: list[dict[str, Any]]) -> Records:
    def column(name: str, dtype: type) -> NDArray:
        return np.array([row[name] for row in rows], dtype=dtype)

    return Records(
        idx=column("idx", np.int64),
        label=column("label", np.int64),
        predict=column("predict", np.int64),
        radius=column("radius", np.float64),
        correct=column("correct", np.bool_),
        seconds=np.array([row.get("seconds", np.nan) for row in rows], dtype=np.float64),
    )


# --- the .jsonl record --------------------------------------------------------------------------------------


def _recover(path: Path, header: bytes) -> list[dict[str, Any]]:
    """Check the header, cut a torn last line, write the header of a new file, and return the rows."""
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole == 0 and not header.startswith(data):
        raise CertifyError(f"{path} is not a record log: choose another path")
    if whole:
        first, *lines = data[:whole].split(b"\n")
        _check_config(path, _header(path, first)["config"], json.loads(header)["config"])
        rows = _jsonl_rows(path, lines[:-1])
    else:
        rows = []
    if whole < len(data):
        os.truncate(path, whole)
    if whole == 0:
        replace_file(path, header)
    return rows


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT or "config" not in header:
        raise CertifyError(f"{path} is not a record log of format {FORMAT}: choose another path")
    return header


def _check_config(path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    missing = object()
    keys = sorted({*config, *expected})
    differing = [key for key in keys if config.get(key, missing) != expected.get(key, missing)]
    if differing:
        names = ", ".join(differing)
        raise CertifyError(
            f"{path} has another configuration ({names}): resume with the same one, or rename it"
        )


def _jsonl_rows(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            row = json.loads(line)
            _ = [row[name] for name in ("idx", "label", "predict", "radius", "p_lower", "counts", "correct")]
        except (ValueError, KeyError, TypeError):
            raise CertifyError(
                f"{path} line {number} is damaged: restore the file, or cut it off there"
            ) from None
        rows.append(row)
    return rows


def _json_line(content: dict[str, Any], sort_keys: bool = False) -> bytes:
    try:
        return json.dumps(content, allow_nan=False, sort_keys=sort_keys).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise CertifyError(
            f"records must be plain finite JSON values ({error}): convert them first"
        ) from None
