"""A table of paths and labels: CSV or TSV, the paths relative to it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from certdef.config.job import ConfigError
from certdef.data.folders import MOST_FILES
from certdef.data.labels import labels_from_texts
from certdef.data.pictures import Pictures
from certdef.data.pixels import Form
from certdef.data.source import Progress, Source, no_bar

PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "picture",
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "y")
SHOWN = 5
MOST_BYTES = 2**30


def read_table(path: Path, columns: Sequence[str] | None, form: Form, progress: Progress = no_bar) -> Source:
    """Pictures by a table.

    Args:
        path: A .csv or .tsv with a row a picture.
        columns: Names of the column of paths and, where there are labels, of that of labels; unset, they are found by their
            names, or by files that are there.
        form: Size and color of the images.
        progress: A factory of progress bars like tqdm.

    Raises:
        ConfigError: No such columns, missing files or labels (all at once), or files that are no pictures.
    """
    rows = read_rows(path)
    where, labels, rows = _columns(path, rows, columns)
    files = [path.parent / row[where] for _, row in rows]
    problems = [
        f"line {line} names {row[where]!r}, which is not there"
        for (line, row), file in zip(rows, files, strict=True)
        if not file.exists()
    ]
    if labels is not None:
        problems += [f"line {line} has no label" for line, row in rows if not row[labels]]
    if problems:
        more = f"\nand {len(problems) - SHOWN:,} more such lines" if len(problems) > SHOWN else ""
        remedy = "; paths are relative to the table: mend or drop the line"
        raise ConfigError(
            "\n".join(f"data.path {str(path)!r}: {each}{remedy}" for each in problems[:SHOWN]) + more
        )
    pictures = Pictures([str(file) for file in files], lambda index: files[index], form, progress)
    if labels is None:
        return Source(path.stem, pictures)
    return Source(path.stem, pictures, *labels_from_texts([row[labels] for _, row in rows]))


def read_rows(path: Path, what: str = "data.path") -> list[tuple[int, list[str]]]:
    """The rows of a table that are not empty, the header among them, with the numbers of their lines; all of one width.

    Args:
        path: CSV in UTF-8, also with tabs or semicolons.
        what: The option that names it, for errors.

    Raises:
        ConfigError: It can't be read, or is no table.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{what} {str(path)!r} is larger than 1 GiB: give a shorter table")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {str(path)!r} can't be read ({error}): give a table in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise ConfigError(f"{what} {str(path)!r} is no table ({error}): write it as CSV") from error
    if not 1 <= len(rows) <= MOST_FILES:
        raise ConfigError(
            f"{what} {str(path)!r} has {len(rows):,} rows: give one a picture, at most {MOST_FILES:,}"
        )
    for line, row in rows:
        if len(row) != len(rows[0][1]):
            raise ConfigError(
                f"{what} {str(path)!r}: line {line} has {len(row)} columns, the first one {len(rows[0][1])}: quote what has "
                f"a {delimiter!r} in it"
            )
    return rows


def _columns(
    path: Path, rows: list[tuple[int, list[str]]], columns: Sequence[str] | None
) -> tuple[int, int | None, list[tuple[int, list[str]]]]:
    """The column of paths, that of labels or None, and the rows without the header."""
    header = rows[0][1]
    wanted = "name them with --data.columns [PATHS,LABELS], or [PATHS] where there are no labels"
    if columns is not None:
        missing = [name for name in columns if name not in header]
        if missing or not 1 <= len(columns) <= 2:
            raise ConfigError(
                f"data.columns is {list(columns)}, but {str(path)!r} has {', '.join(header)}: {wanted}"
            )
        found = [header.index(name) for name in columns]
        return found[0], found[1] if len(found) > 1 else None, _body(path, rows[1:])
    names = [cell.lower() for cell in header]
    where = [names.index(name) for name in PATHS if name in names]
    labels = [names.index(name) for name in LABELS if name in names]
    if where and (len(header) == 1 or labels):
        return where[0], labels[0] if labels else None, _body(path, rows[1:])
    files = [number for number, cell in enumerate(header) if cell and (path.parent / cell).is_file()]
    if len(files) == 1 and len(header) <= 2:  # no header
        return files[0], 1 - files[0] if len(header) == 2 else None, rows
    raise ConfigError(f"data.path {str(path)!r} has the columns {', '.join(header)}: {wanted}")


def _body(path: Path, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    if not rows:
        raise ConfigError(f"data.path {str(path)!r} has a header and no rows: give a row a picture")
    return rows
