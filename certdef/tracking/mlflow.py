"""MLflow: one parent run a job, a child run a stage. The only file that talks to the tracking server.

Stages hand over results (params, metrics, series, artifact files); nothing is computed here. Logging a finished
stage again is harmless, so an interrupted job goes on in the runs it had opened.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from certdef.config.job import ConfigError, RunConfig, flatten, without_password
from certdef.config.parts import reused
from certdef.data.sets import Splits
from certdef.tracking import legacy, metrics, server_watch
from certdef.tracking.checked_json import read_json, write_json
from certdef.tracking.local_store import holds_no_run, make_local_store
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import RESULT, Stage
from surrogates import Bill

LOCAL_STORE = Path("mlruns")
ACTIVE_EXPERIMENT = "MLFLOW_EXPERIMENT_ID"
PARENT = "mlflow.parentRunId"
STAGE = "certdef.stage"  # tag of a child run: the fingerprint of what it is of
NOTE = "mlflow.note.content"
TABLES = "mlflow.loggedArtifacts"
PLAIN_URIS = ("databricks", "databricks-uc")  # MLflow's names of services, which look like folders
SQLITE = b"SQLite format 3"  # how such a file begins
MOST_METRICS = 1000  # in one request
LONGEST_PARAM = 6000
LONGEST_NOTE = 7900  # MLflow refuses a tag of more than 8,000 characters


def tracking_uri(config: RunConfig) -> str:
    """tracking.uri, else $MLFLOW_TRACKING_URI, else the SQLite store in mlruns/."""
    return (
        config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOCAL_STORE}/mlflow.db"
    )


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SQLITE))


def check_store(uri: str) -> None:
    """Refuse a store that can't be written or reached, in one line and at once.

    Raises:
        ConfigError: Names the URI and what to do.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"tracking store {uri!r} can't be written ({error.strerror}): choose another with --tracking.uri"
            ) from error
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(
                f"tracking store {uri!r} can't be written: check its permissions, or choose another with --tracking.uri"
            )
        if path.is_file() and path.stat().st_size and _first_bytes(path) != SQLITE:
            raise ConfigError(
                f"tracking store {uri!r} is no SQLite database: move the file away, or choose another with --tracking.uri"
            )
    elif server_watch.is_server(uri):
        server_watch.check_server(uri)
    elif parts.scheme in ("", "file") and uri not in PLAIN_URIS:
        raise ConfigError(
            f"tracking.uri {uri!r} is a folder: MLflow 3 keeps runs in a database, e.g. sqlite:///{uri.removeprefix('file://').rstrip('/')}/mlflow.db"
        )


