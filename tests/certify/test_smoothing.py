"""Certificates: soundness on classifiers whose true margin is known, and the two ways to obtain one."""

import shutil
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

import certify
from certify import (
    ABSTAIN,
    CertifyError,
    Gaussian,
    GaussianScaleMixture,
    SmoothedClassifier,
    VoteEngine,
    certify_votes,
    nim_noise,
)

CPU = torch.device("cpu")
ALPHA = 0.05
REPETITIONS = 2000
# At most this many of 2,000 certificates may overshoot: a sound method exceeds it once in a million runs.
LIMIT = st.binom.ppf(1 - 1e-6, REPETITIONS, ALPHA)
WIDE = st.gamma(4, scale=8 / 255)


class NaiveMixture(GaussianScaleMixture):
    """A planted fault: Cohen's radius with the mean sigma."""

    def compute_radius(self, p):
        return self.mean_sigma * ndtri(p)


def claimed_radii(noise, p_top, n=100_000):
    """The radii (REPETITIONS,) that independent certificates claim when class 1 has probability p_top.

    The labels of count independent draws are exactly a binomial number of ones, in any order.
    """
    rng = np.random.default_rng(0)

    def draw(count):
        labels = np.zeros(count, dtype=np.int8)
        labels[: rng.binomial(count, p_top)] = 1
        return labels

    return np.array([certify_votes(draw, noise, 2, n=n, alpha=ALPHA).radius for _ in range(REPETITIONS)])


def half_space_probability(law, margin):
    """P(sigma z <= margin) = E Phi(margin / sigma): the half-space's exact vote share."""
    return quad(lambda s: law.pdf(s) * ndtr(margin / s), 0, law.ppf(1 - 1e-14), limit=200)[0]


@lru_cache
def worst_case_probability(margin):
    """p(margin) for the wide law: vote share of the worst classifier (it sees sigma) that flips at
    ``margin``.
    """

    def mean(f):
        with np.errstate(divide="ignore", over="ignore"):
            return quad(lambda s: WIDE.pdf(s) * f(s), 1e-9, WIDE.ppf(1 - 1e-14), limit=200)[0]

    level = brentq(lambda t: mean(lambda s: ndtr(s * t / margin - margin / (2 * s))) - 0.5, 0, 100)
    return mean(lambda s: ndtr(s * level / margin + margin / (2 * s)))


HALF_SPACES = [(st.gamma(25, scale=3 / 255), 0.300), (WIDE, 0.100)]


@pytest.mark.parametrize(("law", "margin"), HALF_SPACES)
def test_half_space_certificates_stay_inside_the_margin(law, margin):
    radii = claimed_radii(GaussianScaleMixture(law), half_space_probability(law, margin))
    assert np.sum(radii > margin) <= LIMIT
    assert radii.min() > 0.8 * margin  # not by claiming nothing


@pytest.mark.parametrize(("law", "margin"), HALF_SPACES)
def test_half_space_catches_the_mean_sigma_formula(law, margin):
    radii = claimed_radii(NaiveMixture(law), half_space_probability(law, margin))
    assert np.sum(radii > margin) > LIMIT


def test_worst_case_certificates_stay_inside_the_margin():
    """The tight case of the scale mixture, where a radius 1% too long would be seen."""
    radii = claimed_radii(GaussianScaleMixture(WIDE), worst_case_probability(0.1))
    assert np.sum(radii > 0.1) <= LIMIT
    assert np.sum(radii * 1.01 > 0.1) > LIMIT


def test_gaussian_half_space_is_tight():
    """For one sigma the half-space is the worst case: the error rate is alpha, not far below it."""
    count = np.sum(claimed_radii(Gaussian(0.25), ndtr(0.3 / 0.25)) > 0.3)
    assert st.binom.ppf(1e-6, REPETITIONS, 0.9 * ALPHA) <= count <= LIMIT


def half_space_model(margin, shape=(1, 4, 4)):
    """A linear model and an image (1, C, H, W) whose distance to its decision boundary is ``margin``."""
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    image = torch.full((1, *shape), 0.5)
    offset = (image * direction).sum() + margin

    def classify(x):
        return ((x * direction).sum(dim=(1, 2, 3)) <= offset).long()

    return classify, image


