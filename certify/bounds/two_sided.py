"""Two-sided radii: bounds for the runner-up too, instead of 1 - p for all other classes together.

With p_A >= a for the top class and p_B <= b for every other one, the l2 radius under N(0, sigma^2) is
sigma/2 (Phi^-1(a) - Phi^-1(b)) (Cohen et al. 2019, Theorem 1); ``NoiseLaw.two_sided_radius`` has it for other laws.
alpha is split: 0.9 for a, 0.1 for b.

No share is lost to the number of classes. Let B be the truly strongest rival, which no vote decides. The radius that
is claimed uses the largest of the rivals' bounds, so it is no longer than with B's own; it can be too long only if
a > p_A or b_B < p_B, two events of probability 0.9 alpha and 0.1 alpha. That a bound of another class is wrong too does
no harm (an intersection-union test: Berger 1982).

Top-k (Jia et al. 2020, Theorem 1): a class with p >= a stays among the k likeliest within r while, for some
t <= k, Phi(Phi^-1(a) - r/sigma) > Phi(Phi^-1(b_t) + r/sigma) / t, where b_t bounds the probability of the t
least likely of its k strongest rivals together: of any k rivals that beat it, one loses the comparison. Here the
bounds of the truly k strongest rivals must hold at once, so these share 0.1 alpha.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound
from certify.certificate import Certificate, Counts, class_to_bound
from certify.errors import CertifyError, check_alpha, check_count
from certify.noise.base import ROUNDING, NoiseLaw
from certify.noise.bisection import largest
from certify.noise.gaussian import Gaussian

TOP_SHARE = 0.9  # of alpha, for the top class


def check_two_sided(noise: NoiseLaw) -> None:
    """Raise CertifyError unless the law has a two-sided radius."""
    if not noise.is_two_sided:
        raise CertifyError(
            f"two-sided radii need Gaussian noise, a mixture of it, or Laplace noise, got {noise!r}: use 'fixed'"
        )


def certify_two_sided(
    counts0: Counts,
    counts: Counts,
    noise: NoiseLaw,
    alpha: float,
    *,
    subject: str = "model",
    known_class: int | None = None,
) -> Certificate:
    """As ``core.certify``, with bounds of the other classes too."""
    top = class_to_bound(counts0, known_class)
    p_lower, radius = two_sided_radius(counts, top, noise, alpha)
    return Certificate.of(
        top,
        radius or None,
        p_lower,
        counts0,
        counts,
        noise,
        alpha=alpha,
        method="two_sided",
        subject=subject,
        known_class=known_class is not None,
    )


def two_sided_radius(counts: Counts, top: int, noise: NoiseLaw, alpha: float) -> tuple[float, float]:
    """(lower bound of the top class, radius) from the votes of one image; radius 0: not certified.

    Args:
        counts: Votes (K,).
        top: The class, selected by other votes.
        noise: The law that the votes were drawn under.
        alpha: Probability that the radius is wrong.

    Raises:
        CertifyError: The law has no two-sided radius.
    """
    check_two_sided(noise)
    lower, upper = _bounds(counts, top, alpha, together=1)
    rival = min(float(np.max(upper)), 1 - lower)  # the second is implied by the bound of the top class
    if not lower > rival:
        return lower, 0.0
    radius = noise.two_sided_radius(lower, rival)
    return lower, max(float(radius or 0.0) * (1 - 4 * ROUNDING), 0.0)


def top_k_radius(counts: Counts, label: int, k: int, noise: Gaussian, alpha: float) -> float:
    """l2 radius within which ``label`` stays among the k likeliest classes; 0 where nothing is certified.

    Args:
        counts: Votes (K,) of one image.
        label: The class, chosen beforehand, not by these votes.
        k: In [1, K).
        noise: The law that the votes were drawn under.
        alpha: Probability of a wrong radius.

    Raises:
        CertifyError: A law that is not Gaussian, or k outside [1, K).
    """
    if not isinstance(noise, Gaussian):
        raise CertifyError(f"top-k radii are known for Gaussian noise, got {noise!r}: use certify.Gaussian")
    check_alpha(alpha)
    if check_count("k", k) >= len(counts):
        raise CertifyError(
            f"k must be below the {len(counts)} classes, got {k}: every class is in the top {k}"
        )
    lower, upper = _bounds(np.asarray(counts), label, alpha, together=k)
    weakest_first = np.sort(upper)[-k:]  # of the k strongest rivals
    together = np.minimum(np.cumsum(weakest_first), 1 - lower)

    def stays(radius: float) -> bool:
        shift = radius / noise.sigma
        rivals = ndtr(ndtri(together) + shift) / np.arange(1, k + 1)
        return bool(ndtr(ndtri(lower) - shift) > rivals.min() * (1 + ROUNDING))

    return largest(stays, 0.0, 20 * noise.sigma) if stays(0.0) else 0.0


def _bounds(counts: Counts, top: int, alpha: float, together: int) -> tuple[float, NDArray[np.float64]]:
    """Lower bound of the top class and upper bounds (K - 1,) of the others.

    That of the top class and those of any ``together`` others, named beforehand, are all true w.p. >= 1 - alpha.
    """
    trials = int(counts.sum())
    lower = binomial_lower_bound(int(counts[top]), trials, TOP_SHARE * alpha)
    return lower, binomial_upper_bound(np.delete(counts, top), trials, (1 - TOP_SHARE) * alpha / together)
