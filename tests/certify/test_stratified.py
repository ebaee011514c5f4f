"""Strata of sigma: the radius on classifiers whose margin is known, a planted fault, and the engine's votes."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import ndtr, ndtri

from certify import (
    CertifyError,
    Gaussian,
    GaussianScaleMixture,
    SmoothedClassifier,
    binomial_lower_bound,
    certify_stratified,
    nim_noise,
)
from certify.noise.sigma_cells import SigmaCells
from certify.threats.stratified import cells_of, strata_of, stratified_radius

WIDE = GaussianScaleMixture(st.gamma(4, scale=8 / 255))
ALPHA, REPETITIONS, STRATA = 0.05, 500, 4
LIMIT = st.binom.ppf(1 - 1e-6, REPETITIONS, ALPHA)


def test_strata_are_the_law_cut_in_equal_parts():
    laws = strata_of(WIDE, STRATA)
    generator = torch.Generator().manual_seed(0)
    together = np.concatenate(
        [law.sample_sigma(10_000, generator, torch.device("cpu")).numpy() for law in laws]
    )
    assert st.kstest(together, WIDE.law.cdf).pvalue > 1e-4
    ends = WIDE.law.ppf(np.linspace(0, 1, STRATA + 1))
    for law, low, high in zip(laws, ends[:-1], ends[1:], strict=True):
        assert law.cells.sigma[0] >= low * (1 - 1e-6)
        assert law.cells.sigma[-1] <= high


def one_sigma(sigma):
    return [SigmaCells(np.array([value]), np.ones(1), atoms=True) for value in sigma]


def test_one_sigma_in_every_stratum_is_cohens_radius():
    radius = stratified_radius(np.full(3, 0.9), one_sigma([0.25] * 3))
    assert radius == pytest.approx(0.25 * ndtri(0.9), rel=1e-6)
    assert radius <= 0.25 * ndtri(0.9)
    assert stratified_radius(np.array([0.9, 0.2, 0.2]), one_sigma([0.25] * 3)) == 0


def test_equal_votes_in_the_strata_give_almost_the_pooled_radius():
    cells = [cells_of(law) for law in strata_of(WIDE, STRATA)]
    stratified = stratified_radius(np.full(STRATA, 0.9), cells)
    assert 0.7 * WIDE.radius(0.9) < stratified
    # Votes as a half-space gives them: fewer where sigma is large. The strata know, the pooled bound does not.
    p = np.array([np.sum(law.mass * ndtr(0.1 / law.sigma)) for law in cells])
    assert WIDE.radius(p.mean()) < stratified_radius(p, cells) < 0.1


@pytest.mark.acceptance
@pytest.mark.parametrize("faulty", [False, True])
def test_certificates_stay_inside_the_margin(faulty):
    """The worst classifier for four known sigmas flips at ``margin``; the fault takes the mean for each."""
    margin, sigma = 0.1, np.array([0.05, 0.1, 0.15, 0.3])
    # Neyman-Pearson with one price t: half-spaces z <= sigma^2 t / r + r / 2, moved by r.
    low, high = 0.0, 50.0
    for _ in range(80):
        t = (low + high) / 2
        moved = ndtr(sigma * t / margin - margin / (2 * sigma)).mean()
        low, high = (t, high) if moved < 0.5 else (low, t)
    p = ndtr(sigma * t / margin + margin / (2 * sigma))
    rng, n = np.random.default_rng(0), 20_000
    bounds = [binomial_lower_bound(rng.binomial(n, p), n, ALPHA / 4) for _ in range(REPETITIONS)]
    used = one_sigma(np.full(4, sigma.mean()) if faulty else sigma)
    radii = np.array([stratified_radius(bound, used) for bound in bounds])
    assert (np.sum(radii > margin) > LIMIT) == faulty
    assert radii.min() > 0.8 * margin


def test_the_engine_certifies_a_half_space():
    direction = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    image = torch.full((1, 1, 4, 4), 0.5)
    offset = (image * direction).sum() + 0.2
    smoothed = SmoothedClassifier(
        lambda x: ((x * direction).sum(dim=(1, 2, 3)) > offset).long(), nim_noise(), 2
    )
    done = []
    [certificate] = certify_stratified(
        smoothed, image, n=8000, indices=[5], on_certificate=lambda *report: done.append(report[0])
    )
    assert done == [5]
    assert (certificate.prediction, certificate.method, certificate.n) == (0, "stratified", 8000)
    assert 0.1 < certificate.radius < 0.2
    again = certify_stratified(smoothed, image.expand(2, -1, -1, -1), n=8000, indices=[4, 5])
    assert again[1] == certificate != again[0]


@pytest.mark.parametrize(
    ("noise", "options", "word"),
    [
        (Gaussian(0.25), {}, "scale mixture"),
        (GaussianScaleMixture(st.rv_discrete(values=([0.1, 0.2], [0.5, 0.5]))), {}, "continuous"),
        (WIDE, {"strata": 13}, "at most 12"),
        (WIDE, {"strata": 1}, "strata"),
        (WIDE, {"n": 20}, "n >= 48"),
        (WIDE, {"alpha": 1}, "alpha"),
    ],
)
def test_bad_input(noise, options, word):
    def never(x):
        raise AssertionError("a vote was spent")

    with pytest.raises(CertifyError, match=word):
        certify_stratified(SmoothedClassifier(never, noise, 2), torch.zeros(1, 1, 4, 4), **options)
