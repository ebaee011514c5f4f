"""Tests of average-case statements: the laws against independent brute force, the draws, the claims by simulation."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import binom, kstest

from certify import CertifyError
from certify.threats.population import (
    CORRUPTIONS,
    JPEG,
    PROVEN,
    REFUTED,
    BrightnessChange,
    ContrastChange,
    EightBit,
    Gamma,
    GaussianNoise,
    PopulationBound,
    certify_population,
    compose,
    corruption,
    perturbation,
    perturbed_draws,
)
from certify.threats.warping import gaussian_blurred, moved_along, rotated, shifted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, channels: int = 1, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Smooth ones, within [0.25, 0.75]."""
    rough = np.random.default_rng(seed).random((count, channels, side, side))
    smooth = ndimage.gaussian_filter(rough, (0, 0, 1, 1))
    return torch.from_numpy(np.clip(smooth, 0.25, 0.75)).float()


def brightness_threshold(at: float):
    """A classifier with a known threshold in the mean."""
    return lambda batch: (batch.mean(dim=(1, 2, 3)) > at).long().numpy()


# --- the laws -----------------------------------------------------------------------------------------------


def test_warps_are_those_of_scipy():
    x, one = images(1, 1, 12), torch.ones(1)
    plain = x[0, 0].numpy()
    moved = shifted(x, 0.7 * one, -1.3 * one)[0, 0].numpy()
    assert np.allclose(moved, ndimage.shift(plain, (-1.3, 0.7), order=1, mode="nearest"), atol=1e-5)
    turned = rotated(x, torch.tensor([0.2]))[0, 0].numpy()
    expected = [
        ndimage.rotate(plain, np.degrees(way * 0.2), reshape=False, order=1, mode="nearest")
        for way in (1, -1)
    ]
    assert min(np.abs(turned - each).max() for each in expected) < 1e-5
    blurred = gaussian_blurred(x, torch.tensor([0.8]), 3)[0, 0].numpy()
    assert np.allclose(blurred, ndimage.gaussian_filter(plain, 0.8, radius=3, mode="nearest"), atol=1e-5)
    path = moved_along(x, 2 * one, 0 * one, 5)[0, 0].numpy()
    mean = np.mean(
        [ndimage.shift(plain, (0, d), order=1, mode="nearest") for d in (-1, -0.5, 0, 0.5, 1)], axis=0
    )
    assert np.allclose(path, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("law", "statistic", "low", "high"),
    [
        (BrightnessChange(0.2), lambda y, x: (y - x).mean((1, 2, 3)), -0.2, 0.2),
        (
            ContrastChange(0.2),
            lambda y, x: (y.std((1, 2, 3)) / x.std((1, 2, 3))).log(),
            -np.log(1.2),
            np.log(1.2),
        ),
        (Gamma(0.3), lambda y, x: (y.log() / x.log()).mean((1, 2, 3)).log(), -np.log(1.3), np.log(1.3)),
    ],
)
def test_parameters_are_uniform_over_the_declared_support(law, statistic, low, high):
    x = images(1, 3).expand(2000, -1, -1, -1)
    drawn = statistic(law.sample(x, generator(3)), x).numpy()
    assert drawn.min() >= low - 1e-4
    assert drawn.max() <= high + 1e-4
    assert kstest(drawn, "uniform", (low, high - low)).pvalue > 1e-4


def test_noise_has_its_sigma():
    x = torch.full((200, 1, 10, 10), 0.5)
    noise = (GaussianNoise(0.05).sample(x, generator()) - x).numpy().ravel()
    assert kstest(noise, "norm", (0, 0.05)).pvalue > 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels):
    x = images(1, channels, 16)
    levels = (x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels if channels == 3 else levels[:, :, 0]).save(file, "JPEG", quality=95)
    expected = np.asarray(Image.open(file)).reshape(16, 16, channels).transpose(2, 0, 1) / 255
    assert np.allclose(JPEG(95).sample(x, generator())[0].numpy(), expected, atol=1e-6)


def test_eight_bits_round_once():
    x = images()
    once = EightBit().sample(x, generator())
    assert (once - x).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(EightBit().sample(once, generator(5)), once)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 17)])
def test_every_corruption_keeps_shape_and_range_and_its_input(name, channels, side):
    x = torch.rand(5, channels, side, side + 3, generator=generator())
    before, law = x.clone(), corruption(name)
    drawn = law.sample(x, generator(1))
    assert drawn.shape == x.shape
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(x, before)
    assert torch.equal(law.sample(x, generator(1)), drawn)
    again = law.sample(x[:1].expand(5, -1, -1, -1), generator(1))
    assert law.fixed == bool((again == again[:1]).all())  # draws of one image differ, unless the law is fixed
    assert corruption(law.name).describe() == law.describe()
    assert json.loads(json.dumps(law.describe())) == law.describe()


