"""Stop drawing as soon as the answer is known: one-sided tests of "the top class has probability > p".

A grid of radii gives levels p_1 < p_2 < ..., one for each radius. Level j is claimed once the levels below it
are, so a wrong claim needs the rejection of one particular true hypothesis, the lowest: every level is tested
at the full alpha, whatever their number. Each test has two boundaries, one entry an interim analysis: claim the
level at ``upper`` successes (efficacy), give it up at ``lower`` (futility). Two ways to compute ``upper``:

betting   Wealth that bets against p <= p_0 with a Beta(1/2, 1/2) mixture over (p_0, 1) is a nonnegative
          supermartingale, so it ever reaches 1 / alpha_1 with probability at most alpha_1 (Ville 1939), at
          any analyses and under any stopping. One Clopper-Pearson analysis at the cap has the remaining alpha.
spending  alpha is spent over a fixed schedule of analyses as alpha (t / n)^rho (Kim and DeMets 1987), each
          boundary by exact dynamic programming of the binomial random walk: no slack, fewer draws. rho is fixed by
          the level and n: 1/2 where that saves most, more where n barely reaches the level, so that what is left for
          the last analysis allows nearly as many failures as a single analysis of n draws.

``lower`` is chosen for economy and cannot hurt: giving up claims nothing. It is where even unbroken success
could not reach ``upper`` any more, or where the predictive chance of doing so falls below FUTILITY.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincc, betaln, ndtri
from scipy.stats import binom

from certify.bounds.binomial import binomial_lower_bound, required_successes, smallest_n
from certify.certificate import Certificate, Counts, class_to_bound
from certify.errors import CertifyError
from certify.noise.base import NoiseLaw
from certify.noise.bisection import largest

UNIT = 32  # analyses fall on multiples of this many draws: the chunk of the vote engine
GROWTH = 1.1  # between the sample sizes of analyses
FINAL_SHARE = 0.5  # of alpha, for the analysis at the cap
FUTILITY = 0.05  # predictive chance below which a level is given up
POWERS = (0.5, 1.0, 2.0, 4.0, np.inf)  # rho; the last spends all of alpha at the cap
KEPT = 0.9  # of the failures that a single analysis of n draws allows, to a whole number, at the cap
MARGIN = 1e-6  # in log wealth: above the rounding error of the special functions
LOST_TAIL = 1e-17  # tails of a step that the dynamic programming leaves out
STEP = 0.25  # of the radii that are tested where the caller names none


@dataclass(frozen=True)
class Level:
    """Claim ``radius`` (top class more probable than ``p``) at ``upper`` successes, give up at ``lower``; both (L,)."""

    radius: float
    p: float
    upper: Counts
    lower: Counts


@dataclass(frozen=True)
class Outcome:
    """Votes (N, K) at the last analysis of each image and the number (N,) of levels claimed."""

    counts: Counts
    claimed: Counts


@dataclass(frozen=True)
class Plan:
    """A sequential test of increasing ``levels`` at the sample sizes ``sizes`` (L,), wrong w.p. <= alpha."""

    method: str
    alpha: float
    sizes: Counts
    levels: tuple[Level, ...]

    def run(self, top: Counts, more: Callable[[Counts, int, int], Counts], num_classes: int) -> Outcome:
        """Draw until every image is decided.

        Args:
            top: Selected classes (N,).
            more: ``more(images, first, last)`` returns the votes (len(images), num_classes) of draws
                first..last-1 of the images at these positions.
            num_classes: K.
        """
        counts = np.zeros((len(top), num_classes), dtype=np.int64)
        claimed = np.zeros(len(top), dtype=np.int64)
        within = np.full(len(top), len(self.levels))  # levels not given up
        undecided, first = np.arange(len(top)), 0
        for analysis, last in enumerate(self.sizes):
            counts[undecided] += more(undecided, first, int(last))
            first = int(last)
            successes = counts[undecided, top[undecided]]
            claimed[undecided], within[undecided] = self.analyze(
                analysis, successes, claimed[undecided], within[undecided]
            )
            undecided = undecided[claimed[undecided] < within[undecided]]
            if len(undecided) == 0:
                break
        return Outcome(counts, claimed)

    def analyze(
        self, analysis: int, successes: Counts, claimed: Counts, within: Counts
    ) -> tuple[Counts, Counts]:
        """Levels claimed, and levels that are not given up, after an analysis; all (N,).

        A level is given up for good, even while one below it is undecided: its error was computed so.
        """
        claimed, within = claimed.copy(), within.copy()
        for number, level in enumerate(self.levels):
            claimed[(claimed == number) & (within > number) & (successes >= level.upper[analysis])] += 1
            gone = (claimed <= number) & (successes <= level.lower[analysis])
            within[gone] = np.minimum(within[gone], number)
        return claimed, within

    def certificate(
        self,
        counts0: Counts,
        counts: Counts,
        claimed: int,
        noise: NoiseLaw,
        *,
        subject: str,
        known_class: int | None = None,
    ) -> Certificate:
        """What the test proves of one image, from its votes (K,) at the last analysis and the levels claimed."""
        top = class_to_bound(counts0, known_class)
        p_lower = self.p_lower(claimed, int(counts[top]), int(counts.sum()))
        radius = None
        if claimed or p_lower > 0.5:
            radius = max(noise.radius(p_lower), self.levels[claimed - 1].radius if claimed else 0.0)
        return Certificate.of(
            top,
            radius,
            p_lower,
            counts0,
            counts,
            noise,
            alpha=self.alpha,
            method=self.method,
            subject=subject,
            known_class=known_class is not None,
        )

    def p_lower(self, claimed: int, successes: int, trials: int) -> float:
        """The bound that an image's test proves; 0 if none.

        Betting proves a bound between the levels too: wealth against every p at once, and the analysis at the
        cap. That adds no error: wealth that claims a level above the true p has also crossed at the true p.
        """
        level = self.levels[claimed - 1].p if claimed else 0.0
        if self.method != "sequential":
            return level
        bound = betting_lower_bound(successes, trials, self.alpha * (1 - FINAL_SHARE))
        if trials == self.sizes[-1]:
            bound = max(bound, binomial_lower_bound(successes, trials, self.alpha * FINAL_SHARE))
        return max(level, bound if bound > 0.5 else 0.0)


def analysis_sizes(n: int, unit: int = UNIT) -> Counts:
    """Sample sizes of the analyses: multiples of ``unit`` that grow by about a tenth, then n itself."""
    sizes = [min(unit, n)]
    while sizes[-1] < n:
        step = max(unit, int(np.ceil(sizes[-1] * (GROWTH - 1) / unit)) * unit)
        sizes.append(min(sizes[-1] + step, n))
    return np.array(sizes, dtype=np.int64)


def make_plan(
    noise: NoiseLaw, radii: Sequence[float] | None, n: int, alpha: float, method: str, unit: int = UNIT
) -> Plan:
    """The test of ``radii`` within n draws.

    Args:
        noise: The law that the votes are drawn under.
        radii: To decide (None: 0, 0.25, 0.5, ...); those out of reach of n unbroken successes are left out.
        n: Most draws of an image.
        alpha: Probability of a wrong claim.
        method: "sequential" (betting) or "group_sequential" (spending).
        unit: Analyses fall on multiples of it.

    Raises:
        CertifyError: A radius is negative or not finite, or none is within reach.
    """
    sizes = analysis_sizes(n, unit)
    levels: list[Level] = []
    for radius in increasing_radii(radii):
        p = noise.p_required(radius)
        boundaries = _boundaries(method, p, alpha, tuple(sizes.tolist())) if p < 1 else None
        if boundaries is None:
            break
        levels.append(Level(radius, p, *boundaries))
    if not levels:
        first = 0.0 if radii is None else float(np.min(radii))
        p = max(noise.p_required(first), np.nextafter(0.5, 1))
        remedy = f"use n >= {smallest_n(p, alpha * FINAL_SHARE)}" if p < 1 else "choose a smaller radius"
        raise CertifyError(f"n={n} is too small to certify radius {first:g} at alpha={alpha:g}: {remedy}")
    return Plan(method, alpha, sizes, tuple(levels))


def increasing_radii(radii: Sequence[float] | None) -> Iterable[float]:
    """The radii in order, each once (None: 0, 0.25, 0.5, ...); CertifyError for a negative one or none."""
    if radii is None:
        return (STEP * step for step in range(10_000))  # make_plan stops at the first out of reach
    try:
        values = np.unique(np.asarray(radii, dtype=np.float64))
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if len(values) == 0 or not np.all(np.isfinite(values)) or values[0] < 0:
        raise CertifyError(f"radii must be finite and >= 0, got {radii!r}: try radii=[0.25, 0.5]")
    return values.tolist()


@lru_cache(maxsize=256)
def _boundaries(
    method: str, p: float, alpha: float, analyses: tuple[int, ...]
) -> tuple[Counts, Counts] | None:
    """(upper, lower) of a level, or None if n unbroken successes could not claim it."""
    sizes = np.array(analyses, dtype=np.int64)
    if method == "sequential":
        upper = betting_upper(p, alpha, sizes)
        lower = futile(sizes, upper)
    else:
        goal = required_successes(p, analyses[-1], alpha)
        if goal is None:
            return None
        # Giving up is binding, so its paths spend no alpha; giving up still more, below, only loses claims.
        lower = _unlikely(sizes, goal)
        upper = frugal_upper(p, alpha, sizes, lower)
        lower = np.maximum(lower, futile(sizes, upper))
    return (upper, lower) if np.any(upper <= sizes) else None


# --- claiming -----------------------------------------------------------------------------------------------


def log_wealth(successes: Any, trials: Any, p: Any) -> Any:
    """Log wealth against "probability <= p": int_p^1 (q/p)^S ((1-q)/(1-p))^F dBeta(q; 1/2, 1/2 | q > p).

    Each q > p makes a supermartingale under every probability <= p, and so does their mixture.
    """
    successes = np.asarray(successes, dtype=np.float64)
    failures = trials - successes
    a, b = successes + 0.5, failures + 0.5
    with np.errstate(divide="ignore"):
        inside = np.log(betaincc(a, b, p)) - np.log(betaincc(0.5, 0.5, p))
    return betaln(a, b) - betaln(0.5, 0.5) + inside - successes * np.log(p) - failures * np.log1p(-p)


def betting_upper(p: float, alpha: float, sizes: Counts, final_share: float = FINAL_SHARE) -> Counts:
    """Successes (L,) that claim p: wealth of 1 / ((1 - final_share) alpha), or Clopper-Pearson at the cap."""
    goal = -np.log(alpha * (1 - final_share)) + MARGIN
    low, high = np.floor(sizes * p).astype(np.int64), sizes + 1  # wealth rises with the successes
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = log_wealth(middle, sizes, p) >= goal
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    if final_share > 0:
        last = required_successes(p, int(sizes[-1]), alpha * final_share)
        high[-1] = min(high[-1], high[-1] if last is None else last)
    return high


def betting_lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Lower confidence bound that holds at all sample sizes at once w.p. >= 1 - alpha; 0 if not above 1/2.

    Where the wealth is above 2 it falls with p (the mixture's hazard rate is below 0.64 / (1 - p)), so the
    rejected p form an interval that bisection finds.
    """

    def rejected(p: float) -> bool:
        return bool(log_wealth(successes, trials, p) >= -np.log(alpha) + MARGIN)

    share = successes / trials
    return largest(rejected, 0.5, share) if share > 0.5 and rejected(0.5) else 0.0


