"""Tests of "at most a share q changes": their figures, their realized error, exactly, and formulas that are unsound."""

from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.stats import binom

from certify import CertifyError, binomial_upper_bound
from certify.bounds.change import (
    PROVEN,
    REFUTED,
    ChangePlan,
    change_plan,
    fewest_labels,
    most_wrong_claims,
    pooled_upper_bound,
)

PLANS = [
    (0.1, None, 0.001, "sequential"),
    (0.1, 66, 0.001, "sequential"),
    (0.1, 200, 0.001, "fixed"),
    (0.05, 500, 0.001, "sequential"),
    (0.2, 150, 0.05, "sequential"),
    (0.3, 60, 0.05, "fixed"),
    (0.01, 900, 0.01, "sequential"),
]


def claimed(
    sizes: np.ndarray, verdict: Callable[[int, int], str | None], p: float, what: str
) -> tuple[float, float]:
    """P(the test ends with this verdict) and its mean labels, label by label: independent of the plan's own walk."""
    alive, ended, labels = np.array([1.0]), 0.0, 0.0
    for look, size in enumerate(sizes):
        for _ in range(int(size) - (int(sizes[look - 1]) if look else 0)):
            alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        for changes in range(len(alive)):
            found = verdict(look, changes)
            if found is not None:
                ended += alive[changes] * (found == what)
                labels += alive[changes] * size
                alive[changes] = 0
    return ended, labels + alive.sum() * sizes[-1]


@pytest.mark.parametrize(("q", "labels"), [(0.1, 66), (0.05, 135), (0.01, 688)])
@pytest.mark.parametrize("method", ["fixed", "sequential"])
@pytest.mark.acceptance
def test_so_many_labels_without_a_change_prove_q(q, labels, method):
    exact = Fraction(round((1 - q) * 100), 100)
    assert exact**labels <= Fraction(1, 1000) < exact ** (labels - 1)
    assert fewest_labels(q, 0.001) == labels
    for n in (labels, 3 * labels):
        plan = change_plan(q, n, method="sequential")
        look = plan.sizes.tolist().index(labels)
        assert plan.verdict(look, 0) == PROVEN
        assert all(plan.verdict(earlier, 0) is None for earlier in range(look))
        assert plan.verdict(look, 1) != PROVEN
    assert change_plan(q, labels, method=method).verdict(-1, 0) == PROVEN
    assert change_plan(q, labels, method=method).verdict(-1, 1) != PROVEN
    with pytest.raises(CertifyError, match=f"n={labels - 1} is too small .* use n >= {labels}"):
        change_plan(q, labels - 1, method=method)


@pytest.mark.parametrize(("q", "n", "alpha", "method"), PLANS)
@pytest.mark.acceptance
def test_realized_error_is_at_most_alpha(q, n, alpha, method):
    """Exactly, at the boundary, where a claim is most often wrong; and beyond it."""
    plan = change_plan(q, n, alpha, method)
    for p in (q, q + 0.3 * (1 - q)):
        assert claimed(plan.sizes, plan.verdict, p, PROVEN)[0] <= alpha
    for p in (q, 0.5 * q):
        assert claimed(plan.sizes, plan.verdict, p, REFUTED)[0] <= alpha
    assert claimed(plan.sizes, plan.verdict, 0.0, PROVEN) == (1.0, plan.sizes[plan.proving >= 0][0])
    assert claimed(plan.sizes, plan.verdict, 1.0, REFUTED)[0] == pytest.approx(1)


@pytest.mark.acceptance
def test_stopping_when_it_looks_good_is_caught():
    """Planted: the ordinary bound after every look, without a correction for their number."""
    q, alpha, sizes = 0.1, 0.001, change_plan(0.1, 2_000).sizes
    bounds = [binomial_upper_bound(np.arange(size + 1), int(size), alpha) for size in sizes]

    def looks_good(look: int, changes: int) -> str | None:
        return PROVEN if bounds[look][changes] <= q else None

    assert claimed(sizes, looks_good, q, PROVEN)[0] > 2 * alpha
    plan = change_plan(q, 2_000)
    assert claimed(plan.sizes, plan.verdict, q, PROVEN)[0] <= alpha


def test_a_boundary_that_is_one_change_too_kind_is_caught():
    plan = change_plan(0.1)
    kind = ChangePlan(plan.q, plan.alpha, plan.method, plan.sizes, plan.proving + 1, plan.refuting)
    assert claimed(kind.sizes, kind.verdict, 0.1, PROVEN)[0] > plan.alpha


