"""engine="auto": the fastest arithmetic that answers the same, fixed before the first vote, and never by a later clock."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import certify.voting.engine
import certify.voting.tuning
from certify import CertifyError, Gaussian, SmoothedClassifier, VoteEngine, certify_parallel, fastest_engine
from certify.voting import Computed
from certify.voting.chunks import ESTIMATION

K = 4
NOISE = Gaussian(0.25)
LOWER = {"autocast": "bfloat16", "channels_last": True}


@pytest.fixture
def images():
    return torch.rand((3, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def lower() -> bool:
    return torch.is_autocast_enabled("cpu")


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    """Time passes where a planted module says so, and nowhere else: no test follows the machine's load."""
    Planted.now = 0.0
    monkeypatch.setattr(certify.voting.tuning, "time", SimpleNamespace(perf_counter=lambda: Planted.now))


class Planted(torch.nn.Module):
    """Slow in float32, quick in bfloat16, where it may have a fault."""

    now = 0.0

    def __init__(self, fault=lambda scores: scores, slow=0.004):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.fault, self.slow, self.calls = torch.nn.Linear(108, K), fault, slow, 0

    def forward(self, x):
        self.calls += 1
        Planted.now += self.slow / 10 if lower() else self.slow
        scores = self.linear(x.flatten(1))
        return self.fault(scores) if lower() else scores


def raising(scores):
    raise RuntimeError("no such kernel\nin bfloat16")


class TestChoice:
    def test_the_fastest_is_taken(self, images):
        tuned = fastest_engine(Planted(), images, NOISE, seconds=0.2)
        assert tuned.engine.autocast == torch.bfloat16
        assert set(tuned.rates) >= {"plain", "channels_last", "bfloat16", "bfloat16 channels_last"}
        assert tuned.rates["bfloat16"] > 2 * tuned.rates["plain"]
        assert not tuned.left_out

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (lambda scores: scores + len(scores), "it answers something else"),
            (lambda scores: scores * torch.nan, "it answers something else"),
            (lambda scores: scores + 1e-3 * (len(scores) % 64), "its answers follow the batch"),
            (raising, "RuntimeError: no such kernel"),
        ],
    )
    def test_a_faulty_one_is_left_out_however_fast(self, images, fault, reason):
        tuned = fastest_engine(Planted(fault), images, NOISE, seconds=0.2)
        assert tuned.engine.autocast is None
        assert tuned.left_out == {"bfloat16": reason, "bfloat16 channels_last": reason}

    def test_the_module_stays_as_it_was(self, images):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, K, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        before = {name: each.clone() for name, each in model.state_dict().items()}
        fastest_engine(model.train(), images, NOISE, seconds=0.05)
        assert model.training
        assert model[0].weight.is_contiguous()
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())

    def test_it_follows_no_global_generator(self, images):
        model, state = Planted(), torch.get_rng_state()
        fastest_engine(model, images, NOISE, seconds=0.05)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda x: fastest_engine(lambda x: x, x, NOISE), "torch module"),
            (lambda x: fastest_engine(Planted(), x, NOISE, seconds=0), "seconds"),
            (lambda x: fastest_engine(Planted(), 255 * x, NOISE), r"\[0, 1\]"),
            (lambda x: SmoothedClassifier(Planted(), NOISE, K, engine="fast"), "'auto'"),
            (lambda x: SmoothedClassifier(lambda x: x, NOISE, K, engine="auto"), "torch module"),
            (lambda x: VoteEngine(autocast="int8"), "bfloat16"),
        ],
    )
    def test_refusals(self, images, call, message):
        with pytest.raises(CertifyError, match=message):
            call(images)

    def test_the_arithmetic_goes_through_json(self):
        engine = VoteEngine(batch_size=64, **LOWER)
        kept = json.loads(json.dumps(engine.arithmetic))
        assert kept == {"autocast": "bfloat16", "channels_last": True, "compile": False, "batch_size": 64}
        assert replace(VoteEngine(), **kept) == engine


class TestAuto:
    def test_it_is_measured_once_and_then_fixed(self, images):
        smoothed = SmoothedClassifier(Planted(), NOISE, K, engine="auto", seed=5)
        first = smoothed.certify(images, n=200)
        assert smoothed.engine.autocast == torch.bfloat16
        smoothed._plain.slow = 0  # the clock would say something else now
        assert smoothed.certify(images, n=200) == first
        resumed = SmoothedClassifier(Planted(slow=0), NOISE, K, seed=5, **smoothed.engine.arithmetic)
        assert resumed.certify(images, n=200) == first

    def test_bad_arguments_are_refused_before_anything_is_measured(self, images):
        model = Planted()
        smoothed = SmoothedClassifier(model, NOISE, K, engine="auto")
        with pytest.raises(CertifyError):
            smoothed.certify(images, n=3)
        assert model.calls == 0

    @pytest.mark.slow
    def test_workers_take_the_choice_that_was_made_for_them(self, images):
        smoothed = SmoothedClassifier(Planted(), NOISE, K, engine="auto", seed=5)
        found = certify_parallel(smoothed, images, workers=1, n=200)
        kept = smoothed.engine.arithmetic
        assert kept["autocast"] == "bfloat16"
        alone = SmoothedClassifier(Planted(), NOISE, K, seed=5, **kept)
        assert alone.certify(images, n=200) == found


class TestSameCounts:
    """In lower precision too the counts are the same however the work is cut."""

    def network(self):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, K)]
        return torch.nn.Sequential(*layers).eval()

    def votes(self, model, images, batch_size, n=311, **options):
        engine = VoteEngine(batch_size=batch_size, **LOWER, **options)
        where = {"indices": range(len(images)), "stage": ESTIMATION}
        return engine.count(model, images, NOISE, K, n, **where)

    def test_whatever_the_batch(self, images):
        model = self.network()
        expected = self.votes(model, images, 1024)
        assert np.all(expected.sum(axis=1) == 311)
        for batch_size in (31, 100, 256, 300, 2000):
            assert np.array_equal(self.votes(model, images, batch_size), expected)

    def test_and_the_model_sees_whole_groups_only(self, images, monkeypatch):
        odd = 3 * 311 % 32
        follows = Planted(
            lambda scores: scores + (len(scores) % 32 == odd) * torch.tensor([9.0, 0, 0, 0]), slow=0
        )
        expected = self.votes(follows, images, 1024)
        assert np.array_equal(self.votes(follows, images, 100), expected)
        monkeypatch.setattr(certify.voting.engine, "GROUP", 1)  # the fault that this test is for
        assert not np.array_equal(self.votes(follows, images, 1024), expected)

    def test_a_part_computes_by_itself_and_gives_float32(self, images):
        model = self.network()
        part = Computed(model, VoteEngine(**LOWER))
        answers = part(images)
        assert not lower()
        assert answers.dtype == torch.float32
        assert answers.shape == (3, K)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(images)
        assert torch.allclose(answers, expected.float(), atol=0.02)
        assert torch.equal(part(images[:1]), answers[:1])
        assert torch.equal(Computed(model, VoteEngine())(images), model(images))
