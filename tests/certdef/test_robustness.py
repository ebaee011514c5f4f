"""certdef robustness: the bare target, average case. Nothing is paid twice, nothing is asked before all is checked."""

import json
import re
from html.parser import HTMLParser

import mlflow
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import certdef
from certdef.cli import main
from certdef.config.job import RunConfig
from certdef.config.load import load_config
from certdef.report.average_case import found_average_case
from certdef.stages.robustness import RobustnessResult, laws_of, robustness_queries
from certdef.tracking.legacy import runs_file
from certify.threats.population import CORRUPTIONS, PopulationBound

PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = (PIXELS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[1000:1040]
SMALL = {
    "robustness__corruptions": "[noise=0.1,gamma=0.3+jpeg=50,8-bit]",
    "robustness__images": 6,
    "data__heldout_images": 12,
    "target__num_classes": 10,
    "target__canary_every": 0,  # or every start asks four images again, from a budget of their own
    "tracking__system_metrics": False,
}


class Counted:
    """A target that counts what it is asked, and may stop answering."""

    def __init__(self, model, most: int | None = None):
        self.model, self.most, self.asked = model, most, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.most is not None and self.asked + len(images) > self.most:
            raise KeyboardInterrupt
        self.asked += len(images)
        return self.model.predict_proba(images.reshape(len(images), -1))


def fog(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images * 0.9 + 0.1 * torch.rand(1, generator=generator)


def job(target, work, **more):
    given = {"target": target, "identity": "digits-1", "images": IMAGES, "labels": LABELS[1000:1040]}
    return certdef.robustness(progress=False, work_dir=str(work), **given, **SMALL | more)


class Text(HTMLParser):
    """The words of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.acceptance
def test_your_own_target_alone(store, tmp_path, logistic):
    target = Counted(logistic)
    summary = job(target, tmp_path / "work")
    result = summary.stages["robustness"].result
    assert isinstance(result, RobustnessResult)
    assert [row.name for row in result.rows] == ["noise=0.1", "gamma=0.3+jpeg=50", "8-bit"]
    # paid: what the target was asked, and nothing else
    assert summary.bill.total.spent == target.asked
    assert summary.bill["certification"].spent == sum(row.labels for row in result.rows)
    assert set(summary.stages) == {"target", "robustness"}  # nothing is trained
    assert summary.stages["robustness"].result == RobustnessResult.from_json(
        json.loads(json.dumps(result.to_json()))
    )
    # on disk: every image's counts, from which the row follows
    folder = summary.stages["robustness"].path
    for row in result.rows:
        plain = json.loads((folder / "records" / f"{row.key}.json").read_text())
        bound = PopulationBound.from_json(plain)
        assert (bound.proven, bound.labels, bound.mean_upper) == (row.proven, row.labels, row.mean_upper)
        assert len(plain["digests"]) == 6
    assert (folder / "robustness.png").stat().st_size > 5_000
    # again: nothing is asked
    before = target.asked
    again = job(target, tmp_path / "work")
    assert again.reused
    assert target.asked == before
    # more images, another q: only what is new is paid
    more = job(target, tmp_path / "work", robustness__images=8, robustness__q=0.15)
    rows = more.stages["robustness"].result.rows
    assert target.asked - before < sum(row.labels for row in rows)
    digest = more.stages["robustness"].result.images_digest
    found = found_average_case(tmp_path / "work", more.stages["target"].result.identity, digest)
    assert found["result"].images == 8
    assert found_average_case(tmp_path / "work", "another", digest) is None


@pytest.mark.acceptance
def test_every_figure_is_called_an_average_case(store, tmp_path, logistic):
    # by its whole address: MLflow would take ./mlruns for that of an earlier test
    summary = job(Counted(logistic), tmp_path / "work", tracking__uri=store)
    page = summary.report.read_text().partition("<body>")[2]
    assert summary.report.name == "robustness.html"  # the page of a job of certificates stays
    text = " ".join("".join(Text(page).words).split())
    for section in re.findall(r"<(?:h1|h2|caption|figcaption)[^>]*>(.*?)</", page, re.S):
        if re.search(r"\d|proven", section):
            assert "verage case" in section or "bill" in section or "purpose" in section, section
    for sentence in re.findall(r"[^.]*\bradi(?:us|i)\b[^.]*\.", text.split("The whole configuration")[0]):
        assert "no radius" in sentence or "another kind of statement" in sentence
    printed = str(summary)
    assert "average case of the bare target" in printed
    assert "average case: proven" in printed
    assert "r=" not in printed
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(experiment_names=["certdef"], output_format="list")
    child = next(run for run in runs if run.info.run_name == "robustness")
    mine = {name for name in child.data.metrics if name.startswith("certified/")}
    assert "certified/population/average_case/noise_0.1/share_proven" in mine
    assert all(name.startswith("certified/population/average_case/") for name in mine)
    assert child.data.params["claim"] == "average case"


@pytest.mark.acceptance
def test_an_interrupted_job_pays_for_nothing_twice(store, tmp_path, logistic):
    whole = Counted(logistic)
    expected = job(whole, tmp_path / "whole").stages["robustness"].result
    asked = 0
    for most in (150, 600):
        stopped = Counted(logistic, most)
        with pytest.raises(KeyboardInterrupt):
            job(stopped, tmp_path / "work")
        asked += stopped.asked
    last = Counted(logistic)
    summary = job(last, tmp_path / "work")
    assert summary.stages["robustness"].result == expected
    assert asked + last.asked == whole.asked
    assert summary.bill.total.answered == whole.asked
    assert summary.bill.total.unknown <= 2 * 512  # the batches that were in flight


@pytest.mark.acceptance
def test_all_that_is_wrong_is_said_before_a_query(store, tmp_path, capsys):
    arguments = ["robustness", "--work-dir", str(tmp_path / "work"), "--tracking.uri", store, "--quiet"]
    wrong = ["--corruptions", "[snow,noise=loud,jpeg=99]", "--q", "1.5", "--robustness.images", "0"]
    assert main([*arguments, *wrong]) == 2
    lines = capsys.readouterr().err.splitlines()
    for text in (
        "'snow' is no corruption",
        "noise=loud",
        "jpeg=99",
        "robustness.q is 1.5",
        "robustness.images is 0",
    ):
        assert sum(text in line for line in lines) == 1, text
    assert not (tmp_path / "work" / "ledger.db").exists()
    assert main([*arguments, "--robustness.draws", "50"]) == 2
    assert "too few to prove q = 0.1 at certify.alpha 0.001, use at least 66" in capsys.readouterr().err
    assert main([*arguments, "--ledger.certification", "1000"]) == 2
    assert "10 corruptions of 50 images take up to 99000" in capsys.readouterr().err
    assert main([*arguments, "--corruptions", "[noise,noise=0.04]"]) == 2
    assert "twice" in capsys.readouterr().err
    assert main([*arguments, "--corruptions", "[python:no.such:thing]"]) == 2
    assert "can't be imported" in capsys.readouterr().err


def test_help_has_examples_and_every_corruption(capsys):
    assert main(["robustness", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "certdef robustness --target.uri model.onnx --data.path photos/" in shown
    unbroken = "".join(shown.split())  # a narrow terminal breaks lines at hyphens
    assert all(name in unbroken for name in CORRUPTIONS)
    assert main(["--help"]) == 0
    assert "average case" in capsys.readouterr().out


def test_a_law_of_ones_own_by_its_name(store, tmp_path, logistic):
    name = f"python:{__name__}:fog"
    summary = job(Counted(logistic), tmp_path / "work", robustness__corruptions=f"['{name}']")
    (row,) = summary.stages["robustness"].result.rows
    assert row.name.endswith("test_robustness.fog")
    assert row.law["law"] == "own"


def test_a_service_is_asked_about_every_draw_of_a_fixed_law(store, tmp_path, service):
    """Nobody knows that a service answers an image alike every time: one label would prove nothing."""
    address, _ = service
    options = {"target": address, "images": IMAGES, "labels": LABELS[1000:1040], "robustness__images": 2}
    summary = certdef.robustness(
        progress=False,
        work_dir=str(tmp_path / "work"),
        **SMALL | options | {"robustness__corruptions": "[8-bit]"},
    )
    (row,) = summary.stages["robustness"].result.rows
    known = summary.stages["target"].result.params["deterministic"] == "yes"
    assert row.once == known
    assert row.labels == (2 if known else 132)


def test_all_leaves_jpeg_out_where_it_takes_no_such_image():
    config = RunConfig()
    assert [law.name.partition("=")[0] for law in laws_of(config, 3)] == [*CORRUPTIONS]
    assert "jpeg=70" not in [law.name for law in laws_of(config, 4)]
    assert robustness_queries(config, 400) == 10 * 50 * 198


def test_the_bill_is_printed_before_anything_is_paid(store, tmp_path, logistic, caplog):
    target = Counted(logistic)
    with caplog.at_level("INFO", "certdef"):
        job(target, tmp_path / "work", robustness__corruptions="[noise]")
    bill = [record.getMessage() for record in caplog.records if "at most" in record.getMessage()]
    assert any(
        "1 corruptions x 6 images: at most 198 labels each, 66 where no answer changes" in line
        for line in bill
    )
    assert not any("radius" in record.getMessage() for record in caplog.records)


def test_options_of_other_verbs_name_no_job_anew():
    plain, other = load_config("digits"), load_config("digits", robustness__q=0.2)
    assert runs_file(plain, "u").name != runs_file(other, "u").name
