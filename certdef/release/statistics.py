"""Two certifications of the same images: exact paired tests and intervals, corrected for how many there are.

An image is a pair: certified before and not after (lost), after and not before (won), or alike in both. Images are taken as
a sample of those that the model will meet; nothing is assumed of the images of one row beside those of another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify import binomial_interval

Floats = NDArray[np.float64]

SIGN_SHARE = 0.9  # of an interval's alpha, for the sign of the change; the rest bounds how many images change


def mcnemar(lost: ArrayLike, won: ArrayLike) -> Floats:
    """Return the exact two-sided p-values (R,) of "as many images lose as win" (McNemar 1947), for so many (R,) of each.

    Given lost + won, the number of lost ones is Binomial(lost + won, 1/2).
    """
    from scipy.stats import binom

    counts = np.asarray(lost), np.asarray(won)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(*counts), counts[0] + counts[1], 0.5))


def paired_interval(
    lost: ArrayLike, won: ArrayLike, images: ArrayLike, alpha: float
) -> tuple[Floats, Floats]:
    """Return exact limits (R,) of the change in certified share, each covered with probability >= 1 - alpha.

    The change is psi (2 theta - 1): psi is the share of images that change, theta that of the won among these. Clopper and
    Pearson's intervals of theta, at 0.9 alpha, and of psi, at 0.1 alpha, hold together with probability >= 1 - alpha. So
    the interval leaves 0 out exactly where McNemar's exact p-value is at most 0.9 alpha.

    Args:
        lost: Images (R,) that were certified before only.
        won: Images (R,) that are certified after only.
        images: All images (R,).
        alpha: Probability that an interval is wrong, in (0, 1).
    """
    moved = np.asarray(lost) + np.asarray(won)
    theta = binomial_interval(won, np.maximum(moved, 1), SIGN_SHARE * alpha)
    low = np.where(moved == 0, -1.0, 2 * theta[0] - 1)
    high = np.where(moved == 0, 1.0, 2 * theta[1] - 1)
    least, most = binomial_interval(moved, np.asarray(images), (1 - SIGN_SHARE) * alpha)
    return low * np.where(low < 0, most, least), high * np.where(high < 0, least, most)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values (R,) adjusted for their number by Holm (1979): with all null hypotheses true, and whatever the dependence,
    the least of them is at most alpha with probability <= alpha.

    The k-th smallest of R is multiplied by R - k + 1, and none is less than the one before.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)
