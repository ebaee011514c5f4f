"""The field's TSV format: idx, label, predict, radius, correct, time, for other people's scripts."""

import os
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from certify.errors import CertifyError

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def recover_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Bring the TSV in step with the record: extra or torn lines go, lost ones return with a time of 0."""
    data = path.read_bytes() if path.exists() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    header = HEADER.encode()
    if not data.startswith(header) and not header.startswith(data):
        raise CertifyError(f"{path} is not a certification log: choose another path")
    expected = [header, *(tsv_line(row, 0.0) for row in rows)]
    kept = 0
    while kept < min(len(lines), len(expected)) and _untimed(lines[kept]) == _untimed(expected[kept]):
        kept += 1
    content = b"".join(lines[:kept] + expected[kept:])
    if content != data:
        replace_file(path, content)


def _untimed(line: bytes) -> bytes:
    return line.rpartition(b"\t")[0]


def tsv_line(row: dict[str, Any], seconds: float) -> bytes:
    """The line of a record; the radius is rounded down, so that no more is claimed than was proven."""
    radius = Decimal(row["radius"]).quantize(Decimal("0.001"), ROUND_FLOOR)
    fields = (row["idx"], row["label"], row["predict"], radius, row["correct"], _clock(seconds))
    return ("\t".join(map(str, fields)) + "\n").encode()


def _clock(seconds: float) -> str:
    micro = round(seconds * 1e6)
    minutes, micro = divmod(micro, 60_000_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{micro // 1_000_000:02d}.{micro % 1_000_000:06d}"


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


def tsv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """The records of a log; CertifyError names the line that cannot be read."""
    header, *lines = text.splitlines() or [""]
    names = header.split("\t")
    if not {"idx", "label", "predict", "radius", "correct"} <= set(names):
        raise CertifyError(
            f"{path} is neither a .jsonl record nor a log with columns idx label predict radius correct"
        )
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            row: dict[str, Any] = dict(zip(names, line.split("\t"), strict=True))
            for name in ("idx", "label", "predict", "correct"):
                row[name] = int(row[name])
            row["radius"] = float(row["radius"])
            row["seconds"] = _seconds(row["time"]) if "time" in row else np.nan
        except ValueError:
            raise CertifyError(f"{path} line {number} is not a record: {line[:60]!r}") from None
        if not row["radius"] >= 0:
            raise CertifyError(f"{path} line {number} has radius {row['radius']}: it must be >= 0")
        rows.append(row)
    return rows


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a crash leaves the old or the new content."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
