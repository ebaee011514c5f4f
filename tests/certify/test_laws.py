"""Every noise law against a closed form, a brute-force count or an exact worst case, and the planted faults
that these checks must catch.
"""

import warnings
from dataclasses import fields
from decimal import Decimal, localcontext
from itertools import product

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import ndtr

import certify
from certify import (
    IID,
    CertifyError,
    Gaussian,
    GaussianScaleMixture,
    Inclusion,
    Laplace,
    Uniform,
    UniformLinf,
    certify_splitting,
    certify_votes,
    choose_noise,
    generalized_normal,
    top_k_radius,
    truncated,
)
from certify.bounds.two_sided import two_sided_radius
from certify.threats.splitting import certified_levels, split

ALPHA, REPETITIONS = 0.05, 2000
# At most this many of 2,000 certificates may overshoot: a sound method exceeds it once in a million runs.
LIMIT = st.binom.ppf(1 - 1e-6, REPETITIONS, ALPHA)


def overshoots(noise, p_top, margin, n=20_000, **options):
    """How many of REPETITIONS certificates claim more than ``margin`` when class 1 has probability p_top."""
    rng = np.random.default_rng(0)

    def draw(count):
        labels = np.zeros(count, dtype=np.int8)
        labels[: rng.binomial(count, p_top)] = 1
        return labels

    options = {"n0": 10, "n": n, "alpha": ALPHA, **options}
    return sum(certify_votes(draw, noise, 2, **options).radius > margin for _ in range(REPETITIONS))


# --- soundness on the exact worst case of each law --------------------------------------------------------
# (law, planted fault, margin m, probability of the top class under the worst classifier that flips at m)


class Stretched:
    """A planted fault: a radius 5% too long."""

    def compute_radius(self, p):
        return 1.05 * super().compute_radius(p)


def stretched(law):
    kind = type(law)
    fault = type("Stretched" + kind.__name__, (Stretched, kind), {})
    return fault(**{name: getattr(law, name) for name in (field.name for field in fields(law))})


WORST = {
    # Half-space: the margin is reached along its normal.
    "gaussian": (Gaussian(0.25), 0.3, ndtr(0.3 / 0.25)),
    # Step along one axis: class 1 while z < margin.
    "laplace": (Laplace(0.2), 0.3, st.laplace(scale=0.2).cdf(0.3)),
    "uniform": (Uniform(0.5), 0.3, 0.5 + 0.3),
    # Class 1 on the part of the cube that leaves it when all pixels move by the margin, and on half of the rest.
    "uniform_linf": (UniformLinf(0.5, 12), 0.03, 1.5 - (1 - 0.03) ** 12),
    # Half-space with the diagonal as normal: linf margin m is l2 margin m * sqrt(d).
    "inclusion_linf": (Inclusion(Gaussian(0.25), "linf", 12), 0.08, ndtr(0.08 * 12**0.5 / 0.25)),
    # Half-space with an axis as normal: l1 and l2 margin agree.
    "inclusion_l1": (Inclusion(Gaussian(0.25), "l1", 12), 0.3, ndtr(0.3 / 0.25)),
    # The cube is the worst case in linf of the l1 ball only up to a factor: a step on one axis must hold too.
    "inclusion_l1_linf": (Inclusion(Laplace(0.2), "linf", 12), 0.3 / 12, st.laplace(scale=0.2).cdf(0.3)),
}


@pytest.mark.acceptance
@pytest.mark.parametrize("name", WORST)
def test_certificates_stay_inside_the_worst_margin(name):
    law, margin, p = WORST[name]
    assert law.sound
    assert overshoots(law, p, margin) <= LIMIT
    assert overshoots(law, p, 0.9 * margin) > REPETITIONS / 2  # not by claiming nothing


@pytest.mark.acceptance
@pytest.mark.parametrize("name", WORST)
def test_the_soundness_test_catches_a_radius_that_is_too_long(name):
    law, margin, p = WORST[name]
    assert overshoots(stretched(law), p, margin) > LIMIT


