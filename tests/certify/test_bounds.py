"""Binomial bounds: worked values, exact coverage by enumeration, and sample sizes."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from certify import CertifyError, Gaussian, binomial_interval, binomial_lower_bound, binomial_upper_bound
from certify.bounds.binomial import required_successes, smallest_n


@pytest.mark.parametrize(
    ("k", "sigma", "radius"), [(99_000, 0.25, 0.572499), (90_000, 0.5, 0.632422), (60_000, 1.0, 0.240944)]
)
def test_worked_radii(k, sigma, radius):
    p = binomial_lower_bound(k, 100_000, 0.001)
    assert Gaussian(sigma).radius(p) == pytest.approx(radius, abs=1.1e-6)


def test_worked_bounds():
    assert binomial_lower_bound(99_000, 100_000, 0.001) == pytest.approx(0.98898934, abs=5e-9)
    assert binomial_lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100), rel=1e-11)
    assert binomial_lower_bound(100, 100, 0.001) <= 0.001 ** (1 / 100)
    assert binomial_lower_bound(0, 100, 0.001) == 0
    assert binomial_upper_bound(100, 100, 0.001) == 1
    assert binomial_upper_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))


@pytest.mark.parametrize(("n", "z"), [(100, 1.50048), (1000, 2.46326), (10_000, 3.19858), (100_000, 3.81146)])
def test_an_unbroken_row_caps_the_radius(n, z):
    assert Gaussian(1.0).radius(binomial_lower_bound(n, n, 0.001)) == pytest.approx(z, abs=5.1e-6)


def test_smallest_certifying_count():
    assert binomial_lower_bound(50_490, 100_000, 0.001) > 0.5 >= binomial_lower_bound(50_489, 100_000, 0.001)
    assert required_successes(np.nextafter(0.5, 1), 100_000, 0.001) == 50_490


def exact_miscoverage(bound, n, p):
    k = np.arange(n + 1)
    return np.sum(binom.pmf(k, n, p)[bound(k, n) > p])


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_lower_bound_covers_exactly_and_wald_does_not(n):
    alpha = 0.05
    grid = np.linspace(0.02, 0.995, 60)

    def wald(k, n):
        return k / n - norm.ppf(1 - alpha) * np.sqrt(k / n * (1 - k / n) / n)

    exact = [exact_miscoverage(lambda k, n: binomial_lower_bound(k, n, alpha), n, p) for p in grid]
    assert max(exact) <= alpha + 1e-12
    assert max(exact) > 0.5 * alpha  # not vacuous
    assert max(exact_miscoverage(wald, n, p) for p in grid) > 1.2 * alpha


def test_upper_bound_mirrors_the_lower_one():
    k = np.arange(51)
    assert np.allclose(binomial_upper_bound(k, 50, 0.01), 1 - binomial_lower_bound(50 - k, 50, 0.01))


def test_interval_is_the_two_one_sided_bounds_at_half_alpha():
    lower, upper = binomial_interval([3, 7], [10, 10], alpha=0.1)
    assert np.allclose(lower, binomial_lower_bound([3, 7], 10, 0.05))
    assert np.allclose(upper, binomial_upper_bound([3, 7], 10, 0.05))
    assert all(isinstance(end, float) for end in binomial_interval(3, 10))


@pytest.mark.parametrize(
    ("p", "alpha"), [(0.5, 0.25), (0.9, 0.001), (0.999, 0.05), (np.nextafter(0.5, 1), 0.001)]
)
def test_smallest_n(p, alpha):
    n = smallest_n(p, alpha)
    assert alpha ** (1 / n) >= p
    assert n == 1 or alpha ** (1 / (n - 1)) * (1 - 1e-12) < p


def test_required_successes():
    k = required_successes(0.9, 1000, 0.001)
    assert binomial_lower_bound(k, 1000, 0.001) >= 0.9 > binomial_lower_bound(k - 1, 1000, 0.001)
    assert required_successes(0.999, 100, 0.001) is None


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: binomial_lower_bound(5, 10, 2), "alpha must be in (0, 0.5), got 2"),
        (lambda: binomial_lower_bound(5, 10, 0.5), "alpha"),
        (lambda: binomial_lower_bound(11, 10, 0.1), "11 of 10"),
        (lambda: binomial_lower_bound([1, -1], 10, 0.1), "-1 of 10"),
        (lambda: binomial_lower_bound(0.5, 10, 0.1), "0.5"),
        (lambda: binomial_lower_bound(0, 0, 0.1), "trials"),
        (lambda: binomial_lower_bound("a", 10, 0.1), "successes"),
        (lambda: smallest_n(1.0, 0.1), "p_required"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(CertifyError) as caught:
        call()
    assert word in str(caught.value)
