"""Membership inference on one's own target: a planted leak is found, no leak is none, lists of two kinds are noticed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import surrogates
from certdef.cli import main
from surrogates.ledger.reader import read_statement
from tests.certdef.release.memorizing import LISTED, LISTS, write_job


def draw(random: np.random.Generator, count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one distribution, brighter by a shift."""
    images = random.random((count, 1, 8, 8)) * 0.8 + shift
    return images.astype(np.float32), random.integers(3, size=count)


class TestLists:
    def test_lists_of_one_distribution_raise_no_alarm_beyond_the_level(self):
        """At the level of 1%: so many alarms in 30 tries have a probability below 1e-4."""
        alarms = 0
        for seed in range(30):
            random = np.random.default_rng(seed)
            alarms += surrogates.told_apart(draw(random, 40), draw(random, 40), seed=seed).p < 0.01
        assert binom.sf(3, 30, 0.01) < 3e-4
        assert alarms <= 3

    @pytest.mark.parametrize("what", ["brightness", "grain", "classes"])
    def test_shifted_lists_are_noticed(self, what):
        random = np.random.default_rng(1)
        (images, labels), others = draw(random, 100), draw(random, 100)
        if what == "brightness":
            images = images + np.float32(0.1)
        elif what == "grain":  # the same mean, less detail
            images = (images + np.roll(images, 1, axis=3)) / 2
        else:
            labels = np.minimum(labels, 1)
        found = surrogates.told_apart((images, labels), others)
        assert found.p < 0.01
        assert found.lower > 0.5

    def test_trees_tried_on_what_they_were_trained_on_would_always_alarm(self):
        """Why there are halves: on its own half every classifier wins, and the test would prove nothing."""
        from sklearn.ensemble import RandomForestClassifier

        from surrogates.blind import features

        random = np.random.default_rng(2)
        lists = [draw(random, 40), draw(random, 40)]
        seen, is_member = np.concatenate([features(*each) for each in lists]), np.repeat([1, 0], 40)
        scores = RandomForestClassifier(50, random_state=0).fit(seen, is_member).predict_proba(seen)[:, 1]
        assert scores[:40].min() > scores[40:].max()
        assert surrogates.told_apart(*lists).p > 0.01

    def test_too_few_or_two_shapes(self):
        random = np.random.default_rng(0)
        with pytest.raises(surrogates.SurrogateError, match="at least 20"):
            surrogates.told_apart(draw(random, 19), draw(random, 40))
        small = np.zeros((40, 1, 4, 4), np.float32), np.zeros(40, np.int64)
        with pytest.raises(surrogates.SurrogateError, match="of one shape"):
            surrogates.told_apart(draw(random, 40), small)


def test_without_a_leak_the_interval_covers_one_half():
    """A model that was trained on neither list: 95% intervals miss one half in at most 5% of 300 pairs of lists, up to chance."""
    random = np.random.default_rng(3)
    weights = random.normal(size=(64, 3))

    def model(images):
        scores = np.exp(images.numpy().reshape(len(images), -1) @ weights)
        return scores / scores.sum(axis=1, keepdims=True)

    missed = 0
    for _ in range(300):
        audit = surrogates.MembershipAudit(draw(random, 60), draw(random, 60))
        found = audit(model)["loss"]
        missed += not found.lower <= 0.5 <= found.upper
    assert missed <= binom.isf(1e-4, 300, 0.05)


@pytest.fixture
def job(store, tmp_path):
    """The options of the small job without its lists; the test runs in its folder."""
    return [*write_job(tmp_path), f"--tracking.uri={store}"]


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_leak_is_found_and_lists_of_two_kinds_are_named(own_job, tmp_path, capsys, monkeypatch):
    source, store, options = own_job
    shutil.copytree(source, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    options = [each.replace(str(source), str(tmp_path / "own")) for each in options]
    capsys.readouterr()
    before = read_statement("work/ledger.db").accounts["evaluation"].answered
    assert main(["certify", *options, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "reused" in printed.out
    assert "membership  loss attack: AUC 0." in printed.out
    assert "told apart" not in printed.out + printed.err
    assert read_statement("work/ledger.db").accounts["evaluation"].answered == before
    others = dict(np.load("others.npz"))
    others["images"] = np.clip(others["images"] + 0.1, 0, 1)  # of another camera
    np.savez("brighter.npz", **others)
    again = [each.replace("others.npz", "brighter.npz") for each in options]
    assert main(["certify", *again, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "told apart without the target" in printed.err
    assert "told apart without the target" in printed.out
    assert (
        read_statement("work/ledger.db").accounts["evaluation"].answered == before + LISTED
    )  # the members are known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--membership.nonmembers": None}, "give --membership.nonmembers as well"),
        ({"--membership.members": "nowhere.npz"}, "membership.members 'nowhere.npz'"),
        ({"--membership.nonmembers": "members.npz"}, "100 images of it are in membership.members too"),
        ({"--membership.nonmembers": "unlabeled.npz"}, "it has no labels"),
        ({"--membership.nonmembers": "few.npz"}, "it has 7 images: give at least 20"),
        ({"--membership.nonmembers": "wide.npz"}, "--data.resize"),
        ({"--membership.nonmembers": "foreign.npz"}, "dog"),
        ({"--ledger.evaluation": "150"}, "may take 240 queries; raise it"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_before_any_query(job, change, said, capsys):
    whole = dict(np.load("others.npz"))
    np.savez("unlabeled.npz", images=whole["images"])
    np.savez("few.npz", **{name: whole[name][:7] if name != "class_names" else whole[name] for name in whole})
    np.savez("wide.npz", **whole | {"images": np.repeat(whole["images"], 2, axis=3)})
    np.savez("foreign.npz", **whole | {"class_names": np.array([*"012345678", "dog"])})
    options = dict(each.split("=", 1) for each in [*job, *LISTS]) | change
    assert main(["certify", *(f"{name}={value}" for name, value in options.items() if value), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("work/ledger.db").exists()


def test_lists_are_for_a_target_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["certify", *LISTS]) == 2
    assert "give target.uri" in capsys.readouterr().err
