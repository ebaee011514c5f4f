"""Stop early, two-sided: claim a radius once the top class is likely enough *or* every rival is unlikely enough with it.

A radius r is proven by one number, p_A > p_required(r), or by a pair: p_A > a and p_j < b for every rival j, where a and b
have the two-sided radius r (``bounds.two_sided``). Each radius gets a few pairs, with b a fixed share of 1 - a.

All pairs of all radii are tested at once, and none takes a share of alpha of its own:

1. The levels a of all pairs stand in one chain, a_1 < a_2 < ...; "p_A > a_i" is claimed once it and the levels below it
   have crossed their boundaries. A false claim needs the lowest a_i >= p_A to cross: probability 0.9 alpha, as each
   boundary spends that over the analyses (``bounds.sequential``). The levels b likewise, from above: 0.1 alpha for a
   rival that was named beforehand.
2. Let B be the truly strongest rival. Its votes are at most those of the rival that is strongest in the votes, which
   must cross; so a claim "every rival < b" is a claim about B. A radius that is too long needs a false claim about A
   or about B: at most alpha, whatever the number of classes, pairs and radii.

Giving up claims nothing, and here nothing depends on it: boundaries are computed as if every path went on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from certify.bounds.binomial import smallest_n
from certify.bounds.sequential import (
    UNIT,
    Outcome,
    analysis_sizes,
    frugal_upper,
    futile,
    increasing_radii,
)
from certify.bounds.two_sided import TOP_SHARE, check_two_sided
from certify.certificate import Certificate, Counts, class_to_bound
from certify.errors import CertifyError
from certify.noise.base import NoiseLaw
from certify.noise.bisection import largest

METHOD = "group_sequential_two_sided"
SHARES = (0.75, 0.55, 0.4, 0.28, 0.18)  # of 1 - a, that a pair leaves the strongest rival
NEGLIGIBLE = 1e-15  # chance of the lowest paths, which the boundaries leave out
MOST_RADII = 40  # without radii of the caller's

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Chain:
    """Increasing levels p (M,), each claimed at ``upper`` (M, L) successes and hopeless at ``lower`` (M, L)."""

    p: NDArray[np.float64]
    upper: Counts
    lower: Counts

    def claimed(self, crossed: Mask) -> Counts:
        """Levels (N,) that are claimed: those before the first that did not cross (N, M)."""
        return np.cumprod(crossed, axis=1, dtype=np.int64).sum(axis=1)


@dataclass(frozen=True)
class PairPlan:
    """A test of increasing ``radii`` at the sample sizes ``sizes`` (L,), wrong w.p. <= alpha.

    Attributes:
        top: Levels of p_A.
        rival: Levels of 1 - p_j.
        pairs: Of each radius, how many levels of ``top`` and of ``rival`` must be claimed.
    """

    alpha: float
    sizes: Counts
    radii: tuple[float, ...]
    top: Chain
    rival: Chain
    pairs: tuple[tuple[tuple[int, int], ...], ...]

    def run(self, top: Counts, more: Callable[[Counts, int, int], Counts], num_classes: int) -> Outcome:
        """Draw until every image is decided; arguments as ``Plan.run``. ``claimed`` counts radii."""
        counts = np.zeros((len(top), num_classes), dtype=np.int64)
        state = _State.of(len(top), self)
        undecided, first = np.arange(len(top)), 0
        for analysis, last in enumerate(self.sizes):
            counts[undecided] += more(undecided, first, int(last))
            first = int(last)
            open_ = self._analyze(analysis, counts[undecided], top[undecided], state, undecided)
            undecided = undecided[open_]
            if len(undecided) == 0:
                break
        return Outcome(counts, state.radii)

    def _analyze(self, analysis: int, counts: Counts, top: Counts, state: "_State", images: Counts) -> Mask:
        """Claim what crossed; which images (N,) still have a longer radius within reach."""
        rows, size = np.arange(len(counts)), self.sizes[analysis]
        wins = counts[rows, top][:, None]
        others = counts.copy()
        others[rows, top] = 0
        misses = size - others.max(axis=1)[:, None]  # draws that the strongest rival did not get
        state.top_crossed[images] |= wins >= self.top.upper[:, analysis]
        state.rival_crossed[images] |= misses >= self.rival.upper[:, analysis]
        a = self.top.claimed(state.top_crossed[images])
        b = self.rival.claimed(state.rival_crossed[images])
        # The lowest level that is neither claimed nor possible any more bounds what can still be claimed.
        a_most = self.top.claimed(state.top_crossed[images] | (wins > self.top.lower[:, analysis]))
        b_most = self.rival.claimed(state.rival_crossed[images] | (misses > self.rival.lower[:, analysis]))
        open_ = np.zeros(len(counts), dtype=bool)
        for number, pairs in enumerate(self.pairs, start=1):
            proven = np.any([(a >= i) & (b >= j) for i, j in pairs], axis=0)
            within = np.any([(a_most >= i) & (b_most >= j) for i, j in pairs], axis=0)
            state.radii[images[proven]] = number
            open_ = (open_ & ~proven) | (within & ~proven)
        return open_

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
        """What the test proves of one image: the longest radius that was claimed, and what each of its pairs says of p."""
        levels = [i for i, _ in self.pairs[claimed - 1]] if claimed else [0]
        return Certificate.of(
            class_to_bound(counts0, known_class),
            self.radii[claimed - 1] if claimed else None,
            float(self.top.p[min(levels) - 1]) if claimed else 0.0,
            counts0,
            counts,
            noise,
            alpha=self.alpha,
            method=METHOD,
            subject=subject,
            known_class=known_class is not None,
        )


@dataclass
class _State:
    """Of every image: which levels crossed (N, M), and how many radii are claimed (N,)."""

    top_crossed: Mask
    rival_crossed: Mask
    radii: Counts

    @classmethod
    def of(cls, images: int, plan: PairPlan) -> "_State":
        top, rival = (np.zeros((images, len(chain.p)), dtype=bool) for chain in (plan.top, plan.rival))
        return cls(top, rival, np.zeros(images, dtype=np.int64))


def make_pair_plan(
    noise: NoiseLaw, radii: Sequence[float] | None, n: int, alpha: float, unit: int = UNIT
) -> PairPlan:
    """The test of ``radii`` within n draws; arguments and errors as ``make_plan``, and a law without two-sided radii."""
    check_two_sided(noise)
    sizes = analysis_sizes(n, unit)
    schedule = tuple(sizes.tolist())
    wanted: list[tuple[float, list[tuple[float, float]]]] = []
    for radius, _ in zip(increasing_radii(radii), range(MOST_RADII), strict=False):
        pairs = [
            (a, b)
            for a, b in pairs_of(noise, radius)
            if _reachable(a, TOP_SHARE * alpha, schedule)
            and (b >= 1 or _reachable(1 - b, (1 - TOP_SHARE) * alpha, schedule))
        ]
        if not pairs:
            break
        wanted.append((radius, pairs))
    if not wanted:
        first = 0.0 if radii is None else float(np.min(radii))
        p = max(noise.p_required(first), np.nextafter(0.5, 1))
        remedy = f"use n >= {smallest_n(p, alpha * TOP_SHARE)}" if p < 1 else "choose a smaller radius"
        raise CertifyError(f"n={n} is too small to certify radius {first:g} at alpha={alpha:g}: {remedy}")
    top = sorted({a for _, pairs in wanted for a, _ in pairs})
    rival = sorted({1 - b for _, pairs in wanted for _, b in pairs if b < 1})
    return PairPlan(
        alpha,
        sizes,
        tuple(radius for radius, _ in wanted),
        _chain(top, TOP_SHARE * alpha, schedule),
        _chain(rival, (1 - TOP_SHARE) * alpha, schedule),
        tuple(
            tuple((top.index(a) + 1, rival.index(1 - b) + 1 if b < 1 else 0) for a, b in pairs)
            for _, pairs in wanted
        ),
    )


@lru_cache(maxsize=256)
def pairs_of(noise: NoiseLaw, radius: float) -> tuple[tuple[float, float], ...]:
    """Pairs (a, b) that prove ``radius``: p_A > a alone, with b = 1; then b = share (1 - a), the least a for each share."""
    alone = float(noise.p_required(radius))
    pairs = [(alone, 1.0)] if alone < 1 else []
    for share in SHARES:
        low, high = share / (1 + share), min(alone, 1 - 1e-12)

        def fails(a: float, share: float = share) -> bool:
            return not noise.wins(a, share * (1 - a), radius)

        below = largest(fails, low, high, steps=40) if fails(low) else low
        a = below + (high - low) * 2.0**-39
        if a < high and noise.wins(a, share * (1 - a), radius):
            pairs.append((a, share * (1 - a)))
    return tuple(pairs)


def _chain(levels: list[float], alpha: float, schedule: tuple[int, ...]) -> Chain:
    bounds = [_boundaries(p, alpha, schedule) for p in levels]
    shape = (len(levels), len(schedule))
    upper = np.array([upper for upper, _ in bounds], dtype=np.int64).reshape(shape)
    lower = np.array([lower for _, lower in bounds], dtype=np.int64).reshape(shape)
    return Chain(np.array(levels), upper, lower)


def _reachable(p: float, alpha: float, schedule: tuple[int, ...]) -> bool:
    return bool(p < 1 and np.any(_boundaries(p, alpha, schedule)[0] <= schedule))


@lru_cache(maxsize=1024)
def _boundaries(p: float, alpha: float, schedule: tuple[int, ...]) -> tuple[Counts, Counts]:
    """(upper, lower) of a level; no path is taken to be given up, but for the lowest ones, of negligible chance."""
    sizes = np.array(schedule, dtype=np.int64)
    negligible = binom.ppf(NEGLIGIBLE, sizes, p).astype(np.int64) - 1
    upper = frugal_upper(p, alpha - len(sizes) * NEGLIGIBLE, sizes, negligible)
    return upper, futile(sizes, upper)
