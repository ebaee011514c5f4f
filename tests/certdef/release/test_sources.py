"""OLD and NEW as they are named: folders and files, runs of MLflow, registered versions."""

import mlflow
import pytest
from mlflow import MlflowClient

import certdef
import certify
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.release.compare import compare


def test_a_file_a_folder_and_records_in_memory(versions):
    folder = versions / "float"
    file = folder / "records" / "target-g-none.jsonl"
    expected = compare(folder, versions / "again").rows
    for given in (folder / "records", file, certify.read_records(file)):
        assert compare(given, versions / "again").rows == expected


def test_a_tsv_is_compared_by_idx(versions):
    files = [versions / name / "records" / "target-g-none.tsv" for name in ("float", "again")]
    found = compare(*files, radii=[0.25])
    assert found.paired_by == "idx"
    assert found.same_noise is None
    assert any("noise law" in note for note in found.notes)
    assert (
        found.overall[0].lost == compare(versions / "float", versions / "again", radii=[0.25]).overall[0].lost
    )


def test_several_records_are_not_guessed(versions, tmp_path):
    for name in ("a", "b"):
        for end in (".jsonl", ".tsv"):
            path = tmp_path / f"target-{name}-none{end}"
            path.write_bytes((versions / "float" / "records" / f"target-g-none{end}").read_bytes())
    with pytest.raises(ConfigError, match="--condition, one of target-a-none, target-b-none"):
        compare(tmp_path, tmp_path)
    assert not compare(tmp_path, tmp_path, condition="target-b-none").lost
    with pytest.raises(ConfigError, match="no records of the same name"):
        compare(tmp_path, versions / "float")


def log_job(store: str, folder, parent: str, child: str, **params) -> tuple[str, str]:
    """A job's runs as certdef lays them out: the ids of parent and certify run."""
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    with mlflow.start_run(run_name=parent) as outer:
        mlflow.log_params(params)
        with mlflow.start_run(run_name=child, nested=True) as inner:
            mlflow.log_artifacts(str(folder / "records"), "records")
    return outer.info.run_id, inner.info.run_id


def test_runs_and_versions_of_a_store(versions, store, capsys):
    ids = {
        name: log_job(store, versions / name, name, "certify", **{"target.uri": f"models:/mine/{at}"})
        for at, name in ((1, "float"), (2, "worse"))
    }
    expected = compare(versions / "float", versions / "worse").rows
    for level in (0, 1):  # the job, and the run of its certificates
        assert compare(ids["float"][level], ids["worse"][level], tracking_uri=store).rows == expected
    client = MlflowClient(store, registry_uri=store)
    client.create_registered_model("mine")
    client.create_model_version("mine", "runs:/x/model")  # certified as the target of a job
    client.create_model_version("mine", "runs:/y/model", run_id=ids["worse"][1])  # its run has records
    client.set_registered_model_alias("mine", "prod", "1")
    assert compare("models:/mine/1", "models:/mine/2", tracking_uri=store).rows == expected
    found = compare("models:/mine@prod", ids["worse"][0], tracking_uri=store)
    assert found.rows == expected
    assert found.old.records == f"run {ids['float'][1]}: target-g-none.jsonl"
    code = main(
        ["compare", *(each[0] for each in ids.values()), "--tracking.uri", store, "--max-proven-drop", "0"]
    )
    assert code == 1
    assert "is proven to be worse" in capsys.readouterr().out


def test_what_is_not_in_the_store_is_one_line(versions, store, tmp_path):
    known = str(versions / "float")
    mlflow.set_tracking_uri(store)
    with mlflow.start_run() as run:
        pass
    client = MlflowClient(store, registry_uri=store)
    client.create_registered_model("bare")
    client.create_model_version("bare", "runs:/x/model")
    for given, said in (
        ("0" * 32, "not found"),
        (run.info.run_id, "no records on it"),
        ("models:/none/1", "not found"),
        ("models:/bare/1", "no records on it"),
        ("models:/bare", "models:/NAME/VERSION"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            compare(known, given, tracking_uri=store)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"NEW {given!r}")
    missing = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(ConfigError, match=r"none\.db' is not there"):
        compare(known, "0" * 32, tracking_uri=missing)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.slow
def test_a_whole_job_by_folder_run_and_registered_version(tiny_job, monkeypatch):
    config, summary, folder = tiny_job
    monkeypatch.chdir(folder)
    store = config.tracking.uri
    by_folder = compare(config.workspace, config.workspace)
    by_run = compare(summary.run_id, config.workspace, tracking_uri=store)
    assert by_folder.rows == by_run.rows
    assert by_folder.paired_by == "image"
    assert by_run.old.subject == by_run.new.subject == "target"
    version = f"models:/{config.registered_model}/1"
    with pytest.raises(ConfigError, match=r"their first records are not the same .*choose with --condition"):
        compare(
            version, summary.run_id, tracking_uri=store
        )  # the surrogate is registered, the run is of both
    of_target = compare(version, summary.run_id, tracking_uri=store, condition="target-nim-de3")
    assert of_target.rows == by_run.rows
    by_name = certdef.compare(
        version,
        version,
        tracking_uri=store,
    )
    assert by_name.old.subject == "surrogate"  # what is registered
    records = certify.read_records(sorted(config.workspace.glob("certify-*/records/target-*.jsonl"))[0])
    assert records.image is not None
    assert len(set(records.image.tolist())) == len(records)
    assert records.row is not None
    assert records.row.max() < 1797
