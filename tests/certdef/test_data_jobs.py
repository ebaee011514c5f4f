"""Whole jobs on images of the user's own: folders with and without labels, before a service that keeps its own bill."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import certdef
import certify
from certdef import pipeline, stages
from certdef.cli import main
from certdef.config.load import load_config
from certdef.report.terminal import headline
from certdef.stages.summary import Summary
from surrogates.ledger.bill import Bill, Charge
from tests.conftest import TINY
from tests.servers.faulty import faulty_server

SMALL = TINY | {
    "target__num_classes": 10,
    "target__canary_every": 0,
    "data__pool_images": 150,
    "data__heldout_images": 30,
    "ledger__training": 100,
    "purifier": "gs",
    "certify__images": 4,
    "certify__laws": "[{label: nim, family: gamma, shape: [25], scale_255: 3}]",
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def model() -> LogisticRegression:
    pixels, labels = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=300).fit(pixels[:900] / 16, labels[:900])


@pytest.fixture
def service(model: LogisticRegression) -> Any:
    with faulty_server(lambda images: model.predict_proba(images.reshape(len(images), -1))) as served:
        yield served


def test_a_training_budget_may_be_larger_than_the_pool_where_copies_join_it(store, tmp_path):
    options = SMALL | {"tracking__uri": store, "work_dir": str(tmp_path / "work"), "surrogate__epochs": 1}
    options |= {"data__pool_images": 100, "data__pool_copies": 1, "ledger__training": 150}
    summary = certdef.distill(load_config(**options), progress=False)
    charge = summary.bill["training"]
    assert charge.spent + charge.recalled == 150, "a copy that did not move is not paid for again"
    assert charge.spent > 100
    with pytest.raises(certdef.ConfigError, match=r"data.pool_copies is -1: use 0 or more"):
        certdef.distill(load_config(**options | {"data__pool_copies": -1}), progress=False)


def write_digits(folder: Path, *, classes: bool, count: int = 200) -> Path:
    """Digits that the model was not trained on, as PNG files."""
    digits = load_digits()
    for number in range(900, 900 + count):
        place = folder / NAMES[digits.target[number]] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(digits.images[number] * 255 / 16).astype(np.uint8)).save(
            place / f"{number}.png"
        )
    return folder


def configured(store: str, work: Path, url: str, folder: Path, **options: Any) -> certdef.RunConfig:
    settings = SMALL | {"data__path": str(folder), "target__uri": url, "tracking__uri": store} | options
    return certdef.load_config(work_dir=str(work), **settings)


@pytest.mark.slow
@pytest.mark.acceptance
def test_without_labels_right_is_the_targets_own_clean_answer(
    service: Any, model: LogisticRegression, store: str, tmp_path: Path
) -> None:
    url, faults = service
    folder = write_digits(tmp_path / "pictures", classes=False)
    config = configured(store, tmp_path / "work", url, folder, ladder__enabled=True, **LADDER)
    summary = certdef.run(config, progress=False)
    with pipeline.open_job(config, progress=False) as job:
        stages.open_target(job)
        data = job.data
    answers = model.predict(data.heldout_images.reshape(30, -1))
    np.testing.assert_array_equal(data.heldout_labels, answers)
    assert summary.stages["target"].result.answers == tuple(answers)
    assert "target/clean_accuracy" not in summary.stages["target"].result.metrics

    clean = summary.stages["attack"].result.rows[0]
    assert clean.target.value == 1.0  # by definition
    for path in (summary.stages["certify"].path / "records").glob("*.jsonl"):
        records = certify.read_records(path)
        assert records.config["right"].startswith("the target's own clean answer")
        np.testing.assert_array_equal(records.label, answers[records.idx])

    said = str(summary)
    assert "its own clean answers to 30 held-out images without labels count as right" in said
    for line in said.splitlines():
        if line.startswith(("certified", "attack")):
            assert "right: the target's own clean answer" in line
    page = summary.report.read_text()
    assert "The images have no labels." in page
    assert "Target, clean accuracy" not in page
    for table in (
        "certificates-target",
        "certificates-surrogate",
        "headline",
        "attack-table",
        "ladder-target",
    ):
        caption = page.split(f'<table id="{table}"')[1].split("</caption>")[0]
        assert "the target's own clean answer" in caption.replace("&#39;", "'"), table
    client = mlflow.MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name("certdef").experiment_id])
    by_name = {run.info.run_name: run.data.params for run in runs}
    for stage in ("target", "certify", "attack", "ladder"):
        assert by_name[stage]["right"].startswith("the target's own clean answer"), stage

    charged = faults.charged
    again = certdef.run(config, progress=False)
    assert again.reused
    assert faults.charged == charged
    # Another use of the same answers is free too: they are receipts of evaluation.
    # The budget of a job without a ladder is less than the ladder before it spent.
    other = configured(store, tmp_path / "work", url, folder, attack__eps=[0.05], ledger__attack=1000)
    certdef.run(other, progress=False)
    assert faults.charged <= charged + 2 * 20


LADDER = {
    "ladder__images": 4,
    "ladder__target_images": 2,
    "ladder__steps": 2,
    "ladder__eot": 1,
    "ladder__looks": 1,
    "ladder__resubmissions": 1,
    "ladder__square_queries": 8,
    "ladder__decision_queries": 0,
    "ladder__smoothed_images": 2,
    "ladder__smoothed_draws": 4,
}


@pytest.mark.slow
def test_a_folder_of_classes_is_as_good_as_an_array(service: Any, store: str, tmp_path: Path) -> None:
    """Sorted names are not the order of the service's classes, so a file maps them; certified as from an .npz."""
    url, _ = service
    folder = write_digits(tmp_path / "pictures", classes=True)
    (tmp_path / "map.yaml").write_text("".join(f"{name}: {index}\n" for index, name in enumerate(NAMES)))
    config = configured(
        store, tmp_path / "work", url, folder, data__labels=str(tmp_path / "map.yaml"), data__resize=8
    )
    summary = certdef.run(config, progress=False)
    assert summary.stages["target"].result.accuracy.value > 0.8  # sorted order alone would give a tenth of it
    page = summary.report.read_text()
    table = page.split('<table id="by-class"')[1].split("</table>")[0]
    assert any(f'<th scope="row">{name}</th>' in table for name in NAMES)
    assert "scaled to cover 8 x 8" in page
    strip = page.split('<table id="strip"')[1].split("</thead>")[0]
    assert sum(f'<th scope="col">{name}</th>' in strip for name in NAMES) >= 2
    records = next((summary.stages["certify"].path / "records").glob("*.jsonl"))
    assert json.loads(records.read_text().splitlines()[0])["config"]["prepared"].startswith("scaled to cover")
    assert "images      scaled to cover 8 x 8" in str(summary)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "has the classes eight, five, four, nine"),
        (["--data.labels=ignore", "--ducd.enabled=true", "--ducd.overlaps=[0]"], "which the DUCD job needs"),
        (["--data.pool_images=0"], "data.pool_images is 0, and surrogate and denoiser are trained"),
        (["--data.heldout_images=400"], "data.heldout_images is 400, but pictures has only 100 images left"),
        (["--data.color=red"], "data.color is 'red': use gray or rgb"),
        (["--data.resize=0"], "data.resize is 0: use 1 to 8,192 pixels"),
        (["--data.columns=[a,b,c]"], "data.columns is ('a', 'b', 'c'): name the column of images"),
    ],
)
def test_what_is_wrong_with_images_is_said_before_any_query(
    service: Any, store: str, tmp_path: Path, capsys: Any, options: list[str], said: str
) -> None:
    url, faults = service
    folder = write_digits(tmp_path / "pictures", classes=True, count=100)
    arguments = [f"--target.uri={url}", f"--data.path={folder}", f"--tracking.uri={store}", "--work_dir=work"]
    sizes = ["--target.num_classes=11", "--data.pool_images=60", "--data.heldout_images=40"]
    budgets = ["--ledger.attack=9000", "--ledger.evaluation=5000"]
    assert main(["run", "--quiet", *arguments, *sizes, *budgets, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert len([line for line in error.splitlines() if said in line]) == 1  # beside all else that is wrong
    assert "Traceback" not in error
    assert faults.charged == 0


def test_options_of_images_that_nothing_reads_are_named(tmp_path: Path) -> None:
    from certdef.report.unused_options import unused_options

    config = certdef.load_config(
        data__path="folder", data__images_key="x", data__labels="ignore", data__root="elsewhere"
    )
    said = "\n".join(unused_options(config))
    assert "data.images_key is 'x', which nothing reads: data.path is no .npz" in said
    assert (
        "data.labels is 'ignore', which nothing reads: labels are matched with the classes of your own target"
        in said
    )
    assert "data.root is 'elsewhere', which nothing reads: the data set is folder" in said
    named = certdef.load_config(data__path="mine.npz", data__columns=["a", "b"])
    assert "data.columns is ['a', 'b'], which nothing reads: data.path is no table" in "\n".join(
        unused_options(named)
    )
    assert "data.path is not set" in "\n".join(unused_options(certdef.load_config(data__columns=["a"])))


@pytest.mark.slow
def test_a_folder_and_an_address_are_enough_for_certificates(
    service: Any, model: LogisticRegression, store: str, tmp_path: Path
) -> None:
    """`certdef certify --target.uri ... --data.path FOLDER`: no labels, no training, and the page says what right means."""
    url, faults = service
    folder = write_digits(tmp_path / "pictures", classes=False, count=12)
    summary = certdef.certify(
        progress=False,
        target=url,
        images=str(folder),
        target__num_classes=10,
        target__canary_every=0,
        certify__n=200,
        certify__target_images=3,
        tracking__uri=store,
        tracking__system_metrics=False,
        work_dir=str(tmp_path / "work"),
    )
    answers = summary.stages["target"].result.answers
    assert len(answers) == 12
    page = summary.report.read_text()
    assert "The images have no labels." in page
    caption = page.split('<table id="certificates-target"')[1].split("</caption>")[0]
    assert "own clean answer, which counts as right" in caption
    assert "Clean accuracy" not in page
    assert faults.charged == summary.bill.total.spent


def test_the_summary_of_a_target_alone_has_no_budget_of_a_whole_job_and_names_lost_queries(
    tmp_path: Path,
) -> None:
    charge = {"in_flight": 0, "recalled": 0}
    charges = {
        "training": Charge(1, 200, 0, **charge),
        "certification": Charge(900, 100, 3, **charge),
        "attack": Charge(50, 0, 0, **charge),
    }
    alone = {"certify": SimpleNamespace(result=None, reused=False)}
    whole = alone | {"surrogate": alone["certify"]}
    printed = [
        headline(load_config(), Summary(stages, tmp_path, bill=Bill("a target", charges)))
        for stages in (alone, whole)
    ]
    assert "queries     training 200 of 200, certification 103 of 900\n" in printed[0]
    assert "queries     training 200 of 1, certification 103 of 900, attack 0 of 50\n" in printed[1]
    assert all("lost        3 of these were sent and got no answer" in each for each in printed)