@server_watch.bounded()
def connect(config: RunConfig) -> Any:
    """MLflow, pointed at the checked store, with the experiment in place. Returns the module."""
    uri = tracking_uri(config)
    check_store(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs with a traceback, it raises too
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # unset, evaluation beside system metrics can wait for ever
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        make_local_store(uri)
        _choose_experiment(mlflow, config.tracking.experiment, uri)
    except ConfigError:
        raise
    except Exception as error:  # MLflow wraps whatever its database driver raises
        mend = "choose another with --tracking.uri, or another experiment with --tracking.experiment"
        if not isinstance(error, mlflow.MlflowException) and holds_no_run(uri):
            mend = "there is no run in it, so delete the file, and the next job makes a new one"
        raise ConfigError(
            f"tracking store {without_password(uri)!r} can't be used "
            f"({without_password(str(error).splitlines()[0])}): {mend}"
        ) from error
    return mlflow


def _choose_experiment(mlflow: Any, name: str, uri: str) -> None:
    """Make an experiment the active one; created unless it is there.

    MLflow cannot unset an active experiment, so where the caller has none it is named in the environment alone,
    which can be given back.
    """
    if mlflow.get_experiment_by_name(name) is None:
        artifacts = (
            (LOCAL_STORE / "artifacts").resolve().as_uri()
            if uri == f"sqlite:///{LOCAL_STORE}/mlflow.db"
            else None
        )
        try:
            mlflow.create_experiment(name, artifact_location=artifacts)
        except mlflow.MlflowException:
            if mlflow.get_experiment_by_name(name) is None:  # else another job was faster
                raise
    experiment = mlflow.get_experiment_by_name(name)
    if ACTIVE_EXPERIMENT in os.environ or experiment.lifecycle_stage != "active":  # the latter is refused
        mlflow.set_experiment(name)
    os.environ[ACTIVE_EXPERIMENT] = experiment.experiment_id


class Tracker:
    """The MLflow runs of one job, below an active run of the caller's where that is in the same store.

    Args:
        config: The job.
        callers_uri: The tracking URI of the caller's session.
    """

    def __init__(self, config: RunConfig, callers_uri: str):
        self.config, self.callers_uri = config, callers_uri
        self.mlflow = connect(config)
        self.uri = tracking_uri(config)
        self._file = legacy.runs_file(config, self.uri)
        self._runs: dict[str, str] = read_json(self._file) if self._file.is_file() else {}
        self._runs = {name: run for name, run in self._runs.items() if self._exists(run)}

    @property
    def run_id(self) -> str:
        """The parent run."""
        return self._runs["job"]

    def run_of(self, stage: str) -> str:
        """The run of a stage."""
        return self._runs[stage]

    @property
    def client(self) -> Any:
        """MLflow's client of the job's store."""
        return self.mlflow.MlflowClient(self.uri, registry_uri=self.uri)

    @property
    def run_page(self) -> str:
        """Address of the parent run's page; empty where no server is asked, and pages need one to be started."""
        if self.uri.startswith(PLAIN_URIS):
            from mlflow.utils.databricks_utils import get_databricks_run_url

            return get_databricks_run_url(self.uri, self.run_id) or ""
        if not server_watch.is_server(self.uri):
            return ""
        experiment = self.mlflow.MlflowClient(self.uri).get_run(self.run_id).info.experiment_id
        return f"{without_password(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    @contextmanager
    def job(self, data: Splits) -> Iterator[None]:
        """The parent run: configuration, data set, and whatever the stages add. A caller's autologging adds nothing to it."""
        from mlflow.utils.autologging_utils import disable_autologging

        config = self.config
        purifier = "" if config.purifier == RunConfig.purifier else f", {config.purifier}"
        elsewhere = self.uri != self.callers_uri  # then an active run of the caller's is in another store
        run = self._run("job", f"{config.name}{purifier}, seed {config.seed}", alone=elsewhere)
        with disable_autologging(), server_watch.watched(self.uri, config.workspace), run:
            self.mlflow.set_tags(_tags(config))
            self.mlflow.log_params(_params(flatten(self.config.public_dict())))
            self.mlflow.log_dict(self.config.public_dict(), "config.yaml")
            images = self.mlflow.data.from_numpy
            labels = data.heldout_labels if data.labeled else None
            heldout = images(data.heldout_images, targets=labels, name=f"{data.name}-heldout")
            self.mlflow.log_input(heldout, context="evaluation")
            if len(data.pool):
                pool = images(data.pool, name=f"{data.name}-pool-unlabelled")
                self.mlflow.log_input(pool, context="training")
            yield

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """The child run of a stage; after the block, the stage's result is logged in it and on the parent."""
        if self._is_of_another(stage):
            del self._runs[stage.name]  # it keeps its run
        if stage.done and self._finished(stage.name):
            yield
        else:
            with self._run(stage.name, stage.name):
                self.mlflow.set_tag(STAGE, stage.fingerprint)
                yield
                if stage.done:
                    self._log(stage.result, stage.path)
        if stage.done:
            metrics = stage.result.metrics  # on the parent, where jobs are compared
            if not metrics.keys() <= self.mlflow.get_run(self.run_id).data.metrics.keys():
                self.mlflow.log_metrics(metrics)

    def log_bill(self, bill: Bill) -> None:
        """The query bill, on the parent run."""
        charges = {"": bill.total} | {f"_{purpose}": charge for purpose, charge in bill.charges.items()}
        spent = {metrics.SPENT.format(purpose=name): charge.spent for name, charge in charges.items()}
        budget = {metrics.BUDGET.format(purpose=name): charge.budget for name, charge in charges.items()}
        self.mlflow.log_metrics(spent | budget)

    def describe(self, summary: str, lineage: str = "") -> None:
        """The summary of the job as the description of the parent run, which MLflow shows above all else.

        Args:
            summary: As it is printed.
            lineage: Markdown below it.
        """
        text = summary[: LONGEST_NOTE - len(lineage)]
        self.mlflow.set_tag(NOTE, f"```text\n{text}\n```\n{lineage}".rstrip())

    def log_files(self, *paths: Path) -> None:
        """Files on the parent run."""
        for path in paths:
            self.mlflow.log_artifact(str(path))

    def _log(self, result: StageResult, folder: Path) -> None:
        self.mlflow.log_params(_params(result.params))
        self.mlflow.log_metrics({name: value for name, value in result.metrics.items() if value is not None})
        series = {name: tuple(enumerate(values)) for name, values in result.series.items()}
        self._log_points(series | result.points)
        for pattern in result.artifacts:
            for path in sorted(folder.glob(pattern)):
                where = str(path.parent.relative_to(folder))
                self.mlflow.log_artifact(str(path), None if where == "." else where)
        self.mlflow.log_artifact(str(folder / RESULT))  # all that is known, also where this folder is not
        run = self.mlflow.active_run()
        for name, columns in result.tables(folder).items():
            if name not in run.data.tags.get(TABLES, ""):  # logged again, it would be appended to itself
                self.mlflow.log_table(columns, name)

    def _log_points(self, points: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Metrics with a value a step, many in one request."""
        now, run = round(1000 * time.time()), self.mlflow.active_run().info.run_id
        metric = self.mlflow.entities.Metric
        every = [
            metric(name, value, now, step)
            for name, pairs in points.items()
            for step, value in pairs
            if value is not None
        ]
        for start in range(0, len(every), MOST_METRICS):
            self.mlflow.MlflowClient().log_batch(run, metrics=every[start : start + MOST_METRICS])

    @contextmanager
    def _run(self, key: str, name: str, alone: bool = False) -> Iterator[None]:
        system = self.config.tracking.system_metrics
        if system:
            self.mlflow.set_system_metrics_sampling_interval(2)
            self.mlflow.set_system_metrics_samples_before_logging(1)
        # nested also below a run of the caller's own, which stays open
        run = self.mlflow.start_run(
            run_id=self._runs.get(key), run_name=name, nested=True, log_system_metrics=system
        )
        with run:
            if alone and PARENT in run.data.tags:
                self.mlflow.MlflowClient().delete_tag(run.info.run_id, PARENT)
            self._runs[key] = run.info.run_id
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._runs)
            yield

    @server_watch.bounded()
    def _exists(self, run_id: str) -> bool:
        try:
            return self.mlflow.get_run(run_id).info.lifecycle_stage == "active"
        except self.mlflow.MlflowException:
            return False

    def _is_of_another(self, stage: Stage) -> bool:
        """Whether the run under a stage's name is of another result: a default changed, which the job's options don't tell."""
        if stage.name not in self._runs:
            return False
        run = self.mlflow.get_run(self._runs[stage.name])
        tag = run.data.tags.get(STAGE)  # older runs have none
        return tag != stage.fingerprint if tag else run.info.status == "FINISHED" and not stage.done

    def _finished(self, key: str) -> bool:
        return key in self._runs and self.mlflow.get_run(self._runs[key]).info.status == "FINISHED"


class Untracked(Tracker):
    """The tracker of a shard: it connects, for targets that MLflow keeps, and logs nothing. The run is that of the merge."""

    @property
    def run_id(self) -> str:
        return ""

    @property
    def run_page(self) -> str:
        return ""

    @contextmanager
    def job(self, data: Splits) -> Iterator[None]:
        with server_watch.watched(self.uri, self.config.workspace):
            yield

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        yield

    def log_bill(self, bill: Bill) -> None:
        pass

    def describe(self, summary: str, lineage: str = "") -> None:
        pass

    def log_files(self, *paths: Path) -> None:
        pass


def _tags(config: RunConfig) -> dict[str, str]:
    """By which a job is found among others."""
    tags = {
        "target": without_password(config.target.uri or config.name),
        "purifier": config.purifier,
        "law": config.headline_law,
        "seed": config.seed,
        "preset": config.preset,
        "version": version("certdef"),
    } | {option: without_password(given) for option, given in reused(config).items()}
    return {f"certdef.{name}": str(value) for name, value in tags.items()}


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them: texts of limited length."""
    return {key: str(value)[:LONGEST_PARAM] for key, value in values.items()}
