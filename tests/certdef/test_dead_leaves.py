"""Dead-leaves images: the same for a seed and a number, in range, and as scale-free as they claim to be."""

import numpy as np
import pytest
from scipy import stats

from certdef.data import dead_leaves as module
from certdef.data.dead_leaves import POWER, dead_leaves, dead_leaves_image

SIDE, COUNT = 48, 48


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return dead_leaves(COUNT, SIDE, seed=5)


def test_an_image_depends_on_the_seed_and_its_number_alone(images):
    assert images.shape == (COUNT, 3, SIDE, SIDE)
    assert images.dtype == np.uint8
    alone = dead_leaves_image(np.random.default_rng([5, 3]), SIDE)
    assert np.array_equal(images[3], np.rint(255 * alone))
    assert np.array_equal(dead_leaves(2, SIDE, seed=5), images[:2])
    assert not np.array_equal(dead_leaves(1, SIDE, seed=6), images[:1])


def test_progress_sees_every_number():
    seen = []

    def bar(numbers):
        for number in numbers:
            seen.append(number)
            yield number

    dead_leaves(2, 32, 0, bar)
    assert seen == [0, 1]


def test_pixels_are_in_range_and_vary(images):
    one = dead_leaves_image(np.random.default_rng(0), SIDE)
    assert one.shape == (3, SIDE, SIDE)
    assert 0 <= one.min() <= one.max() <= 1
    pixels = images / 255
    assert 0.35 < pixels.mean() < 0.65
    contrast = pixels.std(axis=(1, 2, 3))
    assert 0.1 < contrast.mean() < 0.3
    assert contrast.min() > 0.01  # none is empty
    colorful = np.abs(pixels - pixels.mean(axis=1, keepdims=True)).mean(axis=(1, 2, 3))
    assert colorful.max() > 3 * colorful.min()  # nearly gray ones too


def slope(images: np.ndarray) -> float:
    """Exponent of the frequency in the mean power of images (N, 3, S, S), from 3 periods a side to half of the highest."""
    gray = images.mean(axis=1, dtype=float)
    window = np.hanning(images.shape[-1])[:, None] * np.hanning(images.shape[-1])
    gray = (gray - gray.mean(axis=(1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(gray)) ** 2).mean(axis=0)
    side = images.shape[-1]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    inside = (frequency >= 3 / side) & (frequency <= 0.25)
    return float(stats.linregress(np.log(frequency[inside]), np.log(power[inside])).slope)


def test_the_spectrum_falls_as_that_of_photographs(images):
    """Power f ** -2 to -3.5 (photographs: about -2; blur and few leaves steepen it). White noise has none of that."""
    assert -3.6 < slope(images) < -1.8
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert abs(slope(noise)) < 0.3


@pytest.mark.parametrize(("power", "holds"), [(POWER, True), (POWER - 0.3, False)])
def test_radii_follow_the_power_law(power, holds):
    """Kolmogorov-Smirnov on 4,000 radii: the true law fails with probability 1e-4, one with another power must fail."""
    random = np.random.default_rng(1)
    style = module._Style(2.0, 60.0, 0, 1, np.zeros((1, 3)), [])
    radii = [module._radius(random, style) for _ in range(4000)]

    def cdf(radius):
        low, high = style.smallest ** (1 - power), style.largest ** (1 - power)
        return (low - np.asarray(radius) ** (1 - power)) / (low - high)

    assert (stats.kstest(radii, cdf).pvalue > 1e-4) == holds
