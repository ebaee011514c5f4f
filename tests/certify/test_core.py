"""The theorem from counts: against the paper's formulas by other means, coverage, and what core may import."""

import ast
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st

from certify import ABSTAIN, Gaussian, Laplace, core

ALPHA = 0.001


@pytest.mark.parametrize("counts", [[990, 10, 0], [10, 900, 90], [600, 300, 100], [400, 350, 250]])
def test_certify_is_the_paper_s_pseudocode(counts):
    counts0, counts = np.array([7, 90, 3]) if counts[1] > 500 else np.array([90, 7, 3]), np.array(counts)
    top = int(counts0.argmax())
    k, n = int(counts[top]), int(counts.sum())
    lower = st.beta.ppf(ALPHA, k, n - k + 1)  # Clopper and Pearson
    found = core.certify(counts0, counts, Gaussian(0.5), ALPHA, subject="x")
    assert found.p_lower == pytest.approx(lower, rel=1e-9)
    assert found.selected == top
    assert found.prediction == (top if lower > 0.5 else ABSTAIN)
    assert found.radius == pytest.approx(max(0.0, 0.5 * st.norm.ppf(lower)), rel=1e-9)
    assert found.radius <= max(0.0, 0.5 * st.norm.ppf(lower))
    assert (found.n0, found.n, found.counts) == (100, 1000, tuple(counts.tolist()))
    assert (found.method, found.subject, found.alpha) == ("fixed", "x", ALPHA)


def test_the_class_is_the_one_of_the_selection():
    """A class that only the estimation prefers is never certified: no sample serves both."""
    found = core.certify(np.array([60, 40]), np.array([10, 990]), Gaussian(0.5), ALPHA)
    assert (found.selected, found.prediction, found.radius) == (0, ABSTAIN, 0.0)


def test_the_radius_is_the_law_s():
    counts0, counts = np.array([90, 10]), np.array([990, 10])
    found = core.certify(counts0, counts, Laplace(0.2), ALPHA)
    assert (found.norm, found.radius) == ("l1", Laplace(0.2).radius(found.p_lower))


@pytest.mark.parametrize("counts", [[60, 40, 0], [55, 45, 0], [70, 20, 10], [50, 50, 0], [0, 3, 30]])
def test_predict_compares_the_two_most_frequent_classes(counts):
    second, first = sorted(counts)[-2:]
    tail = st.binom.sf(first - 1, first + second, 0.5)  # two-sided: both tails of a fair coin
    expected = int(np.argmax(counts)) if min(1.0, 2 * tail) <= 0.05 else ABSTAIN
    assert core.predict(np.array(counts), 0.05) == expected


def wrong_classes(decide, repetitions=4000):
    """How often class 0, which g does not answer, is returned where p = (0.45, 0.55)."""
    votes = np.random.default_rng(0).binomial(60, 0.45, repetitions)
    return sum(decide(np.array([hits, 60 - hits])) == 0 for hits in votes)


def test_predict_is_wrong_with_probability_at_most_alpha():
    limit = st.binom.ppf(1 - 1e-6, 4000, 0.05)
    assert wrong_classes(lambda counts: core.predict(counts, 0.05)) <= limit
    assert wrong_classes(lambda counts: int(np.argmax(counts))) > limit  # a planted fault: the plain majority


def test_core_is_pure():
    """Neither torch nor a vote nor a file: only bounds, the certificate and the law's interface."""
    tree = ast.parse(Path(core.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {
        "numpy",
        "scipy.stats",
        "certify.bounds.binomial",
        "certify.certificate",
        "certify.noise.base",
    }
