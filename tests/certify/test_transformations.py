"""Laws of a transformation's parameter: each radius a second way, each composition law, soundness by simulation, planted faults."""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.ndimage import gaussian_filter

import certify
from certify import (
    BlurExponential,
    BlurFolded,
    BlurUniform,
    Brightness,
    BrightnessContrast,
    CertifyError,
    Contrast,
    Gaussian,
    RecordLog,
    SmoothedClassifier,
    Translation,
    binomial_lower_bound,
    certify_pixel_shifts,
    certify_votes,
    read_records,
)
from certify.noise.description import open_law
from certify.threats.translation import shifted

ALPHA = 0.05
LAWS = [
    Brightness(0.2),
    Contrast(0.3),
    BrightnessContrast(0.3, 0.2),
    Translation(1.5),
    Translation(1.5, subpixel=True),
    BlurExponential(2.0),
    BlurUniform(3.0),
    BlurFolded(2.0),
]
# Density of the parameter that the adversary moves, and its value at a radius: what the proofs are about.
DENSITIES = {
    "brightness": (Brightness(0.2), st.norm(scale=0.2), lambda r: r),
    "contrast": (Contrast(0.3), st.norm(scale=0.3), lambda r: -np.log1p(-r)),
    "translation": (Translation(1.5), st.norm(scale=1.5), lambda r: r),
    "blur_exponential": (BlurExponential(2.0), st.expon(scale=2.0), np.square),
    "blur_uniform": (BlurUniform(3.0), st.uniform(0, 3.0), np.square),
    "blur_folded": (BlurFolded(2.0), st.halfnorm(scale=2.0), np.square),
}


def kept(density, p, moved, cells=400_001):
    """Neyman-Pearson by brute force: the least mass under the moved law of a set that has mass p under the law."""
    low, high = density.ppf(1e-13) - 0.1, density.isf(1e-13) + moved + 0.1
    edges = np.linspace(low, high, cells)
    mass, other = np.diff(density.cdf(edges)), np.diff(density.cdf(edges - moved))
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(mass > 0, other / mass, np.inf), kind="stable")
    taken = np.cumsum(mass[order])
    return float(np.interp(p, taken, np.cumsum(other[order])))


@pytest.mark.acceptance
@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("p", [0.6, 0.9, 0.999])
def test_radii_are_those_of_neyman_and_pearson(name, p):
    law, density, moved = DENSITIES[name]
    radius = law.radius(p)
    assert kept(density, p, float(moved(radius))) == pytest.approx(0.5, abs=2e-4)
    assert kept(density, p, float(moved(1.01 * radius))) < 0.5 - 2e-4  # it is the largest


def published(law_radius, n=100_000, alpha=0.001):
    """Radii of n votes of which 0, 1, 2, ... are for another class, with three digits as logs have them."""
    return [float(f"{law_radius(binomial_lower_bound(n - wrong, n, alpha)):.3g}") for wrong in range(4)]


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("radius", "logged"),
    [  # the largest radii in the CIFAR-10 logs of TSS (AI-secure/semantic-randomized-smoothing, data/main_results)
        (BrightnessContrast(0.2, 0.2).contrast_radius, [0.365, 0.361, 0.358, 0.356]),
        (lambda p: BrightnessContrast(0.2, 0.2).brightness_radius(p, 0.2), [0.552, 0.539, 0.531, 0.524]),
        (BlurExponential(10.0).radius, [9.43, 9.27, 9.17, 9.08]),
        (BlurUniform(100.0).radius, [7.07, 7.07, 7.07, 7.07]),
    ],
)
def test_radii_are_the_published_ones(radius, logged):
    assert published(radius) == logged