@pytest.mark.parametrize(
    ("law", "shift", "classifier"),
    [
        (Gaussian(0.25), [0.2, 0.0], lambda z: z[:, 0] < 0.2),
        (Laplace(0.2), [0.3, 0.0], lambda z: z[:, 0] < 0.3),
        (Uniform(0.5), [0.2, 0.0], lambda z: z[:, 0] < 0.2),
    ],
)
def test_the_worst_classifiers_really_flip_at_the_margin(law, shift, classifier):
    """Brute force: sampled noise, at rest and shifted by the radius that its own probability certifies."""
    noise = law.sample((400_000, 2), torch.Generator().manual_seed(0)).double().numpy()
    p = classifier(noise).mean()
    assert law.radius(p) == pytest.approx(np.abs(shift).sum(), abs=6e-3)
    assert classifier(noise + shift).mean() == pytest.approx(0.5, abs=5e-3)


def test_uniform_linf_worst_region_by_sampling():
    law, margin = UniformLinf(0.5, 3), 0.1
    noise = law.sample((400_000, 3), torch.Generator().manual_seed(0)).double().numpy()
    half = np.random.default_rng(0).random(len(noise)) * (1 - margin) ** 3 < (1 - margin) ** 3 - 0.5

    def region(z):  # class 1: what the shifted cube never reaches, and as much of the overlap as leaves 1/2
        leaves = np.any(z < -0.5 + margin, axis=1)
        return leaves | (~half & np.all(z <= 0.5, axis=1))

    p, q = region(noise).mean(), region(noise + margin).mean()
    assert law.radius(p) == pytest.approx(margin, abs=3e-3)
    assert q == pytest.approx(0.5, abs=5e-3)


def test_closed_forms():
    p = np.array([0.5, 0.6, 0.75, 0.99, 1.0])
    assert np.allclose(Uniform(0.5).radius(p), 2 * 0.5 * (p - 0.5))
    assert np.allclose(UniformLinf(0.5, 3072).radius(p), 1 - (1.5 - p) ** (1 / 3072))
    assert UniformLinf(0.5, 1).radius(0.8) == pytest.approx(Uniform(0.5).radius(0.8))
    for law in (UniformLinf(0.5, 40), Inclusion(Gaussian(0.25), "linf", 40)):
        r = np.array([0.0, 0.001, 0.01])
        assert np.allclose(law.radius(law.p_required(r)), r, rtol=1e-9)
    assert UniformLinf(0.5, 40).p_required(1.5) == np.inf


class UniformByPower(UniformLinf):
    """A planted fault: a power of a rounded share, which multiplies its error by the dimensions."""

    def compute_p_required(self, r):
        return 1.5 - (1 - r / (2 * self.half_width)) ** self.dimensions


@pytest.mark.parametrize("dimensions", [1, 12, 784, 3072, 150_528])
def test_linf_p_required_is_rounded_up(dimensions):
    """Against 60 digits: never below the exact probability, and above it by no more than rounding."""
    random, found = np.random.default_rng(dimensions), {UniformLinf: [], UniformByPower: []}
    with localcontext(prec=60):
        for _ in range(200):
            width, p = random.uniform(0.01, 1), 0.5 + 0.5 * random.random() ** random.integers(1, 6)
            radius = float(2 * width * -np.expm1(np.log1p(0.5 - p) / dimensions))
            exact = Decimal("1.5") - (1 - Decimal(radius) / (2 * Decimal(width))) ** dimensions
            for kind, excess in found.items():
                excess.append(float(Decimal(kind(width, dimensions).p_required(radius)) - exact))
    assert 0 <= min(found[UniformLinf]) <= max(found[UniformLinf]) < 1e-14
    if dimensions > 1:
        assert np.mean(np.array(found[UniformByPower]) < 0) > 0.2
    assert Inclusion(Gaussian(0.25), "linf", 3072).radius(0.9) == pytest.approx(
        0.3203879 / 3072**0.5, rel=1e-6
    )
    assert Inclusion(Gaussian(0.25), "l1", 3072).radius(0.9) == pytest.approx(0.3203879, rel=1e-6)
    assert "inclusion" in Inclusion(Gaussian(0.25), "l1", 4).describe()["radius"]