def test_laws_are_composed_in_their_order():
    x = images(3)
    first, then = BrightnessChange(0.1), EightBit()
    both = first + then
    assert both == compose(first, then) == corruption("brightness=0.1+8-bit")
    assert both.name == "brightness=0.1+8-bit"
    assert torch.equal(both.sample(x, generator(2)), then.sample(first.sample(x, generator(2)), generator()))
    assert (both + Gamma()).name == "brightness=0.1+8-bit+gamma=0.25"
    assert not both.fixed
    assert (then + then).fixed


def test_a_law_of_ones_own_never_shares_a_random_number():
    """Planted: a function that draws one number for all images that it gets."""
    seen = []

    def fog(batch: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        seen.append(len(batch))
        batch += 0.2 * torch.rand(1, generator=source)  # in place, on what is its own
        return batch

    law, x = perturbation("fog", fog), images(1)
    before = x.clone()
    drawn = perturbed_draws(law, x[0], 0, 0, 16, seed=0)
    assert set(seen) == {1}
    assert len({each.mean().item() for each in drawn}) == 16
    assert torch.equal(x, before)
    assert (law + JPEG()).describe()["parts"][0] == {"law": "own", "name": "fog"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: corruption("snow"), "'snow' is no corruption: choose from noise, brightness"),
        (lambda: corruption("noise=loud"), "the strength in 'noise=loud' is not a number"),
        (lambda: corruption("jpeg=70.5"), "the strength in 'jpeg=70.5' is not a whole number"),
        (lambda: corruption("jpeg=99"), r"quality must be in \[1, 95\]"),
        (lambda: corruption("8-bit=4"), "8-bit has no strength"),
        (lambda: corruption("noise=-1"), "'noise=-1': sigma must be finite and above 0"),
        (lambda: compose(), "compose takes perturbations"),
        (lambda: perturbation("", print), "needs a name and a function"),
        (
            lambda: perturbation("crop", lambda x, g: x[..., 1:]).sample(images(1), generator()),
            r"'crop' returned \(1, 1, 12, 11\)",
        ),
        (
            lambda: perturbation("bad", lambda x, g: x / 0).sample(images(1), generator()),
            "'bad' returned values that are not finite",
        ),
        (lambda: perturbation("none", lambda x, g: None).sample(images(1), generator()), "returned NoneType"),
        (lambda: JPEG().sample(torch.rand(1, 4, 8, 8), generator()), "jpeg takes images of 1 or 3 channels"),
    ],
)
def test_what_is_no_law_is_refused(make, message):
    with pytest.raises(CertifyError, match=message):
        make()


# --- the draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_seed_index_and_law_alone(name):
    law, image = corruption(name), images(1)[0]
    whole = perturbed_draws(law, image, 7, 0, 40, seed=1)
    parts = [perturbed_draws(law, image, 7, a, b, seed=1) for a, b in ((0, 5), (5, 17), (17, 40))]
    assert torch.equal(whole, torch.cat(parts))
    if not law.fixed:
        assert not torch.equal(whole, perturbed_draws(law, image, 8, 0, 40, seed=1))
        assert not torch.equal(whole, perturbed_draws(law, image, 7, 0, 40, seed=2))


@pytest.mark.acceptance
def test_same_seed_same_result_whatever_the_batch():
    x, law = images(9), corruption("brightness=0.3+noise=0.02")
    classify = brightness_threshold(0.45)
    every = certify_population(classify, x, law, seed=3)
    assert every == certify_population(classify, x, law, seed=3, batch_size=7)
    alone = [
        certify_population(classify, x[at : at + 1], law, seed=3, indices=[at]).images[0] for at in range(9)
    ]
    assert tuple(alone) == every.images
    assert every.images != certify_population(classify, x, law, seed=4).images
    assert PopulationBound.from_json(json.loads(json.dumps(every.to_json()))) == every


# --- the claims ---------------------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_an_unchanged_answer_takes_66_labels():
    asked = []

    def constant(batch: torch.Tensor) -> np.ndarray:
        asked.append(len(batch))
        return np.full(len(batch), 3)

    for method in ("fixed", "sequential"):
        asked.clear()
        bound = certify_population(constant, images(10), corruption("noise"), method=method)
        assert bound.proven == 10
        assert bound.labels == 660
        assert sum(asked) == 670  # each image once
        assert bound.claim == "average case"
    assert certify_population(constant, images(2), corruption("noise"), q=0.05).labels == 2 * 135


