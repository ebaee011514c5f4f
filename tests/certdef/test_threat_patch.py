"""`certdef certify --threat patch`: what is paid, recorded, logged and refused, with a target that runs here."""

import shutil

import mlflow
import numpy as np
import pytest
import torch

import certdef
import certify
from certdef.cli import main
from certdef.config.job import ConfigError
from tests.certdef.test_patches import digits

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 8
PATCH = {"patch": "2x2", "masks": 3}
PAIRS, PROBES = 45, 8


class Target:
    """The classifier of the digits behind labels; it counts the images that it sees, and may break down once."""

    def __init__(self, breaks_at: int | None = None):
        self.model = digits()[0]
        self.seen, self.breaks_at = 0, breaks_at

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.breaks_at is not None and self.seen >= self.breaks_at:
            self.breaks_at = None
            raise KeyboardInterrupt
        self.seen += len(images)
        with torch.no_grad():
            return self.model(torch.from_numpy(np.asarray(images))).numpy()


@pytest.fixture
def job(store):
    _, images, labels = digits()
    return {
        "images": images[:IMAGES].numpy(),
        "labels": labels[:IMAGES].numpy(),
        "target__num_classes": 10,
        "certify__target_images": IMAGES,
        "tracking__uri": store,
        "tracking__system_metrics": False,
        "progress": False,
    }


def against(target, job, **options):
    options = PATCH | options
    return certdef.certify(target=target, identity="digits/1", threat="patch", threat_options=options, **job)


def expected(job, fill="gray"):
    model, images, _ = digits()
    masks = certify.CoveringMasks.over((8, 8), (2, 2), 3)
    system = certify.MaskedClassifier(model, masks, 10, fill=fill)
    return system.certify(images[:IMAGES])


def result_of(summary):
    return next(stage.result for name, stage in summary.stages.items() if name.startswith("threat-"))


@pytest.mark.acceptance
def test_the_command_certifies_what_the_package_does_and_pays_for_what_it_asks(job):
    target = Target()
    result = result_of(against(target, job))
    found = expected(job)
    right = [each.prediction == label for each, label in zip(found, job["labels"], strict=True)]
    assert 0 < np.mean(right) < 1
    curve = result.curves["target"]
    assert (result.threat, result.kind, result.alpha, result.grid) == ("patch", "alpha = 0", 0.0, (4.0,))
    assert curve.accuracy[0].value == np.mean(right)
    assert curve.queries_per_image == np.mean([each.n for each in found])
    assert curve.n == PAIRS
    logged = mlflow.MlflowClient(job["tracking__uri"]).search_runs(["1"])
    metrics = [run.data.metrics for run in logged if "certified/patch/4" in run.data.metrics]
    assert metrics[0]["certified/patch/4"] == np.mean(right)


@pytest.mark.acceptance
def test_interrupted_work_goes_on_and_pays_for_nothing_twice(job, tmp_path):
    whole = Target()
    once = against(whole, job | {"work_dir": str(tmp_path / "whole")})
    broken = Target(breaks_at=whole.seen // 2)
    interrupted = job | {"work_dir": str(tmp_path / "broken")}
    with pytest.raises(KeyboardInterrupt):
        against(broken, interrupted)
    again = against(broken, interrupted)
    for folder in (tmp_path / "broken").glob("**/threat-patch-*"):
        shutil.rmtree(folder)  # the ledger keeps what was paid
    anew = against(broken, interrupted)
    for each in (again, anew):
        assert result_of(each).curves["target"].accuracy == result_of(once).curves["target"].accuracy
        assert paid(each) == paid(once)
    assert paid(once) == IMAGES * result_of(once).curves["target"].queries_per_image + PROBES


def paid(summary):
    """Answers that were paid from the budget of the certificates; canaries have one of their own."""
    return summary.bill["certification"].answered


@pytest.mark.parametrize("fill", ["mean", "leaves"])
def test_other_fills(job, fill):
    result = result_of(against(Target(), job, fill=fill))
    assert result.settings["fill"] == fill
    if fill == "mean":
        assert result.curves["target"].queries_per_image == np.mean([each.n for each in expected(job, fill)])


def test_the_autoencoder_is_trained_on_the_pool_and_fills(store):
    options = {"surrogate__model": "none", "nim__epochs": 1, "certify__target_images": 3, "progress": False}
    options |= {"tracking__uri": store, "tracking__system_metrics": False}
    summary = certdef.certify(threat="patch", threat_options=PATCH | {"fill": "mim"}, **options)
    assert "mim" in summary.stages
    assert result_of(summary).curves["target"].images == 3


def test_without_a_pool_there_is_no_autoencoder(job):
    with pytest.raises(ConfigError, match=r"--fill is mim: .* use leaves"):
        against(Target(), job, fill="mim")


def test_what_cannot_be_used_is_refused_at_once_and_nothing_is_asked(job):
    target = Target()
    with pytest.raises(ConfigError) as refused:
        against(target, job, patch="9x2", fill="grey", masks=0)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert "--patch: patch '9x2' is 9x2 pixels, larger than the image of 8x8" in str(refused.value)
    assert "use one of gray, mean, mim, leaves" in str(refused.value)
    assert target.seen == 0
    with pytest.raises(ConfigError, match="--strength is 2: threat patch does not read it"):
        against(target, job, strength=2)


class Coin:
    """A target that answers anew each time."""

    def __init__(self):
        self.draws = np.random.default_rng(0)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.draws.random((len(images), 10))


def test_a_target_that_answers_anew_each_time_is_refused(job):
    with pytest.raises(ConfigError, match="answers the same image differently"):
        against(Coin(), job)


def test_the_command_line_tells_of_a_patch_that_is_too_large(store, capsys):
    arguments = ["certify", "--threat", "patch", "--patch", "9x9", "--surrogate.model", "none"]
    assert main([*arguments, "--tracking.uri", store]) == 2
    error = capsys.readouterr().err
    assert "larger than the image of 8x8" in error
    assert "Traceback" not in error