@pytest.mark.acceptance
def test_brightness_and_contrast_leave_the_top_class_a_majority_by_sampling():
    """The worst class of the two laws, found on samples: its share under the changed law is at least 1/2 at the radius."""
    law, rng = BrightnessContrast(0.3, 0.2), np.random.default_rng(0)
    for p in (0.8, 0.99):
        r = law.radius(p)
        for a, d in [(np.log1p(s * r), t * r) for s in (-1, 1) for t in (-1, 1)]:
            clean = st.multivariate_normal([0, 0], np.diag([0.3**2, 0.2**2]))
            mean, scale = [a, np.exp(-a) * d], np.diag([0.3**2, (np.exp(-a) * 0.2) ** 2])
            changed = st.multivariate_normal(mean, scale)
            x = clean.rvs(200_000, random_state=rng)
            ratio = changed.logpdf(x) - clean.logpdf(x)
            cut = np.quantile(ratio, p)  # the class holds where the ratio is low: worst of probability p
            y = changed.rvs(200_000, random_state=rng)
            share = float(np.mean(changed.logpdf(y) - clean.logpdf(y) <= cut))
            assert share > 0.5 - 4 * 0.5 / np.sqrt(200_000)
    # and the radius is not far too short: at twice the radius the worst class has lost
    assert law.p_required_for(2 * law.radius(0.8), 2 * law.radius(0.8)) > 0.8


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_radius_and_its_inverse_err_to_the_safe_side(law):
    p = np.array([0.5, 0.500001, 0.6, 0.75, 0.9, 0.99, 0.9999])
    radius = law.radius(p)
    assert radius[0] == 0
    assert np.all(np.diff(radius) > 0)
    required = law.p_required(radius[1:])
    assert np.all(required <= p[1:] * (1 + 1e-9))
    assert np.all(law.radius(np.minimum(required, 1.0)) >= radius[1:] * (1 - 1e-7))
    assert open_law(law.describe()) == law
    assert law.unit
    assert law.threat == law.norm


def test_no_probability_certifies_a_factor_of_zero_or_more_blur_than_is_drawn():
    assert Contrast(0.3).p_required(1.0) == np.inf
    assert BrightnessContrast(0.3, 0.2).p_required(1.0) == np.inf
    assert BlurUniform(3.0).p_required(np.sqrt(1.6)) == np.inf


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize(
    "kind", [Brightness, Contrast, Translation, BlurExponential, BlurUniform, BlurFolded]
)
def test_bad_strengths_are_refused(kind, value):
    with pytest.raises(CertifyError, match="finite and above 0"):
        kind(value)


# --- the composition law ------------------------------------------------------------------------------------


