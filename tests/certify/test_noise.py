"""Noise laws: published and independently computed radii, soundness of the discretization, and what is
sampled.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from certify import CertifyError, Gaussian, GaussianScaleMixture, Laplace, Uniform, nim_noise
from certify.noise.radius_table import RadiusTable, q_sufficient
from certify.noise.sigma_cells import SigmaCells, sigma_cells

LAWS = {
    "nim": st.gamma(25, scale=3 / 255),
    "wide": st.gamma(4, scale=8 / 255),
    "uniform": st.uniform(0, 30 / 255),
    "lognormal": st.lognorm(0.8, scale=0.2),
    "atoms": st.rv_discrete(values=([0.1, 0.25, 0.5], [0.2, 0.5, 0.3])),
}
ALL = [Gaussian(0.25), Laplace(0.2), Uniform(0.5), *map(GaussianScaleMixture, LAWS.values())]


def expectation(f, law):
    """E f(sigma), by adaptive quadrature in quantile space or by the atoms: nothing of certify is used."""
    if hasattr(law, "xk"):
        return float(np.sum(law.pk * f(law.xk)))
    pieces = ndtr(np.array([-9, -5, -3, -1.5, 0, 1.5, 3, 5, 8]))
    return sum(quad(lambda q: f(law.ppf(q)), a, b, epsabs=1e-11, epsrel=1e-8)[0] for a, b in pairwise(pieces))


def oracle_p(r, law):
    """The exact p(r): solve the defining equations of the scale-mixture radius."""
    with np.errstate(divide="ignore", over="ignore"):
        spread = expectation(lambda s: ndtr(s * 0 - r / (2 * s)), law)
        assert spread < 0.5
        level = brentq(lambda t: expectation(lambda s: ndtr(s * t / r - r / (2 * s)), law) - 0.5, 0, 100)
        return expectation(lambda s: ndtr(s * level / r + r / (2 * s)), law)


@pytest.mark.parametrize(("p", "radius"), [(0.8, 0.2378), (0.9, 0.3623), (0.99, 0.6591), (0.999, 0.8772)])
def test_nim_reference_values(p, radius):
    assert radius * 0.998 <= nim_noise().radius(p) <= radius + 1e-4


@pytest.mark.filterwarnings("ignore:E.1/sigma. is infinite")  # expected in test_laws
def test_uniform_sigma_reference_value():
    assert 0.0515 * 0.998 <= GaussianScaleMixture(LAWS["uniform"]).radius(0.9) <= 0.0515 + 1e-4


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("share", [0.1, 0.7, 1.5])
def test_mixture_radius_against_independent_solver(name, share):
    law = LAWS[name]
    r = share * float(law.mean())
    radius = GaussianScaleMixture(law).radius(oracle_p(r, law))
    assert r * 0.998 <= radius <= r * (1 + 1e-7)


def test_upper_cell_edges_would_be_caught():
    """The comparison above has the power to see a discretization that errs on the wrong side."""
    law = LAWS["wide"]
    cells = sigma_cells(law)
    planted = SigmaCells(np.append(cells.sigma[1:], cells.sigma[-1]), cells.mass, atoms=False)
    r = 0.1
    assert RadiusTable(planted).radius(np.array([oracle_p(r, law)]))[0] > r * (1 + 1e-4)


def test_any_threshold_is_sound():
    """Weak duality: a wrong t never certifies more than the exact radius."""
    law, r = LAWS["nim"], 0.3
    exact = 1 - oracle_p(r, law)
    u = np.geomspace(1e-3, 1e3, 200)
    q = q_sufficient(np.full(200, r), u, sigma_cells(law))
    assert np.all(q <= exact)
    assert q.max() >= exact * 0.995


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
def test_one_atom_is_the_gaussian(sigma):
    mixture = GaussianScaleMixture(st.rv_discrete(values=([sigma], [1.0])))
    p = np.concatenate([np.linspace(0.501, 0.999, 200), 1 - np.logspace(-3, -12, 50)])
    ratio = mixture.radius(p) / Gaussian(sigma).radius(p)
    assert ratio.min() >= 0.998
    assert ratio.max() <= 1


@pytest.mark.parametrize("noise", ALL)
def test_radius_is_monotone_and_starts_at_zero(noise):
    p = np.concatenate([[0, 0.3, 0.5], np.linspace(0.5001, 0.9999, 2000), 1 - np.logspace(-5, -15, 50)])
    radius = noise.radius(p)
    assert radius.dtype == np.float64
    assert np.all(radius[:3] == 0)
    assert np.all(np.diff(radius[2:]) >= 0)
    assert np.all(np.isfinite(radius))
    assert isinstance(noise.radius(0.9), float)
    assert noise.radius(np.full((2, 3), 0.9)).shape == (2, 3)


@pytest.mark.parametrize("noise", ALL)
def test_p_required_inverts_radius(noise):
    r = noise.radius(np.array([0.51, 0.6, 0.9, 0.99, 0.9999, 1 - 1e-9]))
    p = noise.p_required(r)
    again = noise.radius(p)
    assert np.all(again <= r * (1 + 1e-6))
    assert np.all(again >= r * 0.998)
    assert noise.p_required(0.0) == 0.5
    assert isinstance(noise.p_required(0.01), float)


def test_the_ends_of_the_scale():
    noise = nim_noise()
    assert noise.radius(1.0) >= noise.radius(1 - 1e-15) > noise.radius(1 - 1e-12)
    assert np.isfinite(noise.radius(1.0))
    assert noise.p_required(100.0) == 1.0
    assert noise.radius(np.nextafter(0.5, 1)) >= 0
    assert Uniform(0.5).radius(1.0) == pytest.approx(0.5)
    assert Uniform(0.5).p_required(0.6) == np.inf
    assert noise.radius(np.array([])).shape == (0,)


def test_l1_laws_against_their_likelihood_ratios():
    """Neyman-Pearson on a grid of one pixel: the worst region of probability p keeps 1/2 exactly at the
    radius.
    """
    x = np.linspace(-12, 12, 2_400_001)
    p = 0.8
    for noise, density in (
        (Laplace(0.5), st.laplace(scale=0.5).pdf),
        (Uniform(2.0), st.uniform(-2, 4).pdf),
    ):
        at, moved = density(x) * (x[1] - x[0]), density(x - noise.radius(p)) * (x[1] - x[0])
        ratio = np.divide(moved, at, out=np.full_like(at, np.inf), where=at > 0)
        order = np.argsort(ratio, kind="stable")
        worst = np.interp(p, np.cumsum(at[order]), np.cumsum(moved[order]))
        assert worst == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (Gaussian(0.25), st.norm(0, 0.25)),
        (Laplace(0.2), st.laplace(scale=0.2)),
        (Uniform(0.5), st.uniform(-0.5, 1)),
    ],
)
def test_samples_follow_the_law(noise, law):
    sample = noise.sample((64, 3, 16, 16), torch.Generator().manual_seed(1))
    assert sample.shape == (64, 3, 16, 16)
    assert sample.dtype == torch.float32
    assert st.kstest(sample.double().numpy().ravel(), law.cdf).pvalue > 1e-4
    assert torch.equal(sample, noise.sample((64, 3, 16, 16), torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ["nim", "wide", "uniform", "lognormal"])
def test_mixture_draws_one_sigma_per_image(name):
    noise = GaussianScaleMixture(LAWS[name])
    sample = noise.sample((4000, 1, 32, 32), torch.Generator().manual_seed(2)).double()
    sigma = sample.square().mean(dim=(1, 2, 3)).sqrt().numpy()  # 1024 pixels give sigma to 2%
    assert abs(sigma.mean() / LAWS[name].mean() - 1) < 5 * LAWS[name].std() / LAWS[name].mean() / 4000**0.5
    assert sigma.std() == pytest.approx(LAWS[name].std(), rel=0.15)
    assert abs(sample.mean()) < 1e-3
    exact = noise.sample_sigma(20_000, torch.Generator().manual_seed(3), torch.device("cpu"))
    assert st.kstest(exact.numpy(), LAWS[name].cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", ["nim", "uniform", "atoms"])
def test_every_sampled_sigma_is_at_least_its_cells_lower_edge(name):
    noise = GaussianScaleMixture(LAWS[name])
    cells = noise.cells
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64).numpy()
    sigma = noise.sample_sigma(200_000, torch.Generator().manual_seed(4), torch.device("cpu")).numpy()
    below = 0.0 if cells.atoms else 1 - cells.mass.sum()
    cell = np.searchsorted(below + np.cumsum(cells.mass)[:-1], u - 1e-12, side="right")
    assert np.all(sigma >= cells.sigma[cell] * (1 - 1e-12))
    assert np.all(
        sigma <= np.append(cells.sigma, cells.sigma[-1])[cell + 2 if not cells.atoms else cell] + 1e-12
    )


def test_discrete_law_draws_its_atoms_exactly():
    noise = GaussianScaleMixture(LAWS["atoms"])
    sigma = noise.sample_sigma(100_000, torch.Generator().manual_seed(5), torch.device("cpu")).numpy()
    values, counts = np.unique(sigma, return_counts=True)
    assert values.tolist() == [0.1, 0.25, 0.5]
    assert st.chisquare(counts, 100_000 * np.array([0.2, 0.5, 0.3])).pvalue > 1e-4
    frozen = GaussianScaleMixture(st.randint(1, 4))
    assert np.allclose(frozen.cells.sigma, [1, 2, 3])


def test_describe_identifies_the_law():
    described = [noise.describe() for noise in ALL]
    texts = [json.dumps(entry, allow_nan=False) for entry in described]
    assert len(set(texts)) == len(texts)
    assert nim_noise().describe()["kwds"] == {"scale": 3 / 255}
    assert nim_noise() == nim_noise()
    assert hash(nim_noise()) == hash(nim_noise())
    assert nim_noise() != GaussianScaleMixture(st.gamma(25, scale=2.9 / 255))
    histogram = [
        GaussianScaleMixture(st.rv_histogram(np.histogram([0.1, 0.2, x], bins=5))) for x in (0.3, 0.4)
    ]
    assert histogram[0] != histogram[1]
    heavy = GaussianScaleMixture(
        st.pareto(0.9, scale=0.1)
    )  # its mean is infinite, and JSON knows no infinity
    assert heavy.describe()["mean_sigma"] is None
    assert heavy.radius(0.9) > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(0),
        lambda: Gaussian(-1.0),
        lambda: Gaussian(float("nan")),
        lambda: Gaussian("0.25"),
        lambda: Laplace(0),
        lambda: Uniform(float("inf")),
        lambda: GaussianScaleMixture(0.25),
        lambda: GaussianScaleMixture(st.gamma),
        lambda: GaussianScaleMixture(st.norm(0.3, 0.1)),
        lambda: GaussianScaleMixture(st.uniform(-0.01, 1)),
        lambda: GaussianScaleMixture(st.gamma(-1)),
        lambda: GaussianScaleMixture(st.rv_discrete(values=([0.0, 0.25], [0.5, 0.5]))),
        lambda: GaussianScaleMixture(st.randint(1, 10_000)),
        lambda: Gaussian(0.25).radius(1.2),
        lambda: Gaussian(0.25).radius([0.6, float("nan")]),
        lambda: Gaussian(0.25).radius("high"),
        lambda: nim_noise().p_required(-0.1),
        lambda: nim_noise().p_required(float("inf")),
        lambda: Gaussian(0.25).sample(()),
        lambda: Gaussian(0.25).sample((2, 2), dtype=torch.float16),
    ],
)
def test_bad_input_is_refused_in_one_line(make):
    with pytest.raises(CertifyError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert ":" in str(caught.value)


def test_gaussian_closed_form():
    assert Gaussian(0.5).radius(0.9) == pytest.approx(0.5 * ndtri(0.9), rel=1e-12)
    assert Gaussian(0.5).radius(0.9) <= 0.5 * ndtri(0.9)
    assert Laplace(0.5).radius(0.75) == pytest.approx(0.5 * np.log(2))
