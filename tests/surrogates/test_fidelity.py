"""Agreement is counted right, on the very same noisy images, and its bounds cover."""

from typing import Any

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from surrogates import SurrogateError, fidelity, open_target
from surrogates.intervals import clopper_pearson

pytestmark = pytest.mark.filterwarnings("error")


class FirstPixel(nn.Module):
    """Class 1 where the first pixel passes a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        high = (images[:, 0, 0, 0] > self.threshold).float()
        return torch.stack([1 - high, high], dim=1)


class Gaussian:
    def sample(self, shape: Any, generator: Any = None, device: Any = None) -> torch.Tensor:
        return 2 * torch.randn(shape, generator=generator, device=device)


def ramp(count: int) -> np.ndarray:
    images = np.zeros((count, 1, 2, 2), np.float32)
    images[:, 0, 0, 0] = (np.arange(count) + 0.5) / count
    return images


@pytest.mark.parametrize("batch_size", [7, 256])
def test_agreement_is_the_share_of_equal_labels(batch_size: int) -> None:
    target = open_target(FirstPixel(0.5), num_classes=2)
    result = fidelity(FirstPixel(0.4), target, ramp(200), batch_size=batch_size)
    assert (result.agreement, result.n, result.noisy) == (0.9, 200, False)
    lower, upper = proportion_confint(180, 200, alpha=0.05, method="beta")
    assert result.lower == pytest.approx(lower, rel=1e-9)
    assert result.upper == pytest.approx(upper, rel=1e-9)
    one_sided = proportion_confint(20, 200, alpha=0.10, method="beta")[1]
    assert result.disagreement_upper == pytest.approx(one_sided, rel=1e-9)


@pytest.mark.parametrize(("threshold", "agreement"), [(0.5, 1.0), (2.0, 0.0)])
def test_full_and_no_agreement(threshold: float, agreement: float) -> None:
    images = ramp(50)[25:]  # all above 0.5
    target = open_target(FirstPixel(0.5), num_classes=2)
    result = fidelity(FirstPixel(threshold), target, images)
    assert result.agreement == agreement
    expected = (0.025 ** (1 / 25), 1.0) if agreement else (0.0, 1 - 0.025 ** (1 / 25))
    assert (result.lower, result.upper) == pytest.approx(expected)


def test_both_see_the_same_unclipped_noise() -> None:
    seen: list[np.ndarray] = []

    def function(images: np.ndarray) -> np.ndarray:
        seen.append(images.copy())
        return FirstPixel(0.5)(torch.from_numpy(images)).numpy()

    target = open_target(function, num_classes=2)
    result = fidelity(FirstPixel(0.5), target, ramp(300), Gaussian(), seed=1)
    assert (result.agreement, result.noisy) == (1.0, True)
    assert np.concatenate(seen).min() < -1
    assert np.concatenate(seen).max() > 2
    first = np.concatenate(seen)
    for seed, same in ((1, True), (2, False)):
        seen.clear()
        fidelity(FirstPixel(0.5), target, ramp(300), Gaussian(), seed=seed)
        assert np.array_equal(np.concatenate(seen), first) == same


def test_the_bounds_cover_and_a_normal_bound_would_not() -> None:
    """In 10,000 draws of Binomial(50, 0.97) a tail of 2.5% misses in at most 2.5% + 5 standard errors."""
    truth, trials, draws = 0.97, 50, 10_000
    successes = np.random.default_rng(0).binomial(trials, truth, draws)
    bounds = {k: clopper_pearson(int(k), trials, 0.025) for k in np.unique(successes)}
    limit = 0.025 + 5 * np.sqrt(0.025 * 0.975 / draws)
    assert np.mean([bounds[k][0] > truth for k in successes]) <= limit
    assert np.mean([bounds[k][1] < truth for k in successes]) <= limit
    share = successes / trials
    wald = share - 1.96 * np.sqrt(share * (1 - share) / trials)
    assert np.mean(wald > truth) > limit


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (ramp(3) * 255, {}, "divide 8-bit pixels by 255"),
        (ramp(3), {"confidence": 95}, r"confidence must be in \(0, 1\), got 95: try 0.95"),
        (ramp(3), {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ],
)
def test_bad_input_queries_nothing(images: np.ndarray, options: dict[str, Any], message: str) -> None:
    def function(images: np.ndarray) -> np.ndarray:
        raise AssertionError("queried")

    with pytest.raises(SurrogateError, match=message):
        fidelity(FirstPixel(0.5), open_target(function, num_classes=2), images, **options)
