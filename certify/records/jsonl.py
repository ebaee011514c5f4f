"""The full record: a header line with the whole configuration, then one JSON object an image.

Each line ends with a checksum of its content. A file of version 0.1.0 has none, and is still read.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certify.errors import CertifyError
from certify.records.rows import Fault, Row, Unreadable, check_claim, check_config, check_votes, parse_lines

FORMAT = "certify-records-1"
BOM = b"\xef\xbb\xbf"
CHECKSUM = "crc32"
REQUIRED = ("idx", "label", "predict", "radius", "p_lower", "counts", "n0", "n", "alpha", "correct")


@dataclass(frozen=True)
class Log:
    """A ``.jsonl`` record.

    Attributes:
        config: Of the header.
        rows: The records, checked and complete.
        whole: Bytes up to the end of the last whole line; what follows was cut off while it was written.
    """

    config: dict[str, Any]
    rows: list[Row]
    whole: int


def plain_json(content: dict[str, Any], sort_keys: bool = False) -> dict[str, Any]:
    """A copy as JSON gives it back.

    Raises:
        CertifyError: A value that JSON does not have.
    """
    try:
        return json.loads(json.dumps(content, allow_nan=False, sort_keys=sort_keys))
    except (TypeError, ValueError) as error:
        raise CertifyError(
            f"records must be plain finite JSON values ({error}): convert them first"
        ) from None


def json_line(content: dict[str, Any], sort_keys: bool = False) -> bytes:
    """The line of a header or a record, with its checksum; CertifyError as ``plain_json``."""
    plain = plain_json(content, sort_keys)
    return json.dumps(plain | {CHECKSUM: _checksum(plain)}).encode() + b"\n"


def parse_log(path: Path, data: bytes) -> Log:
    """Read the content of a ``.jsonl`` record.

    Raises:
        CertifyError: It is none, or names the line that is no valid record.
    """
    lines = data.split(b"\n")
    ended = not lines[-1].strip()
    while lines and not lines[-1].strip():
        lines.pop()
    header, sealed = _header(path, lines[0].removeprefix(BOM) if lines else b"")
    config = header["config"]

    def parse(line: bytes) -> Row:
        row, has_checksum = _parse(line)
        if sealed and not has_checksum:
            raise Fault("it has no checksum, although the header has one")
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise Fault(f"it has no {missing[0]}")
        check_claim(row)
        check_votes(row)
        check_config(row, config)
        return row

    rows = parse_lines(path, lines[1:], parse, ended)
    kept = lines[: 1 + len(rows)]
    return Log(config, rows, min(len(data), len(b"\n".join(kept)) + 1))


def _header(path: Path, line: bytes) -> tuple[dict[str, Any], bool]:
    """The header and whether it has a checksum."""
    try:
        header, sealed = _parse(line)
    except Unreadable:
        header, sealed = {}, False
    except Fault as fault:
        raise CertifyError(f"{path} line 1 is damaged ({fault}): restore the file") from None
    if header.get("format") != FORMAT or not isinstance(header.get("config"), dict):
        raise CertifyError(f"{path} is not a record log of format {FORMAT}: choose another path")
    return header, sealed


def _parse(line: bytes) -> tuple[dict[str, Any], bool]:
    """The object of a line and whether it has a checksum, which is then checked."""
    try:
        content = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_refused)
    except Fault:
        raise
    except (ValueError, RecursionError):
        raise Unreadable("it is no JSON") from None
    if not isinstance(content, dict):
        raise Unreadable("it is no JSON object")
    sealed = CHECKSUM in content
    if sealed and content.pop(CHECKSUM) != _checksum(content):
        raise Fault("its checksum does not fit")
    return content, sealed


def _checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Fault("it names a value twice")
    return content


def _refused(constant: str) -> None:
    raise Fault(f"{constant} is no finite number")
