"""Stevens' randomized bound: exact coverage by exact computation, planted faults, and its draw in the records."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

from certify import (
    CertifyError,
    Gaussian,
    RecordLog,
    SmoothedClassifier,
    binomial_lower_bound,
    certify_votes,
    randomized_lower_bound,
    read_records,
    recertify,
)
from certify.voting.chunks import BOUND, seed_of

ALPHA = 0.05
U = (np.arange(400) + 0.5) / 400  # midpoints: an integral over U to 1/800


def miscoverages(bound, n: int) -> list[float]:
    """P(bound > p) for every p of P, by the probability of every count and the midpoints of U."""
    k = np.arange(n + 1)
    bounds = bound(k[:, None], n, U[None, :])
    return [float(binom.pmf(k, n, p) @ (bounds > p).mean(axis=1)) for p in P]


def randomized(k, n, u):
    return randomized_lower_bound(k, n, ALPHA, u)


def always_lucky(k, n, u):
    """A planted fault: of three draws the one that claims most, as by certifying again until it suffices."""
    return randomized(k, n, 1 - (1 - u) ** (1 / 3))


def chosen_by_the_votes(k, n, u):
    """A planted fault: U is the share of failures, known only from the votes."""
    return randomized(k, n, np.broadcast_to(1 - k / n, np.broadcast_shapes(k.shape, u.shape)) * 0.999)


def one_success_more(k, n, u):
    """A planted fault: P(K > k) = alpha, as if U were always 0."""
    return randomized(k, n, np.zeros_like(u) + 0 * k)


P = [0.3, 0.5, 0.8, 0.93, 0.99]


@pytest.mark.acceptance
@pytest.mark.parametrize("n", [5, 30, 60])
def test_coverage_is_exact(n):
    # no bound is above the median of n unbroken successes
    exact = [ALPHA if p <= 2 ** (-1 / n) else 0.0 for p in P]
    assert miscoverages(randomized, n) == pytest.approx(exact, abs=1 / 800)
    plain = miscoverages(lambda k, n, u: binomial_lower_bound(k + 0 * (u > 2), n, ALPHA), n)
    assert max(plain) < ALPHA


@pytest.mark.acceptance
@pytest.mark.parametrize("fault", [always_lucky, chosen_by_the_votes, one_success_more])
def test_planted_faults_of_the_uniform_draw_are_caught(fault):
    assert max(miscoverages(fault, 30)) > 1.4 * ALPHA


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.05, 0.4])
def test_it_is_never_below_clopper_and_pearson_nor_above_one_success_more(alpha):
    rng = np.random.default_rng(0)
    for n in (1, 7, 1000, 100_000):
        k = np.unique(np.concatenate([[0, n], rng.integers(0, n + 1, 40)]))
        plain = binomial_lower_bound(k, n, alpha)
        for u in (0.0, 1e-12, 0.3, 1 - 1e-12):
            found = randomized_lower_bound(k, n, alpha, u)
            assert np.all(found >= plain)
            assert np.all(found[:-1] <= plain[1:] * (1 + 1e-11))
            assert found[-1] <= 2 ** (-1 / n)
        assert np.allclose(randomized_lower_bound(k, n, alpha, 1 - 1e-15), plain, rtol=1e-9, atol=1e-9)


def test_it_solves_its_equation():
    k, n, u = np.array([500, 970, 999]), 1000, np.array([0.9, 0.2, 0.5])
    p = randomized_lower_bound(k, n, 0.001, u)
    assert binom.sf(k, n, p) + u * binom.pmf(k, n, p) == pytest.approx(0.001, rel=1e-9)
    assert randomized_lower_bound(100, 100, 0.001, 0.5) == pytest.approx((0.001 / 0.5) ** 0.01, rel=1e-11)


@pytest.mark.parametrize(
    ("n", "p", "gain"), [(100, 0.9, 0.025), (1000, 0.9, 0.002), (100, 1.0, 0.045), (1000, 1.0, 0.02)]
)
def test_radii_are_longer_by_little_except_where_the_vote_is_unanimous(n, p, gain):
    """The mean over votes and over U, as a share of Clopper and Pearson's radius."""
    rng = np.random.default_rng(0)
    k, u = rng.binomial(n, p, 4000), rng.random(4000)
    noise = Gaussian(0.25)
    plain = noise.radius(binomial_lower_bound(k, n, 0.001)).mean()
    longer = noise.radius(randomized_lower_bound(k, n, 0.001, u)).mean() / plain - 1
    print(f"n={n}, p={p}: {100 * longer:.2f}% longer")
    assert gain < longer < 2 * gain


