"""A service as the job's target: opened by address, billed truly, watched for changes, its secrets kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import certdef
import surrogates
from certdef.cli import main
from tests.conftest import TINY
from tests.servers.open_inference import Model, open_inference_server

TOKEN = "hush-hush-0815"
SMALL = TINY | {"data__heldout_images": 60, "ledger__training": 200, "surrogate__epochs": 5}


def configured(store: str, folder: Path, url: str, **options: Any) -> certdef.RunConfig:
    return certdef.load_config(
        work_dir=str(folder / "work"), tracking__uri=store, target__uri=url, **SMALL | options
    )


def test_a_service_is_distilled_and_its_token_kept(
    service: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    url, faults = service
    monkeypatch.setenv("DIGITS_TOKEN", TOKEN)
    config = configured(
        store,
        tmp_path,
        url,
        target__num_classes=10,
        target__token_env="DIGITS_TOKEN",
        target__batch_size=30,
        target__concurrency=2,
        target__canary_every=100,
        target__headers={"X-Model": "v2"},
    )
    faults.will("answer", times=3).will("reset")  # the canaries twice, before the first image
    summary = certdef.distill(config, progress=False)
    assert summary.results["target"]["accuracy"][0] > 0.85
    assert summary.results["target"]["params"]["deterministic"] == "yes"
    charges = summary.bill.charges
    assert charges["training"].answered == 200
    assert charges["preflight"].answered == 50
    # The request that was reset, and repeated: whichever of the two that are sent at once came last.
    assert charges["preflight"].unknown in (20, 30)
    assert charges["evaluation"].answered == 2 * 60 - 50  # a look had 50 of the clean images
    # 120 clean and noisy held-out images and 200 of the pool: the reference, before the first image, then every 100, and
    # at the end of both stages
    assert charges["canary"].answered in (24, 28)
    total = summary.bill.total
    assert total.smallest <= faults.charged <= total.largest
    assert faults.charged == total.answered + total.unknown
    assert {(seen["Authorization"], seen["X-Model"]) for seen in faults.seen} == {(f"Bearer {TOKEN}", "v2")}

    before = faults.charged
    again = certdef.distill(config, progress=False)  # all of it is known
    assert (faults.charged, again.reused) == (before, True)
    told = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert told == []
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_password_in_the_address_is_not_published(service: Any, store: str, tmp_path: Path) -> None:
    url, faults = service
    address = url.replace("://", f"://user:{TOKEN}@")
    certdef.distill(configured(store, tmp_path, address, target__num_classes=10), progress=False)
    assert faults.seen[0]["Authorization"].startswith("Basic ")
    told = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert told == []


def test_a_service_that_changes_stops_the_job(
    service: Any, logistic: LogisticRegression, store: str, tmp_path: Path
) -> None:
    url, faults = service
    config = configured(store, tmp_path, url, target__num_classes=10, target__canary_every=50)

    def changing(images: np.ndarray) -> np.ndarray:
        scores = logistic.predict_proba(images.reshape(len(images), -1))
        return scores if faults.charged < 120 else scores[:, ::-1]

    faults.model = changing
    with pytest.raises(surrogates.DriftError, match="it has changed"):
        certdef.distill(config, progress=False)
    assert faults.charged < 250  # and not the whole budget


@pytest.mark.slow
@pytest.mark.acceptance
def test_another_pixel_format_is_another_target(service: Any, store: str, tmp_path: Path) -> None:
    url, faults = service
    options = {"target__num_classes": 10, "target__canary_every": 0}
    certdef.distill(configured(store, tmp_path, url, **options), progress=False)
    before = faults.charged
    coarse = configured(
        store, tmp_path, url, **options, target__quantise=2, ledger__path=str(tmp_path / "coarse.db")
    )
    summary = certdef.distill(coarse, progress=False)
    assert summary.results["target"]["params"]["preprocessing"] == "2 bits"
    assert faults.charged == 2 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give it, e.g. --target.num_classes 10"),
        (["--target.num_classes=10", "--target.token_env=NOT_SET"], "NOT_SET (token_env) is not set"),
        (
            ["--target.num_classes=10", '--target.headers={"Authorization": "Bearer 0815"}'],
            "target.headers: header Authorization is a secret",
        ),
        (["--target.num_classes=10", "--target.rate=0"], "rate must be a positive number, got 0"),
        (["--target.num_classes=10", "--target.layout=nchw"], "use one of chw, hwc, flat"),
        (["--target.num_classes=10", "--target.canary_every=-1"], "target.canary_every is -1"),
        (["--target.num_classes=9"], "answers 9 classes, but the labels of digits go up to 9"),
    ],
)
def test_what_is_wrong_is_reported_before_any_query(
    options: list[str], message: str, service: Any, store: str, tmp_path: Path, capsys: Any
) -> None:
    url, faults = service
    arguments = ["distill", f"--target.uri={url}", f"--tracking.uri={store}", "--work_dir=work", *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "0815" not in error
    assert len(error.splitlines()) == 1
    assert faults.charged == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token_env: HOME\n", "allow it with --target.token_env HOME"),
        ("identity: &a x\ntoken_header: *a\n", "has the alias *a"),
        ("# " + "x" * 2**20, "expected at most 1,048,576"),
    ],
    ids=["variable", "alias", "large"],
)
def test_a_mapping_that_cannot_be_trusted_ends_the_job_with_one_line(
    text: str, message: str, service: Any, store: str, tmp_path: Path, capsys: Any
) -> None:
    url, faults = service
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        f"url: {url}\nrequest: {{inputs: $images}}\nscores: x\nnum_classes: 10\nper_request: 1\n{text}"
    )
    assert main(["distill", f"--target.uri={mapping}", f"--tracking.uri={store}", "--work_dir=work"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert faults.seen == []


def test_a_wrong_number_of_classes_is_not_taken_for_a_missing_one(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"name": "scores", "datatype": "FP32", "shape": [-1, 10]}
    images = {"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
    model = Model(lambda pixels: {"scores": np.ones((len(pixels), 10))}, [images], [scores])
    with open_inference_server(model) as url:
        arguments = ["distill", f"--target.uri={url}", f"--tracking.uri={store}", "--work_dir=work"]
        assert main([*arguments, "--target.num_classes=12"]) == 2
        assert "num_classes is 12, but the target says 10: leave num_classes out" in capsys.readouterr().err
        model.outputs = []
        assert main(arguments) == 2
        assert (
            "does not tell its number of classes: give it, e.g. --target.num_classes 10"
            in capsys.readouterr().err
        )
    assert model.served == 0


def test_options_of_a_service_need_one(store: str) -> None:
    with pytest.raises(certdef.ConfigError, match=r"target.rate is 5.0: it is for your own target"):
        certdef.distill(certdef.load_config(target__rate=5.0, tracking__uri=store), progress=False)


@pytest.mark.slow
@pytest.mark.acceptance
def test_votes_of_a_target_that_changed_are_dropped(
    service: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, faults = service
    options = {"preset": "digits", "target__num_classes": 10, "target__canary_every": 500, "purifier": "gs"}
    config = configured(store, tmp_path, url, **options)
    known = faults.model

    def changing(images: np.ndarray) -> np.ndarray:
        scores = known(images)
        return scores if faults.charged < 2_300 else np.roll(scores, 1, axis=1)

    faults.model = changing
    with pytest.raises(surrogates.DriftError, match="are marked and not used again"):
        certdef.certify(config, progress=False)
    charged = faults.charged
    assert not list(tmp_path.glob("work/certify-*/records/target-*"))
    with pytest.raises(surrogates.DriftError):
        certdef.certify(config, progress=False)
    assert faults.charged - charged <= 12  # canaries alone
    faults.model = known
    summary = certdef.certify(config, progress=False)
    fresh = certdef.certify(configured(store, tmp_path / "other", url, **options), progress=False)
    assert summary.results["certify"]["curves"].keys() == fresh.results["certify"]["curves"].keys()
    for path in (tmp_path / "other").glob("work/certify-*/records/target-*.jsonl"):
        (same,) = tmp_path.glob(f"work/certify-*/records/{path.name}")
        assert same.read_bytes().partition(b"\n")[2] == path.read_bytes().partition(b"\n")[2]
