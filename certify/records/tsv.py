"""The field's TSV format: idx, label, predict, radius, correct, time, for other people's scripts."""

import math
import os
import re
from decimal import ROUND_FLOOR, Context, Decimal
from pathlib import Path

from certify.errors import CertifyError
from certify.records.rows import Fault, Row, Unreadable, check_claim, parse_lines

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
COLUMNS = ("idx", "label", "predict", "radius", "correct")
WHOLE = re.compile(r"([+-]?\d{1,19})(\.0*)?", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DAYS = re.compile(r"(\d+) days?, *", re.ASCII)  # as Python prints a timedelta
TRUTH = {"True": True, "False": False, "true": True, "false": False}


def recover_tsv(path: Path, rows: list[Row]) -> None:
    """Bring the TSV in step with the record: extra or torn lines go, lost ones return with a time of 0.

    Raises:
        CertifyError: The file is something else.
    """
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
        _replace_file(path, content)


def _untimed(line: bytes) -> bytes:
    return line.rpartition(b"\t")[0]


def tsv_line(row: Row, seconds: float) -> bytes:
    """The line of a record; the radius is rounded down, so that no more is claimed than was proven."""
    radius = Decimal(row["radius"]).quantize(Decimal("0.001"), ROUND_FLOOR, Context(prec=400))
    fields = (row["idx"], row["label"], row["predict"], radius, int(row["correct"]), _clock(seconds))
    return ("\t".join(map(str, fields)) + "\n").encode()


def _clock(seconds: float) -> str:
    micro = round(seconds * 1e6)
    minutes, micro = divmod(micro, 60_000_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{micro // 1_000_000:02d}.{micro % 1_000_000:06d}"


def parse_tsv(path: Path, text: str) -> list[Row]:
    """The records of a log, also of other people's scripts: more columns, other line ends, times over a day.

    Raises:
        CertifyError: It is no log, or names the line that is no valid record.
    """
    ended = text.endswith(("\n", "\r"))
    header, *lines = text.rstrip("\r\n").replace("\r\n", "\n").split("\n")
    names = [name.strip() for name in header.split("\t")]
    if not set(COLUMNS) <= set(names) or len(set(names)) < len(names):
        raise CertifyError(
            f"{path} is neither a .jsonl record nor a log with columns {' '.join(COLUMNS)}: give one of these"
        )

    def parse(line: str) -> Row:
        fields = line.split("\t")
        if len(fields) != len(names):
            raise Unreadable(f"{len(fields)} fields for {len(names)} columns in {line[:60]!r}")
        row = _values(dict(zip(names, fields, strict=True)))
        check_claim(row)
        return row

    return parse_lines(path, lines, parse, ended)


def _values(fields: dict[str, str]) -> Row:
    row: Row = {name: _whole(name, fields[name].strip()) for name in ("idx", "label", "predict")}
    correct, radius = fields["correct"].strip(), fields["radius"].strip()
    row["correct"] = TRUTH[correct] if correct in TRUTH else _whole("correct", correct)
    row["radius"] = _decimal("radius", radius)
    row["seconds"] = _seconds(fields.get("time", "").strip())
    return row


def _whole(name: str, text: str) -> int:
    match = WHOLE.fullmatch(text)
    if match is None:
        raise Unreadable(f"{name} is {text[:40]!r}, not a whole number")
    return int(match[1])


def _decimal(name: str, text: str) -> float:
    if DECIMAL.fullmatch(text) is None:
        raise Unreadable(f"{name} is {text[:40]!r}, not a finite number")
    return float(text)


def _seconds(text: str) -> float:
    """Seconds of "2.5", "0:00:02.5" or "1 day, 0:00:02.5"; NaN where there is none."""
    if text in ("", "nan"):
        return math.nan
    days = DAYS.match(text)
    total = 0.0
    for part in text[days.end() if days else 0 :].split(":"):
        total = total * 60 + _decimal("time", part)
    total += 86_400 * int(days[1]) if days else 0
    if not 0 <= total < math.inf:
        raise Fault(f"time is {text[:40]!r}, not a duration")
    return total


def _replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a crash leaves the old or the new content."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
