"""Certified scores: exact expectations along a line, and the coverage of the bound with a planted fault."""

import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import quad
from scipy.special import expit, ndtr

from certify import CertifyError, Gaussian, Laplace, score_lower_bound, score_radius, score_upper_bound

SIGMA, ALPHA, REPETITIONS = 0.25, 0.05, 2000
LIMIT = st.binom.ppf(1 - 1e-6, REPETITIONS, ALPHA)


def score(z):
    """A monotone score along one direction: the worst case of the CDF form."""
    return expit(6 * (0.3 - z))


def expected(shift):
    return quad(lambda z: score(SIGMA * z + shift) * st.norm.pdf(z), -9, 9)[0]


def test_bound_approaches_the_exact_worst_case():
    scores = score(SIGMA * np.random.default_rng(0).standard_normal(400_000))
    for radius in (0.0, 0.1, 0.3):
        bound = score_lower_bound(scores, Gaussian(SIGMA), radius, 0.001)
        assert expected(radius) - 0.02 < bound < expected(radius)


@pytest.mark.acceptance
@pytest.mark.parametrize(("slack", "sound"), [(0.0, True), (0.06, False)])
def test_coverage(slack, sound):
    """``slack``: a planted fault, the bound raised by a little."""
    rng, misses, exact = np.random.default_rng(1), 0, expected(0.2)
    for _ in range(REPETITIONS):
        scores = score(SIGMA * rng.standard_normal(2000))
        misses += score_lower_bound(scores, Gaussian(SIGMA), 0.2, ALPHA) + slack > exact
    assert (misses <= LIMIT) == sound


def test_radius_and_mirror():
    scores = score(SIGMA * np.random.default_rng(0).standard_normal(50_000))
    radius = score_radius(scores, Gaussian(SIGMA), 0.001)
    assert 0.2 < radius < 0.3  # the exact expectation is 1/2 at 0.3
    assert score_lower_bound(scores, Gaussian(SIGMA), radius, 0.001) > 0.5
    upper = score_upper_bound(scores, Gaussian(SIGMA), 0.1, 0.001)
    assert upper > expected(-0.1) > expected(0) > score_lower_bound(scores, Gaussian(SIGMA), 0.1, 0.001)
    assert score_radius(1 - scores, Gaussian(SIGMA), 0.001) == 0


def test_hard_scores_give_the_vote_radius():
    scores = np.repeat([1.0, 0.0], [90_000, 10_000])
    p = 0.9 - np.sqrt(np.log(1000) / 200_000)
    assert score_radius(scores, Gaussian(SIGMA), 0.001) == pytest.approx(Gaussian(SIGMA).radius(p), rel=1e-6)
    assert ndtr(score_radius(scores, Gaussian(SIGMA), 0.001) / SIGMA) == pytest.approx(p)


@pytest.mark.parametrize(
    "call",
    [
        lambda: score_radius([0.5, 1.5], Gaussian(1), 0.1),
        lambda: score_radius([], Gaussian(1), 0.1),
        lambda: score_radius([0.5], Laplace(1), 0.1),
        lambda: score_radius([0.5], Gaussian(1), 2),
        lambda: score_lower_bound([0.5], Gaussian(1), -1, 0.1),
    ],
)
def test_bad_input(call):
    with pytest.raises(CertifyError):
        call()
