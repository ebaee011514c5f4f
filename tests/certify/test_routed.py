"""Routed sigma: the router's exact error, the certificates against worlds whose truth is computed, planted faults."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import ndtr, ndtri

import certify
from benchmarks import routing
from benchmarks.routing import Route, certify_route, certify_routed, certify_threshold
from certify import ABSTAIN, CertifyError

TAU, ALPHA = 0.25, 0.05
N0, N = 6, 20

# --- the router alone: exact ----------------------------------------------------------------------------------


def truth(shares, default):
    """h(x), and how far it is constant in the worst world: every rho moves as fast as the theorem allows."""
    others = np.delete(shares, default).max()
    top = int(np.argmax(shares))
    level = top if top != default and shares[top] > 0.5 else default
    return level, TAU * abs(ndtri(others))


def outcomes(total: int, levels: int) -> np.ndarray:
    """Every way (P, M) to count ``total`` votes for M levels."""
    return np.array([each for each in product(range(total + 1), repeat=levels) if sum(each) == total])


@cache
def routes(levels: int, claim: int, default: int, route) -> list[Route]:
    """What is found for every outcome of the N votes, when the pilot chose a claim."""
    pilot = N0 * np.eye(levels, dtype=int)[claim]
    return [route(pilot, counts, default, TAU, ALPHA) for counts in outcomes(N, levels)]


def router_error(shares, default, route=certify_route) -> float:
    """Chance of a wrong level or too long a radius, over every outcome of both multinomial draws."""
    levels, (level, furthest) = len(shares), truth(shares, default)
    pilots = outcomes(N0, levels)
    top = pilots.argmax(axis=1)
    claims = np.where((top != default) & (2 * pilots.max(axis=1) > N0), top, default)
    odds = np.bincount(claims, st.multinomial(N0, shares).pmf(pilots), minlength=levels)
    weights, wrong = st.multinomial(N, shares).pmf(outcomes(N, levels)), 0.0
    for claim in range(levels):
        found = routes(levels, claim, default, route)
        radius, own = np.array([each.radius for each in found]), np.array([each.level for each in found])
        false = (own != ABSTAIN) & ((own != level) | (radius > furthest * (1 + 1e-9)))
        wrong += odds[claim] * weights[false].sum()
    return wrong


SHARES = (
    [0.5, 0.5],
    [0.45, 0.55],
    [0.52, 0.48],
    [0.1, 0.9],
    [0.6, 0.39, 0.01],
    [0.2, 0.4, 0.4],
    [0.1, 0.3, 0.6],
)


@pytest.mark.acceptance
@pytest.mark.parametrize("shares", SHARES)
def test_the_router_is_wrong_at_most_alpha_exactly(shares):
    for default in range(len(shares)):
        assert router_error(np.array(shares), default) <= ALPHA


def default_where_undecided(counts0, counts, default, tau, alpha):
    """A planted fault: where the votes do not decide, the default, as if h were it."""
    found = certify_route(counts0, counts, default, tau, alpha)
    return Route(default, np.inf, found.counts) if found.level == ABSTAIN else found


def without_a_bound(counts0, counts, default, tau, alpha):
    """A planted fault: the share of the votes itself in the place of its bound."""
    share = counts[int(np.argmax(counts0))] / counts.sum()
    return Route(int(np.argmax(counts0)), TAU * float(ndtri(max(share, 0.5))), tuple(counts))


@pytest.mark.acceptance
@pytest.mark.parametrize("fault", [default_where_undecided, without_a_bound])
def test_a_broken_router_is_caught(fault):
    assert router_error(np.array([0.45, 0.55]), 0, fault) > 2 * ALPHA


def test_a_route_by_hand():
    found = certify_route(np.array([0, 10]), np.array([20, 980]), 0, TAU, 0.001)
    share = st.beta.ppf(0.001, 980, 21)
    assert found.level == 1
    assert found.radius == pytest.approx(TAU * ndtri(share), rel=1e-6)
    # The default's radius is that of the others' largest upper bound: it needs no majority of its own.
    found = certify_route(np.array([4, 3, 3]), np.array([400, 300, 300]), 0, TAU, 0.001)
    share = st.beta.ppf(0.999, 301, 700)
    assert found.level == 0
    assert found.radius == pytest.approx(-TAU * ndtri(share), rel=1e-6)
    assert certify_route(np.array([5, 5]), np.array([500, 500]), 0, TAU, 0.001).level == ABSTAIN


# --- the surrogate's own radius as router: exact ----------------------------------------------------------------

EDGE = 0.1


def threshold_error(shares, route) -> float:
    """As ``router_error``, of one threshold of phi: far from it by no more than phi itself is."""
    classes, phi = len(shares), TAU * ndtri(shares.max())
    pilots = outcomes(N0, classes)
    odds = np.bincount(pilots.argmax(axis=1), st.multinomial(N0, shares).pmf(pilots), minlength=classes)
    counts = outcomes(N, classes)
    weights, wrong = st.multinomial(N, shares).pmf(counts), 0.0
    for top in range(classes):
        found = [route(N0 * np.eye(classes, dtype=int)[top], each, [EDGE], TAU, ALPHA) for each in counts]
        level, radius = np.array([each.level for each in found]), np.array([each.radius for each in found])
        false = (level != ABSTAIN) & ((level != (phi >= EDGE)) | (radius > abs(phi - EDGE) * (1 + 1e-9)))
        wrong += odds[top] * weights[false].sum()
    return wrong


REACHED = float(ndtr(EDGE / TAU))


@pytest.mark.acceptance
@pytest.mark.parametrize("top", [REACHED, REACHED - 0.02, REACHED + 0.02, 0.4, 0.9])
def test_a_threshold_is_wrong_at_most_alpha_exactly(top):
    for rest in ([1 - top], [(1 - top) / 2] * 2):
        assert threshold_error(np.array([*rest, top]), certify_threshold) <= ALPHA


def class_of_the_pilot(counts0, counts, thresholds, tau, alpha):
    """A planted fault: phi is bounded from above by the class that the pilot chose, whatever won afterwards."""
    top, total = int(np.argmax(counts0)), int(counts.sum())
    low = tau * ndtri(certify.binomial_lower_bound(int(counts[top]), total, alpha / 2))
    high = tau * ndtri(certify.binomial_upper_bound(int(counts[top]), total, alpha / 2))
    if low >= thresholds[0]:
        return Route(1, low - thresholds[0], tuple(counts))
    return Route(0, thresholds[0] - high, tuple(counts)) if high < thresholds[0] else Route(ABSTAIN, 0.0, ())


@pytest.mark.acceptance
def test_a_threshold_of_another_class_is_caught():
    """The likeliest class has .66, at the threshold; the pilot of six often chooses the other."""
    assert threshold_error(np.array([1 - REACHED, REACHED]), class_of_the_pilot) > 2 * ALPHA


def test_a_threshold_by_hand():
    found = certify_threshold(np.array([10, 0]), np.array([950, 50]), [0.1, 0.5], TAU, 0.001)
    low, high = (TAU * ndtri(st.beta.ppf(q, *ab)) for q, ab in ((0.0005, (950, 51)), (0.9995, (951, 50))))
    assert found.level == 1
    assert found.radius == pytest.approx(min(low - 0.1, 0.5 - high), rel=1e-6)
    assert certify_threshold(np.array([5, 5]), np.array([700, 300]), [0.13], TAU, 0.001).level == ABSTAIN


# --- router and target: worlds of one pixel, whose truth is computed --------------------------------------------

SIGMAS = (0.05, 0.4)
LOW, HIGH = (
    0.3,
    0.7,
)  # the target answers 1 between them: so does its vote under the small sigma, but not under the large
GRID = np.linspace(-1.5, 2.5, 2_001)
STEP = GRID[1] - GRID[0]
PIXELS = np.linspace(0.02, 0.98, 150)
LIMIT = st.binom.ppf(1 - 1e-6, len(PIXELS), ALPHA)


def target(noisy):
    pixel = noisy[:, 0, 0, 0]
    return ((pixel > LOW) & (pixel < HIGH)).long()


def good(noisy):
    return (noisy[:, 0, 0, 0] > 0.9).long()


def useless(noisy):
    """Digits of the noisy pixel far behind the point: as good as random, and a fixed function of it."""
    return (torch.frac(noisy[:, 0, 0, 0].double().abs() * 997) > 0.5).long()


def adverse(noisy):
    """Takes the level that gives another class, in stripes about as wide as the noise."""
    return (torch.sin(noisy[:, 0, 0, 0].double() * 8) > 0).long()


def smoothed(function, sigma):
    """Mean of a function of the noisy pixel on the grid, by the quantiles of the noise."""
    noise = ndtri((np.arange(2_000) + 0.5) / 2_000) * sigma
    pixels = torch.from_numpy((GRID[:, None] + noise).reshape(-1, 1, 1, 1))
    return function(pixels).numpy().reshape(len(GRID), -1).mean(axis=1)


VOTES = np.stack([smoothed(target, sigma) for sigma in SIGMAS])


def classes_under(level):
    """G on the grid, from the level (P,) that is taken there."""
    return (np.take_along_axis(VOTES, level[None], axis=0)[0] > 0.5).astype(int)


def false_certificates(classes, certified) -> tuple[int, int]:
    """How many certificates of the pixels contradict G on the grid, and how many claim anything."""
    wrong = claimed = 0
    for pixel, found in zip(PIXELS, certified, strict=True):
        if found.prediction == ABSTAIN:
            continue
        near = np.abs(GRID - pixel) < found.radius - STEP
        near[np.abs(GRID - pixel).argmin()] = True
        claimed += 1
        wrong += np.any(classes[near] != found.prediction)
    return int(wrong), claimed


def images_of_pixels():
    return torch.from_numpy(PIXELS.astype(np.float32)).reshape(-1, 1, 1, 1)


def routed_pixels(router, **options):
    settings = {"router_sigma": TAU, "alpha": ALPHA, "n0": 20, "n": 200, "n_router": 400} | options
    return certify_routed(target, router, images_of_pixels(), SIGMAS, 2, **settings)


@pytest.mark.acceptance
@pytest.mark.parametrize("default", [0, 1])
@pytest.mark.parametrize("router", [good, useless, adverse])
def test_certificates_are_wrong_at_most_alpha_whatever_the_router(router, default):
    classes = classes_under((smoothed(router, TAU) > 0.5).astype(int))
    wrong, claimed = false_certificates(classes, routed_pixels(router, default=default))
    assert wrong <= LIMIT
    assert claimed > {good: 100, useless: -1, adverse: 30}[router]


def under_each_level():
    engine = certify.VoteEngine(recheck=0)
    return [
        certify.SmoothedClassifier(target, certify.Gaussian(sigma), 2, engine=engine).certify(
            images_of_pixels(), n0=20, n=200, alpha=ALPHA
        )
        for sigma in SIGMAS
    ]


@pytest.mark.acceptance
def test_a_router_that_sees_the_image_without_noise_is_caught():
    """A planted fault: the sigma follows the image itself, and the target's radius alone is claimed."""
    classes = classes_under(adverse(torch.from_numpy(GRID).reshape(-1, 1, 1, 1)).numpy())
    level, each = adverse(images_of_pixels()).tolist(), under_each_level()
    found = [each[own][number] for number, own in enumerate(level)]
    assert false_certificates(classes, found)[0] > LIMIT


