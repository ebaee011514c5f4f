"""JSON files with a checksum, and the checksums of the files beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError
from surrogates.files import replacing

MEND = "put it back, or use --fresh, which does the stages of this job again and pays for no kept answer"


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a mapping whole or not at all, with the SHA-256 of what it says among its entries."""
    plain = json.loads(json.dumps(value))
    with replacing(path) as file:
        file.write(json.dumps(plain | {"sha256": _digest(plain)}, indent=1).encode())


def read_json(path: Path, mend: str = MEND) -> dict[str, Any]:
    """What write_json kept; version 0.1 kept no checksum, and a few lists.

    Raises:
        ConfigError: The file was changed, cut or lost; ends in `mend`, what to do about it.
    """
    try:
        plain = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error}): {mend}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{str(path)!r} is missing: {mend}") from error
    if isinstance(plain, dict) and plain.pop("sha256", None) not in (None, _digest(plain)):
        raise ConfigError(f"{str(path)!r} was changed after it was written: {mend}")
    return plain


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files by name, after they are forced to disk."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        found[name] = file_digest(folder / name)
    return found


def check_digests(folder: Path, expected: dict[str, str], mend: str = MEND) -> None:
    """Refuse files that are no longer what was written.

    Raises:
        ConfigError: Names the first one; ends in `mend`, what to do about it.
    """
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{str(path)!r} is missing: {mend}")
        if file_digest(path) != digest:
            raise ConfigError(f"{str(path)!r} was changed after it was written: {mend}")
