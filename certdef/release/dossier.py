"""Everything that is known of one job, wherever it is: in MLflow, in the job's folder, or in its records alone."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from certdef.config.job import ConfigError, RunConfig
from certdef.config.load import load_config
from certdef.release.places import FILES, HOW, check_ledger, check_place, records_in, records_of_folder
from certdef.tracking.checked_json import read_json
from certdef.tracking.jobs import TrackedJob, fetch_job
from certdef.tracking.workspace import FINGERPRINT, RESULT

CERTIFY = "certify"


@dataclass(frozen=True, kw_only=True)
class Dossier:
    """What is known of a job.

    Attributes:
        given: What the caller named.
        kind: What that is.
        records: Files of records by name.
        subject: Whose records come first: target, or surrogate where that is the registered version.
        stages: Results in plain form, by the name of their stage.
        unclear: Stages that the folder has several of, and which ones.
        job: What MLflow keeps.
        config: The job's configuration.
        ledger: Its ledger, where that is on this machine.
    """

    given: str
    kind: Literal["run", "folder", "records"]
    records: dict[str, Path]
    subject: str = "target"
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    unclear: dict[str, tuple[str, ...]] = field(default_factory=dict)
    job: TrackedJob | None = None
    config: RunConfig | None = None
    ledger: Path | None = None


def open_dossier(given: str | Path, tracking_uri: str | None, ledger: str | None, into: Path) -> Dossier:
    """Find all that is known of a job.

    Args:
        given: A run id, models:/NAME/VERSION, a folder, or a file of records.
        tracking_uri: The store of runs and versions.
        ledger: The job's ledger; unset, it is looked for where the job had it.
        into: An empty folder, for what is downloaded.

    Raises:
        ConfigError: Nothing of this name, nothing certified in it, a ledger that is not there, or a result that was changed.
    """
    text, path = str(given), Path(given)
    check_ledger(ledger)
    own = None if ledger is None else Path(ledger)
    if path.is_file():
        if path.suffix not in FILES:
            raise ConfigError(f"{text!r} is no .jsonl or .tsv of records: {HOW}")
        return _of_place(text, path.parent, {path.stem: path}, own)
    if path.is_dir():
        place, files = records_of_folder(text, path)
        return _of_place(text, place, files, own)
    check_place(text)
    return _of_run(text, fetch_job(text, tracking_uri, into), own)


def _of_run(text: str, job: TrackedJob, ledger: Path | None) -> Dossier:
    config = None
    if job.config is not None:
        with suppress(ConfigError):  # of a version that had other options
            config = load_config(file=job.config)
    if ledger is None and config is not None and config.ledger_path.is_file():
        ledger = config.ledger_path
    return Dossier(
        given=text,
        kind="run",
        records=records_in(job.records),
        subject=job.subject,
        stages={name: read_json(folder / RESULT) for name, folder in job.stages.items()},
        job=job,
        config=config,
        ledger=ledger,
    )


def _of_place(text: str, place: Path, files: dict[str, Path], ledger: Path | None) -> Dossier:
    """Of a folder of records: a job's, if it is below one of its stages."""
    stage = place.parent
    if place.name != "records" or not (stage / RESULT).is_file():
        return Dossier(given=text, kind="records", records=files, ledger=ledger)
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(stage.parent.glob(f"*-{FINGERPRINT}")):
        if (folder / RESULT).is_file():
            found[folder.name[: -len("-0123456789abcdef")]].append(folder)
    found[CERTIFY] = [stage]
    there = stage.parent / "ledger.db"
    return Dossier(
        given=text,
        kind="folder",
        records=files,
        stages={name: read_json(folders[0] / RESULT) for name, folders in found.items() if len(folders) == 1},
        unclear={
            name: tuple(each.name for each in folders) for name, folders in found.items() if len(folders) > 1
        },
        ledger=ledger or (there if there.is_file() else None),
    )


def headline_of(dossier: Dossier) -> str:
    """The name of the records that come first: those of the subject's headline, as its job says."""
    curves: dict[str, Any] = dossier.stages.get(CERTIFY, {}).get("curves", {})
    first = [
        key for key, curve in curves.items() if curve["headline"] and curve["subject"] == dossier.subject
    ]
    known = [key for key in first if key in dossier.records]
    if known:
        return known[0]
    own = [key for key in dossier.records if key.startswith(f"{dossier.subject}-")]
    figures = [] if dossier.job is None else list(dossier.job.metrics)
    # Only what is no headline has its own name among the metrics of a run.
    first = [key for key in own if not any(name.startswith(key.replace("-", "/") + "/") for name in figures)]
    return ((first if figures else []) or own or list(dossier.records))[0]


def radii_of(dossier: Dossier) -> tuple[float, ...] | None:
    """The radii that the job decided its images at; None where it is not known."""
    radii = dossier.stages.get(CERTIFY, {}).get("radii")
    if radii is None and dossier.config is not None:
        radii = dossier.config.certify.radii
    return None if radii is None else tuple(radii)
