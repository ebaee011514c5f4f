"""Subgroups of images: a column of a table or an array of an .npz, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certdef.config.job import ConfigError
from certdef.data.npz import read_npz
from certdef.data.tables import read_rows
from certify.records import Records

MOST_GROUPS = 100
TABLES = (".csv", ".tsv")
HOW = "write FILE:COLUMN, a .csv, .tsv or .npz"


def read_groups(given: Sequence[str], records: Records) -> dict[str, NDArray[np.str_]]:
    """The group of each image (M,), by the name of its column.

    A table with a column `idx` is matched by the number of the image in the records. Otherwise its rows are those of the
    job's file of data, in order, and the records say which row each image was.

    Raises:
        ConfigError: All at once: files or columns that are not there, rows that nobody can match, too many groups.
    """
    groups: dict[str, NDArray[np.str_]] = {}
    problems: list[str] = []
    for text in given:
        name = text.rpartition(":")[2]
        try:
            if name in groups:
                raise ConfigError(f"--groups {text!r}: a column {name!r} is there already, name it otherwise")
            groups[name] = _read(text, records)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return groups


def _read(text: str, records: Records) -> NDArray[np.str_]:
    file, _, column = text.rpartition(":")
    path = Path(file)
    if not file or not column or path.suffix.lower() not in (*TABLES, ".npz"):
        raise ConfigError(f"--groups is {text!r}: {HOW}")
    if not path.is_file():
        raise ConfigError(f"--groups {text!r}: {file!r} is no file: {HOW}")
    if column in ("all", "class"):
        raise ConfigError(
            f"--groups {text!r}: the rows of the comparison have that name, name the column otherwise"
        )
    values, numbers = _array(path, column) if path.suffix.lower() == ".npz" else _table(path, text, column)
    wanted = _wanted(text, records, by_idx=numbers is not None)
    known = {row: at for at, row in enumerate(range(len(values)) if numbers is None else numbers)}
    missing = [row for row in wanted if row not in known]
    if missing:
        what = "idx" if numbers is not None else "row"
        raise ConfigError(
            f"--groups {text!r}: {len(missing)} images of the records are not in it ({what} {missing[0]}): give the whole table"
        )
    chosen = values[[known[row] for row in wanted]]
    found = len(set(chosen.tolist()))
    if found > MOST_GROUPS:
        raise ConfigError(
            f"--groups {text!r}: {found} different values: give a column of at most {MOST_GROUPS}"
        )
    return chosen


def _wanted(text: str, records: Records, by_idx: bool) -> list[int]:
    if by_idx:
        return [int(each) for each in records.idx]
    if records.row is None:
        raise ConfigError(
            f"--groups {text!r}: these records do not keep the rows of the file of data: add a column idx, the number of "
            "each image in the records"
        )
    return [int(each) for each in records.row]


def _table(path: Path, text: str, column: str) -> tuple[NDArray[np.str_], list[int] | None]:
    """The values of a column, and the images that its rows are where a column idx says so."""
    (_, header), *rows = read_rows(path, "--groups")
    if column not in header:
        raise ConfigError(f"--groups {text!r}: the columns are {', '.join(header)}: name one of them")
    at = header.index(column)
    values = np.array([row[at] or "(none)" for _, row in rows], dtype=np.str_)
    if "idx" not in header:
        return values, None
    where = header.index("idx")
    try:
        numbers = [int(row[where]) for _, row in rows]
    except ValueError as error:
        raise ConfigError(f"--groups {text!r}: column idx has more than whole numbers ({error})") from error
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--groups {text!r}: column idx names an image twice: give each one row")
    return values, numbers


def _array(path: Path, column: str) -> tuple[NDArray[np.str_], list[int] | None]:
    arrays = read_npz(path, [column], "--groups", optional=["idx"])
    values = arrays[column]
    numbers = arrays.get("idx")
    if values.ndim != 1 or (numbers is not None and numbers.shape != values.shape):
        raise ConfigError(f"--groups {str(path)!r}: {column} has shape {values.shape}: give an array (N,)")
    if numbers is None:
        return values.astype(np.str_), None
    if numbers.dtype.kind not in "iu" or len(np.unique(numbers)) < len(numbers):
        raise ConfigError(f"--groups {str(path)!r}: idx must be different whole numbers, one an image")
    return values.astype(np.str_), numbers.tolist()