# --- two-sided and top-k ------------------------------------------------------------------------------------


def test_two_sided_closed_forms():
    assert Gaussian(0.5).two_sided_radius(0.6, 0.1) == pytest.approx(
        0.25 * (st.norm.ppf(0.6) - st.norm.ppf(0.1))
    )
    ratio, difference = 0.2 / 2 * np.log(0.6 / 0.05), -0.2 * np.log(0.45)
    assert Laplace(0.2).two_sided_radius(0.6, 0.05) == pytest.approx(max(ratio, difference))
    assert ratio > difference  # the first form is the larger here,
    assert Laplace(0.2).two_sided_radius(0.9, 0.1) == pytest.approx(-0.2 * np.log(0.2))  # the second there
    assert Uniform(0.5).two_sided_radius(0.9, 0.1) is None


@pytest.mark.acceptance
def test_two_sided_certifies_more_when_the_rest_is_spread():
    counts = np.array([60_000] + [4_445] * 8 + [4_440])
    lower, radius = two_sided_radius(counts, 0, Gaussian(0.25), 0.001)
    one_sided = Gaussian(0.25).radius(certify.binomial_lower_bound(60_000, 100_000, 0.001))
    assert lower < certify.binomial_lower_bound(60_000, 100_000, 0.001)
    assert radius > 2.5 * one_sided


def multinomial(p, seed=0):
    rng = np.random.default_rng(seed)
    return lambda count: np.repeat(np.arange(len(p)), rng.multinomial(count, p))


def worst_two_sided(r, sigma=0.25):
    """Class 0 below a, class 1 above b on a line, 20 weak ones between: classes 0 and 1 tie after a shift by r."""
    a = 0.4 * sigma
    b = 2 * r - a
    between = ndtr(b / sigma) - ndtr(a / sigma)
    return np.array([ndtr(a / sigma), 1 - ndtr(b / sigma), *[between / 20] * 20])


@pytest.mark.acceptance
@pytest.mark.parametrize(("stretch", "sound"), [(1.0, True), (1.05, False)])
def test_two_sided_certificates_stay_inside_the_margin(stretch, sound):
    margin, law = 0.3, Gaussian(0.25)
    draw = multinomial(worst_two_sided(margin))
    options = {"n0": 100, "n": 50_000, "alpha": ALPHA, "method": "two_sided"}
    radii = np.array([certify_votes(draw, law, 22, **options).radius for _ in range(REPETITIONS)])
    assert (np.sum(stretch * radii > margin) <= LIMIT) == sound
    assert radii.min() > 0.9 * margin


def test_top_k_contains_the_two_sided_radius_and_grows_with_k():
    counts, noise = np.array([500, 300, 150, 50]), Gaussian(0.25)
    radii = [top_k_radius(counts, 0, k, noise, 0.001) for k in (1, 2, 3)]
    assert radii[0] == pytest.approx(two_sided_radius(counts, 0, noise, 0.001)[1], rel=1e-9)
    assert radii[0] < radii[1] < radii[2]
    assert top_k_radius(counts, 3, 1, noise, 0.001) == 0
    assert top_k_radius(counts, 2, 3, noise, 0.001) > 0


