"""All that MLflow keeps of one job: its runs, the results of its stages, its configuration, its data. Nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from certdef.config.job import without_password
from certdef.tracking.checked_json import file_digest
from certdef.tracking.mlflow import PARENT
from certdef.tracking.runs import VERSION, find_records, opened_store, registered_version, store_of
from certdef.tracking.workspace import RESULT

CONFIG = "config.yaml"


@dataclass(frozen=True)
class TrackedVersion:
    """A registered version of a model.

    Attributes:
        name: In the registry.
        version: Its number.
        aliases: Names that point to it now.
        source: Where its files are.
        sha256: Of its files, see digest_of_files; None where they can't be fetched, and then why.
        unread: Why there is no digest.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    source: str
    sha256: str | None
    unread: str = ""


@dataclass(frozen=True)
class TrackedData:
    """A data set of a job as MLflow logged it."""

    name: str
    digest: str
    context: str


@dataclass(frozen=True, kw_only=True)
class TrackedJob:
    """What MLflow keeps of a job.

    Attributes:
        store: URI without a password.
        run_id: The run with the records.
        job_id: The job's parent run; the same where there is none.
        name: Of that.
        started, ended: Seconds since 1970.
        metrics: Of the parent run.
        tags: Of the parent run.
        records: The folder of the records.
        subject: Whose they should be where several are there: target or surrogate.
        stages: Folders with the result of each stage, by its name.
        config: The configuration; None where it was not logged.
        data: Its data sets.
        version: The registered version that was named.
    """

    store: str
    run_id: str
    job_id: str
    name: str
    started: float
    ended: float | None
    metrics: dict[str, float]
    tags: dict[str, str]
    records: Path
    subject: str
    stages: dict[str, Path] = field(default_factory=dict)
    config: Path | None = None
    data: tuple[TrackedData, ...] = ()
    version: TrackedVersion | None = None


def fetch_job(given: str, tracking_uri: str | None, into: Path) -> TrackedJob:
    """Download what MLflow keeps of a job, by a run id or models:/NAME/VERSION or models:/NAME@ALIAS.

    Args:
        given: What is looked for.
        tracking_uri: The store, as for fetch_records.
        into: An empty folder.

    Raises:
        ConfigError: No store, no such run or version, no records, or several runs that have some.
    """
    with opened_store(given, tracking_uri) as client:
        run, path, subject = find_records(client, given)
        records = Path(client.download_artifacts(run.info.run_id, path, _folder(into, "records")))
        parent = run.data.tags.get(PARENT)
        job = client.get_run(parent) if parent else run
        return TrackedJob(
            store=without_password(store_of(tracking_uri)),
            run_id=run.info.run_id,
            job_id=job.info.run_id,
            name=job.info.run_name or "",
            started=job.info.start_time / 1000,
            ended=job.info.end_time / 1000 if job.info.end_time else None,
            metrics=dict(job.data.metrics),
            tags={name: value for name, value in job.data.tags.items() if name.startswith("certdef.")},
            records=records,
            subject=subject,
            stages=dict(_stages(client, job, into)),
            config=_artifact(client, job, CONFIG, into, "job"),
            data=tuple(_data(job)),
            version=_version(client, given, store_of(tracking_uri)),
        )


def _stages(client: Any, job: Any, into: Path) -> Iterator[tuple[str, Path]]:
    """The results of the runs below a job, the latest of each name last."""
    wanted = f"tags.`{PARENT}` = '{job.info.run_id}'"
    for run in client.search_runs([job.info.experiment_id], wanted, order_by=["attributes.start_time ASC"]):
        found = _artifact(client, run, RESULT, into, run.info.run_id)
        if found is not None:
            yield str(run.info.run_name), found.parent


def _artifact(client: Any, run: Any, name: str, into: Path, folder: str) -> Path | None:
    """A file of a run, downloaded; None where there is none."""
    if not any(entry.path == name for entry in client.list_artifacts(run.info.run_id)):
        return None
    return Path(client.download_artifacts(run.info.run_id, name, _folder(into, folder)))


def _folder(into: Path, name: str) -> str:
    folder = into / name
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _data(job: Any) -> Iterator[TrackedData]:
    for each in job.inputs.dataset_inputs if job.inputs else ():
        context = next((tag.value for tag in each.tags if tag.key == "mlflow.data.context"), "")
        yield TrackedData(each.dataset.name, each.dataset.digest, context)


def _version(client: Any, given: str, store: str) -> TrackedVersion | None:
    match = VERSION.fullmatch(given)
    if match is None:
        return None
    version = registered_version(client, match)
    sha256, unread = digest_of_uri(
        client.get_model_version_download_uri(version.name, version.version), store
    )
    aliases: tuple[str, ...] = ()
    with suppress(AttributeError, TypeError):
        aliases = tuple(sorted(version.aliases))
    return TrackedVersion(
        match["name"], str(version.version), aliases, without_password(version.source or ""), sha256, unread
    )


def digest_of_uri(uri: str, store: str) -> tuple[str | None, str]:
    """The digest of a model's files, see digest_of_files; else None, and why they can't be fetched.

    Args:
        uri: Where MLflow has them.
        store: Its tracking store.
    """
    import mlflow

    with TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=store)
        except Exception as error:  # whatever the store of the files raises: who asks says so and goes on
            said = without_password(str(error))
            return None, said.splitlines()[0] if said else type(error).__name__
        return digest_of_files(Path(path)), ""


def digest_of_files(folder: Path) -> str:
    """The SHA-256 of a folder: over a line `SHA-256  PATH` for each file, sorted by path, as sha256sum writes it."""
    lines = sorted(
        (path.relative_to(folder).as_posix(), file_digest(path))
        for path in folder.rglob("*")
        if path.is_file()
    )
    text = "".join(f"{digest}  {name}\n" for name, digest in lines)
    return hashlib.sha256(text.encode()).hexdigest()
