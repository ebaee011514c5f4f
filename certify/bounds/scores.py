"""Certified scores: bounds on the expected score of a class under Gaussian noise (Kumar et al. 2020).

For a score h in [0, 1], E h = int_0^1 P(h >= s) ds. Each P(h >= s) is the probability of a region, so moving
the image by r takes it to no less than Phi(Phi^-1(P(h >= s)) - r / sigma). The whole distribution function is
bounded at once by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart, one-sided: off by more than
sqrt(log(1 / alpha) / (2 n)) somewhere with probability at most alpha (alpha <= 1/2). This CDF form uses the
scores' spread; thresholding the mean alone would not.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from certify.errors import CertifyError, check_alpha
from certify.noise.base import ROUNDING
from certify.noise.bisection import largest
from certify.noise.gaussian import Gaussian


def score_lower_bound(scores: ArrayLike, noise: Gaussian, radius: float, alpha: float) -> float:
    """Lower bound on E h everywhere within l2 ``radius``.

    Args:
        scores: (n,) in [0, 1], of one class, each at a fresh draw.
        noise: The law of the draws.
        radius: In [0, 1] pixel units.
        alpha: Probability of a wrong bound, for all radii at once.

    Raises:
        CertifyError: Scores outside [0, 1], or noise that is not Gaussian.
    """
    scores = _check(scores, noise, radius)
    slack = np.sqrt(np.log(1 / check_alpha(alpha)) / (2 * len(scores)))
    steps, tail = _steps(scores)
    bound = np.sum(steps * ndtr(ndtri(np.maximum(tail - slack, 0.0)) - radius / noise.sigma))
    return float(bound * (1 - 1e3 * ROUNDING))


def score_upper_bound(scores: ArrayLike, noise: Gaussian, radius: float, alpha: float) -> float:
    """Upper bound on E h everywhere within l2 ``radius``: the lower bound of 1 - h, mirrored."""
    return 1 - score_lower_bound(1 - _check(scores, noise, radius), noise, radius, alpha)


def score_radius(scores: ArrayLike, noise: Gaussian, alpha: float, threshold: float = 0.5) -> float:
    """l2 radius within which the expected score stays above ``threshold``; 0 where that is not certified.

    With scores that sum to 1 over the classes, 1/2 certifies the class of the mean score.
    """

    def stays(radius: float) -> bool:
        return score_lower_bound(scores, noise, radius, alpha) > threshold

    return largest(stays, 0.0, 20 * noise.sigma) if stays(0.0) else 0.0


def _steps(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Widths of the steps of s -> share of scores >= s on [0, 1], and the share on each."""
    ordered = np.sort(scores)
    return np.diff(ordered, prepend=0.0), 1 - np.arange(len(scores)) / len(scores)


def _check(scores: ArrayLike, noise: Gaussian, radius: float) -> NDArray[np.float64]:
    if not isinstance(noise, Gaussian):
        raise CertifyError(f"soft scores are certified under Gaussian noise, got {noise!r}: use Gaussian")
    if not 0 <= radius < np.inf:
        raise CertifyError(f"radius must be >= 0 and finite, got {radius!r}: pass a distance in pixel units")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.all((scores >= 0) & (scores <= 1)):
        raise CertifyError(
            f"scores must be (n,) in [0, 1], got shape {scores.shape}: apply a softmax and pick the class"
        )
    return scores
