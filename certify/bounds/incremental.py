"""Incremental randomized smoothing (Ugare et al. 2024, arXiv 2305.19521): a new version's bound from an old one's count."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound
from certify.errors import CertifyError, check_alpha

SHARE = 0.5  # of alpha, for the old version's probability


def incremental_lower_bound(
    successes: ArrayLike, trials: ArrayLike, lost: ArrayLike, pairs: ArrayLike, alpha: float
) -> Any:
    """Lower bound on the new version's probability of a class: p_new >= p_old - zeta; 0 where that is negative.

    zeta is the probability that the old version answers the class and the new one does not: answers that change
    between other classes, or to this one, take nothing from it. Each of the two bounds has half of alpha. zeta is
    of one image: a bound over a whole set says nothing of the image that changed most, and no certificate may use it.

    Sound for every old version that is fixed before the draws, where the successes are its own. Records of another
    model void it: ``certify_from_old`` does not have that condition.

    Args:
        successes: Votes of the old version for the class, which was chosen on other draws.
        trials: All of these votes, a number that does not follow from them.
        lost: Of ``pairs``, where the old version answered the class and the new one did not.
        pairs: Fresh draws that both versions answered, a fixed number.
        alpha: In (0, 0.5).

    Returns:
        A float for scalars, a float64 array for arrays.

    Raises:
        CertifyError: Counts out of range, or more losses than pairs.
    """
    alpha = check_alpha(alpha)
    if np.any(np.asarray(lost) > np.asarray(pairs)):
        raise CertifyError(f"lost must be at most pairs, got {lost!r} of {pairs!r}: count the same draws")
    p_old = binomial_lower_bound(successes, trials, alpha * SHARE)
    zeta = binomial_upper_bound(lost, pairs, alpha * (1 - SHARE))
    bound = np.maximum(np.asarray(p_old) - np.asarray(zeta), 0.0)
    bound = np.where(bound > 0, np.nextafter(bound, 0.0), 0.0)  # the difference is rounded
    return float(bound) if bound.ndim == 0 else bound
