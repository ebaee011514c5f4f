"""Objects in the place of names: the same call again pays nothing, and another object is never taken for the first."""

import collections
import functools
import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import certdef
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.config.objects import object_named
from certdef.objects.identity import identity_of

FACTOR = 2.0
TINY: dict[str, Any] = {
    "progress": False,
    "certify__n": 100,
    "certify__n0": 32,
    "certify__target_images": 3,
    "certify__images": 3,
    "surrogate__epochs": 5,
    "attack__steps": 2,
    "tracking__system_metrics": False,
}


def scaled(images: np.ndarray) -> np.ndarray:
    return FACTOR * images


def shift(by: float):
    return lambda images: images + by


class Behind:
    """A callable with a model inside."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(images.reshape(len(images), -1))


class Strided(nn.Module):
    def __init__(self, stride: int, slope: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.slope = nn.Conv2d(1, 10, 3, stride), slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.convolution(images), self.slope).mean((2, 3))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32)[:, None], bunch.target


@pytest.fixture(scope="module")
def logistic(digits) -> LogisticRegression:
    images, labels = digits
    return LogisticRegression(max_iter=300).fit(images[:900].reshape(900, -1), labels[:900])


@pytest.fixture
def job(digits, store) -> dict[str, Any]:
    images, labels = digits
    return TINY | {
        "images": images[1000:1020],
        "labels": labels[1000:1020],
        "tracking__uri": store,
        "purifier": "gs",
    }


class Counted:
    """Answers as a linear model does, and counts the images that it sees. Its count is no part of what it does."""

    def __init__(self, weights: np.ndarray):
        self.weights, self.seen = weights, 0

    def answer(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        return images.reshape(len(images), -1) @ self.weights


def test_a_number_of_classes_that_is_not_told_is_asked_for_as_python_has_it(job):
    with pytest.raises(
        ConfigError, match=r"does not tell its number of classes: give it, e[.]g[.] target__num_classes=10"
    ):
        certdef.certify(target=scaled, **job)


class TestIdentity:
    def test_code_and_what_it_reaches_decide(self, monkeypatch, logistic):
        before = identity_of(scaled, "target")
        assert identity_of(scaled, "target") == before
        monkeypatch.setitem(globals(), "FACTOR", 3.0)
        assert identity_of(scaled, "target") != before
        assert identity_of(shift(1.0), "target") == identity_of(shift(1.0), "target")
        assert identity_of(shift(1.0), "target") != identity_of(shift(2.0), "target")
        assert identity_of(lambda x: x + 1, "target") != identity_of(lambda x: x + 2, "target")
        other = LogisticRegression().fit(np.eye(64)[:20], np.arange(20) % 10)
        assert identity_of(Behind(logistic), "target") == identity_of(Behind(logistic), "target")
        assert identity_of(Behind(logistic), "target") != identity_of(Behind(other), "target")
        bound = [identity_of(Behind(model).__call__, "target") for model in (logistic, other)]
        assert bound[0] != bound[1]
        partials = [identity_of(functools.partial(np.add, value), "target") for value in (1, 2)]
        assert partials[0] != partials[1]

    def test_a_network_is_more_than_its_weights(self):
        base = identity_of(Strided(1), "surrogate")
        assert identity_of(Strided(1).eval(), "surrogate") == base  # the mode is whoever uses it's
        for other in (Strided(2), Strided(1, slope=0.1)):
            assert torch.equal(other.convolution.weight, Strided(1).convolution.weight)
            assert identity_of(other, "surrogate") != base
        changed = Strided(1)
        changed.forward = lambda images: images.mean((1, 2, 3))[:, None].repeat(1, 10)
        assert identity_of(changed, "surrogate") != base

    def test_code_that_differs_in_a_helper_or_a_class_is_another(self):
        def made(constant: int):
            space: dict[str, Any] = {"__name__": "__main__"}
            exec(f"def helper(x):\n return x + {constant}\ndef f(x):\n return helper(x)", space)
            return space["f"]

        assert identity_of(made(1), "target") == identity_of(made(1), "target")
        assert identity_of(made(1), "target") != identity_of(made(2), "target")

    @pytest.mark.parametrize(
        "body",
        [
            "import helping\n    return helping.inner.f(x)",
            "from helping.inner import f\n    return f(x)",
            "from helping import inner\n    return inner.f(x)",
            "return helping.inner.f(x)",
        ],
        ids=["import", "from", "from the package", "a chain"],
    )
    def test_modules_of_ones_own_are_looked_into(self, tmp_path, monkeypatch, body):
        package = tmp_path / "helping"
        package.mkdir()
        (package / "__init__.py").write_text("from . import inner\n")
        (package / "inner.py").write_text("SCALE = 2\ndef f(x):\n    return SCALE * x\n")
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("helping", "helping.inner"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        helping = importlib.import_module("helping")
        space: dict[str, Any] = {"__name__": "__main__", "helping": helping}
        exec(f"def call(x):\n    {body}", space)
        before = identity_of(space["call"], "target")
        assert identity_of(space["call"], "target") == before
        monkeypatch.setattr(helping.inner, "SCALE", 3)
        assert identity_of(space["call"], "target") != before

    def test_a_patched_library_counts(self, monkeypatch):
        def call(images):
            return np.clip(images, 0, 1)

        before = identity_of(call, "target")
        monkeypatch.setattr(np, "clip", lambda images, *_: images)
        assert identity_of(call, "target") != before

    @pytest.mark.parametrize("kind", [dict, list, collections.deque, float])
    def test_what_derives_from_a_type_of_python_has_code_and_attributes(self, kind):
        def made(factor: int, held: int = 1, given: int = 1):
            space: dict[str, Any] = {"kind": kind, "__name__": "__main__"}
            exec(f"class Own(kind):\n def __call__(self, x):\n  return {factor} * x", space)
            values: Any = {"a": given} if kind is dict else float(given) if kind is float else [given]
            own = space["Own"](values)
            own.held = held
            return identity_of(own, "target")

        assert made(1) == made(1)
        assert len({made(1), made(2), made(1, held=2), made(1, given=2)}) == 4

    def test_slots_caches_and_buffers_that_are_not_saved(self):
        class Slot:
            __slots__ = ("factor",)

        class Both(Slot):
            pass

        def slotted(factor):
            both = Both()
            both.factor, both.other = factor, 0
            return lambda images: both.factor * images

        def cached(factor):
            return functools.lru_cache(lambda key: key * factor)

        def buffered(factor):
            module = Strided(1)
            module.register_buffer("mask", torch.tensor(float(factor)), persistent=False)
            return module

        for made in (slotted, cached, buffered):
            assert identity_of(made(1), "target") == identity_of(made(1), "target")
            assert identity_of(made(1), "target") != identity_of(made(2), "target"), made

    def test_a_value_that_is_computed_once_is_no_other_object(self):
        class Lazy:
            @functools.cached_property
            def weights(self):
                return np.ones(3)

            def __call__(self, images):
                return images * self.weights

        lazy = Lazy()
        before = identity_of(lazy, "target")
        lazy(np.ones(3))
        assert identity_of(lazy, "target") == before

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_tensors_of_odd_kinds_are_refused(self):
        sparse = torch.eye(3).to_sparse()
        with pytest.raises(ConfigError, match="a tensor that is sparse"):
            identity_of(lambda images: images @ sparse, "target")

    def test_what_cannot_be_told_from_outside_is_refused(self):
        lock = threading.Lock()
        with pytest.raises(ConfigError, match=r"reaches a _thread.lock.*identity='...'"):
            identity_of(lambda images: (lock, images), "target")

    def test_it_is_the_same_in_another_process(self, tmp_path):
        import subprocess

        code = "def f(x):\n    names = {'a', 'b', 'c'}\n    return x if 'a' in names else {1: (2, 3)}\n"
        (tmp_path / "mine.py").write_text(code)
        script = (
            "import mine; from certdef.objects.identity import identity_of; print(identity_of(mine.f, 't'))"
        )
        root = str(Path(__file__).parents[2])
        printed = {
            subprocess.run(
                [sys.executable, "-c", script],
                cwd=tmp_path,
                env={"PYTHONPATH": root, "PYTHONHASHSEED": seed, "PATH": ""},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(printed) == 1


class TestTarget:
    def test_the_same_call_pays_nothing_and_another_object_does(self, job, logistic):
        counted = Counted(logistic.coef_.T)
        call = job | {"target": counted.answer, "target__num_classes": 10, "target__output_kind": "logits"}
        first = certdef.certify(**call, identity="linear/1")
        paid = counted.seen
        assert paid > 100
        again = certdef.certify(**call, identity="linear/1")
        assert again.reused
        assert counted.seen == paid
        assert again.workspace == first.workspace
        other = certdef.certify(**call, identity="linear/2")
        assert not other.reused
        assert other.workspace != first.workspace
        assert counted.seen == 2 * paid

    def test_functions_are_told_apart_without_a_name(self, job, logistic):
        def answering(weights: np.ndarray):
            return lambda images: images.reshape(len(images), -1) @ weights

        call = job | {"target__num_classes": 10, "target__output_kind": "logits"}
        first = certdef.certify(**call, target=answering(logistic.coef_.T))
        again = certdef.certify(**call, target=answering(logistic.coef_.T.copy()))
        assert again.reused  # another object that does the same
        other = certdef.certify(**call, target=answering(-logistic.coef_.T))
        assert not other.reused
        assert other.results["target"]["accuracy"][0] < 0.2 < first.results["target"]["accuracy"][0]

    def test_an_estimator_and_tensors_with_a_configuration(self, job, logistic):
        images, labels = torch.from_numpy(job["images"]), torch.from_numpy(job["labels"])
        config = RunConfig(
            certify=certdef.load_config(certify__n=100, certify__target_images=3).certify,
            tracking=certdef.load_config(
                tracking__uri=job["tracking__uri"], tracking__system_metrics=False
            ).tracking,
            purifier="gs",
        )
        given = {"target": logistic, "images": images, "labels": labels}
        summary = certdef.certify(config, progress=False, **given)
        curves = summary.results["certify"]["curves"]
        assert [curve["subject"] for curve in curves.values()] == ["target"] * len(curves)
        assert summary.results["target"]["accuracy"][0] > 0.8
        assert config == RunConfig(certify=config.certify, tracking=config.tracking, purifier="gs")

    def test_an_open_target(self, job, logistic):
        opened = surrogates.open_target(logistic)
        assert certdef.certify(**job, target=opened).results["target"]["identity"] == opened.identity
        nameless = surrogates.open_target(lambda images: images, num_classes=10)
        with pytest.raises(ConfigError, match="open it with open_target"):
            certdef.certify(**job, target=nameless)

    def test_an_open_target_in_another_form_is_another(self, job, logistic):
        """Its identity is the same, and its answers are not: no finished stage of the first is the second's."""
        first = certdef.certify(**job, target=surrogates.open_target(logistic))
        second = certdef.certify(**job, target=surrogates.open_target(logistic, mean=0.3, std=0.2))
        assert second.results["target"]["identity"] == first.results["target"]["identity"]
        assert not second.stages["target"].reused

    def test_its_name_alone_does_not_open_it_again(self, job, logistic, tmp_path):
        import os
        import subprocess

        summary = certdef.certify(**job, target=logistic)
        uri = summary.results["target"]["uri"]
        assert uri.startswith("object:sklearn.linear_model")
        command = [sys.executable, "-m", "certdef.cli", "certify", f"--target.uri={uri}", "--quiet"]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 2
        assert "was an object in Python: give it again" in done.stderr


