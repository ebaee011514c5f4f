"""OLD and NEW as a caller names them: records, a file, a folder, a run of MLflow or a registered version."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from certdef.config.job import ConfigError
from certdef.release.places import check_place, records_in, records_of_folder
from certdef.tracking.runs import fetch_records
from certify import CertifyError, read_records
from certify.records import Records


@dataclass(frozen=True)
class Source:
    """Records that may be meant, by the name of their file without its end.

    Attributes:
        given: What the caller named.
        files: Paths by name.
        headline: The ones that a job shows first: of the subject that is meant, if it is known.
        said: Where they were found, for tables.
    """

    given: str
    files: dict[str, Path]
    headline: str | None = None
    said: str = ""


@dataclass(frozen=True)
class Opened:
    """The records that are compared, and where they were."""

    given: str
    records: Records
    where: str = field(default="")


def open_both(
    old: str | Path | Records, new: str | Path | Records, condition: str | None, tracking_uri: str | None
) -> tuple[Opened, Opened]:
    """Read the records of both, of the same condition where there are several.

    Args:
        old: A run id, a path, models:/NAME/VERSION, or records that are read already.
        new: Likewise.
        condition: Name of the records file without its end, e.g. target-nim-none; unset, the headline of both.
        tracking_uri: The store of runs and versions.

    Raises:
        ConfigError: All that can't be found or read, or a choice that only the caller can make.
    """
    with TemporaryDirectory() as folder:
        found: list[Source | Opened] = []
        problems: list[str] = []
        for name, given in (("OLD", old), ("NEW", new)):
            try:
                found.append(_find(name, given, tracking_uri, Path(folder) / name))
            except (ConfigError, CertifyError) as error:
                problems.append(f"{name} {error}")
        if problems:
            raise ConfigError("\n".join(problems))
        names = _choose([each for each in found if isinstance(each, Source)], condition)
        opened = [each if isinstance(each, Opened) else _read(each, names[each.given]) for each in found]
    return opened[0], opened[1]


def _find(name: str, given: str | Path | Records, tracking_uri: str | None, folder: Path) -> Source | Opened:
    if isinstance(given, Records):
        return Opened(name, given, "records in memory")
    text, path = str(given), Path(given)
    if path.is_file():
        return Source(text, {path.stem: path}, path.stem, text)
    if path.is_dir():
        return _in_folder(text, path)
    check_place(text)
    folder.mkdir()
    tracked = fetch_records(text, tracking_uri, folder)
    files = records_in(tracked.folder)
    # Only what is no headline has its own name among the metrics of a run.
    first = [
        stem
        for stem in files
        if stem.startswith(f"{tracked.subject}-")
        and not any(metric.startswith(stem.replace("-", "/") + "/") for metric in tracked.metrics)
    ]
    return Source(text, files, first[0] if len(first) == 1 else None, f"run {tracked.run_id}")


def _in_folder(text: str, path: Path) -> Source:
    place, files = records_of_folder(text, path)
    return Source(text, files, _headline(place, files), str(place))


def _headline(place: Path, files: dict[str, Path]) -> str | None:
    """The target's first row, as the stage that wrote the folder says."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        curves = json.loads((place.parent / "result.json").read_text())["curves"]
        first = [key for key, curve in curves.items() if curve["headline"] and curve["subject"] == "target"]
        return first[0] if len(first) == 1 and first[0] in files else None
    return None


def _choose(sources: list[Source], condition: str | None) -> dict[str, str]:
    """The name of the records of each; the same one in both, unless each has but one."""
    if condition is not None:
        missing = [each for each in sources if condition not in each.files]
        if missing:
            lines = [
                f"--condition is {condition!r}, and {each.given} has {', '.join(each.files)}"
                for each in missing
            ]
            raise ConfigError("\n".join(lines))
        return {each.given: condition for each in sources}
    alone = all(len(each.files) == 1 for each in sources)
    if alone:
        return {each.given: next(iter(each.files)) for each in sources}
    shared = [name for name in sources[0].files if all(name in each.files for each in sources)]
    wanted = {each.headline for each in sources if len(each.files) > 1}
    if len(shared) == 1:
        return {each.given: shared[0] for each in sources}
    if len(wanted) == 1 and (name := wanted.pop()) in shared:
        return {each.given: str(name) for each in sources}
    firsts = ", ".join(f"{each.given}: {each.headline or 'unknown'}" for each in sources)
    if not shared:
        have = "; ".join(f"{each.given} has {', '.join(each.files)}" for each in sources)
        raise ConfigError(f"no records of the same name ({have}): name two files")
    raise ConfigError(
        f"their first records are not the same ({firsts}): choose with --condition, one of {', '.join(shared)}"
    )


def _read(source: Source, name: str) -> Opened:
    path = source.files[name]
    where = source.said if Path(source.said) == path else f"{source.said}: {path.name}"
    return Opened(source.given, read_records(path), where)