def frugal_upper(p: float, alpha: float, sizes: Counts, lower: Counts) -> Counts:
    """``spending_upper`` of alpha in all, by the first of POWERS that keeps KEPT of the failures allowed at the cap."""
    alone = required_successes(p, int(sizes[-1]), alpha)
    needed = 0 if alone is None else np.round(KEPT * (sizes[-1] - alone))
    for power in POWERS:
        upper = spending_upper(p, alpha * (sizes / sizes[-1]) ** power, sizes, lower)
        if sizes[-1] - upper[-1] >= needed:
            break
    return upper


def spending_upper(p: float, spend: NDArray[np.float64], sizes: Counts, lower: Counts) -> Counts:
    """Fewest successes (L,) whose chance of a claim under p, up to each analysis, is at most ``spend`` (L,).

    Exact: the distribution of the successes of paths that are still undecided is carried from analysis to analysis.
    """
    upper = sizes + 1
    alive, offset, spent, drawn = np.ones(1), 0, 0.0, 0
    for analysis, size in enumerate(sizes):
        step = int(size) - drawn
        drawn = int(size)
        fewest = max(0, int(binom.ppf(LOST_TAIL, step, p)) - 1)
        most = min(step, int(binom.isf(LOST_TAIL, step, p)) + 1)
        alive = np.convolve(alive, binom.pmf(np.arange(fewest, most + 1), step, p))
        offset += fewest
        tail = np.cumsum(alive[::-1])[::-1]
        affordable = np.flatnonzero(spent + tail <= spend[analysis] * (1 - 1e-9) - 1e-14)
        if len(affordable):
            cut = int(affordable[0])
            spent += tail[cut]
            alive = alive[:cut]
            upper[analysis] = offset + cut
        dropped = max(0, int(lower[analysis]) + 1 - offset)
        alive, offset = alive[dropped:], offset + dropped
        if len(alive) == 0:
            break
    return upper


# --- giving up ----------------------------------------------------------------------------------------------


def futile(sizes: Counts, upper: Counts) -> Counts:
    """Most successes (L,) at which a level is given up."""
    # The most failures with which some later analysis (or this one) can still be won.
    allowed = np.maximum.accumulate((sizes - upper)[::-1])[::-1]
    goal = int(min(upper[-1], sizes[-1]))
    return np.maximum(_unlikely(sizes, goal), sizes - allowed - 1)


def _unlikely(sizes: Counts, goal: int) -> Counts:
    """Most successes (L,) with a predictive chance below FUTILITY of ``goal`` in all (beta-binomial, normal
    approximation).
    """
    rest = sizes[-1] - sizes
    low, high = np.full(len(sizes), -1, dtype=np.int64), sizes + 1
    while np.any(high - low > 1):
        middle = (low + high) // 2
        rate = (middle + 0.5) / (sizes + 1)
        spread = np.sqrt(rate * (1 - rate) * rest * (1 + rest / (sizes + 1)))
        likely = middle + rest * rate - goal + 0.5 >= ndtri(FUTILITY) * spread
        low, high = np.where(likely, low, middle), np.where(likely, middle, high)
    low[-1] = goal - 1
    return low