def torch_images(count=6, shape=(3, 8, 9), seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.acceptance
@pytest.mark.parametrize("law", [law for law in LAWS if not isinstance(law, BrightnessContrast)], ids=repr)
def test_transformations_compose_on_their_parameter(law):
    images, generator = torch_images(), torch.Generator().manual_seed(1)
    first, second = law.sample(6, generator).double(), law.sample(6, generator).double()
    if law == Translation(1.5):
        first = first.round()  # the adversary's displacements are whole
    twice = law.apply(law.apply(images, first), second)
    assert torch.allclose(twice, law.apply(images, first + second), atol=1e-12)
    assert not torch.allclose(twice, images, atol=1e-3)


def test_contrast_then_brightness_moves_the_law_as_the_proof_says():
    law, images = BrightnessContrast(0.3, 0.2), torch_images()
    draws = law.sample(6, torch.Generator().manual_seed(1)).double()
    a, d = 0.25, -0.1
    seen = law.apply(np.exp(a) * images + d, draws)
    moved = torch.stack([draws[:, 0] + a, np.exp(-a) * (draws[:, 1] + d)], dim=1)
    assert torch.allclose(seen, law.apply(images, moved), atol=1e-12)


def test_blur_is_gaussian_blur_with_reflection():
    images = torch_images(2, (1, 12, 16))
    mine = BlurUniform(9.0).apply(images, torch.full((2, 1), 1.5**2, dtype=torch.float64))
    theirs = gaussian_filter(images.numpy(), (0, 0, 1.5, 1.5), mode="reflect", truncate=9)
    assert np.allclose(mine.numpy(), theirs, atol=1e-4)
    assert torch.allclose(BlurUniform(9.0).apply(images, torch.zeros(2, 1)), images, atol=1e-12)


def test_a_kernel_that_is_cut_off_does_not_compose():
    """What the cosine transform is for: the usual blur of a small variance, twice, is not that of their sum."""
    image = torch_images(1, (1, 12, 16)).numpy()[0, 0]
    twice = gaussian_filter(gaussian_filter(image, 0.3), 0.3)
    assert np.abs(twice - gaussian_filter(image, 0.3 * 2**0.5)).max() > 0.01


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_draws_have_the_law_of_the_radius(law):
    draws = law.sample(20_000, torch.Generator().manual_seed(3)).double().numpy()
    assert draws.shape == (20_000, law.numbers)
    expected = {
        "brightness": st.norm(scale=0.2),
        "contrast": st.norm(scale=0.3),
        "translation": st.norm(scale=1.5),
        "brightness_contrast": st.norm(scale=0.3),
        "blur_exponential": st.expon(scale=2.0),
        "blur_uniform": st.uniform(0, 3.0),
        "blur_folded": st.halfnorm(scale=2.0),
    }[law.threat]
    assert st.kstest(draws[:, 0], expected.cdf).pvalue > 1e-6
    if law.numbers == 2:
        assert abs(np.corrcoef(draws.T)[0, 1]) < 0.05
    assert np.array_equal(draws, law.sample((20_000, 1, 2, 2), torch.Generator().manual_seed(3)).numpy())


# --- soundness ------------------------------------------------------------------------------------------------


def overshoots(law, p_top, margin, n=5_000):
    """How often a certificate claims more than ``margin`` where class 1 has probability p_top: exactly, from the binomial law."""
    votes = np.arange(n + 1)
    too_far = law.radius(binomial_lower_bound(votes, n, ALPHA)) > margin
    return float(st.binom.pmf(votes, n, p_top)[too_far].sum())


def stretched(law):
    """A planted fault: a radius 5% too long."""

    class Stretched(type(law)):
        def compute_radius(self, p):
            return 1.05 * super().compute_radius(p)

    return Stretched(**{name: getattr(law, name) for name in law.__dataclass_fields__})


# Class 1 while the parameter is below t: the worst class of each law. Its margin, from the law's own quantiles.
WORST = {
    name: (law, density.ppf(0.9), density.ppf(0.9) - density.median())
    for name, (law, density, _) in DENSITIES.items()
}
WORST["contrast"] = (Contrast(0.3), st.norm(scale=0.3).ppf(0.9), st.norm(scale=0.3).ppf(0.9))


@pytest.mark.acceptance
@pytest.mark.parametrize("name", WORST)
def test_certificates_stay_inside_the_worst_margin(name):
    law, _, moved = WORST[name]
    margin = {"contrast": -np.expm1(-moved)}.get(name, np.sqrt(moved) if "blur" in name else moved)
    assert 0.5 * ALPHA < overshoots(law, 0.9, margin * (1 + 1e-12)) <= ALPHA
    assert overshoots(law, 0.9, 0.9 * margin) > 0.5  # not by claiming nothing
    assert overshoots(stretched(law), 0.9, margin) > 2 * ALPHA  # the fault that this must catch


def parameter_of(law, images):
    """The parameter, read off images that began as ``wave``: what an all-knowing classifier sees."""
    if isinstance(law, Brightness):
        return images.mean((1, 2, 3)) - 0.5
    if isinstance(law, Contrast):
        return (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).div(2 * 0.3).log()
    crest = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    start = wave().amax() - wave().amin()
    return -2 * (crest / start).clamp(min=1e-12).log() / (np.pi * 2 / 16) ** 2


def wave():
    """One cosine of the transform (1, 1, 2, 16): blur shrinks it by exp(-v w^2 / 2) and changes nothing else."""
    column = 0.5 + 0.3 * torch.cos(torch.pi * 2 * (torch.arange(16) + 0.5) / 16) / np.cos(np.pi / 16)
    return column.expand(1, 1, 2, 16).clone()


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "blur_exponential", "blur_uniform", "blur_folded"]
)
def test_votes_of_a_classifier_with_a_known_threshold(name):
    """Through the vote engine: certificates on 400 seeds pass the true margin at most as often as alpha allows."""
    law, threshold, moved = WORST[name]
    margin = {"contrast": -np.expm1(-moved)}.get(name, np.sqrt(moved) if "blur" in name else moved)
    images = wave().expand(400, 1, 2, 16)
    smoothed = SmoothedClassifier(
        lambda x: (parameter_of(law, x) < threshold).long(), law, 2, recheck=0, batch_size=16_384
    )
    found = smoothed.certify(images, n0=20, n=400, alpha=ALPHA)
    radii = np.array([each.radius for each in found])
    assert all(each.threat == name and each.unit == law.unit and each.norm == name for each in found)
    assert np.mean([each.prediction == 1 for each in found]) > 0.95
    assert (radii > margin).sum() <= st.binom.ppf(1 - 1e-6, 400, ALPHA)
    assert (radii > 0.75 * margin).mean() > 0.5


