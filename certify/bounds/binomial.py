"""Exact binomial confidence bounds (Clopper and Pearson 1934; Stevens 1950) and the sample sizes that they imply."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from certify.errors import CertifyError, check_alpha, check_count

ROUNDING = 1e-12  # relative; above the error of the beta quantiles, so that every bound errs outwards


def binomial_lower_bound(successes: ArrayLike, trials: ArrayLike, alpha: float) -> Any:
    """One-sided lower bound on a binomial probability, wrong with probability <= ``alpha``; rounded down.

    Args:
        successes: Count, or array of counts.
        trials: Count, or array of counts.
        alpha: In (0, 0.5).

    Returns:
        A float for scalars, a float64 array for arrays.

    Raises:
        CertifyError: Not 0 <= successes <= trials, or no whole numbers.

    Examples:
        >>> round(float(binomial_lower_bound(1900, 2000, alpha=0.001)), 4)
        0.9331
    """
    return _bounds(successes, trials, 2 * check_alpha(alpha))[0]


def randomized_lower_bound(successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike) -> Any:
    """As ``binomial_lower_bound``, but wrong with probability ``alpha`` exactly (Stevens 1950); never below it.

    Counts are discrete, so Clopper and Pearson's bound is wrong less often than alpha. With U ~ uniform(0, 1) drawn
    apart from the votes, V(p) = P(K > k) + U P(K = k) under Binomial(n, p) is itself uniform at the true p. It
    increases with p, and the bound solves V(p) = alpha. At U = 1 it is Clopper and Pearson's.

    Of n unbroken successes V(p) = U p^n, so that U < alpha would prove p = 1. U counts as at least 2 alpha there: no
    bound is above 2^(-1/n), and it is wrong with probability alpha below that p, and 0 above.

    Args:
        successes, trials, alpha: As in ``binomial_lower_bound``.
        uniform: U in [0, 1), one draw for each bound, made before the votes are known.

    Raises:
        CertifyError: As ``binomial_lower_bound``, or U is outside [0, 1).
    """
    low = np.asarray(binomial_lower_bound(successes, trials, alpha))
    k, n, u, low = np.broadcast_arrays(
        _whole(successes, "successes"), _whole(trials, "trials"), _share(uniform), low
    )
    u = np.where(k == n, np.maximum(u, 2 * alpha), u)
    low, high = low.copy(), np.ones(low.shape)
    for _ in range(55):  # to the spacing of float64 in [0, 1]
        middle = (low + high) / 2
        below = (1 - u) * _at_least(k + 1, n, middle) + u * _at_least(k, n, middle) <= alpha
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    low = np.maximum(low * (1 - ROUNDING), binomial_lower_bound(k, n, alpha))
    return float(low) if low.ndim == 0 else low


def binomial_upper_bound(successes: ArrayLike, trials: ArrayLike, alpha: float) -> Any:
    """One-sided upper bound on a binomial probability; as ``binomial_lower_bound``, rounded up."""
    return _bounds(successes, trials, 2 * check_alpha(alpha))[1]


def binomial_interval(successes: ArrayLike, trials: ArrayLike, alpha: float = 0.05) -> tuple[Any, Any]:
    """Two-sided Clopper-Pearson interval (lower, upper) at level 1 - alpha, rounded outwards.

    Arguments and errors as ``binomial_lower_bound``.

    Examples:
        >>> lower, upper = binomial_interval(90, 100)
        >>> round(float(lower), 4), round(float(upper), 4)
        (0.8238, 0.951)
    """
    return _bounds(successes, trials, check_alpha(alpha))


def smallest_n(p_required: float, alpha: float) -> int:
    """Smallest n for which n successes in n trials have a lower bound of at least ``p_required``.

    The bound is then alpha^(1/n) (Cohen et al. 2019).

    Raises:
        CertifyError: ``p_required`` is not in (0, 1).
    """
    alpha = check_alpha(alpha)
    if not 0 < p_required < 1:
        raise CertifyError(
            f"p_required must be in (0, 1), got {p_required!r}: no n certifies it, choose a smaller radius"
        )
    n = max(1, math.ceil(math.log(alpha) / math.log(p_required)) - 1)
    while alpha ** (1 / n) * (1 - ROUNDING) < p_required:
        n += 1
    return n


def required_successes(p_required: float, trials: int, alpha: float) -> int | None:
    """Fewest successes in ``trials`` with a lower bound >= ``p_required``; None if all do not suffice."""
    low, high = 0, check_count("trials", trials)
    if binomial_lower_bound(high, high, alpha) < p_required:
        return None
    while low < high:  # the bound increases with the successes
        middle = (low + high) // 2
        if binomial_lower_bound(middle, trials, alpha) >= p_required:
            high = middle
        else:
            low = middle + 1
    return high


def _bounds(successes: ArrayLike, trials: ArrayLike, alpha: float) -> tuple[Any, Any]:
    from statsmodels.stats.proportion import proportion_confint  # imports pandas: not at module level

    k, n = np.broadcast_arrays(_whole(successes, "successes"), _whole(trials, "trials"))
    k, n = k.copy(), n.copy()
    if np.any(n < 1):
        raise CertifyError(f"trials must be >= 1, got {n[n < 1].flat[0]:g}: draw at least one sample")
    outside = (k < 0) | (k > n)
    if np.any(outside):
        at = f"{k[outside].flat[0]:g} of {n[outside].flat[0]:g}"
        raise CertifyError(f"successes must be between 0 and trials, got {at}: pass counts, not proportions")
    lower, upper = proportion_confint(k, n, alpha=alpha, method="beta")
    lower = np.where(k == 0, 0.0, np.asarray(lower) * (1 - ROUNDING))
    upper = np.where(k == n, 1.0, np.minimum(np.asarray(upper) * (1 + ROUNDING), 1.0))
    return (float(lower), float(upper)) if k.ndim == 0 else (lower, upper)


def _at_least(k: NDArray[np.float64], n: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(K >= k) under Binomial(n, p)."""
    inside = betainc(np.clip(k, 1, n), np.maximum(n - k + 1, 1), p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, inside))


def _share(uniform: ArrayLike) -> NDArray[np.float64]:
    u = np.asarray(uniform, dtype=np.float64)
    if not np.all((u >= 0) & (u < 1)):
        raise CertifyError(f"uniform must be in [0, 1), got {uniform!r}: draw it from a seeded generator")
    return u


def _whole(value: ArrayLike, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise CertifyError(f"{name} must be an integer or an array, got {value!r}: pass counts") from None
    wrong = ~np.isfinite(array) | (array != np.floor(array))
    if np.any(wrong):
        raise CertifyError(
            f"{name} must be whole numbers, got {array[wrong].flat[0]}: pass counts, not proportions"
        )
    return array
