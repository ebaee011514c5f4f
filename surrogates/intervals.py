"""Confidence intervals of shares, and of the area under the ROC curve (AUC) of a score."""

import numpy as np
from numpy.typing import NDArray


def clopper_pearson(successes: int, trials: int, tail: float) -> tuple[float, float]:
    """Return the lower and the upper bound of a probability (Clopper & Pearson, 1934).

    Args:
        tail: Probability with which each bound fails at most.
    """
    from statsmodels.stats.proportion import proportion_confint  # imports pandas: not at module level

    lower, upper = proportion_confint(successes, trials, alpha=2 * tail, method="beta")
    return float(lower), float(upper)


def auc_interval(positives: NDArray, negatives: NDArray, tail: float) -> tuple[float, float, float]:
    """Return (AUC, lower, upper) of two groups of scores; ties count one half.

    DeLong, DeLong & Clarke-Pearson (1988), normal on the logit scale. Where they estimate a variance of 0 (all pairs in
    order, or all tied) the bound is that of min(P, N) independent pairs.

    Args:
        positives: (P,).
        negatives: (N,).
        tail: Probability with which each bound fails, about.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm

    by_positive, by_negative = placements(positives, negatives)
    auc = float(by_positive.mean())
    deviation = _standard_error(by_positive, by_negative)
    if deviation == 0 or auc in (0.0, 1.0):
        slack = 1 - tail ** (1 / min(len(positives), len(negatives)))
        return auc, max(0.0, auc - slack), min(1.0, auc + slack)
    reach = norm.isf(tail) * deviation / (auc * (1 - auc))
    return auc, float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach))


def auc_difference_interval(
    first: tuple[NDArray, NDArray], second: tuple[NDArray, NDArray], tail: float
) -> tuple[float, float, float]:
    """Return AUC(first) - AUC(second) with its lower and upper bound.

    Both are scores of the same positives (P,) and negatives (N,), and the pairing is used: DeLong, DeLong &
    Clarke-Pearson (1988).
    """
    from scipy.stats import norm

    gaps = [a - b for a, b in zip(placements(*first), placements(*second), strict=True)]
    difference, reach = float(gaps[0].mean()), float(norm.isf(tail) * _standard_error(*gaps))
    return difference, max(-1.0, difference - reach), min(1.0, difference + reach)


def placements(positives: NDArray, negatives: NDArray) -> tuple[NDArray, NDArray]:
    """Return for each positive (P,) the share of negatives below it, for each negative (N,) that of positives above."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positives, negatives]))
    above = ranks[: len(positives)] - rankdata(positives)
    below = ranks[len(positives) :] - rankdata(negatives)
    return above / len(negatives), 1 - below / len(positives)


def _standard_error(by_positive: NDArray, by_negative: NDArray) -> float:
    parts = [
        values.var(ddof=1) / len(values) if len(values) > 1 else 0.0 for values in (by_positive, by_negative)
    ]
    return float(np.sqrt(sum(parts)))
