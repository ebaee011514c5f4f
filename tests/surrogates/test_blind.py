"""Lists of one distribution raise no alarm, lists of two do; without a leak, membership inference finds none."""

import numpy as np
import pytest
from scipy.stats import binom

import surrogates


def draw(random: np.random.Generator, count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one distribution, brighter by a shift."""
    images = random.random((count, 1, 8, 8)) * 0.8 + shift
    return images.astype(np.float32), random.integers(3, size=count)


class TestLists:
    def test_lists_of_one_distribution_raise_no_alarm_beyond_the_level(self):
        """At the level of 1%: more alarms than 3 in 20 tries have a probability below 1e-4."""
        alarms = 0
        for seed in range(20):
            random = np.random.default_rng(seed)
            alarms += surrogates.told_apart(draw(random, 40), draw(random, 40), seed=seed).p < 0.01
        assert binom.sf(3, 20, 0.01) < 1e-4
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
        assert found.lower > 0.5 or what == "classes"  # the area is of the trees, which overlook these

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
