"""What a finished job leaves in MLflow."""

import dataclasses
import json
from pathlib import Path

import pytest

import certify
from certdef.config.job import ConfigError
from certdef.config.load import load_config
from certdef.tracking.callers_session import given_back
from certdef.tracking.mlflow import check_store, tracking_uri

STUDENTS = {f"student-{law}-{purifier}" for law in ("nim", "wide") for purifier in ("de3", "none")}
PARENT = "digits, seed 0"
STAGES = {"target", "surrogate", "nim", "nim-wide", "purifier-de3", "certify", "attack", "served"} | STUDENTS


@pytest.fixture(scope="module")
def client(tiny_job):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=tiny_job[0].tracking.uri)


@pytest.fixture(scope="module")
def runs(tiny_job, client):
    """Every run of the job by name; the parent has the seed in its name."""
    experiment = client.get_experiment_by_name("certdef")
    own = tiny_job[1].run_id
    every = client.search_runs([experiment.experiment_id])
    found = [run for run in every if own in (run.info.run_id, run.data.tags.get("mlflow.parentRunId"))]
    assert len(found) == 1 + len(STAGES)
    return {run.info.run_name: run for run in found}


def test_one_parent_and_a_child_for_each_stage(tiny_job, runs):
    assert set(runs) == {PARENT} | STAGES
    parent = runs[PARENT].info.run_id
    assert parent == tiny_job[1].run_id
    assert all(runs[name].data.tags["mlflow.parentRunId"] == parent for name in STAGES)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_metric_names(runs, tiny_job):
    metrics = runs[PARENT].data.metrics
    expected = {
        "target/clean_accuracy",
        "target/certified_accuracy_at_0.25",
        "target/certified_accuracy_at_1",
        "surrogate/certified_accuracy_at_0.5",
        "surrogate/agreement_clean",
        "surrogate/agreement_noisy",
        "queries/spent",
        "queries/budget",
        "queries/spent_training",
        "certify/samples_per_image",
        "certify/seconds_per_image",
        "attack/transfer_pgd_target_eps_0.1/accuracy",
        "target/wide/none/certified_accuracy_at_0.5",
        "surrogate/gaussian/de3/certified_accuracy_at_0.5",
    }
    assert expected <= metrics.keys()
    bill = tiny_job[1].bill
    assert metrics["queries/spent"] == bill.total.spent
    assert metrics["queries/spent_training"] == 600
    assert (
        metrics["surrogate/agreement_clean"] == tiny_job[1].stages["surrogate"].result.agreement_clean.value
    )


def test_parameters_data_sets_and_configuration(runs, tiny_job, client):
    import mlflow

    config, *_ = tiny_job
    parent = runs[PARENT]
    assert parent.data.params["certify.n"] == str(config.certify.n)
    assert parent.data.params["surrogate.model"] == config.surrogate.model
    assert {entry.dataset.name for entry in parent.inputs.dataset_inputs} == {
        "digits-heldout",
        "digits-pool-unlabelled",
    }
    mlflow.set_tracking_uri(config.tracking.uri)
    path = mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, artifact_path="config.yaml")
    again = load_config(file=path)
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


def test_training_curves(runs, client, tiny_job):
    config, *_ = tiny_job
    for run, metric, epochs in [
        ("nim", "nim/loss", config.nim.epochs),
        ("surrogate", "surrogate/loss", config.surrogate.epochs),
    ]:
        history = client.get_metric_history(runs[run].info.run_id, metric)
        assert [point.step for point in history] == list(range(epochs))


def test_records_curves_and_report(runs, client):
    found = {item.path for item in client.list_artifacts(runs["certify"].info.run_id, "records")}
    assert len(found) == 20  # ten conditions, the field's format and the full one
    assert {"records/target-nim-de3.tsv", "records/target-nim-de3.jsonl"} <= found
    pictures = {item.path for item in client.list_artifacts(runs["certify"].info.run_id)}
    assert {
        "certified_accuracy.png",
        "certified_accuracy_target.png",
        "certified_accuracy_surrogate.png",
    } <= pictures
    assert "report.html" in {item.path for item in client.list_artifacts(runs[PARENT].info.run_id)}


