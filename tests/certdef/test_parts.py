"""Parts that one job trains and registers, and another one reuses."""

import json
from pathlib import Path

import mlflow
import pytest
import torch

import certdef
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.config.parts import folder_in, is_part
from certdef.models.classifiers import build_classifier
from certdef.models.storage import save_classifier
from certdef.stages.parts import check_surrogate
from certdef.tracking.parts import fetch, part_folder, part_key, weights_digest

FAST = {
    "nim__epochs": 1,
    "surrogate__epochs": 1,
    "diffusion__epochs": 1,
    "diffusion__channels": [8],
    "diffusion__steps": 1,
    "data__pool_images": 100,
    "data__heldout_images": 20,
    "ledger__training": 100,
    "certify__laws": "[{label: nim}]",
    "certify__choose": "off",
    "tracking__system_metrics": False,
}


def configure(folder, **more):
    return certdef.load_config("digits", work_dir=str(folder), **FAST | more)


@pytest.fixture(scope="module")
def trained(migrated_store, tmp_path_factory):
    """A job whose three parts are registered: its folder, and the store."""
    import shutil

    folder = tmp_path_factory.mktemp("parts")
    shutil.copy(migrated_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    more = {"tracking__uri": uri, "tracking__register_parts": True}
    certdef.pretrain(configure(folder / "a", **more), progress=False)
    certdef.purify(configure(folder / "a", purifier="one-step", **more), progress=False)
    return folder, uri


@pytest.mark.slow
@pytest.mark.acceptance
def test_parts_are_registered_and_another_job_trains_none(trained):
    folder, uri = trained
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    versions = {each.name: each for each in client.search_model_versions()}
    assert versions.keys() == {"certdef-nim", "certdef-diffusion", "certdef-surrogate"}
    nim, surrogate = versions["certdef-nim"].tags, versions["certdef-surrogate"].tags
    assert nim["certdef.law"] == "gamma(25, scale 3/255)"
    assert nim["certdef.image_shape"] == "1x8x8"
    assert json.loads(nim["certdef.recipe"])["epochs"] == 1
    assert surrogate["certdef.num_classes"] == "10"
    assert surrogate["certdef.distilled_from"].startswith("svc:")

    client.set_registered_model_alias("certdef-nim", "good", "1")
    here = {"tracking__uri": uri, "seed": 1, "tracking__register_parts": True}
    first = certdef.purify(
        configure(
            folder / "b",
            nim__weights="models:/certdef-nim@good",
            surrogate__weights="models:/certdef-surrogate/1",
            **here,
        ),
        progress=False,
    )
    second = certdef.purify(
        configure(
            folder / "b",
            purifier="one-step",
            diffusion__pretrained="models:/certdef-diffusion/latest",
            surrogate__weights=str(next((folder / "a").glob("surrogate-*"))),
            **here,
        ),
        progress=False,
    )
    stages = first.stages | {f"again {name}": stage for name, stage in second.stages.items()}
    for name, part in {
        "nim": "nim",
        "surrogate": "surrogate",
        "again diffusion": "diffusion",
        "again surrogate": "surrogate",
    }.items():
        assert not any(stages[name].result.series.values()), f"{name} was trained"
        assert (
            weights_digest(stages[name].path / "model") == versions[f"certdef-{part}"].tags["certdef.sha256"]
        )
    assert first.bill.charges["training"].spent == second.bill.charges["training"].spent == 0
    # the same part by another name is the same surrogate: what rests on it is found again
    assert first.stages["surrogate"].path == second.stages["surrogate"].path
    # a target that was trained from another seed is another target
    assert surrogate["certdef.distilled_from"] in str(first)
    assert len(client.search_model_versions()) == 3, "what was reused is not registered again"

    run = client.get_run(first.run_id)
    assert run.data.tags["certdef.nim.weights"] == "models:/certdef-nim/1", "the version, not the alias"
    assert "#/models/certdef-nim/versions/1" in run.data.tags["mlflow.note.content"]


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_part_that_does_not_fit_is_refused_before_any_query(trained, capsys, tmp_path):
    folder, uri = trained
    options = [f"--tracking.uri={uri}", f"--work-dir={folder}/c", "--preset=digits"]
    wide = [
        "--data.resize=16",
        "--nim.weights=models:/certdef-nim/1",
        "--surrogate.weights=models:/certdef-surrogate/1",
    ]
    assert main(["run", *options, *wide]) == 2
    said = capsys.readouterr().err
    assert (
        "nim.weights is 'models:/certdef-nim/1', trained on images of 1x8x8, and the job's are 1x16x16"
        in said
    )
    assert "surrogate.weights is 'models:/certdef-surrogate/1', trained on images of 1x8x8" in said
    law = ["--certify.laws=[{label: far, scale_255: 6}]", "--nim.weights=models:/certdef-nim/1"]
    assert main(["run", *options, *law]) == 2
    said = capsys.readouterr().err
    assert "nim.weights" in said
    assert "gamma(25, scale 3/255), and certify.laws has far gamma(25, scale 6/255)" in said
    assert main(["run", *options, "--nim.weights=models:/certdef-diffusion/1"]) == 2
    assert "holds diffusion, not a nim" in capsys.readouterr().err
    missing = ["--nim.weights=models:/certdef-nim/9", "--surrogate.weights=models:/nobody@best"]
    assert main(["run", *options, *missing]) == 2
    said = capsys.readouterr().err
    assert "nim.weights is 'models:/certdef-nim/9'" in said
    assert "surrogate.weights is 'models:/nobody@best'" in said
    assert not (folder / "c" / "ledger.db").exists()


def saved(folder: Path, classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8)) -> str:
    torch.manual_seed(0)
    save_classifier(folder, build_classifier("mlp", shape, classes), part="surrogate")
    return str(folder)