# --- faults that break the composition law, and the certificates with it ------------------------------------------


@dataclass(frozen=True)
class Clipped(Brightness, law=""):
    """A planted fault: pixels are clipped before they are transformed."""

    def apply(self, images, parameters):
        return super().apply(images.clamp(0, 1), parameters)


@dataclass(frozen=True)
class Reflected(Translation, law=""):
    """A planted fault: what comes in at the border is the image reflected."""

    def apply(self, images, parameters):
        return shifted(images, parameters.round().long(), "reflect")


def answer_to(law, base, image, n=2000):
    """What the smoothed classifier most probably answers."""
    votes = base(law.perturb(image.expand(n, *image.shape[1:]), torch.Generator().manual_seed(5)))
    return int(np.bincount(votes, minlength=2).argmax())


@pytest.mark.acceptance
@pytest.mark.parametrize("law", [Brightness(0.3), Clipped(0.3)], ids=["right", "clipped"])
def test_clipping_before_the_transformation_breaks_a_certificate(law):
    image = torch.tensor([0.2, 0.8]).repeat(8).reshape(1, 1, 4, 4)

    def base(x):  # the range of the image, which no change of brightness changes
        return (x.amax((1, 2, 3)) - x.amin((1, 2, 3)) > 0.45).long()

    [found] = SmoothedClassifier(base, law, 2).certify(image, n=500, alpha=0.001)
    assert found.prediction == 1
    assert found.radius > 0.5
    after = answer_to(law, base, image + 0.5)
    assert after == (0 if isinstance(law, Clipped) else 1)


@pytest.mark.acceptance
@pytest.mark.parametrize("law", [Translation(2.0), Reflected(2.0)], ids=["rolled", "reflected"])
def test_padding_by_reflection_breaks_a_certificate(law):
    image = torch_images(1, (1, 6, 6)).float()
    steps = torch.cartesian_prod(torch.arange(-12, 13), torch.arange(-12, 13))
    orbit = law.apply(image.expand(len(steps), 1, 6, 6), steps).reshape(len(steps), -1)

    def base(x):  # class 1: a shift of this image, whichever
        exact = "donot_use_mm_for_euclid_dist"
        return (torch.cdist(x.reshape(len(x), -1), orbit, compute_mode=exact).amin(1) < 1e-3).long()

    [found] = SmoothedClassifier(base, law, 2).certify(image, n=500, alpha=0.001)
    assert found.prediction == 1
    assert found.radius > 3
    after = answer_to(law, base, law.apply(image, torch.tensor([[3, 0]])))
    assert after == (0 if isinstance(law, Reflected) else 1)


# --- the vote engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_same_seed_same_counts_whatever_the_batch_size(law):
    images = torch_images(3).float()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(216, 3)).requires_grad_(False)
    torch.nn.init.normal_(network[1].weight, generator=torch.Generator().manual_seed(0))
    counts = [
        [each.counts for each in SmoothedClassifier(network, law, 3, seed=4, **how).certify(images, n=600)]
        for how in ({"batch_size": 1024}, {"batch_size": 100}, {"batch_size": 256, "prefetch": True})
    ]
    assert counts[0] == counts[1] == counts[2]


