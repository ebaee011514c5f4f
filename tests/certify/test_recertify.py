"""Certify again from kept votes: another alpha, norm and bound, without a sample; and what is refused."""

import dataclasses

import numpy as np
import pytest
import scipy.stats as st

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


LAWS = [
    Gaussian(0.25),
    certify.Laplace(0.2),
    certify.Uniform(0.5),
    certify.nim_noise(),
    certify.GaussianScaleMixture(st.rv_discrete(values=([0.1, 0.25], [0.5, 0.5]))),
    certify.generalized_normal(2.0, 0.35, "l2", 16),
]


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_another_law_than_the_votes_were_drawn_under_is_refused(tmp_path, named):
    """Of 30 pairs of laws none is certified, also where a file of version 0.1.0 names no law."""
    for number, law in enumerate(LAWS):
        records = run(tmp_path / str(number), noise=law, n=2000)
        assert records.noise == law.describe()
        if not named:
            records = dataclasses.replace(records, noise=None)
        assert np.array_equal(recertify(records, law, 0.001).radius, records.radius)
        for other in LAWS:
            if other is not law:
                with pytest.raises(CertifyError, match=r"drawn under|do not follow") as caught:
                    recertify(records, other, 0.001)
                assert "\n" not in str(caught.value)


def test_a_wider_law_would_have_made_every_radius_four_times_as_long(tmp_path):
    records = run(tmp_path)
    assert np.allclose(Gaussian(1.0).radius(records.p_lower[:2]), 4 * records.radius[:2])
    with pytest.raises(CertifyError, match=r'drawn under {"law": "gaussian", "norm": "l2", "sigma": 0.25}'):
        recertify(records, Gaussian(1.0), 0.001)


@pytest.mark.parametrize(
    ("law", "spelled"),
    [
        (Gaussian(0.3), Gaussian(0.1 + 0.2)),
        (Gaussian(0.25), certify.GaussianScaleMixture(st.rv_discrete(values=([0.25], [1.0])))),
        (certify.nim_noise(), certify.GaussianScaleMixture(st.gamma(a=25, scale=3 / 255))),
        (certify.nim_noise(), certify.GaussianScaleMixture(st.gamma(25, 0, 3 / 255))),
        (certify.nim_noise(), certify.GaussianScaleMixture(st.gengamma(25, 1, scale=3 / 255))),
        (certify.nim_noise(), Inclusion(certify.nim_noise(), "linf", 16)),
        (Inclusion(Gaussian(0.25), "linf", 16), Gaussian(0.25)),
        (Inclusion(Gaussian(0.25), "linf", 16), Inclusion(Gaussian(0.25), "l1", 16)),
        (certify.Uniform(0.5), certify.UniformLinf(0.5, 16)),
        (certify.UniformLinf(0.5, 16), certify.Uniform(0.5)),
    ],
)
def test_the_same_law_in_another_spelling_is_taken(tmp_path, law, spelled):
    records = run(tmp_path, noise=law, n=2000)
    again = recertify(records, spelled, 0.001)
    assert np.array_equal(again.radius, np.where(records.p_lower > 0.5, spelled.radius(records.p_lower), 0))
    assert again.noise == spelled.describe()
    assert recertify(again, law, 0.001).radius.tolist() == records.radius.tolist()


@pytest.mark.parametrize(
    ("law", "other"),
    [
        (Gaussian(0.25), Gaussian(0.25 * (1 + 1e-12))),
        (certify.nim_noise(), certify.GaussianScaleMixture(st.gamma(25, scale=3 / 256))),
        (certify.nim_noise(), certify.GaussianScaleMixture(st.gamma(25, 1e-6, 3 / 255))),
        (certify.nim_noise(), Gaussian(75 / 255)),
        (certify.Uniform(0.5), certify.Laplace(0.5)),
    ],
)
def test_a_law_that_is_only_close_is_another(tmp_path, law, other):
    with pytest.raises(CertifyError, match="drawn under"):
        recertify(run(tmp_path, noise=law, n=2000), other, 0.001)


def test_other_dimensions_than_the_records_name_are_refused(tmp_path):
    """A quarter of the dimensions would have made every radius in linf twice as long."""
    records = run(tmp_path, noise=Inclusion(NOISE, "linf", 3072), n=2000)
    with pytest.raises(CertifyError, match="have 3072 dimensions, got 768"):
        recertify(records, Inclusion(NOISE, "linf", 768), 0.001)


def test_what_is_approximate_stays_approximate(tmp_path):
    """Also where the caller's law says that it is proven: the draws are another law's."""
    law = certify.generalized_normal(2.0, 0.25 * 2**0.5, "l2", 3)

    class Proven(certify.IID):
        sound = True

    records = run(tmp_path, noise=law, n=2000)
    assert not records.sound
    for given in (law, Proven(law.law, "l2", 3), Inclusion(law, "linf", 3)):
        assert not recertify(records, given, 0.001).sound
    with pytest.raises(CertifyError, match="drawn under"):
        recertify(records, Gaussian(0.25), 0.001)  # the density is the same, the draws are not


def test_a_law_that_is_none_is_refused(tmp_path):
    with pytest.raises(CertifyError, match="noise law"):
        recertify(run(tmp_path), 0.25, 0.001)


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


def test_guaranteed_accuracy_takes_alpha_from_the_records(tmp_path):
    """At alpha = .05 no more than 84.6% of 100 claims are certain; a default of .001 said 96.4%."""
    records = run(tmp_path, alpha=0.05)
    many = records.take(np.zeros(100, dtype=int))
    told, known = (curves.guaranteed_accuracy(many, [0.0], alpha=alpha) for alpha in (0.05, None))
    assert known.lower[0] == told.lower[0] == pytest.approx(0.8460, abs=1e-4)
    before = curves.guaranteed_accuracy(dataclasses.replace(many, alpha=None), [0.0], alpha=0.001)
    assert before.lower[0] == pytest.approx(0.9642, abs=1e-4)
    with pytest.raises(CertifyError, match=r"certified at alpha=0.05, got 0.001"):
        curves.guaranteed_accuracy(many, [0.0], alpha=0.001)
    stricter = recertify(many, NOISE, 0.001)
    assert curves.guaranteed_accuracy(stricter, [0.0]).lower[0] == before.lower[0]


def test_guaranteed_accuracy_of_an_alpha_that_is_not_known_or_not_one(tmp_path):
    first = np.zeros(100, dtype=int)
    records, tsv = run(tmp_path).take(first), read_records(tmp_path / "fixed0.001.tsv").take(first)
    with pytest.raises(CertifyError, match="do not keep their alpha"):
        curves.guaranteed_accuracy(tsv, [0.0])
    kept, told = (
        curves.guaranteed_accuracy(records, [0.0]),
        curves.guaranteed_accuracy(tsv, [0.0], alpha=0.001),
    )
    assert kept.lower[0] == told.lower[0]
    mixed = dataclasses.replace(records, alpha=np.repeat([0.001, 0.01], 50))
    with pytest.raises(CertifyError, match=r"several alphas, 0.001 to 0.01: give alpha=0.01"):
        curves.guaranteed_accuracy(mixed, [0.0])
    assert curves.guaranteed_accuracy(mixed, [0.0], alpha=0.01).lower[0] < kept.lower[0]
    with pytest.raises(CertifyError, match="at least one record"):
        curves.guaranteed_accuracy(records.take(np.zeros(0, dtype=int)), [0.0], alpha=0.001)
