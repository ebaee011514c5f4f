"""Two-sided radii: exact realized error with tied rivals, and scale mixtures against their exact two-sided radius."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.stats as st
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from certify import (
    CertifyError,
    Gaussian,
    GaussianScaleMixture,
    RecordLog,
    binomial_lower_bound,
    binomial_upper_bound,
    certify_votes,
    nim_noise,
    read_records,
    recertify,
)
from certify.bounds.two_sided import TOP_SHARE, two_sided_radius
from certify.noise.radius_table import RadiusTable
from certify.noise.sigma_cells import SigmaCells
from tests.certify.test_mixture_radii import EXACT, LAWS, nodes

# --- the error of the bounds, exactly -----------------------------------------------------------------------

SIGMA, N, LEVEL = 1.0, 24, 0.05


def outcomes() -> np.ndarray:
    """All votes (M, 4) of N draws for a class and three rivals."""
    return np.array([(*k, N - sum(k)) for k in product(range(N + 1), repeat=3) if sum(k) <= N])


OUTCOMES = outcomes()


def tied(margin: float, p_top: float, rivals: int) -> np.ndarray:
    """Probabilities (4,) of a class whose strongest rivals, all equal, tie with it after a shift by ``margin``."""
    rival = ndtr(ndtri(p_top) - 2 * margin / SIGMA)
    p = np.array([p_top, *[rival] * rivals, *[0.0] * (3 - rivals)])
    p[3] += 1 - p.sum()
    return p


def exact_error(claimed: np.ndarray, margin: float, p: np.ndarray) -> float:
    """P(claimed radius > margin), by the multinomial probability of every outcome."""
    return float(st.multinomial.pmf(OUTCOMES, N, p)[claimed > margin * (1 + 1e-12)].sum())


def worst_error(claimed: np.ndarray) -> float:
    """The largest error over classes, from clear winners to bare pluralities, and one to three tied rivals."""
    errors = [0.0]
    for margin, p_top, rivals in product((0.05, 0.3, 0.7), np.linspace(0.3, 0.98, 35), (1, 2, 3)):
        p = tied(margin, p_top, rivals)
        if np.all(p >= 0) and p[3] <= p[1] * (1 + 1e-9):  # else the last class is stronger than the tied ones
            errors.append(exact_error(claimed, margin, p))
    return max(errors)


def radius_without_bounds_of_rivals(k: np.ndarray) -> float:
    """A planted fault: the strongest rival's share of the votes in the place of an upper bound."""
    lower, rival = binomial_lower_bound(int(k[0]), N, LEVEL), max(k[1:].max() / N, 1e-9)
    return Gaussian(SIGMA).two_sided_radius(lower, rival) if lower > rival else 0.0


def radius_of_one_rival(k: np.ndarray) -> float:
    """A planted fault: one rival is bounded, by whatever votes it was picked, and the others are forgotten."""
    lower = binomial_lower_bound(int(k[0]), N, TOP_SHARE * LEVEL)
    rival = min(binomial_upper_bound(int(k[3]), N, (1 - TOP_SHARE) * LEVEL), 1 - 1e-9)
    return Gaussian(SIGMA).two_sided_radius(lower, rival) if 0 < lower > rival else 0.0


def claims(rule: Callable[[np.ndarray], float]) -> np.ndarray:
    """The radius (M,) of a rule for every outcome."""
    return np.array([rule(row) for row in OUTCOMES])


def two_sided() -> Callable[[np.ndarray], float]:
    """Our rule, which depends on the votes of the class and of its strongest rival only."""
    known: dict[tuple[int, int], float] = {}

    def rule(k: np.ndarray) -> float:
        key = int(k[0]), int(k[1:].max())
        if key not in known:
            known[key] = two_sided_radius(k, 0, Gaussian(SIGMA), LEVEL)[1]
        return known[key]

    return rule


@pytest.mark.acceptance
def test_no_share_of_alpha_for_the_number_of_rivals_is_sound():
    assert 0.1 * LEVEL < worst_error(claims(two_sided())) <= LEVEL


@pytest.mark.acceptance
@pytest.mark.parametrize("fault", [radius_without_bounds_of_rivals, radius_of_one_rival])
def test_planted_faults_of_the_rivals_bounds_are_caught(fault):
    assert worst_error(claims(fault)) > 2 * LEVEL


