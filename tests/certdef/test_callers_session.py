"""A job inside the caller's own MLflow session: a notebook or a sweep with a run open."""

import os
import shutil
import sqlite3
import subprocess
import sys

import mlflow
import pytest

import certdef
from certdef.cli import as_yaml
from certdef.tracking.callers_session import given_back

PARENT = "mlflow.parentRunId"


@pytest.fixture
def session(tmp_path, migrated_store, monkeypatch):
    """The caller's own store, experiment and environment; afterwards those of the other tests."""
    shutil.copy(migrated_store, tmp_path / "mine.db")
    uri = f"sqlite:///{tmp_path}/mine.db"
    with given_back():
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri("")
        mlflow.set_experiment("mine")
        yield uri


def test_a_job_beside_a_run_in_another_store(copied, session, tmp_path, monkeypatch):
    config = copied
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    with mlflow.start_run(run_name="sweep") as mine:
        summary = certdef.distill(config, progress=False)
        assert certdef.distill(config, progress=False).run_id == summary.run_id, "it is resumed"
        assert mlflow.active_run().info.run_id == mine.info.run_id
        mlflow.log_metric("after", 1.0)
    after = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    assert after == before
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == session
    assert mlflow.get_run(mine.info.run_id).data.metrics == {"after": 1.0}
    with mlflow.start_run() as next_run:
        assert mlflow.get_experiment(next_run.info.experiment_id).name == "mine"
    ours = mlflow.MlflowClient(config.tracking.uri).get_run(summary.run_id)
    assert PARENT not in ours.data.tags
    assert ours.info.status == "FINISHED"


def test_a_job_below_a_run_in_the_same_store(copied, session, tmp_path, monkeypatch):
    config = copied
    mlflow.set_tracking_uri(config.tracking.uri)
    mlflow.set_experiment("mine")
    with mlflow.start_run(run_name="sweep") as mine:
        summary = certdef.distill(config, progress=False)
        mlflow.log_metric("after", 1.0)
    ours = mlflow.get_run(summary.run_id)
    assert ours.data.tags[PARENT] == mine.info.run_id
    assert mlflow.get_experiment(ours.info.experiment_id).name == "certdef"
    assert mlflow.get_run(mine.info.run_id).data.metrics == {"after": 1.0}


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_session_without_an_experiment_has_none_afterwards(copied, tmp_path, monkeypatch):
    """In a process of its own: MLflow's active experiment cannot be unset in this one."""
    config = copied
    code = f"""
import mlflow, certdef, os
config = certdef.load_config(file={str(tmp_path / "job.yaml")!r})
before = dict(os.environ), mlflow.get_tracking_uri(), mlflow.get_registry_uri()
certdef.distill(config, progress=False)
assert (dict(os.environ), mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
mlflow.set_tracking_uri(config.tracking.uri)
with mlflow.start_run() as run:
    assert mlflow.get_experiment(run.info.experiment_id).name == "Default", run.info.experiment_id
"""
    (tmp_path / "job.yaml").write_text(as_yaml(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mlflow.db").exists(), "nothing was asked of the caller's own store"


@pytest.mark.parametrize("fails", [False, True])
def test_addresses_of_the_environment_stay_those_of_the_environment(fails, session, monkeypatch):
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", session)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    try:
        with given_back() as callers_uri:
            assert callers_uri == session
            assert "MLFLOW_RUN_ID" not in os.environ
            mlflow.set_tracking_uri("sqlite:///other.db")
            mlflow.set_registry_uri("sqlite:///other.db")
            os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "2"
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (session, "http://registry")
    assert os.environ["MLFLOW_RUN_ID"] == "0" * 32
    assert "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://changed")
    assert mlflow.get_tracking_uri() == "http://changed", "a later change of the environment still counts"


@pytest.mark.parametrize("store", ["missing", "half made"])
def test_a_store_that_is_not_there_is_not_made_and_ends_no_job(store, session, monkeypatch, tmp_path):
    path = tmp_path / "callers.db"
    if store == "half made":  # MLflow was killed in its first migration
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE registered_models (name TEXT)")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    with given_back():
        mlflow.set_tracking_uri(session)
    assert path.exists() == (store == "half made")
    assert mlflow.get_tracking_uri() == f"sqlite:///{path}"
