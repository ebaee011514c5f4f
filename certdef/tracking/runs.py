"""Records that MLflow keeps: those of a run, of the runs below it, and of a registered version. Nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError, without_password
from certdef.tracking import server_watch
from certdef.tracking.local_store import is_missing
from certdef.tracking.mlflow import LOCAL_STORE, PARENT

VERSION = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
DEEPEST = 3  # folders of artifacts
MEND = "name its folder or .jsonl, or choose the store with --tracking.uri"


@dataclass(frozen=True)
class TrackedRecords:
    """Records on a run, downloaded.

    Attributes:
        run_id: The run that keeps them.
        folder: Where they are now.
        metrics: Names of the run's metrics.
        subject: Whose they should be where several are there: target, or surrogate where that is what is registered.
    """

    run_id: str
    folder: Path
    metrics: frozenset[str]
    subject: str = "target"


def fetch_records(given: str, tracking_uri: str | None, into: Path) -> TrackedRecords:
    """Download the records of a run id, or of models:/NAME/VERSION or models:/NAME@ALIAS.

    The records are on the run itself or on runs below it. Of a registered version they are on the run that made it, beside
    that run in its job, or on the latest job that certified this version as its target.

    Args:
        given: What is looked for.
        tracking_uri: The store; unset, $MLFLOW_TRACKING_URI, else the one in mlruns/.
        into: An empty folder.

    Raises:
        ConfigError: No store, no such run or version, no records, or several runs that have some.
    """
    with opened_store(given, tracking_uri) as client:
        run, path, subject = find_records(client, given)
        folder = Path(client.download_artifacts(run.info.run_id, path, str(into)))
        return TrackedRecords(run.info.run_id, folder, frozenset(run.data.metrics), subject)


def store_of(tracking_uri: str | None) -> str:
    """The store that is meant: as given, $MLFLOW_TRACKING_URI, else the one in mlruns/."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOCAL_STORE}/mlflow.db"


@contextmanager
def opened_store(given: str, tracking_uri: str | None) -> Iterator[Any]:
    """MLflow's client of a store that is only read; what fails in the block becomes one line.

    Args:
        given: The run or version that is looked for.
        tracking_uri: The store, as for fetch_records.

    Raises:
        ConfigError: As there.
    """
    uri = store_of(tracking_uri)
    if is_missing(uri):
        raise ConfigError(f"{given!r}: tracking store {uri!r} is not there: {MEND}")
    if given.startswith("models:") and not VERSION.fullmatch(given):
        raise ConfigError(
            f"{given!r} is no registered version: write models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with server_watch.bounded():
        if server_watch.is_server(uri):
            server_watch.check_server(uri)
        from mlflow import MlflowClient, MlflowException

        try:
            yield MlflowClient(uri, registry_uri=uri)
        except (MlflowException, OSError) as error:
            said = without_password(str(error).splitlines()[0])
            raise ConfigError(f"{given!r} in {without_password(uri)!r}: {said}: {MEND}") from error


def find_records(client: Any, given: str) -> tuple[Any, str, str]:
    """The run that has the records, the folder of artifacts that they are in, and whose they should be.

    Raises:
        ConfigError: No records, or several runs that have some.
    """
    match = VERSION.fullmatch(given)
    subject = "target"
    if match is None:
        found = _with_records(client, [client.get_run(given)])
    else:
        version = registered_version(client, match)
        made_by = [client.get_run(version.run_id)] if version.run_id else []
        found = _with_records(client, made_by)
        parents = [run.data.tags[PARENT] for run in made_by if PARENT in run.data.tags]
        if (
            not found and parents
        ):  # the certified surrogate of a job is registered by a run beside that of its records
            found = _with_records(client, [client.get_run(parents[0])])
            subject = "surrogate"
        if not found:
            found, subject = _of_its_jobs(client, match["name"], version.version), "target"
    if not found:
        raise ConfigError(f"{given!r}: no records on it: certify it first, or {MEND}")
    if len(found) > 1:
        names = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run, _ in found)
        raise ConfigError(f"{given!r} has records on several runs: name one of {names}")
    return *found[0], subject


def registered_version(client: Any, match: re.Match[str]) -> Any:
    """The registered version that a URI of VERSION names."""
    if match["version"]:
        return client.get_model_version(match["name"], match["version"])
    return client.get_model_version_by_alias(match["name"], match["alias"])


def _with_records(client: Any, runs: list[Any]) -> list[tuple[Any, str]]:
    """Of these runs, else of the runs below them, those with records, and where."""
    found = [(run, path) for run in runs for path in _record_folders(client, run.info.run_id)]
    if found or not runs:
        return found
    below = [child for run in runs for child in _below(client, run)]
    return [(run, path) for run in below for path in _record_folders(client, run.info.run_id)]


def _below(client: Any, run: Any) -> Iterator[Any]:
    wanted = f"tags.`{PARENT}` = '{run.info.run_id}'"
    yield from client.search_runs([run.info.experiment_id], wanted)


def _record_folders(client: Any, run_id: str) -> Iterator[str]:
    """The folders of artifacts that hold a .jsonl and are named records."""
    level = [""]
    for _ in range(DEEPEST):
        entries = [entry for path in level for entry in client.list_artifacts(run_id, path or None)]
        level = [entry.path for entry in entries if entry.is_dir]
        for path in level:
            if path.rpartition("/")[2] == "records" and any(
                entry.path.endswith(".jsonl") for entry in client.list_artifacts(run_id, path)
            ):
                yield path


def _of_its_jobs(client: Any, name: str, version: str) -> list[tuple[Any, str]]:
    """The latest job that certified a registered version as its target."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    wanted = f"params.`target.uri` = 'models:/{name}/{version}'"
    for run in client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"]):
        if PARENT not in run.data.tags and (found := _with_records(client, [run])):
            return found
    return []