def test_top_k_against_brute_force():
    """The defining inequality, for every group of rivals: no shift by r lets any k of them pass the class."""
    counts, noise, k = np.array([4000, 3000, 2500, 500]), Gaussian(0.25), 2
    radius = top_k_radius(counts, 0, k, noise, 0.001)
    lower = certify.binomial_lower_bound(4000, 10_000, 0.0009)
    upper = certify.binomial_upper_bound(counts[1:], 10_000, 0.0001 / k)

    def worst(r):
        mine = ndtr(st.norm.ppf(lower) - r / 0.25)
        pairs = [(a, b) for a, b in product(range(3), range(3)) if a < b]
        best = [
            min(
                [ndtr(st.norm.ppf(upper[i]) + r / 0.25) for i in pair]
                + [ndtr(st.norm.ppf(min(upper[list(pair)].sum(), 1 - lower)) + r / 0.25) / 2]
            )
            for pair in pairs
        ]
        return mine - max(best)

    assert worst(radius * (1 - 1e-6)) > 0
    assert worst(radius * (1 + 1e-6)) < 0


# --- deterministic splitting noise --------------------------------------------------------------------------

LEVELS = 4


def tiny_images():
    return [np.array(image).reshape(1, 1, 2) for image in product(range(LEVELS + 1), repeat=2)]


def lookup(seed):
    """A classifier of 1x1x2 images by a random table over every value that the cells' middles can take."""
    values = 2 * LEVELS + 1
    table = np.random.default_rng(seed).choice(3, size=(values, values), p=[0.6, 0.3, 0.1])
    return lambda x: table[tuple((x.reshape(len(x), 2).numpy() * 2 * LEVELS).round().astype(int).T)]


@pytest.mark.acceptance
@pytest.mark.parametrize("half_width", [0.25, 0.5, 0.75, 1.25])
def test_splitting_radius_by_brute_force(half_width):
    """Every image within a certified radius, all of them enumerated, has the certified answer."""
    images = np.stack(tiny_images()) / LEVELS
    farthest = too_far = 0
    for seed in range(8):
        options = {"levels": LEVELS, "batch_size": 3}
        found = certify_splitting(lookup(seed), torch.tensor(images), half_width, 3, **options)
        answers = [int(np.argmax(c.counts)) for c in found]
        assert [c.prediction for c in found] == answers  # of equals the lowest index
        for image, c in zip(images, found, strict=True):
            assert (c.alpha, c.norm, c.sound, c.method) == (0.0, "l1", True, "deterministic")
            assert sum(c.counts) == c.n == round(2 * half_width * LEVELS)
            distance = np.abs(images - image).sum(axis=(1, 2, 3))
            inside = distance <= c.radius + 1e-9
            assert all(answers[i] == c.prediction for i in np.flatnonzero(inside))
            farthest = max(farthest, inside.sum())
            margin = (2 * max(c.counts) - c.n) / LEVELS  # a planted fault: the margin not halved
            too_far += any(answers[i] != c.prediction for i in np.flatnonzero(distance <= margin + 1e-9))
    assert too_far > 0
    if half_width > 0.25:  # two votes certify nothing but the image itself
        assert farthest > 1


def farthest_that_keeps(counts: list[int]) -> int:
    """Most of the votes, moved in the worst way, that leave the answer as it is: the theorem, by enumeration."""
    top, total = int(np.argmax(counts)), sum(counts)
    for moved in range(1, total + 1):
        for rival in range(len(counts)):
            if rival != top:
                worst = list(counts)
                worst[top] -= min(moved, counts[top])
                worst[rival] += moved
                if int(np.argmax(worst)) != top:
                    return moved - 1
    return total


