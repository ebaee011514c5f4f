"""The records of a set of images whose shards were certified apart: one log, with the bytes of an uninterrupted run.

A record says nothing of where it was made, so merging takes lines as they are and puts them in the order of their images.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certify.errors import CertifyError
from certify.records.jsonl import FORMAT, Log, json_line, parse_log
from certify.records.reader import check_proofs, read_file
from certify.records.rows import Fault, Row, check_alike
from certify.records.tsv import HEADER, recover_tsv

MOST_NAMED = 5  # images in one error


def merge_records(shards: Sequence[str | Path], path_stem: str | Path, images: Sequence[int]) -> Path:
    """Write the records of shards as those of one run; returns the ``.jsonl``, beside which is the ``.tsv``.

    Every bound is computed again from its votes first. The ``.jsonl`` has the bytes that one process would have written, the
    ``.tsv`` those but for the times, which are the shards' own. What stood under these names is replaced in one step.

    Args:
        shards: Their ``.jsonl`` files, in any order; a shard may have no image.
        path_stem: Where to, without suffix.
        images: The indices of all images, each of which exactly one shard has.

    Raises:
        CertifyError: Names the shard that is damaged, differs in its configuration, or has an image that another has or that
            is none of these; or the images that no shard has.
    """
    if not shards:
        raise CertifyError("merging needs at least one shard, got none: give the .jsonl of each")
    paths = [Path(shard) for shard in shards]
    contents = [read_file(path) for path in paths]
    logs = [parse_log(path, data) for path, data in zip(paths, contents, strict=True)]
    _check_alike(paths, logs)
    owners = _owners(paths, logs, set(images))
    missing = sorted(set(images) - owners.keys())
    if missing:
        raise CertifyError(
            f"no shard has {_named(missing)}: finish the shard that they belong to, then merge again"
        )
    for path, log in zip(paths, logs, strict=True):
        check_proofs(path, log)
    _check_laws(paths, logs)
    lines: dict[int, bytes] = {}
    times: dict[int, bytes] = {}
    for path, data, log in zip(paths, contents, logs, strict=True):
        names = [row["idx"] for row in log.rows]
        lines |= dict(zip(names, data.split(b"\n")[1:], strict=False))
        times |= dict(zip(names, _timed(path, log), strict=True))
    stem = Path(path_stem)
    header = json_line({"format": FORMAT, "config": logs[0].config}, sort_keys=True)
    tsv = HEADER.encode() + b"".join(times[index] for index in sorted(times))
    _replace(stem.with_name(stem.name + ".tsv"), tsv)
    merged = stem.with_name(stem.name + ".jsonl")
    _replace(merged, header + b"".join(lines[index].rstrip(b"\r") + b"\n" for index in sorted(lines)))
    return merged


def _check_alike(paths: list[Path], logs: list[Log]) -> None:
    """Refuse a shard with another configuration than the first."""
    first = logs[0].config
    for path, log in zip(paths[1:], logs[1:], strict=True):
        differing = [
            f"{name} {_shown(log.config, name)}, not {_shown(first, name)}"
            for name in sorted({*first, *log.config})
            if _shown(first, name) != _shown(log.config, name)
        ]
        if differing:
            raise CertifyError(
                f"shard {path} has another configuration than {paths[0]} ({'; '.join(differing)}): certify it again with "
                "the same options, version and device"
            )


def _owners(paths: list[Path], logs: list[Log], images: set[int]) -> dict[int, Path]:
    """Which shard has which image."""
    owners: dict[int, Path] = {}
    for path, log in zip(paths, logs, strict=True):
        names = {row["idx"] for row in log.rows}
        if strange := sorted(names - images):
            raise CertifyError(f"shard {path} has {_named(strange)}, not of this job: give its own shards")
        if twice := sorted(names & owners.keys()):
            raise CertifyError(
                f"shard {path} has {_named(twice)}, as {owners[twice[0]]} has: give each shard once"
            )
        owners |= dict.fromkeys(names, path)
    return owners


def _check_laws(paths: list[Path], logs: list[Log]) -> None:
    """Refuse a shard whose records have another law, number of classes or kind of bound: one log has one for all of them."""
    first: Row | None = None
    for path, log in zip(paths, logs, strict=True):
        for row in log.rows[:1]:
            first = first or row
            try:
                check_alike(row, first)
            except Fault as fault:
                raise CertifyError(
                    f"shard {path} does not go with the first one, image {first['idx']} ({fault}): certify it again with the "
                    "same model, law and bound"
                ) from None


def _timed(path: Path, log: Log) -> list[bytes]:
    """The lines of a shard's ``.tsv``, one a record; a lost one returns with a time of 0."""
    tsv = path.with_suffix(".tsv")
    recover_tsv(tsv, log.rows)
    return tsv.read_bytes().splitlines(keepends=True)[1:]


def _named(indices: list[int]) -> str:
    """`image 3` or `images 3, 5, ... (7 in all)`."""
    if len(indices) == 1:
        return f"image {indices[0]}"
    shown = ", ".join(map(str, indices[:MOST_NAMED]))
    return f"images {shown}" if len(indices) <= MOST_NAMED else f"images {shown}, ... ({len(indices)} in all)"


def _shown(config: dict[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "unset"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