def test_a_grid_of_gray_levels_is_for_added_noise():
    smoothed = SmoothedClassifier(lambda x: torch.zeros(len(x)).long(), Brightness(0.2), 2, grid=255)
    with pytest.raises(CertifyError, match="leave it out"):
        smoothed.certify(torch.zeros(1, 1, 2, 2), n=100)


def test_records_are_certified_again_when_they_are_read(tmp_path):
    law = BlurFolded(2.0)
    smoothed = SmoothedClassifier(lambda x: torch.zeros(len(x)).long(), law, 2)
    [found] = smoothed.certify(torch_images(1).float(), n=100, alpha=0.001)
    with RecordLog(tmp_path / "records", {"noise": law.describe(), "alpha": 0.001}) as log:
        log.append(0, 0, found, 0.1)
    assert read_records(tmp_path / "records.jsonl").radius[0] == found.radius
    longer = certify.Certificate(**{**vars(found), "radius": 1.01 * found.radius})
    with (
        RecordLog(tmp_path / "longer", {"noise": law.describe(), "alpha": 0.001}) as log,
        pytest.raises(CertifyError, match="do not follow"),
    ):
        log.append(0, 0, longer, 0.1)


def test_certificates_of_noise_on_pixels_are_as_they_were():
    found = certify_votes(lambda n: np.ones(n, np.int64), Gaussian(0.25), 2, n=100)
    assert (found.threat, found.norm, found.unit) == ("additive", "l2", "[0, 1] pixel values")


# --- every shift by whole pixels --------------------------------------------------------------------------------------


def brute_force(base, image, most, padding):
    """The largest k within which every shift gets the answer of the image, by slices of a padded array."""
    mode = {"reflect": "symmetric", "edge": "edge", "black": "constant", "wrap": "wrap"}[padding]
    wide = np.pad(image[0].numpy(), ((0, 0), (most, most), (most, most)), mode=mode)
    height, width = image.shape[-2:]
    answers = {}
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            part = wide[:, most - down : most - down + height, most - right : most - right + width]
            answers[down, right] = int(base(torch.from_numpy(part.copy())[None])[0])
    same = [
        k
        for k in range(most + 1)
        if all(v == answers[0, 0] for (a, b), v in answers.items() if max(abs(a), abs(b)) <= k)
    ]
    return answers[0, 0], max(same)


@pytest.mark.acceptance
@pytest.mark.parametrize("padding", ["reflect", "edge", "black", "wrap"])
def test_pixel_shifts_against_a_brute_force(padding):
    images = torch_images(40, (2, 5, 7), seed=2).float()
    weights = torch.rand(70, generator=torch.Generator().manual_seed(3)) - 0.5
    middle, asked = (images.reshape(40, -1) @ weights).median() - 0.3, []

    def base(x):
        asked.append(len(x))
        return (x.reshape(len(x), -1) @ weights > middle).long()

    found = certify_pixel_shifts(base, images, 2, 2, padding=padding, recheck=0)
    queries = sum(asked)
    expected = [brute_force(base, image[None], 2, padding) for image in images]
    assert [(each.prediction, each.radius) for each in found] == expected
    assert len({each.radius for each in found}) > 1
    assert queries == sum(each.n for each in found)  # early stops are not paid
    assert all(each.alpha == 0 and each.method == "deterministic" for each in found)


def test_one_shift_that_answers_otherwise_is_found():
    image = torch_images(1, (1, 6, 6)).float()
    other = shifted(image, torch.tensor([[2, -1]]), "reflect")

    def base(x):
        return ((x - other).abs().amax((1, 2, 3)) < 1e-6).long()

    [found] = certify_pixel_shifts(base, image, 3, 2, subject="target")
    assert (found.prediction, found.radius, found.threat) == (0, 1.0, "pixel_shift")


def test_bad_shifts_are_refused():
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(CertifyError, match="padding"):
        certify_pixel_shifts(lambda x: torch.zeros(len(x)), image, 1, 2, padding="mirror")
    with pytest.raises(CertifyError, match="most"):
        certify_pixel_shifts(lambda x: torch.zeros(len(x)), image, -1, 2)