def test_a_table_of_every_certificate(tiny_job, runs):
    import mlflow

    config, summary, *_ = tiny_job
    with given_back():
        mlflow.set_tracking_uri(config.tracking.uri)
        mlflow.set_experiment(config.tracking.experiment)
        table = mlflow.load_table("certificates.json", run_ids=[runs["certify"].info.run_id])
    curves = summary.stages["certify"].result.curves
    assert len(table) == sum(curve.images for curve in curves.values())
    for key, curve in curves.items():
        rows = table[table.condition == key]
        assert (rows.subject.unique() == [curve.subject]).all()
        certified = rows.correct & (rows.radius >= 0.25)
        assert certified.mean() == curve.accuracy[config.certify.radii.index(0.25)].value
        records = certify.read_records(summary.stages["certify"].path / "records" / f"{key}.jsonl")
        assert rows.radius.tolist() == records.radius.tolist()


def test_a_job_is_found_by_its_tags_and_says_what_it_found(tiny_job, runs):
    config, summary, *_ = tiny_job
    tags = runs[PARENT].data.tags
    assert {name: tags[f"certdef.{name}"] for name in ("target", "purifier", "law", "seed")} == {
        "target": "digits",
        "purifier": config.purifier,
        "law": config.headline_law,
        "seed": "0",
    }
    found = [line for line in str(summary).splitlines() if line.startswith(("certified", "queries"))]
    assert found
    assert all(line in tags["mlflow.note.content"] for line in found)


def test_records_hold_the_votes_and_how_they_were_drawn(tiny_job, runs):
    import mlflow

    config, *_ = tiny_job
    mlflow.set_tracking_uri(config.tracking.uri)
    folder = Path(
        mlflow.artifacts.download_artifacts(run_id=runs["certify"].info.run_id, artifact_path="records")
    )
    header, *rows = (folder / "surrogate-nim-de3.jsonl").read_text().splitlines()
    written = json.dumps(json.loads(header))
    for name in ("noise", "n0", "alpha", "seed", "chunk_size", "versions", "subject"):
        assert f'"{name}"' in written
    for row in map(json.loads, rows):
        assert 0 < sum(row["counts"]) <= config.certify.n
        k = row["counts"][row["predict"]] if row["predict"] >= 0 else 0
        unsplit = certify.binomial_lower_bound(k, sum(row["counts"]), config.certify.alpha)
        assert row["p_lower"] <= unsplit  # alpha is shared by the analyses
        assert row["predict"] >= 0 or row["radius"] == 0
    tsv = (folder / "surrogate-nim-de3.tsv").read_text().splitlines()
    assert tsv[0].split("\t") == ["idx", "label", "predict", "radius", "correct", "time"]
    assert len(tsv) == 1 + config.certify.images


def test_logged_models_load_back_and_answer(tiny_job):
    import mlflow
    import numpy as np

    config, summary, _ = tiny_job
    mlflow.set_tracking_uri(config.tracking.uri)
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    scores = mlflow.pyfunc.load_model(summary.stages["surrogate"].result.uri).predict(images)
    assert scores.shape == (3, 10)
    assert np.allclose(scores.sum(1), 1, atol=1e-5)
    denoised = mlflow.pyfunc.load_model(summary.stages["nim"].result.uri).predict(images)
    assert denoised.shape == images.shape
    assert mlflow.pyfunc.load_model(summary.stages["target"].result.uri).predict(
        images.reshape(3, 64)
    ).shape == (3, 10)


def test_system_metrics_are_logged(store, tmp_path):
    import mlflow

    from certdef.data.sets import load_data
    from certdef.tracking.mlflow import Tracker

    config = load_config(work_dir=str(tmp_path / "work"), tracking__uri=store)
    tracker = Tracker(config, tracking_uri(config))
    with tracker.job(load_data(config.data, 0)):
        import time

        time.sleep(5)  # the sampler runs every two seconds
    metrics = mlflow.get_run(tracker.run_id).data.metrics
    assert any(name.startswith("system/cpu") for name in metrics)
    assert any(name.startswith("system/system_memory") for name in metrics)


class TestStores:
    def test_the_default_and_the_environment(self, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert tracking_uri(load_config()) == "sqlite:///mlruns/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        assert tracking_uri(load_config()) == "http://127.0.0.1:5000"
        assert tracking_uri(load_config(tracking__uri="sqlite:///other.db")) == "sqlite:///other.db"

    def test_unusable_stores_are_named(self, tmp_path):
        (tmp_path / "file").write_text("x")
        (tmp_path / "text.db").write_text("this is no database")
        for uri, said in [
            (f"sqlite:///{tmp_path}/file/mlflow.db", "can't be written"),
            (f"sqlite:///{tmp_path}/text.db", "no SQLite database"),
            ("http://127.0.0.1:9", "does not answer"),
            ("./mlruns", "is a folder"),
        ]:
            with pytest.raises(ConfigError, match=said) as error:
                check_store(uri)
            assert "--tracking.uri" in str(error.value) or "sqlite:///" in str(error.value)