def test_a_fixed_test_is_the_exact_binomial_one():
    q, n, alpha = Fraction(1, 10), 200, Fraction(1, 1000)
    at_most = [
        sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(changes + 1)) for changes in range(12)
    ]
    most = max(changes for changes, tail in enumerate(at_most) if tail <= alpha)
    assert change_plan(0.1, n, 0.001, "fixed").proving.tolist() == [most]


def test_images_that_change_a_little_are_proven_with_more_labels_and_bad_ones_cost_few():
    plan = change_plan(0.1)
    proven, labels = claimed(plan.sizes, plan.verdict, 0.01, PROVEN)
    assert proven > 0.85
    assert labels < 1.7 * 66
    assert claimed(plan.sizes, plan.verdict, 0.6, REFUTED)[1] < 25


def poisson_binomial(ps: np.ndarray) -> np.ndarray:
    """P(S = s) of a sum of independent Bernoulli variables, exactly."""
    law = np.array([1.0])
    for p in ps:
        law = np.append(law * (1 - p), 0) + np.append(0, law * p)
    return law


def error_of(bound: Callable[[int, int, float], float], ps: np.ndarray, alpha: float) -> float:
    """P(the bound is below the mean of the ps)."""
    law, m = poisson_binomial(ps), len(ps)
    below = [bound(s, m, alpha) < ps.mean() * (1 - 1e-12) for s in range(m + 1)]
    return float(law[below].sum())


@pytest.mark.acceptance
def test_the_pooled_bound_holds_for_images_that_differ():
    random = np.random.default_rng(0)
    worst = 0.0
    for trial in range(60):
        images, labels = random.integers(1, 8), random.integers(1, 7)
        shape = [0.05, 0.3, 1.0, 3.0][trial % 4]
        ps = np.repeat(random.beta(shape, shape * random.choice([1, 3, 10]), images), labels)
        for alpha in (0.001, 0.05, 0.25):
            error = error_of(pooled_upper_bound, ps, alpha)
            assert error <= alpha * (1 + 1e-9)
            worst = max(worst, error / alpha)
    assert worst > 0.5  # it is no empty bound


@pytest.mark.acceptance
def test_pooling_without_the_exception_at_the_top_is_caught():
    """Planted: Clopper and Pearson's bound of pooled counts, also at all changes but one."""
    ps, alpha = np.array([1 - 0.2560, *([1.0] * 49)]), 0.25
    assert error_of(binomial_upper_bound, ps, alpha) > alpha
    assert error_of(pooled_upper_bound, ps, alpha) <= alpha


@pytest.mark.acceptance
def test_the_mean_of_the_images_bounds_is_caught():
    """Planted: the estimate with one image's error bar divided by the number of images, as if they were alike."""

    def careless(s: int, m: int, alpha: float) -> float:
        return s / m + 3.1 * np.sqrt(s / m * (1 - s / m) / m)

    assert error_of(careless, np.full(40, 0.01), 0.001) > 0.001


@pytest.mark.parametrize(
    ("images", "alpha"), [(1, 0.001), (20, 0.001), (50, 0.001), (400, 0.001), (30, 0.05)]
)
@pytest.mark.acceptance
def test_so_many_claims_may_be_wrong(images, alpha):
    wrong = most_wrong_claims(images, alpha)
    assert binom.sf(wrong, images, alpha) <= alpha
    assert wrong == 0 or binom.sf(wrong - 1, images, alpha) > alpha
    # of images that all change more often than q, each claimed with its full alpha
    plan = change_plan(0.2, 150, alpha)
    error = claimed(plan.sizes, plan.verdict, 0.2, PROVEN)[0]
    assert binom.sf(wrong, images, error) <= alpha
    if images > 1:  # planted: claims that are counted without their number
        assert binom.sf(0, images, alpha) > alpha


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": 0.0}, "q must be in"),
        ({"q": 1.0}, "q must be in"),
        ({"q": "a"}, "q must be in"),
        ({"q": 0.1, "alpha": 0.7}, "alpha must be in"),
        ({"q": 0.1, "method": "peeking"}, "method must be one of sequential, fixed"),
        ({"q": 0.1, "n": 3.5}, "n must be an integer"),
    ],
)
def test_what_cannot_be_tested_is_refused(arguments, message):
    with pytest.raises(CertifyError, match=message):
        change_plan(**arguments)


def test_a_pooled_bound_of_a_large_alpha_is_refused():
    with pytest.raises(CertifyError, match=r"alpha must be at most 0\.25"):
        pooled_upper_bound(0, 10, 0.4)
