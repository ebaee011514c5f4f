"""certdef certify --threat: a typed result, nothing paid twice, what is refused before a query, one page for all threats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import certdef
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.config.threats import OPTIONS, threat_names
from certdef.report.threats import found_threats, table_lines
from certdef.stages.threat import KINDS, ThreatResult, find_threat
from tests.conftest import TINY

VOTES: dict[str, Any] = {
    "progress": False,
    "certify__n": 200,
    "certify__n0": 20,
    "certify__method": "fixed",
    "certify__target_images": 4,
    "ledger__certification": 20_000,  # for all threats together
    "tracking__system_metrics": False,
}


class Counted:
    """A linear model that counts the images that it sees, and may fail. Its count is no part of what it does."""

    def __init__(self, model: LogisticRegression):
        self.model, self.seen, self.most = model, 0, 10**9

    def query(self, images: np.ndarray) -> np.ndarray:
        if self.seen + len(images) > self.most:
            raise RuntimeError("the service is down")
        self.seen += len(images)
        return self.model.predict_proba(images.clip(0, 1).reshape(len(images), -1))


@pytest.fixture(scope="module")
def model() -> LogisticRegression:
    pixels, labels = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=300).fit(pixels[:900] / 16, labels[:900])


@pytest.fixture
def service(model) -> Counted:
    return Counted(model)


@pytest.fixture
def job(service, store, tmp_path) -> dict[str, Any]:
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[1000:1012, None]
    return VOTES | {
        "target": service.query,
        "identity": "counted",
        "target__num_classes": 10,
        "images": images,
        "labels": bunch.target[1000:1012],
        "tracking__uri": store,
        "work_dir": str(tmp_path / "work"),
    }


def result_of(summary: Any, threat: str) -> ThreatResult:
    [stage] = [stage for name, stage in summary.stages.items() if name.startswith(f"threat-{threat}")]
    return stage.result


@pytest.mark.acceptance
def test_a_threat_from_the_target_alone_and_nothing_is_paid_twice(job, service, store):
    summary = certdef.certify(threat="brightness", **job)
    first, paid = result_of(summary, "brightness"), service.seen
    assert list(summary.stages) == ["target", "threat-brightness"]  # nothing was trained
    assert list(first.curves) == ["target"]
    assert first.curves["target"].queries_per_image == 220
    assert first.curves["target"].n == 220
    assert first.curves["target"].accuracy[0].value > 0
    assert first.kind == "sound"
    assert all(
        a >= b
        for a, b in zip(first.curves["target"].accuracy, first.curves["target"].accuracy[1:], strict=False)
    )
    assert ThreatResult.from_json(json.loads(json.dumps(first.to_json()))) == first

    again = certdef.certify(threat="brightness", **job)
    assert again.reused
    assert service.seen == paid
    # another grid is another result from the same votes
    other = certdef.certify(threat="brightness", threat_options={"grid": "0.01,0.02"}, **job)
    assert result_of(other, "brightness").grid == (0.01, 0.02)
    assert service.seen == paid

    import mlflow

    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("certdef")
    runs = client.search_runs([experiment.experiment_id])
    child = next(
        run for run in runs if "certified/brightness/0.05" in run.data.metrics and run.data.params["threat"]
    )
    assert child.data.metrics["certified/brightness/0.05"] == first.curves["target"].accuracy[0].value
    stage = summary.stages["threat-brightness"]
    assert (stage.path / "threat.png").stat().st_size > 5_000
    records = [
        json.loads(line) for line in (stage.path / "records" / "target.jsonl").read_text().splitlines()
    ]
    assert records[0]["config"]["noise"] == {
        "law": "brightness",
        "norm": "brightness",
        "unit": "[0, 1] pixel values",
        "sigma": 0.2,
    }
    assert len(records) == 5


@pytest.mark.acceptance
def test_an_interrupted_threat_goes_on_image_by_image(job, service):
    service.most = 12 + 2 * 220 + 100  # two images are done, the third is not
    with pytest.raises(Exception, match="down"):
        certdef.certify(threat="contrast", **job)
    [records] = Path(job["work_dir"]).glob("threat-contrast-*/records/target.jsonl")
    assert len(records.read_text().splitlines()) >= 1
    paid, service.most = service.seen, 10**9
    summary = certdef.certify(threat="contrast", **job)
    whole = result_of(summary, "contrast").curves["target"]
    assert summary.bill["certification"].answered == 4 * 220
    assert (
        service.seen - paid <= 4 * 220 + 12 - paid + 512
    )  # what was sent and not answered may be sent again
    assert whole.images == 4


@pytest.mark.acceptance
def test_every_threat_of_the_registry_proves_something_and_is_on_one_page(job):
    names = [name for name in threat_names() if name != "l2"]
    own = {"brightness", "contrast", "brightness-contrast", "translation", "pixel-shift"}
    own |= {"blur-exponential", "blur-uniform", "blur-folded"}
    assert own <= {*names}
    for name in sorted(own):
        summary = certdef.certify(threat=name, **job)
        result, threat = result_of(summary, name), find_threat(name)
        assert (result.threat, result.kind, result.parameter) == (name, threat.kind, threat.parameter)
        assert result.kind in KINDS
        assert result.curves["target"].right.value > 0
        lines = "\n".join(table_lines(result))
        assert result.statement in lines
        assert result.limits in lines
        assert lines in str(summary)
    exact = result_of(summary, "translation") if name == "translation" else None
    shift = find_threats(job, "pixel-shift")
    assert shift.alpha == 0
    assert shift.curves["target"].queries_per_image <= 25
    assert exact is None or exact.alpha == 0.001
    page = summary.report.read_text()
    assert summary.report.name == "threats.html"
    for name in own:
        threat = find_threat(name)
        assert f"<h3>{threat.title[:1].upper()}{threat.title[1:]}</h3>" in page
        assert threat.limits.replace("'", "&#39;") in page


def find_threats(job: dict[str, Any], name: str) -> ThreatResult:
    work = Path(job["work_dir"])
    result = ThreatResult.from_json(json.loads(next(work.glob(f"threat-{name}-*/result.json")).read_text()))
    found = found_threats(work, result.identity, result.images_digest)
    assert not found_threats(work, "another target", result.images_digest)
    return next(each.result for each in found if each.result.threat == name)


@pytest.mark.parametrize(
    ("threat", "options", "message"),
    [
        ("brightnes", {}, r"threat is 'brightnes' \(did you mean 'brightness'"),
        ("l2", {"strength": 0.2}, "--strength is 0.2: it is for --threat"),
        ("brightness", {"strength": -1.0}, "--strength: sigma must be finite and above 0"),
        ("brightness", {"grid": "0.2,0.1"}, "--grid is '0.2,0.1': give rising numbers"),
        ("brightness", {"grid": "a"}, "--grid is 'a'"),
        ("brightness", {"grid": ""}, "--grid is '': give rising numbers"),
        ("brightness", {"grid": "nan"}, "--grid is 'nan': give rising numbers"),
        ("patch", {"patch": ""}, "got '': try 3x3 or 5%"),
        ("patch", {"patch": "101%"}, "larger than the image of 8x8"),
        ("brightness", {"grid": "5"}, "prove no more than"),
        ("blur-uniform", {"grid": "1.5"}, "raise --strength or --certify.n"),
        (
            "pixel-shift",
            {"strength": 1.5},
            "--strength is 1.5: give the largest shift in whole pixels, from 1 to 7",
        ),
        ("pixel-shift", {"grid": "3"}, "--grid is '3': give whole pixels up to --strength 2"),
    ],
)
def test_bad_input_is_one_line_before_any_query(job, service, threat, options, message):
    with pytest.raises(ConfigError, match=message):
        certdef.certify(threat=threat, threat_options=options, **job)
    assert service.seen == 0


@pytest.mark.acceptance
def test_another_default_strength_is_another_run_of_the_same_job(job, store, monkeypatch):
    """A release that changes a default must not fail on the run that MLflow has under the same name."""
    from dataclasses import replace

    from certdef.pipeline import threats

    before = result_of(certdef.certify(threat="brightness", **job), "brightness")
    known = find_threat("brightness")

    def stronger(config, options, shape):
        return known.settings(config, {"strength": 0.3} | dict(options), shape)

    monkeypatch.setattr(threats, "find_threat", lambda name: replace(known, settings=stronger))
    after = result_of(certdef.certify(threat="brightness", **job), "brightness")
    assert (before.settings["strength"], after.settings["strength"]) == (0.2, 0.3)
    import mlflow

    client = mlflow.MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("certdef").experiment_id])
    named = [run.data.params["strength"] for run in runs if run.info.run_name == "threat-brightness"]
    assert sorted(named) == ["0.2", "0.3"]


def test_a_budget_that_is_too_small_is_named_before_the_votes(job, service):
    job |= {"ledger__certification": 800}
    with pytest.raises(ConfigError, match=r"may ask for 880 answers \(4 images x 220\); raise it to that"):
        certdef.certify(threat="brightness", **job)
    assert service.seen == 0


def test_shards_are_for_l2(job):
    with pytest.raises(ConfigError, match="shards are for l2"):
        certdef.certify(threat="brightness", shard="1/2", **job)


def test_the_command_line_names_the_threats_and_refuses_what_none_reads(capsys):
    assert main(["certify", "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())  # names may be broken at their hyphens
    assert all(name in shown for name in threat_names())
    assert all(f"--{each.name}" in shown for each in OPTIONS)
    assert main(["certify", "--threat", "nothing"]) == 2
    assert "use --threat with one of l2, blur-exponential" in capsys.readouterr().err
    assert main(["certify", "--strength", "0.3"]) == 2
    assert "--threat" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_surrogate_is_trained_under_the_threat_and_certified_for_free(store, tmp_path):
    config = certdef.load_config(
        "digits",
        work_dir=str(tmp_path / "work"),
        tracking__uri=store,
        **TINY | {"certify__laws": "[{label: nim}]"},
    )
    summary = certdef.certify(config, threat="brightness", progress=False)
    assert list(summary.stages) == ["target", "surrogate", "student-threat-brightness", "threat-brightness"]
    curves = result_of(summary, "brightness").curves
    assert (curves["target"].paid, curves["surrogate"].paid) == (True, False)
    assert curves["surrogate"].trained_for
    assert summary.bill["training"].answered == 600
    certified = 3 * curves["target"].queries_per_image
    assert summary.bill["certification"].answered == pytest.approx(certified)
    assert "certified/brightness/surrogate/0.1" in result_of(summary, "brightness").metrics
