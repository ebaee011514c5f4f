"""Sequential tests: realized error by exact dynamic programming, economy, and the same draws as the engine."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import ndtr

import certify
from certify import CertifyError, Gaussian, SmoothedClassifier, certify_votes, nim_noise
from certify.bounds.binomial import required_successes
from certify.bounds.sequential import (
    FINAL_SHARE,
    Plan,
    analysis_sizes,
    betting_lower_bound,
    betting_upper,
    frugal_upper,
    log_wealth,
    make_plan,
    spending_upper,
)

ALPHA = 0.001
TRUE_P = [0.5, 0.7, 0.84, 0.95, 0.99]
N = 8000


def realized_error(upper, sizes, p, lower=None):
    """P(successes >= upper at any analysis) of a Bernoulli(p) walk, exactly, one draw at a time."""
    up, low = np.full(sizes[-1] + 1, sizes[-1] + 2), np.full(sizes[-1] + 1, -1)
    up[sizes] = upper
    if lower is not None:
        low[sizes] = lower
    alive = np.zeros(sizes[-1] + 2)
    alive[0], error = 1.0, 0.0
    for t in range(1, sizes[-1] + 1):
        alive[1 : t + 1] = p * alive[:t] + (1 - p) * alive[1 : t + 1]
        alive[0] *= 1 - p
        if up[t] <= t:
            error += alive[up[t] : t + 1].sum()
            alive[up[t] :] = 0
        if low[t] >= 0:
            alive[: low[t] + 1] = 0
    return error


def clopper_pearson_rechecked(p, alpha, sizes):
    """A planted fault: the fixed-n bound at every analysis."""
    return np.array([certify.bounds.required_successes(p, int(t), alpha) or t + 1 for t in sizes])


@pytest.mark.acceptance
@pytest.mark.parametrize("p", TRUE_P)
def test_betting_with_an_analysis_at_every_draw_keeps_alpha(p):
    sizes = np.arange(1, N + 1)
    error = realized_error(betting_upper(p, ALPHA, sizes), sizes, p)
    assert 0.3 * ALPHA < error <= ALPHA


@pytest.mark.acceptance
@pytest.mark.parametrize("p", TRUE_P)
@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
@pytest.mark.parametrize("alpha", [ALPHA, 0.05])
def test_every_rule_keeps_alpha_at_its_analyses(p, method, alpha):
    plan = make_plan(_Level(p), [0.5], N, alpha, method)
    [level] = plan.levels
    error = realized_error(level.upper, plan.sizes, level.p, level.lower)
    assert error <= alpha
    assert error > 0.3 * alpha  # not vacuous


class _Level(Gaussian):
    """A law whose radius 0.5 needs a given probability."""

    def __init__(self, p):
        super().__init__(1.0)
        object.__setattr__(self, "p", p)

    def p_required(self, radius):
        return 0.5 if radius == 0 else self.p


@pytest.mark.acceptance
@pytest.mark.parametrize("p", TRUE_P)
def test_the_error_test_catches_rechecked_clopper_pearson(p):
    sizes = np.arange(1000, N + 1, 1000)
    assert realized_error(clopper_pearson_rechecked(p, ALPHA, sizes), sizes, p) > 1.5 * ALPHA


def test_wealth_is_a_fair_bet_and_falls_below_the_level():
    for p in (0.5, 0.84, 0.99):
        k = np.arange(201)
        with np.errstate(over="ignore", under="ignore"):
            wealth = np.exp(log_wealth(k, 200, p))
        assert np.sum(st.binom.pmf(k, 200, p) * wealth) == pytest.approx(1, abs=1e-9)
        assert np.sum(st.binom.pmf(k, 200, p * 0.97) * wealth) < 1
        assert np.all(np.diff(wealth[150:]) > 0)


def test_betting_lower_bound_is_where_the_wealth_crosses():
    for successes, trials in ((100, 100), (900, 1000), (52_000, 100_000)):
        bound = betting_lower_bound(successes, trials, ALPHA)
        assert 0.5 < bound < successes / trials
        assert log_wealth(successes, trials, bound) == pytest.approx(-np.log(ALPHA), abs=1e-4)
        grid = np.linspace(0.5, bound, 50)
        assert np.all(log_wealth(successes, trials, grid) >= -np.log(ALPHA) - 1e-4)
    assert betting_lower_bound(50, 100, ALPHA) == 0
    assert betting_lower_bound(55, 100, ALPHA) == 0


def bernoulli(p, seed=0):
    rng = np.random.default_rng(seed)
    return lambda count: np.where(rng.random(count) < p, 0, rng.integers(1, 10, count))


@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
def test_easy_images_stop_early_and_hard_ones_go_on(method):
    noise, radii = Gaussian(0.25), [0.25, 0.5]
    sure = certify_votes(bernoulli(1.0), noise, 10, radii=radii, method=method)
    assert sure.radius >= 0.5
    assert sure.n < 500
    assert sum(sure.counts) == sure.n
    assert (sure.method, sure.n0) == (method, 100)
    hopeless = certify_votes(bernoulli(0.4), noise, 10, radii=radii, method=method)
    assert hopeless.abstained
    assert (hopeless.radius, hopeless.p_lower) == (0, 0)
    assert hopeless.n < 1000
    near = [
        certify_votes(bernoulli(ndtr(1) + 0.01, seed), noise, 10, radii=[0.25], method=method)
        for seed in range(20)
    ]
    assert sum(certificate.radius >= 0.25 for certificate in near) >= 14
    assert np.mean([certificate.n for certificate in near]) > 3000
    if method == "sequential":  # what the bets prove stands, also where no radius of the grid was reached
        below = [
            certify_votes(bernoulli(0.82, seed), noise, 10, radii=[0.25], method=method) for seed in range(5)
        ]
        assert any(0 < certificate.radius < 0.25 for certificate in below)
    between = certify_votes(bernoulli(0.9), noise, 10, radii=radii, method=method)
    assert 0.25 <= between.radius < 0.5


class Forgetful(Plan):
    """A planted fault: a level is given up only while it is the next one to claim."""

    def analyze(self, analysis, successes, claimed, within):
        claimed, within = super().analyze(
            analysis, successes, claimed, np.full_like(within, len(self.levels))
        )
        return claimed, np.where(within > claimed, len(self.levels), within)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("method", "kind", "sound"),
    [("sequential", Plan, True), ("group_sequential", Plan, True), ("group_sequential", Forgetful, False)],
)
def test_a_grid_of_levels_keeps_alpha_at_its_top(method, kind, sound):
    alpha, paths = 0.05, 200_000
    plan = make_plan(Gaussian(0.25), [0.1, 0.12, 0.14, 0.16, 0.18, 0.2], N, alpha, method)
    plan = kind(plan.method, plan.alpha, plan.sizes, plan.levels)
    rng = np.random.default_rng(0)

    def more(images, first, last):
        hits = rng.binomial(last - first, plan.levels[-1].p, len(images))
        return np.stack([hits, last - first - hits], axis=1)

    claimed = plan.run(np.zeros(paths, dtype=np.int64), more, 2).claimed
    wrong = np.sum(claimed == len(plan.levels))
    assert (wrong <= st.binom.ppf(1 - 1e-6, paths, alpha)) == sound


def test_betting_reports_more_than_the_grid():
    certificate = certify_votes(bernoulli(1.0), Gaussian(0.25), 10, radii=[0.25], method="sequential")
    assert certificate.radius > 0.25
    assert certificate.radius == Gaussian(0.25).radius(certificate.p_lower)


@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
def test_certificates_overshoot_at_most_alpha_of_the_time(method):
    """A half-space whose margin lies just below a radius of the grid, at alpha = 0.05."""
    alpha, repetitions, margin = 0.05, 2000, 0.2499
    limit = st.binom.ppf(1 - 1e-6, repetitions, alpha)
    rng = np.random.default_rng(1)

    def draw(count):
        labels = np.ones(count, dtype=np.int8)
        labels[: rng.binomial(count, ndtr(margin / 0.25))] = 0
        return labels

    options = {"n0": 20, "n": 3000, "alpha": alpha, "method": method, "radii": [0.125, 0.25, 0.5]}
    claims = [certify_votes(draw, Gaussian(0.25), 2, **options) for _ in range(repetitions)]
    assert sum(claim.radius > margin for claim in claims) <= limit
    assert np.mean([claim.radius >= 0.125 for claim in claims]) > 0.9


@pytest.fixture
def smoothed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 6, 4))
    return lambda **options: SmoothedClassifier(model, nim_noise(), 4, seed=3, **options)


@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
def test_the_engine_draws_the_same_votes_however_it_packs(smoothed, method):
    images = torch.rand((7, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    options = {"n": 3000, "method": method, "radii": [0.05, 0.1]}
    expected = smoothed().certify(images, **options)
    assert len({certificate.n for certificate in expected}) > 1
    for batch_size in (32, 100, 300):
        assert smoothed(batch_size=batch_size).certify(images, **options) == expected
    assert smoothed().certify(images[4:6], indices=[4, 5], **options) == expected[4:6]
    fixed = smoothed(chunk_size=32).certify(images, n=max(certificate.n for certificate in expected))
    longest = int(np.argmax([certificate.n for certificate in expected]))
    assert fixed[longest].counts == expected[longest].counts


def test_only_undecided_images_get_more_draws(smoothed):
    class Bar:
        done = 0

        def update(self, amount):
            self.done += amount

    bar = Bar()
    images = torch.rand((7, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    certificates = smoothed().certify(images, n=3000, method="sequential", progress=bar)
    assert bar.done == sum(certificate.n0 + certificate.n for certificate in certificates)


def test_sample_sizes_grow_and_end_at_the_cap():
    sizes = analysis_sizes(100_000)
    assert sizes[0] == 32
    assert sizes[-1] == 100_000
    assert np.all(np.diff(sizes) > 0)
    assert np.all(sizes[:-1] % 32 == 0)
    assert analysis_sizes(20).tolist() == [20]


def test_radii_out_of_reach_are_left_out():
    plan = make_plan(Gaussian(0.25), None, 100_000, ALPHA, "sequential")
    assert [level.radius for level in plan.levels] == [0, 0.25, 0.5, 0.75]
    last = make_plan(Gaussian(0.25), [5.0, 0.5], 1000, ALPHA, "group_sequential").levels
    assert [level.radius for level in last] == [0.5]


@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"radii": [-1]}, "radii must be finite and >= 0"),
        ({"radii": "far"}, "radii"),
        ({"radii": []}, "radii"),
        ({"n": 5}, "n >= 11"),
        ({"n": 50, "radii": [0.75]}, "n >= 5627"),
        ({"n": 50, "radii": [30.0]}, "choose a smaller radius"),
    ],
)
def test_bad_plans_are_refused_before_any_draw(method, options, word):
    def never(count):
        raise AssertionError("a draw was spent")

    with pytest.raises(CertifyError) as caught:
        certify_votes(never, Gaussian(0.25), 2, method=method, **options)
    assert word in str(caught.value)


def test_the_final_analysis_costs_half_of_alpha():
    assert FINAL_SHARE == 0.5
    sizes = analysis_sizes(N)
    with_final, without = (betting_upper(0.84, ALPHA, sizes, share) for share in (FINAL_SHARE, 0.0))
    assert with_final[-1] < without[-1]
    assert np.all(with_final[:-1] >= without[:-1])


@pytest.mark.parametrize(("p", "n"), [(0.9945, 2_000), (0.99, 700), (0.9, 2_000), (0.5, 200)])
def test_the_last_analysis_keeps_most_failures_of_a_single_one(p, n):
    """Alpha that is spent early where n barely reaches a level would cost most of the images that reach it."""
    sizes = analysis_sizes(n)
    none = np.full(len(sizes), -1)
    upper, alone = frugal_upper(p, 0.001, sizes, none), required_successes(p, n, 0.001)
    assert n - upper[-1] >= np.round(0.9 * (n - alone))
    planted = spending_upper(p, 0.001 * np.sqrt(sizes / n), sizes, none)
    assert n - upper[-1] >= n - planted[-1]
    if p > 0.99:
        assert n - planted[-1] < 0.9 * (n - alone)