def test_splitting_gives_ties_to_the_lower_index_and_loses_no_level():
    """Every count of 3 classes with up to 12 votes: the radius is the longest that the theorem allows."""
    rows = [
        np.array(row)
        for total in range(1, 13)
        for row in product(range(total + 1), repeat=3)
        if sum(row) == total
    ]
    found = [certified_levels(row) for row in rows]
    assert found == [farthest_that_keeps(row.tolist()) for row in rows]
    lead = np.array([np.diff(np.sort(row)[-2:])[0] for row in rows])
    assert np.mean(np.maximum(lead - 1, 0) // 2 < found) > 0.15  # what giving ties to nobody would lose
    assert np.any(lead // 2 > found)  # a planted fault: the top class wins every tie


def test_splitting_moves_each_pixel_to_the_middle_of_its_cell():
    image, total = torch.tensor([[[0, 3, 4]]]), 3
    x = split(image, torch.tensor([[[0, 0, 1]]]), torch.arange(total), total, LEVELS)[:, 0, 0]
    for shift in range(total):
        for column, (value, offset) in enumerate(((0, 0), (3, 0), (4, 1))):
            cuts = [(shift + offset) % total + 0.5 + total * turn for turn in range(-3, 4)]
            low = max([cut for cut in cuts if cut < value] + [0])
            high = min([cut for cut in cuts if cut > value] + [LEVELS])
            assert x[shift, column] == pytest.approx((low + high) / 2 / LEVELS)


def test_splitting_refuses_what_it_cannot_certify():
    with pytest.raises(CertifyError, match="grid of multiples of 1/4"):
        certify_splitting(lookup(0), torch.full((1, 1, 1, 2), 0.3), 0.5, 3, levels=LEVELS)
    with pytest.raises(CertifyError, match="half_width must make"):
        certify_splitting(lookup(0), torch.zeros(1, 1, 1, 2), 0.3, 3, levels=LEVELS)


# --- approximate laws ---------------------------------------------------------------------------------------


def test_numerical_radii_agree_with_the_proven_ones():
    p = np.array([0.6, 0.8, 0.9, 0.99])
    for law, known, tolerance in (
        (IID(st.norm(0, 0.25), "l2", 24), Gaussian(0.25), 0.08),
        (IID(st.laplace(0, 0.2), "l1", 24), Laplace(0.2), 0.08),
        (IID(st.uniform(-0.5, 1), "l1", 24), Uniform(0.5), 0.08),
        (IID(st.uniform(-0.5, 1), "linf", 24), UniformLinf(0.5, 24), 0.08),
    ):
        assert np.allclose(law.radius(p), known.radius(p), rtol=tolerance), law
        assert np.allclose(law.p_required(law.radius(p)), p, rtol=1e-6)


def test_what_is_approximate_says_so_everywhere(tmp_path):
    law = generalized_normal(2.0, 0.25 * 2**0.5, "l2", 3)
    assert not law.sound
    assert law.describe()["radius"] == "approximate"
    assert law.mean_sigma == pytest.approx(0.25)
    certificate = certify_votes(lambda count: np.zeros(count, int), law, 2, n=1000)
    assert not certificate.sound
    with certify.RecordLog(tmp_path / "log", {}) as log:
        log.append(0, 0, certificate, 1.0)
    records = certify.read_records(log.path)
    assert not records.sound
    curve = certify.curves.certified_accuracy(records, [0.1])
    assert not curve.sound
    assert "x (approximate)" in certify.curves.table({"x": curve})
    figure = certify.curves.plot({"x": curve})
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "x (approximate)"


def test_numerical_noise_is_drawn_from_its_law():
    law = generalized_normal(1.5, 0.3, "l2", 12)
    noise = law.sample((50_000,), torch.Generator().manual_seed(0)).numpy()
    assert st.kstest(noise, law.law.cdf).pvalue > 1e-4
    assert st.kstest(noise * 1.06, law.law.cdf).pvalue < 1e-4
    assert law == generalized_normal(1.5, 0.3, "l2", 12) != generalized_normal(1.4, 0.3, "l2", 12)


# --- laws of sigma ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "flat"),
    [
        (st.uniform(0, 0.1003), True),  # laws of this test alone: a law is warned of once
        (st.gamma(1, scale=0.1003), True),
        (st.gamma(25, scale=3.01 / 255), False),
        (st.gamma(1.3, scale=0.1003), False),
        (st.lognorm(0.8, scale=0.2003), False),
        (st.uniform(0.01, 0.1003), False),
        (truncated(st.uniform(0, 0.1003), 0.01), False),
        (st.rv_discrete(values=([0.1003, 0.2], [0.5, 0.5])), False),
    ],
)
def test_infinite_inverse_mean_is_noticed(law, flat):
    noise = GaussianScaleMixture(law)
    assert noise.flat_at_half == flat
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        noise.radius(0.9)
    assert bool(caught) == flat


def test_truncated_law():
    law = truncated(st.gamma(4, scale=8 / 255), 0.05, 0.2)
    noise = GaussianScaleMixture(law)
    sigma = noise.sample_sigma(20_000, torch.Generator().manual_seed(0), torch.device("cpu")).numpy()
    assert 0.05 * (1 - 1e-6) <= sigma.min() < sigma.max() <= 0.2
    assert st.kstest(sigma, law.cdf).pvalue > 1e-4
    assert law.mean() == pytest.approx(sigma.mean(), rel=0.01)
    assert Gaussian(0.05).radius(0.9) < noise.radius(0.9) < Gaussian(0.2).radius(0.9)
    assert noise == GaussianScaleMixture(truncated(st.gamma(4, scale=8 / 255), 0.05, 0.2))
    assert noise != GaussianScaleMixture(truncated(st.gamma(4, scale=8 / 255), 0.06, 0.2))
    with pytest.raises(CertifyError, match="no mass"):
        truncated(st.uniform(0, 0.1), 0.2)


def test_a_law_without_upper_end_is_recorded(tmp_path):
    noise = GaussianScaleMixture(truncated(st.gamma(4, scale=8 / 255), 0.05))
    with certify.RecordLog(tmp_path / "log", {"noise": noise.describe()}) as log:
        assert certify.read_records(log.path).config["noise"] == noise.describe()
    assert noise != GaussianScaleMixture(truncated(st.gamma(4, scale=8 / 255), 0.05, 0.2))


# --- choosing the noise -------------------------------------------------------------------------------------


def test_choose_noise_takes_the_best_law_and_reports_its_cost():
    direction = torch.zeros(1, 4, 4)
    direction[0, 0, 0] = 1.0
    images = torch.full((12, 1, 4, 4), 0.5)

    def classify(x):  # margin 0.3 on one pixel, but a ripple that only small noise survives
        return ((x * direction).sum(dim=(1, 2, 3)) > 0.8).long()

    candidates = [Gaussian(0.01), Gaussian(0.25), Gaussian(3.0)]
    choice = choose_noise(candidates, classify, images, np.zeros(12), 2, [0.2], n=2000, indices=range(40, 52))
    assert choice.noise == Gaussian(0.25)
    assert choice.accuracy.shape == (3, 1)
    assert choice.accuracy[1, 0] > 0.7
    assert choice.draws > 2 * 12 * 100
    assert f"{choice.draws} votes on 12 held-out images" in choice.report()
    choice.check_fresh(range(40))
    with pytest.raises(CertifyError, match="image 45"):
        choice.check_fresh([1, 45])
    with pytest.raises(CertifyError, match="share a norm"):
        choose_noise([Gaussian(1), Laplace(1)], classify, images, np.zeros(12), 2, [0.1])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: UniformLinf(0.5, 0), "dimensions"),
        (lambda: Inclusion(Gaussian(1), "l3", 4), "l3"),
        (lambda: Inclusion(0.25, "l1", 4), "law"),
        (lambda: IID(0.25, "l2", 4), "law"),
        (lambda: IID(st.norm(1, 1), "l2", 4), "symmetric"),
        (lambda: IID(st.norm(0, 1), "l3", 4), "norm"),
        (lambda: top_k_radius(np.array([5, 5]), 0, 2, Gaussian(1), 0.1), "k must be below"),
        (lambda: top_k_radius(np.array([5, 5]), 0, 1, Laplace(1), 0.1), "Gaussian"),
        (lambda: certify_votes(None, Uniform(1), 2, method="two_sided"), "or Laplace"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(CertifyError) as caught:
        call()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
