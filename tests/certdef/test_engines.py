"""certify.engine: what is chosen once decides counts and receipts from then on, whatever the clock says later."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import certdef
import certify
from certdef.config.checks import check
from certdef.config.job import ConfigError
from certdef.stages import engines
from certdef.tracking.legacy import Legacy, runs_file
from certify.voting import Computed, Tuned
from tests.certdef.test_receipts import SETTINGS, VOTES, service  # noqa: F401  a fixture

LOWER = {"autocast": "bfloat16", "channels_last": True, "compile": False}


class Clock:
    """In the place of fastest_engine: what it says can be changed, and how often it was asked is counted."""

    def __init__(self, **chosen):
        self.chosen, self.asked = chosen, 0

    def __call__(self, module, images, noise, *, engine):
        self.asked += 1
        return Tuned(replace(engine, **self.chosen))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(autocast="bfloat16", channels_last=True)
    monkeypatch.setattr(engines, "fastest_engine", clock)
    return clock


def job(folder, engine="auto", **options):
    config = certdef.load_config(work_dir=str(folder), certify__engine=engine, **options)
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    data = SimpleNamespace(heldout_images=images, image_shape=(1, 8, 8))
    return SimpleNamespace(
        config=config, data=data, device=torch.device("cpu"), prepared=False, finished=False
    )


def network(width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width))


class TestChoice:
    def test_plain_measures_nothing(self, tmp_path, clock):
        found = engines.choose_engines(job(tmp_path, "plain"), {"surrogate": network()})
        assert (found.chosen, clock.asked) == ({}, 0)
        assert not list(tmp_path.iterdir())

    def test_a_choice_is_kept_for_modules_of_the_same_sizes(self, tmp_path, clock):
        parts = {"denoiser": None, "surrogate": network()}
        first = engines.choose_engines(job(tmp_path), parts)
        assert first.chosen == {"surrogate": LOWER}
        clock.chosen = {}
        assert engines.choose_engines(job(tmp_path), {"surrogate": network()}) == first
        assert clock.asked == 1
        assert engines.choose_engines(job(tmp_path), {"surrogate": network(7)}).chosen == {}
        assert clock.asked == 2

    def test_a_choice_that_was_changed_is_refused(self, tmp_path, clock):
        engines.choose_engines(job(tmp_path), {"surrogate": network()})
        path = tmp_path / engines.KEPT
        path.write_text(path.read_text().replace("bfloat16", "float16"))
        with pytest.raises(ConfigError, match="put it back, or delete it"):
            engines.choose_engines(job(tmp_path), {"surrogate": network()})

    def test_it_is_measured_in_earnest(self, tmp_path):
        found = engines.choose_engines(job(tmp_path), {"surrogate": network()})
        assert set(found.chosen.get("surrogate", LOWER)) == set(LOWER)
        assert json.loads((tmp_path / engines.KEPT).read_text())

    def test_parts_compute_as_chosen_and_have_names_of_their_own(self):
        found, module = engines.Engines({"denoiser": LOWER}), network()
        assert found.computed("surrogate", module) is module
        assert isinstance(found.computed("denoiser", module), Computed)
        assert found.computed("denoiser", None) is None
        assert found.key("surrogate", "abc") == "abc"
        assert found.key("denoiser", "abc") not in ("abc", engines.Engines().key("denoiser", "abc"))


class TestConfiguration:
    def test_an_unknown_engine_is_refused(self):
        with pytest.raises(ConfigError, match="use plain or auto"):
            check(certdef.load_config(certify__engine="fast"))

    def test_jobs_keep_their_names(self, tmp_path):
        config, auto = (
            certdef.load_config(certify__choose="off", **named) for named in ({}, {"certify__engine": "auto"})
        )
        assert "engine" not in config.certify.settings
        assert runs_file(config, "uri") != runs_file(auto, "uri")
        assert Legacy(config, "cpu", "uri").fingerprint("certify")
        assert Legacy(auto, "cpu", "uri").fingerprint("certify") is None


def records(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("certify-*/records/*.jsonl"))}


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_same_counts_for_no_query_whatever_the_clock_says_later(service, store, tmp_path, clock):  # noqa: F811
    options = SETTINGS | {"target__uri": service, "tracking__uri": store}
    config = certdef.load_config("digits", work_dir=str(tmp_path / "w"), certify__engine="auto", **options)
    assert certdef.certify(config, progress=False).bill["certification"].spent == VOTES
    first = records(tmp_path / "w")
    for content in first.values():
        assert json.loads(content.splitlines()[0])["config"]["arithmetic"] == {
            "denoiser": LOWER,
            "surrogate": LOWER,
        }
    asked, clock.chosen = clock.asked, {}
    summary = certdef.certify(config, progress=False, fresh=True)
    assert summary.bill["certification"].spent == VOTES
    assert clock.asked == asked
    assert records(tmp_path / "w") == first

    plain = certdef.load_config("digits", work_dir=str(tmp_path / "w"), **options)
    summary = certdef.certify(plain, progress=False)
    # The target alone has the same votes; behind a denoiser in float32 it is another classifier.
    assert summary.bill["certification"].spent == VOTES + VOTES * 2 // 3
    log = certify.read_records(summary.stages["certify"].path / "records" / "target-s0.25-gs.jsonl")
    assert "arithmetic" not in log.config