@pytest.mark.acceptance
def test_the_level_with_most_votes_is_caught():
    """A planted fault: the level is the one whose votes of the target agree most, after they were seen."""
    classes = classes_under(np.abs(VOTES - 0.5).argmax(axis=0))
    found = [max(pair, key=lambda one: one.p_lower) for pair in zip(*under_each_level(), strict=True)]
    assert false_certificates(classes, found)[0] > LIMIT


@pytest.mark.acceptance
def test_going_on_with_the_default_is_caught(monkeypatch):
    """A planted fault: where the router's votes do not decide, the default's certificate is given."""
    classes = classes_under((smoothed(nearly_undecided, TAU) > 0.5).astype(int))
    assert false_certificates(classes, routed_pixels(nearly_undecided))[0] <= LIMIT
    monkeypatch.setattr(routing, "certify_route", default_where_undecided)
    assert false_certificates(classes, routed_pixels(nearly_undecided))[0] > LIMIT


def nearly_undecided(noisy):
    """Level 1 with probability .53, wherever the pixel is: the exact router never takes the default."""
    return (torch.frac(noisy[:, 0, 0, 0].double().abs() * 997) < 0.53).long()


# --- what a certificate says ------------------------------------------------------------------------------------


def test_the_certificate_says_what_is_certified_of_both():
    [found] = certify_routed(
        target, good, torch.full((1, 1, 1, 1), 0.5), SIGMAS, 2, router_sigma=TAU, alpha=0.01
    )
    assert (found.prediction, found.sigma, found.route.level) == (1, 0.05, 0)
    assert sum(found.route.counts) == 10_000
    assert found.radius == min(found.route.radius, found.target_radius) > 0.1
    assert (found.alpha, found.n0, found.n, found.subject) == (0.01, 100, 1_000, "target")
    assert found.noise["alpha_router"] == pytest.approx(0.001)
    share = certify.binomial_lower_bound(found.counts[1], 1_000, 0.01 - 0.001)
    assert found.target_radius == certify.Gaussian(0.05).radius(share)