def smoothed(**options):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3, 12))
        model[1].bias.zero_()
    return SmoothedClassifier(model, Gaussian(0.5), 3, **options)


IMAGES = torch.rand((6, 3, 2, 2), generator=torch.Generator().manual_seed(1))


def test_the_draw_is_the_images_own_and_the_votes_stay_as_they_are():
    plain = smoothed().certify(IMAGES, n=500)
    found = smoothed().certify(IMAGES, n=500, bound="randomized")
    assert [each.counts for each in found] == [each.counts for each in plain]
    assert all(a.p_lower >= b.p_lower for a, b in zip(found, plain, strict=True))
    draws = [each.uniform for each in found]
    assert len(set(draws)) == 6
    assert [each.uniform for each in plain] == [None] * 6
    assert (
        smoothed(batch_size=64).certify(IMAGES[3:5], n=900, indices=[3, 4], bound="randomized")[0].uniform
        == draws[3]
    )
    assert smoothed(seed=1).certify(IMAGES[:1], n=500, bound="randomized")[0].uniform != draws[0]
    assert seed_of(0, 3, BOUND) not in {
        seed_of(0, 3, stage, chunk) for stage in range(15) for chunk in range(100)
    }


def test_a_certificate_from_votes_draws_before_the_first_vote():
    generator = torch.Generator().manual_seed(3)
    expected = float(torch.rand((), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    asked = []

    def draw(count):
        asked.append(generator.get_state().tolist())
        return np.zeros(count, dtype=np.int64)

    found = certify_votes(draw, Gaussian(0.25), 2, n=100, bound="randomized", generator=generator)
    assert found.uniform == expected
    assert asked[0] == asked[-1] != torch.Generator().manual_seed(3).get_state().tolist()


def test_records_keep_the_draw_and_are_certified_again_with_it(tmp_path):
    config = {"noise": Gaussian(0.5).describe(), "alpha": 0.001, "bound": "randomized"}
    with RecordLog(tmp_path / "run", config) as log:
        smoothed().certify(
            IMAGES, n=500, bound="randomized", on_certificate=lambda i, c, s: log.append(i, i % 3, c, s)
        )
    records = read_records(log.path)
    again = recertify(records, Gaussian(0.5), 0.001, bound="randomized")
    assert np.array_equal(again.radius, records.radius)
    assert np.array_equal(again.uniform, records.uniform)
    loose = recertify(records, Gaussian(0.5), 0.05, bound="randomized")
    direct = smoothed().certify(IMAGES, n=500, alpha=0.05, bound="randomized")
    assert loose.radius.tolist() == [each.radius for each in direct]
    plain = recertify(records, Gaussian(0.5), 0.001)
    assert plain.uniform is None
    assert np.all(plain.radius <= records.radius)
    with pytest.raises(CertifyError, match="needs the uniform draw"):
        recertify(plain, Gaussian(0.5), 0.001, bound="randomized")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"uniform": 0.9999}, "do not follow"),
        ({"uniform": 1.5}, "uniform"),
        ({"uniform": 1.0}, "uniform draw of 1.0"),
        ({"uniform": "x"}, "uniform"),
        ({"uniform": None}, "uniform"),
        ({"method": "two_sided"}, "for method 'two_sided'"),
        ({}, "bound is clopper_pearson, but randomized in the header"),
    ],
)
def test_a_changed_draw_is_refused(tmp_path, change, word):
    certificate = smoothed().certify(IMAGES[:1], n=500, bound="randomized")[0]
    with RecordLog(tmp_path / "run", {"bound": "randomized"}) as log:
        log.append(0, 0, certificate, 0.0)
    header, row = map(json.loads, log.path.read_text().splitlines())
    for line in (header, row):
        del line["crc32"]
    row |= change
    if not change:
        del row["uniform"]
    log.path.write_text("\n".join(map(json.dumps, [header, row])) + "\n")
    with pytest.raises(CertifyError, match=word):
        read_records(log.path)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"bound": "exact"}, "bound must be one of clopper_pearson, randomized"),
        ({"bound": "randomized", "method": "group_sequential"}, "known for method='fixed'"),
        ({"bound": "randomized"}, "pass torch.Generator"),
        ({"generator": torch.Generator()}, "leave it out"),
    ],
)
def test_bad_options_are_refused_before_the_first_vote(options, word):
    with pytest.raises(CertifyError, match=word):
        certify_votes(None, Gaussian(0.25), 2, **options)


def test_a_draw_outside_its_range_is_refused():
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(CertifyError, match=r"uniform must be in \[0, 1\)"):
            randomized_lower_bound(5, 10, 0.1, wrong)
