"""Where records lie, as a caller names it; loads no torch, so that a wrong name is answered at once."""

from __future__ import annotations

import re
from pathlib import Path

from certdef.config.job import ConfigError

RUN_ID = re.compile(r"[0-9a-f]{32}")
HOW = "give a run id, a job's folder, a folder of records, a .jsonl or .tsv, or models:/NAME/VERSION"
FILES = (".jsonl", ".tsv")


def is_tracked(given: str) -> bool:
    """Whether a text is a run id or the URI of a registered version, rather than a path."""
    return bool(RUN_ID.fullmatch(given)) or given.startswith("models:")


def check_place(given: str) -> None:
    """Refuse what is no name that MLflow may know, no file, and no folder that has records.

    Raises:
        ConfigError: Says which.
    """
    path = Path(given)
    if path.is_dir():
        records_of_folder(given, path)
    elif not is_tracked(given) and not path.is_file():
        raise ConfigError(f"{given!r} is not there: {HOW}")


def records_of_folder(text: str, path: Path) -> tuple[Path, dict[str, Path]]:
    """The records of a folder, in it, in its folder `records`, or in those of a job's stages: where, and files by name.

    Raises:
        ConfigError: There are none, or several folders that have some.
    """
    places = [path, path / "records", *sorted(path.glob("*/records"))]
    having = [(place, files) for place in places if place.is_dir() and (files := records_in(place))]
    if not having:
        raise ConfigError(f"{text!r} has no records in it: {HOW}")
    if len(having) > 1:
        raise ConfigError(
            f"{text!r} has several folders of records: name one of {', '.join(str(place) for place, _ in having)}"
        )
    return having[0]


def records_in(folder: Path) -> dict[str, Path]:
    """The records in a folder; of both formats the one that keeps the votes."""
    found: dict[str, Path] = {}
    for suffix in reversed(FILES):
        found |= {path.stem: path for path in sorted(folder.glob(f"*{suffix}"))}
    return found


def check_ledger(given: str | Path | None) -> None:
    """Refuse a ledger that is named and is no file.

    Raises:
        ConfigError: It is none.
    """
    if given is not None and not Path(given).is_file():
        raise ConfigError(
            f"--ledger is {str(given)!r}, which is no file: give a job's ledger, e.g. runs/digits/ledger.db"
        )