@pytest.mark.acceptance
def test_claims_are_right_about_a_classifier_with_a_known_threshold():
    """Under brightness by up to 0.2 an image of mean m changes with probability max(0, (0.2 - |m - t|) / 0.4)."""
    at = 0.5
    means = np.linspace(0.26, 0.74, 37)
    x = torch.from_numpy(means).float()[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    truth = np.clip((0.2 - np.abs(means - at)) / 0.4, 0, 1)
    bound = certify_population(brightness_threshold(at), x, BrightnessChange(0.2), q=0.1)
    for p, each in zip(truth, bound.images, strict=True):
        if each.verdict == PROVEN:
            assert p <= 0.1
        if each.verdict == REFUTED:
            assert p > 0.1
        assert each.lower <= p <= each.upper
    assert 4 <= bound.proven < (truth <= 0.1).sum() + 1
    assert bound.least_proven <= (truth <= 0.1).sum()
    assert bound.mean_upper >= truth.mean()
    fixed = certify_population(brightness_threshold(at), x, BrightnessChange(0.2), n=300, method="fixed")
    assert all(each.lower <= p <= each.upper for p, each in zip(truth, fixed.images, strict=True))
    assert fixed.mean == pytest.approx(truth.mean(), abs=0.02)


@pytest.mark.acceptance
def test_realized_errors_of_all_three_statements():
    """Images that change slightly more often than q: every claim about them is wrong. Bound of this test: 1e-6."""
    q, alpha, count, repeats = 0.2, 0.05, 10, 80

    def flips(batch: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        return torch.where(torch.rand(1, generator=source) < q + 1e-9, 1.0, batch)

    law, x = perturbation("flips", flips), torch.zeros(count, 1, 1, 1)
    claims = counts = means = 0
    for seed in range(repeats):
        options = {"q": q, "n": 60, "alpha": alpha, "seed": seed, "answers": np.zeros(count, int)}
        bound = certify_population(brightness_threshold(0.5), x, law, batch_size=4096, **options)
        claims += bound.proven
        counts += bound.least_proven > 0
        means += bound.mean_upper < q
    assert claims <= binom.isf(1e-6, repeats * count, alpha)
    assert counts <= binom.isf(1e-6, repeats, alpha)
    assert means <= binom.isf(1e-6, repeats, alpha)
    assert claims > 0  # a test that claims nothing would pass


def test_one_label_decides_for_a_fixed_law_and_a_deterministic_classifier():
    x = torch.tensor([0.4985, 0.2, 0.9])[:, None, None, None].expand(-1, 1, 3, 3).contiguous()
    classify = brightness_threshold(0.4981)  # 0.4985 is rounded to 127 / 255
    bound = certify_population(classify, x, EightBit(), deterministic=True)
    assert [each.verdict for each in bound.images] == [REFUTED, PROVEN, PROVEN]
    assert (bound.labels, bound.least_proven, bound.mean_upper) == (3, 2, pytest.approx(1 / 3))
    assert bound.assumes_deterministic
    careful = certify_population(classify, x, EightBit())
    assert not careful.assumes_deterministic
    assert careful.labels > 2 * 66


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": 2}, "q must be in"),
        ({"n": 10}, "n=10 is too small to prove q=0.1 at alpha=0.001: use n >= 66"),
        ({"law": "noise"}, "law must be a perturbation"),
        ({"answers": [0.5]}, "one integer label for each of 4 images"),
        ({"indices": [1, 1, 2, 3]}, "distinct"),
        ({"batch_size": 0}, "batch_size must be an integer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(change, message):
    def never(batch: torch.Tensor) -> np.ndarray:
        raise AssertionError("asked")

    options = {"law": corruption("noise")} | change
    with pytest.raises(CertifyError, match=message):
        certify_population(never, images(), **options)


def test_labels_that_are_none_are_refused():
    with pytest.raises(CertifyError, match="one integer label"):
        certify_population(lambda batch: batch.mean((1, 2, 3)).numpy(), images(), corruption("noise"))


def test_neither_pillow_nor_torchvision_is_loaded_at_import():
    code = (
        "import sys, certify.threats.population as p, torch; "
        "p.corruption('blur').sample(torch.rand(2, 1, 8, 8), torch.Generator()); "
        "print([m for m in ('PIL', 'torchvision') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize(
    "text", ["blur=1e9", "motion-blur=1e9", "shift=1e9", "contrast=1e300", "gamma=1e300"]
)
def test_a_strength_that_cannot_be_computed_is_refused(text):
    with pytest.raises(CertifyError, match="must be at most 1"):
        corruption(text)


def test_an_angle_that_is_none_is_refused_in_its_own_words():
    with pytest.raises(
        CertifyError, match=r"'rotation=-1': degrees must be finite and above 0, got -1\.0: try 5"
    ):
        corruption("rotation=-1")
