"""Certify again from kept votes: another alpha, norm and bound, without a sample; and what is refused."""

import numpy as np
import pytest

import certify
from certify import (
    CertifyError,
    Gaussian,
    Inclusion,
    RecordLog,
    binomial_lower_bound,
    certify_votes,
    read_records,
    recertify,
)
from certify.bounds.two_sided import two_sided_radius
from certify.records import curves

NOISE = Gaussian(0.25)
SHARES = [[0.99, 0.005, 0.005], [0.7, 0.2, 0.1], [0.52, 0.25, 0.23], [0.45, 0.3, 0.25]]


def run(tmp_path, method="fixed", alpha=0.001, noise=NOISE, n=5000):
    rng = np.random.default_rng(0)
    with RecordLog(tmp_path / f"{method}{alpha}", {"alpha": alpha}) as log:
        for index, shares in enumerate(SHARES):

            def draw(count, shares=shares):
                return np.repeat(np.arange(3), rng.multinomial(count, shares))

            log.append(index, 0, certify_votes(draw, noise, 3, n=n, alpha=alpha, method=method), 0.0)
    return read_records(log.path)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 1e-6])
def test_another_alpha_is_what_a_run_at_that_alpha_gives(tmp_path, alpha):
    again, direct = recertify(run(tmp_path), NOISE, alpha), run(tmp_path / "direct", alpha=alpha)
    for name in ("predict", "radius", "correct", "p_lower", "counts"):
        assert np.array_equal(getattr(again, name), getattr(direct, name)), name
    assert again.config["recertified"]["alpha"] == alpha


def test_an_abstention_can_become_a_certificate_at_a_larger_alpha(tmp_path):
    records = run(tmp_path)
    assert records.predict.tolist() == [0, 0, -1, -1]
    assert records.selected.tolist() == [0, 0, 0, 0]
    assert recertify(records, NOISE, 0.05).predict.tolist() == [0, 0, 0, -1]


def test_another_norm(tmp_path):
    records = run(tmp_path)
    in_linf = recertify(records, Inclusion(NOISE, "linf", 3072), 0.001)
    assert np.allclose(in_linf.radius, records.radius / 3072**0.5)
    assert "inclusion" in in_linf.config["recertified"]["radius"]


def test_the_two_sided_bound(tmp_path):
    records = run(tmp_path)
    again = recertify(records, NOISE, 0.001, bound="two_sided")
    for row, counts in enumerate(records.counts):
        assert again.radius[row] == two_sided_radius(counts, 0, NOISE, 0.001)[1]
    assert again.radius[1] > records.radius[1]
    assert again.predict.tolist() == [0, 0, 0, 0]  # 45% against 30% is a majority, though not above 1/2


def test_sequential_votes_keep_the_betting_bound(tmp_path):
    records = run(tmp_path, "sequential", n=20_000)
    again = recertify(records, NOISE, 0.001)
    assert np.all(again.radius[again.radius > 0] > 0.9 * records.radius[again.radius > 0] - 0.02)
    naive = NOISE.radius(binomial_lower_bound(records.counts[:, 0], records.counts.sum(axis=1), 0.001))
    assert np.all(again.radius <= naive)


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("fixed", {"alpha": 2}, "alpha"),
        ("fixed", {"alpha": 0.01, "bound": "exact"}, "bound must be one of"),
        ("group_sequential", {"alpha": 0.01}, "group_sequential"),
        ("sequential", {"alpha": 0.01, "bound": "two_sided"}, "fixed number of votes"),
    ],
)
def test_what_cannot_be_certified_again_is_refused(tmp_path, method, options, word):
    with pytest.raises(CertifyError, match=word):
        recertify(run(tmp_path, method), NOISE, **options)


def test_a_tsv_holds_no_counts(tmp_path):
    run(tmp_path)
    with pytest.raises(CertifyError, match="no counts"):
        recertify(read_records(tmp_path / "fixed0.001.tsv"), NOISE, 0.01)


def test_recover_successes():
    k = np.array([-1, 50_490, 70_000, 99_000, 100_000])
    radius = NOISE.radius(binomial_lower_bound(np.maximum(k, 0), 100_000, 0.001))
    assert np.array_equal(certify.recover_successes(radius, NOISE, 100_000, 0.001), k)


def test_guaranteed_accuracy_formula_and_coverage(tmp_path):
    rng = np.random.default_rng(0)
    total, alpha, failure = 500, 0.05, 0.01
    index = np.arange(total)
    misses = 0
    for _ in range(300):
        wrong = rng.random(total) < alpha  # every image claims; these are the false claims
        some = certify.records.Records(index, index, index, np.ones(total), np.ones(total, bool), index * 0.0)
        curve = curves.guaranteed_accuracy(some, [0.5], failure, alpha)
        misses += curve.lower[0] > 1 - wrong.mean()
    assert misses <= 12  # 300 x 0.01 plus four standard deviations
    log = np.log(1 / failure)
    by_hand = 1 - alpha - np.sqrt(2 * alpha * (1 - alpha) * log / total) - log / (3 * total)
    assert curve.accuracy[0] == curve.lower[0] == pytest.approx(by_hand)
    assert curve.upper[0] == 1
    unsound = 1 - alpha  # a planted fault: the expected share alone
    assert np.mean([np.mean(rng.random(total) < alpha) > 1 - unsound for _ in range(300)]) > 0.1