class TestSurrogateAndPurifier:
    def test_modules_are_used_as_they_are(self, job, logistic):
        stand_in = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            stand_in[1].weight.copy_(torch.from_numpy(logistic.coef_))
            stand_in[1].bias.copy_(torch.from_numpy(logistic.intercept_))
        weights = {name: value.clone() for name, value in stand_in.state_dict().items()}
        smoothing = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Hardtanh(0, 1))
        call = {key: value for key, value in job.items() if key not in ("purifier", "surrogate__epochs")}
        call |= {"target": logistic, "surrogate": stand_in, "purifier": smoothing}
        summary = certdef.run(**call)
        assert summary.results["surrogate"]["agreement_clean"][0] == 1.0
        assert summary.results["surrogate"]["queries"] == summary.bill.charges["training"].spent == 0
        assert "served" not in summary.stages
        page = Path(summary.report).read_text()
        assert "it holds an object of the Python session" in page
        assert "Sequential" in page
        assert all(torch.equal(value, weights[name]) for name, value in stand_in.state_dict().items())
        assert stand_in.training  # as it was
        assert certdef.run(**call).reused
        wider = nn.Sequential(nn.AvgPool2d(5, 1, 2), nn.Hardtanh(0, 1))  # without weights, as the first
        other = certdef.run(**call | {"purifier": wider, "ledger__certification": 2_000})  # votes of its own
        assert not other.reused
        assert other.stages["surrogate"].reused

    @pytest.mark.parametrize(
        ("purifier", "problem"),
        [
            (nn.Dropout(), "clamp them"),  # in eval mode it does nothing, and noisy images leave [0, 1]
            (nn.Sequential(nn.AvgPool2d(2), nn.Hardtanh(0, 1)), "keep the shape"),
        ],
    )
    def test_a_module_that_is_no_denoiser_is_refused_before_anything_is_paid(
        self, purifier, problem, job, logistic
    ):
        with pytest.raises(ConfigError, match=problem):
            certdef.certify(**job | {"purifier": purifier}, target=logistic)
        assert not [*Path().glob("runs/*/ledger.db")]

    def test_a_surrogate_of_other_classes_is_refused(self, job, logistic):
        call = {key: value for key, value in job.items() if key != "surrogate__epochs"}
        with pytest.raises(surrogates.SurrogateError, match=r"expected \(1, 10\)"):
            certdef.run(**call, target=logistic, surrogate=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({"targt": 1}, "did you mean 'target'"),
            ({"labels": [1]}, "give images too"),
            ({"identity": "a"}, "give target too"),
            ({"target": "m.onnx", "identity": "a"}, "leave identity out"),
            ({"purifier": 3}, "purifier is a int"),
            ({"config": RunConfig(), "certify__n": 5}, "set it there"),
        ],
    )
    def test_what_makes_no_sense_is_one_line(self, given, problem):
        with pytest.raises(ConfigError, match=problem):
            certdef.certify(**given)

    def test_an_object_is_forgotten_with_its_holder(self):
        from certdef.config.objects import remember

        thing = Strided(1)
        name = remember("some:thing", thing)
        assert object_named(name, "target") is thing
        del thing
        with pytest.raises(ConfigError, match="give it again"):
            object_named(name, "target")