def test_a_surrogate_of_other_classes_is_refused(tmp_path):
    config = configure(tmp_path / "w", surrogate__weights=saved(tmp_path / "s", classes=7))
    with pytest.raises(ConfigError, match=r"surrogate\.weights is .* of 7 classes, and the target has 10"):
        check_surrogate(config, (1, 8, 8), 10)
    check_surrogate(config, (1, 8, 8), 7)
    with pytest.raises(ConfigError, match="trained on images of 1x8x8, and the job's are 3x8x8"):
        check_surrogate(config, (3, 8, 8), 7)


def test_the_key_of_a_part_is_its_content(tmp_path):
    config = configure(tmp_path / "w")
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two" / "artifacts" / "model")
    assert is_part(str(tmp_path / "two")), "as MLflow logs it"
    assert part_key(config, one) == part_key(config, str(tmp_path / "two"))
    assert part_folder(config, str(tmp_path / "two")) == Path(two) == folder_in(tmp_path / "two")
    torch.manual_seed(1)
    save_classifier(Path(two), build_classifier("mlp", (1, 8, 8), 10), part="surrogate")
    assert part_key(config, one) != part_key(config, two)


def test_a_changed_part_is_refused(tmp_path):
    config = configure(tmp_path / "w", surrogate__weights=saved(tmp_path / "s"))
    path = tmp_path / "s" / "model.json"
    path.write_text(path.read_text().replace('"num_classes": 10', '"num_classes": 3'))
    with pytest.raises(ConfigError, match=r"surrogate\.weights is .*was changed after it was written"):
        check_surrogate(config, (1, 8, 8), 3)


@pytest.mark.parametrize(
    "given", ["models:/certdef-nim", "models:/certdef-nim/x", "runs:/short/model", "models:/a/b/c"]
)
def test_a_name_that_is_none_says_how_one_is_written(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"nim\.weights is .*models:/NAME/VERSION"):
        fetch(configure(tmp_path, nim__weights=given))


def test_parts_are_refused_where_they_contradict_another_option(tmp_path):
    part = saved(tmp_path / "s")
    for more, said in (
        ({"surrogate__model": "none"}, "surrogate.model is none"),
        ({"surrogate__finetune_epochs": 5}, "not trained further"),
        ({"ducd__enabled": True}, "the DUCD job distills its own"),
    ):
        with pytest.raises(ConfigError, match=said):
            configure(tmp_path, surrogate__weights=part, **more)
    with pytest.raises(ConfigError, match=r"a folder that holds model\.json"):
        configure(tmp_path, surrogate__weights=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"unset nim\.encoder"):
        configure(tmp_path, nim__weights="models:/certdef-nim/1", nim__encoder="vit_tiny_patch16_224")


def test_the_other_spelling_of_the_diffusion_model(tmp_path):
    config = configure(tmp_path, diffusion__weights="models:/certdef-diffusion/1")
    assert config.diffusion.pretrained == "models:/certdef-diffusion/1"