@pytest.mark.parametrize("law", [law for law, _ in HALF_SPACES])
def test_sampled_noise_votes_as_the_half_space_predicts(law):
    """End to end: the noise that is really added gives the vote share that the theory uses."""
    classify, image = half_space_model(0.1)
    smoothed = SmoothedClassifier(classify, GaussianScaleMixture(law), 2, seed=5)
    [certificate] = smoothed.certify(image, n=20_000)
    p = half_space_probability(law, 0.1)
    assert st.binomtest(certificate.counts[1], 20_000, p).pvalue > 1e-5
    assert certificate.prediction == 1
    assert 0.05 < certificate.radius <= 0.1


def test_a_certificate_says_what_it_claims():
    labels = np.concatenate([np.zeros(90_000, np.int64), np.ones(10_000, np.int64)])
    certificate = certify_votes(lambda count: labels[:count], Gaussian(0.5), 3, subject="target")
    assert certificate.prediction == 0
    assert certificate.radius == pytest.approx(0.632422, abs=1e-6)
    assert certificate.p_lower == certify.binomial_lower_bound(90_000, 100_000, 0.001)
    assert (certificate.norm, certificate.sound, certificate.subject) == ("l2", True, "target")
    assert (certificate.n0, certificate.n, certificate.alpha, certificate.method) == (
        100,
        100_000,
        0.001,
        "fixed",
    )
    assert certificate.counts == (90_000, 10_000, 0)
    assert certificate.noise == Gaussian(0.5).describe()
    assert not certificate.abstained


def test_selection_does_not_see_the_estimation_draws():
    calls = []

    def draw(count):  # class 1 wins the selection, class 0 the estimation: a sound method must abstain
        calls.append(count)
        return np.full(count, 1 if len(calls) == 1 else 0)

    certificate = certify_votes(draw, Gaussian(0.25), 2, n0=10, n=1000)
    assert calls == [10, 1000]
    assert certificate.prediction == ABSTAIN == -1
    assert certificate.radius == 0
    assert certificate.abstained
    assert certificate.p_lower == 0


@pytest.fixture
def smoothed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 6, 4))
    return lambda **options: SmoothedClassifier(model, nim_noise(), 4, seed=3, **options)


@pytest.fixture
def images():
    return torch.rand((7, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def test_certificates_do_not_depend_on_batches_groups_or_resume(smoothed, images):
    expected = smoothed().certify(images, n=500)
    assert len(expected) == 7
    assert len({certificate.counts for certificate in expected}) == 7
    for batch_size in (64, 256, 700, 4096):
        assert smoothed(batch_size=batch_size).certify(images, n=500) == expected
    assert smoothed().certify(images[4:6], n=500, indices=[4, 5]) == expected[4:6]


def test_options_are_fields_of_the_engine_and_win_over_it(smoothed, images):
    engine = VoteEngine(batch_size=64, chunk_size=32, seed=9)
    expected = smoothed(chunk_size=32).certify(images, n=500)
    assert smoothed(engine=engine).certify(images, n=500) == expected  # the fixture's seed=3 wins
    assert smoothed(chunk_size=256, engine=engine).certify(images, n=500) != expected
    assert smoothed(engine=engine, batch_size=100).engine == replace(
        engine, seed=3, batch_size=100, device=CPU
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_model_votes_as_the_plain_one(smoothed, images):
    plain, compiled = (smoothed(compile=flag).certify(images, n=500) for flag in (False, True))
    for one, other in zip(plain, compiled, strict=True):
        assert np.abs(np.subtract(one.counts, other.counts)).max() <= 1  # another order of summation


def test_the_grid_is_named_in_the_certificate(smoothed):
    images = torch.randint(256, (2, 3, 6, 6), generator=torch.Generator().manual_seed(0)) / 255
    [certificate, _] = smoothed(grid=255).certify(images, n=500)
    assert certificate.noise == {**nim_noise().describe(), "grid": 255}


def test_each_image_is_reported_as_soon_as_it_is_done(smoothed, images):
    class Bar:
        done = 0

        def update(self, amount):
            self.done += amount

    bar, reports = Bar(), []
    certificates = smoothed(batch_size=512).certify(
        images,
        n=600,
        indices=range(10, 17),
        progress=bar,
        on_certificate=lambda *report: reports.append((*report, bar.done)),
    )
    assert [index for index, *_ in reports] == list(range(10, 17))
    assert [certificate for _, certificate, *_ in reports] == certificates
    assert all(seconds > 0 for _, _, seconds, _ in reports)
    assert bar.done == 7 * 700
    assert reports[0][3] <= 5 * 100 + 600  # one group selected, one image estimated


def test_predict_is_cohens_binomial_test(smoothed, images):
    labels = smoothed().predict(images, n=1000)
    sure = smoothed().certify(images, n=5000)
    assert labels.dtype == np.int64
    assert any(label != ABSTAIN for label in labels)
    for label, certificate in zip(labels, sure, strict=True):
        assert label in (ABSTAIN, int(np.argmax(certificate.counts)))
    rng = np.random.default_rng(0)
    coin = SmoothedClassifier(lambda x: rng.integers(0, 2, len(x)), Gaussian(0.1), 2)
    wrong = np.sum(coin.predict(images[:1].expand(200, -1, -1, -1), n=100, alpha=0.05) != ABSTAIN)
    assert wrong <= st.binom.ppf(1 - 1e-6, 200, 0.05)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"alpha": 2}, "alpha must be in (0, 0.5), got 2: try alpha=0.001"),
        ({"alpha": 0}, "alpha"),
        ({"n0": 0}, "n0"),
        ({"n": 1.5}, "n must"),
        ({"n": 9}, "n >= 10"),
        ({"n": 2, "alpha": 0.25}, "n >= 3"),
    ],
)
def test_a_hopeless_plan_is_refused_before_any_draw(options, word, images):
    def never(*_):
        raise AssertionError("a query was spent")

    with pytest.raises(CertifyError) as caught:
        certify_votes(never, Gaussian(0.25), 2, **options)
    assert word in str(caught.value)
    with pytest.raises(CertifyError) as caught:
        SmoothedClassifier(never, Gaussian(0.25), 2).certify(images, **options)
    assert word in str(caught.value)


