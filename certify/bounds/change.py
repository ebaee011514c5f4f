"""How often an answer changes: tests of one image's "at most a share q changes", and one bound for many images.

One image has an unknown probability p that its answer changes under one draw of a law. ``ChangePlan`` decides
"p <= q" by labels under fresh draws; its two claims are each wrong with probability at most alpha:

proven    p <= q.   The fewest labels that can: the smallest n with (1 - q)^n <= alpha, none of which changes.
refuted   p > q.

Method "fixed" looks once, after n labels (Clopper and Pearson 1934). Method "sequential" looks several times and
stops as soon as either is claimed, or as soon as no number of unchanged labels to come could prove q. Its boundaries
spend alpha over the looks by exact dynamic programming of the binomial walk (``sequential.spending_upper``): on the
first possible one exactly what an unbroken run needs, so that an image that never changes is proven by as few labels
as with a single look; the rest in proportion to the labels after it. To look often and to stop when the ordinary bound
is good is wrong far more often than alpha.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from certify.bounds.binomial import binomial_upper_bound, required_successes, smallest_n
from certify.bounds.sequential import spending_upper
from certify.certificate import Counts
from certify.errors import CertifyError, check_alpha, check_count

CHANGE_METHODS = ("sequential", "fixed")
PROVEN, REFUTED, OPEN = "proven", "refuted", "open"
UNIT = 16  # looks before the first that can prove q fall on multiples of it
GROWTH = 1.25  # between the sample sizes of looks after it
CAP = 3  # labels at most, in multiples of the fewest that can prove q, where n is not given
LARGEST_ALPHA = 0.25  # of the pooled bound


@dataclass(frozen=True)
class ChangePlan:
    """The looks of a test of "p <= q": the most changes that prove it and the fewest that refute it, both (L,).

    Attributes:
        q: In (0, 1).
        alpha: Probability of a wrong claim, of either kind.
        method: "fixed" or "sequential".
        sizes: Labels (L,) at each look.
        proving: -1 where a look can't prove q.
        refuting: Above the look's labels where it can't refute q.
    """

    q: float
    alpha: float
    method: str
    sizes: Counts
    proving: Counts
    refuting: Counts

    @property
    def n(self) -> int:
        """Labels of an image, at most."""
        return int(self.sizes[-1])

    def verdict(self, look: int, changes: int) -> str | None:
        """PROVEN, REFUTED, OPEN where nothing to come could prove q, or None where the next look decides."""
        if changes <= self.proving[look]:
            return PROVEN
        if changes >= self.refuting[look]:
            return REFUTED
        return OPEN if changes > self.proving[look:].max() else None


def fewest_labels(q: float, alpha: float) -> int:
    """The fewest labels that prove p <= q, none of which changes: 66, 135, 688 for q = .1, .05, .01 at alpha = .001.

    Raises:
        CertifyError: q is not in (0, 1), or alpha not in (0, 0.5).
    """
    if isinstance(q, bool) or not isinstance(q, float | int) or not 0 < q < 1:
        raise CertifyError(f"q must be in (0, 1), got {q!r}: the share of draws that may change, e.g. q=0.1")
    return smallest_n(1 - q, check_alpha(alpha))


def change_plan(
    q: float, n: int | None = None, alpha: float = 0.001, method: str = "sequential"
) -> ChangePlan:
    """The test of "the answer changes with probability at most q".

    Args:
        q: In (0, 1).
        n: Labels of an image: all of them, or at most. None: the fewest that can prove q ("fixed"), or three times as
            many ("sequential"), which also prove it for an image of few changes.
        alpha: Probability of a wrong claim.
        method: "fixed" or "sequential".

    Raises:
        CertifyError: A value that can't be used, or n is too small to prove q.
    """
    fewest = fewest_labels(q, alpha)
    if method not in CHANGE_METHODS:
        known = ", ".join(CHANGE_METHODS)
        raise CertifyError(f"method must be one of {known}, got {method!r}: try method='sequential'")
    if n is None:
        n = fewest if method == "fixed" else CAP * fewest
    if check_count("n", n) < fewest:
        raise CertifyError(f"n={n} is too small to prove q={q:g} at alpha={alpha:g}: use n >= {fewest}")
    return _plan(float(q), int(n), float(alpha), method)


@lru_cache(maxsize=64)
def _plan(q: float, n: int, alpha: float, method: str) -> ChangePlan:
    if method == "fixed":
        return _single_look(q, n, alpha)
    fewest = smallest_n(1 - q, alpha)
    sizes = _looks(fewest, n)
    never = np.full(len(sizes), -1, dtype=np.int64)
    unchanged_run = (1 - q) ** fewest * (
        1 + 1e-6
    )  # spent exactly; above the slack of the dynamic programming
    later = (sizes - fewest) / max(1, n - fewest)
    spend = np.where(sizes < fewest, 0.0, np.minimum(unchanged_run + (alpha - unchanged_run) * later, alpha))
    unchanged = spending_upper(1 - q, spend, sizes, never)
    changed = spending_upper(q, alpha * sizes / n, sizes, never)
    return ChangePlan(q, alpha, method, sizes, np.maximum(sizes - unchanged, -1), changed)


def _single_look(q: float, n: int, alpha: float) -> ChangePlan:
    unchanged, changed = required_successes(1 - q, n, alpha), required_successes(q, n, alpha)
    proving = np.array([-1 if unchanged is None else n - unchanged], dtype=np.int64)
    refuting = np.array([n + 1 if changed is None else changed], dtype=np.int64)
    return ChangePlan(q, alpha, "fixed", np.array([n], dtype=np.int64), proving, refuting)


def _looks(fewest: int, n: int) -> Counts:
    """Multiples of UNIT below the fewest labels that prove q, these, and from there on a quarter more, up to n."""
    sizes = [*range(UNIT, fewest, UNIT), fewest]
    while sizes[-1] < n:
        following = max(sizes[-1] + UNIT, int(sizes[-1] * GROWTH))
        sizes.append(following if n - following >= UNIT else n)
    return np.array(sizes, dtype=np.int64)


def pooled_upper_bound(changes: ArrayLike, labels: ArrayLike, alpha: float) -> float:
    """Upper bound on the mean change probability of images, each with the same number of labels that was fixed before.

    Image i has its own p_i, so that the changes S of all M labels are a sum of independent Bernoulli variables of
    different means, of mean P = mean(p_i). The bound is Clopper and Pearson's for (S, M), and 1 where S >= M - 1. It
    is below P with probability at most alpha:

    The bound u(s) rises with s, so it is below P exactly where S <= k, the largest s with u(s) < P; then k <= M - 2
    and P(Bin(M, P) <= k) < alpha. Hoeffding (1956, theorem 4): P(S <= k) <= P(Bin(M, P) <= k) wherever k <= M P - 1.
    That holds here: else k >= floor(M P), and as k <= M - 2 it follows that P < 1 - 1 / M, for which Greenberg and
    Mohri (2014) have P(Bin(M, P) <= floor(M P)) > 1/4 >= alpha, against the above. (At S = M - 1 it may fail: there
    are p_i for which Clopper and Pearson's bound of the pooled counts is wrong more often than alpha.)

    Args:
        changes: Of each image, or all together.
        labels: Of each image, the same number; or all together.
        alpha: In (0, 0.25].

    Raises:
        CertifyError: Another alpha, or no counts.
    """
    if check_alpha(alpha) > LARGEST_ALPHA:
        raise CertifyError(
            f"alpha must be at most {LARGEST_ALPHA} for a pooled bound, got {alpha!r}: try 0.001"
        )
    changed, drawn = int(np.sum(changes)), int(np.sum(labels))
    bound = binomial_upper_bound(changed, drawn, alpha)
    return 1.0 if changed >= drawn - 1 else float(bound)


def most_wrong_claims(images: int, alpha: float) -> int:
    """How many of the images' claims may be wrong: more are with probability at most alpha.

    Each claim is wrong with probability at most alpha, and the draws of different images are independent: the number
    of wrong ones is stochastically below Bin(images, alpha), of which this is the 1 - alpha quantile.

    Raises:
        CertifyError: No images, or alpha is not in (0, 0.5).
    """
    images, alpha = check_count("images", images), check_alpha(alpha)
    wrong = int(binom.ppf(1 - alpha, images, alpha))
    while binom.sf(wrong, images, alpha) > alpha:  # where rounding went the other way
        wrong += 1
    return wrong