def test_an_image_whose_router_abstains_is_not_paid_for():
    asked = []

    def counting(noisy):
        asked.append(len(noisy))
        return target(noisy)

    images = torch.tensor([0.5, 0.9]).reshape(2, 1, 1, 1)  # the second lies on the router's boundary
    found = certify_routed(counting, good, images, SIGMAS, 2, router_sigma=TAU, n=300, recheck=0)
    assert sum(asked) == 400
    assert found[1].route.level == found[1].prediction == ABSTAIN
    assert (found[1].n0, found[1].n, found[1].radius, found[1].counts) == (0, 0, 0.0, (0, 0))


def test_same_seed_same_votes_whatever_the_company():
    together = routed_pixels(good)
    alone = certify_routed(
        target,
        good,
        images_of_pixels()[7:8],
        SIGMAS,
        2,
        indices=[7],
        router_sigma=TAU,
        alpha=ALPHA,
        n0=20,
        n=200,
        n_router=400,
        batch_size=300,
    )
    assert alone[0] == together[7]
    assert routed_pixels(good, seed=1) != together


def test_methods_that_stop_early_are_taken(tmp_path):
    image = torch.full((1, 1, 1, 1), 0.5)
    options = {"router_sigma": TAU, "method": "group_sequential", "radii": [0.1]}
    [found] = certify_routed(target, good, image, SIGMAS, 2, **options)
    assert found.n < 1_000
    assert found.radius == 0.1
    with certify.RecordLog(tmp_path / "routed", {"noise": found.noise}) as log:
        log.append(0, 1, found, 0.1)
    assert certify.read_records(tmp_path / "routed.jsonl").radius.tolist() == [0.1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigmas": [0.1]}, "the number of sigmas"),
        ({"sigmas": [0.1, -1]}, "sigma must be"),
        ({"router_sigma": 0}, "sigma must be"),
        ({"default": 2}, "0 to 1, got 2"),
        ({"alpha_router": 0.001}, "alpha_router must be below alpha=0.001"),
        ({"n": 3}, "n=3 is too small"),
        ({"n_router": 0}, "n_router"),
        ({"method": "best"}, "method must be one of"),
        ({"images": torch.full((1, 1, 1, 1), 255.0)}, r"images must be in \[0, 1\]"),
        ({"tilt": 1}, "'tilt' is not an option"),
    ],
)
def test_bad_input_is_one_clear_error(change, words):
    def never(noisy):
        raise AssertionError("a vote was spent")

    arguments = {"images": torch.zeros(1, 1, 1, 1), "sigmas": SIGMAS, "router_sigma": TAU} | change
    with pytest.raises(CertifyError, match=words):
        certify_routed(never, never, arguments.pop("images"), arguments.pop("sigmas"), 2, **arguments)


def test_a_router_that_answers_no_level_is_refused():
    with pytest.raises(CertifyError, match="labels must be in"):
        certify_routed(
            target, lambda noisy: target(noisy) + 2, images_of_pixels()[:1], SIGMAS, 2, router_sigma=TAU
        )