def test_at_most_a_share_of_the_radius_is_lost_and_much_is_won_where_the_rest_is_spread():
    noise = Gaussian(0.25)
    one = certify_votes(lambda n: np.repeat([0, 1], [9 * n // 10, n // 10]), noise, 10, n=1000)
    both = certify_votes(
        lambda n: np.repeat([0, 1], [9 * n // 10, n // 10]), noise, 10, n=1000, method="two_sided"
    )
    assert 0.997 * one.radius < both.radius < one.radius
    spread = np.array([600, *[50] * 8])
    lone = noise.radius(two_sided_radius(np.array([600, 400]), 0, noise, 0.001)[0])
    assert two_sided_radius(spread, 0, noise, 0.001)[1] > 3 * lone


# --- scale mixtures -----------------------------------------------------------------------------------------

PAIRS = [(0.9, 0.1), (0.7, 0.1), (0.45, 0.2), (0.99, 1e-3), (0.999, 5e-4), (0.9, 1e-4)]


def exactly_kept(miss: float, r: float, sigma: np.ndarray, weight: np.ndarray) -> float:
    """Q(A_t) at P(A_t) = 1 - miss, by the Neyman-Pearson lemma."""

    def excess(u: float) -> float:
        return float(weight @ ndtr(-(u * sigma + r / (2 * sigma)))) - miss

    ends = (-ndtri(miss) - r / (2 * sigma)) / sigma
    u = brentq(excess, ends.min() - 1e-6, ends.max() + 1e-6, xtol=1e-13, rtol=1e-14)
    return float(weight @ ndtr(u * sigma - r / (2 * sigma)))


def exact_two_sided(name: str, a: float, b: float, near: float) -> float:
    sigma, weight = nodes(name)

    def lead(r: float) -> float:
        return exactly_kept(1 - a, r, sigma, weight) + exactly_kept(b, r, sigma, weight) - 1

    return float(brentq(lead, 0.9 * near, 1.2 * near, xtol=1e-13, rtol=1e-13))


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["nim", "uniform, cut", "gamma 4", "atoms, wide"])
def test_two_sided_radius_of_a_mixture_is_at_most_the_exact_one_and_little_less(name):
    noise = GaussianScaleMixture(LAWS[name])
    for a, b in PAIRS:
        radius = noise.two_sided_radius(a, b)
        exact = exact_two_sided(name, a, b, radius)
        assert (0.9985 if name == "nim" else 0.99) * exact < radius <= exact * (1 + EXACT)


def test_upper_edges_and_the_mean_of_two_radii_would_be_caught():
    """Two planted faults: sigma rounded up, and the form that holds for one constant sigma."""
    noise = nim_noise()
    raised = RadiusTable(
        SigmaCells(np.append(noise.cells.sigma[1:], noise.cells.sigma[-1]), noise.cells.mass, atoms=False)
    )
    for a, b in [(0.7, 0.1), (0.99, 1e-3)]:
        exact = exact_two_sided("nim", a, b, noise.two_sided_radius(a, b))
        assert raised.two_sided_radius(a, b) > exact * (1 + EXACT)
        assert (noise.radius(a) + noise.radius(1 - b)) / 2 > exact * (1 + 1e-4)


def test_mixture_of_one_sigma_and_of_one_rival_are_what_they_were():
    constant = GaussianScaleMixture(st.rv_discrete(values=([0.25], [1.0])))
    for a, b in PAIRS:
        assert constant.two_sided_radius(a, b) == pytest.approx(
            Gaussian(0.25).two_sided_radius(a, b), rel=3e-7
        )
    for a in (0.6, 0.9, 0.999):
        assert nim_noise().two_sided_radius(a, 1 - a) == pytest.approx(nim_noise().radius(a), rel=5e-4)


def test_votes_under_a_mixture_are_certified_two_sided_recorded_and_certified_again(tmp_path):
    rng, noise = np.random.default_rng(0), nim_noise()
    shares = [0.62, *[0.38 / 9] * 9]

    def draw(count):
        return np.repeat(np.arange(10), rng.multinomial(count, shares))

    found = certify_votes(draw, noise, 10, n=2000, method="two_sided")
    assert found.radius > 2 * noise.radius(found.p_lower)
    with RecordLog(tmp_path / "run", {"noise": noise.describe()}) as log:
        log.append(0, 0, found, 0.0)
        with pytest.raises(CertifyError, match="do not follow"):
            log.append(1, 0, type(found)(**{**vars(found), "radius": found.radius * 1.01}), 0.0)
    records = read_records(log.path)
    assert recertify(records, noise, 0.001, bound="two_sided").radius[0] == found.radius
    assert recertify(records, noise, 0.001).radius[0] < found.radius
