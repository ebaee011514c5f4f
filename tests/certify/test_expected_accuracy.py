"""What a few votes promise: against a simulation of the same prior, against the truth, and against the plug-in estimate."""

import numpy as np
import pytest

import certify
from certify import CertifyError, Gaussian, binomial_lower_bound, expected_accuracy
from certify.selection import likeliest_beta

RADII = [0.0, 0.25, 0.5, 0.75]


def certified(noise, votes, n, alpha=0.001):
    """Which of the RADII n votes prove, (..., R): by the certificate's own bound."""
    bound = binomial_lower_bound(votes, n, alpha)
    reached = noise.radius(bound)[..., None] >= np.array(RADII)
    return reached & (bound > 0.5)[..., None]


@pytest.mark.parametrize("noise", [Gaussian(0.25), Gaussian(0.5), certify.nim_noise()])
def test_it_is_the_mean_over_the_posterior_of_what_certificates_prove(noise):
    votes, trials, n, draws = np.array([200, 199, 190, 150, 90]), 200, 1_000, 10_000
    a, b = likeliest_beta(votes, trials)
    rng = np.random.default_rng(0)
    share = rng.beta(votes + a, trials - votes + b, (draws, len(votes)))
    simulated = certified(noise, rng.binomial(n, share), n).mean(axis=(0, 1))
    # five standard errors of a share of 10,000 draws, each the mean of five images
    error = 5 * np.sqrt(0.25 / draws / len(votes))
    assert np.abs(expected_accuracy(votes, trials, noise, RADII, n=n) - simulated).max() < error


def test_the_prior_is_found_again():
    rng = np.random.default_rng(0)
    a, b = likeliest_beta(rng.binomial(200, rng.beta(3.0, 0.3, 4_000)), 200)
    assert (a, b) == (pytest.approx(3.0, rel=0.2), pytest.approx(0.3, rel=0.2))


@pytest.mark.parametrize("law", [(60, 0.6), (5, 0.2), (0.5, 0.1)])
def test_it_is_close_to_the_truth_where_other_estimates_are_not(law):
    """Shares near what a radius requires, and few votes, so that many are unanimous."""
    noise, trials, n, images = Gaussian(0.25), 100, 2_000, 1_000
    rng = np.random.default_rng(1)
    truth = rng.beta(*law, images)
    votes = rng.binomial(trials, truth)
    really = certified(noise, rng.binomial(n, truth), n).mean(axis=0)
    # five standard errors of a share of these images, and of a mean of posterior shares beside it
    error = 5 * np.sqrt(2 * 0.25 / images)
    assert np.abs(expected_accuracy(votes, trials, noise, RADII, n=n) - really)[1:].max() < error
    few = certified(noise, votes, trials).mean(axis=0)  # certificates from these votes alone
    assert really[2] - few[2] > 0.3


def test_more_votes_for_the_class_never_promise_less():
    rows = [expected_accuracy([k], 50, Gaussian(0.3), RADII, n=500) for k in range(51)]
    assert np.all(np.diff(rows, axis=0) >= -1e-9)
    assert rows[-1][0] > 0.999


def test_a_radius_beyond_a_unanimous_vote_is_never_promised():
    largest = Gaussian(0.1).radius(binomial_lower_bound(1_000, 1_000, 0.001))
    for radius, promised in ((largest - 1e-6, True), (largest + 1e-6, False)):
        assert (expected_accuracy([40], 40, Gaussian(0.1), [radius], n=1_000)[0] > 0) == promised


@pytest.mark.parametrize("votes", [[], [5, 41], [-1], [[3]]])
def test_counts_that_are_none_are_refused(votes):
    with pytest.raises(CertifyError, match="from 0 to trials=40"):
        expected_accuracy(votes, 40, Gaussian(0.1), RADII, n=100)