def test_the_smallest_n_named_by_the_refusal_can_certify():
    assert not certify_votes(lambda count: np.zeros(count, int), Gaussian(0.25), 2, n=10).abstained


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda draw: certify_votes(draw, Gaussian(1), 2, method="magic"), "fixed"),
        (lambda draw: certify_votes(draw, Gaussian(1), 2, radii=[0.5]), "radii"),
        (lambda draw: certify_votes(draw, Gaussian(1), 1), "num_classes"),
        (lambda draw: certify_votes(lambda count: np.full(count, 5), Gaussian(1), 2), "got 5"),
        (lambda draw: certify_votes(lambda count: np.zeros(count), Gaussian(1), 2), "float64"),
        (lambda draw: certify_votes(lambda count: np.zeros(3, int), Gaussian(1), 2), "(3,)"),
        (lambda draw: SmoothedClassifier("model", Gaussian(1), 2), "base"),
        (lambda draw: SmoothedClassifier(draw, 0.25, 2), "noise"),
        (lambda draw: SmoothedClassifier(draw, Gaussian(1), 2, compile=True), "torch module"),
        (lambda draw: SmoothedClassifier(draw, Gaussian(1), 2, batch_size=0), "batch_size"),
        (
            lambda draw: SmoothedClassifier(draw, Gaussian(1), 2, batch=8),
            "'batch' is not an option: choose from",
        ),
        (lambda draw: VoteEngine(seed=-1), "seed"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(CertifyError) as caught:
        call(lambda count: np.zeros(count, int))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [20, 64, 256, 1024])
def test_stopping_early_fills_its_batches_and_counts_the_same(images, batch_size):
    """Draws of 32 that share a seed go together in one call, of one image where batch and chunk agree."""
    sizes = []

    def base(noisy):
        sizes.append(len(noisy))
        return (noisy.mean(dim=(1, 2, 3)) > images[0].mean() - 0.02).long()

    def certified(size):
        sizes.clear()
        smoothed = SmoothedClassifier(base, Gaussian(0.25), 2, batch_size=size, recheck=0)
        return smoothed.certify(images[:2], n0=32, n=100_000, method="group_sequential", radii=[0.18])

    expected = certified(32)
    assert certified(batch_size) == expected
    assert max(sizes) <= batch_size
    assert batch_size != 256 or max(sizes) > 32
