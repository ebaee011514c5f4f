"""Two-sided radii: bounds for the runner-up too, instead of 1 - p for all other classes together.

With p_A >= a for the top class and p_B <= b for every other one, the l2 radius under N(0, sigma^2) is
sigma/2 (Phi^-1(a) - Phi^-1(b)) (Cohen et al. 2019, Theorem 1). alpha is split: 0.9 for a, the rest shared
equally by the bounds of the other classes, so that all hold at once.

Top-k (Jia et al. 2020, Theorem 1): a class with p >= a stays among the k likeliest within r while, for some
t <= k, Phi(Phi^-1(a) - r/sigma) > Phi(Phi^-1(b_t) + r/sigma) / t, where b_t bounds the probability of the t
least likely of its k strongest rivals together: of any k rivals that beat it, one loses the comparison.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound
from certify.bounds.bisection import largest
from certify.certificate import Certificate, Counts
from certify.errors import CertifyError, check_alpha, check_count
from certify.noise.base import ROUNDING, NoiseLaw
from certify.noise.gaussian import Gaussian

TOP_SHARE = 0.9  # of alpha, for the top class
RUNNERS_UP = 20  # classes with a bound of their own; the others are pooled


def check_two_sided(noise: NoiseLaw) -> None:
    """Raise CertifyError unless the law has a two-sided radius."""
    if noise.two_sided_radius(0.9, 0.05) is None:
        raise CertifyError(f"two-sided radii need Gaussian or Laplace noise, got {noise!r}: use 'fixed'")


def certify_two_sided(
    counts0: Counts, counts: Counts, noise: NoiseLaw, alpha: float, *, subject: str = "model"
) -> Certificate:
    """As ``core.certify``, with bounds of the other classes too; ``counts0`` (K,) also groups the rivals."""
    top = int(np.argmax(counts0))
    p_lower, radius = two_sided_radius(counts, top, noise, alpha, rival_groups(counts0, top))
    reached = radius or None
    return Certificate.of(
        top, reached, p_lower, counts0, counts, noise, alpha=alpha, method="two_sided", subject=subject
    )


def two_sided_radius(
    counts: Counts, top: int, noise: NoiseLaw, alpha: float, rivals: list[list[int]] | None = None
) -> tuple[float, float]:
    """(lower bound of the top class, radius) from the votes of one image; radius 0: not certified.

    Args:
        counts: Votes (K,).
        top: The class, selected by other votes.
        noise: The law that the votes were drawn under.
        alpha: Probability that a bound is wrong.
        rivals: Groups of the other classes, chosen without these votes: a pooled group's upper bound holds for
            each of its classes. Default: each class by itself.

    Raises:
        CertifyError: The law has no two-sided radius.
    """
    check_two_sided(noise)
    if rivals is None:
        rivals = [[label] for label in range(len(counts)) if label != top]
    lower, upper = _simultaneous_bounds(counts, top, rivals, alpha)
    rival = min(float(np.max(upper)), 1 - lower)  # the second is implied by the bound of the top class
    if not lower > rival:
        return lower, 0.0
    radius = noise.two_sided_radius(lower, rival)
    return lower, max(float(radius or 0.0) * (1 - 4 * ROUNDING), 0.0)


def rival_groups(selection: Counts, top: int, own: int = RUNNERS_UP) -> list[list[int]]:
    """The ``own`` likeliest other classes by the selection votes (K,), each alone, and one group of the rest."""
    order = [int(label) for label in np.argsort(-selection, kind="stable") if label != top]
    rest = order[own:]
    return [[label] for label in order[:own]] + ([rest] if rest else [])


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
    others = [[other] for other in range(len(counts)) if other != label]
    lower, upper = _simultaneous_bounds(np.asarray(counts), label, others, alpha)
    weakest_first = np.sort(upper)[-k:]  # of the k strongest rivals
    together = np.minimum(np.cumsum(weakest_first), 1 - lower)

    def stays(radius: float) -> bool:
        shift = radius / noise.sigma
        rivals = ndtr(ndtri(together) + shift) / np.arange(1, k + 1)
        return bool(ndtr(ndtri(lower) - shift) > rivals.min() * (1 + ROUNDING))

    return largest(stays, 0.0, 20 * noise.sigma) if stays(0.0) else 0.0


def _simultaneous_bounds(
    counts: Counts, top: int, rivals: list[list[int]], alpha: float
) -> tuple[float, NDArray[np.float64]]:
    """Lower bound of the top class and upper bounds (G,) of the groups, all true w.p. >= 1 - alpha."""
    trials = int(counts.sum())
    lower = binomial_lower_bound(int(counts[top]), trials, TOP_SHARE * alpha)
    pooled = np.array([counts[group].sum() for group in rivals])
    return lower, binomial_upper_bound(pooled, trials, (1 - TOP_SHARE) * alpha / len(rivals))
