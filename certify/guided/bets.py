"""The surrogate as guide: certify the target with fewer paid queries, soundly whatever the surrogate.

For the same noise draw the surrogate's answer is free and the target's is paid for. Draws fall into strata by
the surrogate's confidence (``calibration``); w_k is the share of stratum k and rho_k the rate at which the
target votes for the class in it, so p = sum_k w_k rho_k. One paid query is a round: B fresh draws, of which
b_k fall in stratum k; one is picked with odds h_k, the tilt of its stratum, and the target votes X on it. With
W = (sum_j b_j h_j / B) / h_k, the weight that undoes the tilt, and any numbers f,

    Z = sum_j (b_j / B) f_j  +  W (X - f_k)         has mean p:

picking undoes itself, f cancels, and w_k is never needed. So 1 + theta (Z - p_0) has mean at most 1 wherever
p <= p_0, and their product over the rounds is wealth that ever reaches 1 / alpha with probability at most
alpha (Ville 1939) when theta, f and h are fixed before the round. f may also depend on the round's strata
(its mean does not), which keeps every factor nonnegative.

The bets: a belief about the rates rho is best played (Kelly; the reverse information projection of Larsson,
Ramdas and Ruf 2024) with f = rho', the rates nearest to it in Kullback-Leibler divergence among those with
sum_k w_k rho'_k = p_0, and theta the multiplier of that constraint: one bisection. Wealth is shared out over
many beliefs by their prior weights, among them the flat ones that ignore the guide; the tilt is the one of a
few under which the beliefs expect most growth. Stratified audits (Spertus and Stark 2022) multiply a
martingale per stratum instead and minimize over all rates; that needs the w_k, hence a share of alpha, and
pays for the estimate of every stratum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, xlogy

from certify.guided.calibration import STRATA, Calibration
from certify.noise.base import FloatArray

TILTS = (1.0, 0.7, 0.5, 0.35, 0.25)  # smallest odds of a stratum; 1: no stratum is preferred
SMALLEST_BATCH, LARGEST_SHARE = 4, 1 / 6  # paid votes under the same bets, and their share of those before
OPTIMISM = 1.6  # largest growth, over that of the unguided test
HOPELESS = 0.05  # chance of a claim below which an image is given up
MARGIN = 1e-6  # in log wealth: above rounding error


@dataclass(frozen=True)
class Bets:
    """What is fixed before a batch of paid votes.

    Attributes:
        tilt: Odds of the strata (K,).
        theta: Stakes of the beliefs (J,).
        null: Rates (J, K) that the beliefs bet against.
        growth: Of the log wealth, expected in a round.
    """

    tilt: FloatArray
    theta: FloatArray
    null: FloatArray
    growth: float


class GuidedTest:
    """Tests one image's "the class has probability > p" by at most ``n`` paid votes, at level ``alpha``."""

    def __init__(self, p: float, alpha: float, n: int, calibration: Calibration, pilot: NDArray[np.int64]):
        self.p, self.n, self.goal = p, n, -np.log(alpha) + MARGIN
        self.rates, self.log_prior = calibration.rates, np.log(calibration.prior)
        self.free = np.bincount(pilot, minlength=STRATA).astype(np.float64)
        self.trials, self.successes = np.zeros(STRATA), np.zeros(STRATA)
        self.wealth = np.zeros(len(self.rates))  # log wealth of each belief
        self.best = -np.inf  # log wealth, all together

    @property
    def paid(self) -> int:
        """Paid votes so far."""
        return int(self.trials.sum())

    @property
    def claimed(self) -> bool:
        """Whether the level is claimed, for good."""
        return self.best >= self.goal

    def outlook(self) -> tuple[float, float]:
        """Chance of a claim within the remaining votes, and the votes that it is expected to take.

        A chance below HOPELESS counts as 0.
        """
        shares, weights = self._shares(), self._posterior()
        means = self.rates @ shares
        growth = np.where(means > self.p, _divergence(means, self.p), 0.0) * OPTIMISM
        need = self.goal - max(0.0, self._log_wealth())
        able = growth * (self.n - self.paid) > max(need, MARGIN)
        chance = float(weights[able].sum())
        if chance < HOPELESS:
            return 0.0, np.inf
        return chance, float(weights[able] @ (need / growth[able])) / chance

    def bets(self) -> Bets | None:
        """The bets of the next batch, None if no belief expects to win."""
        shares, weights = self._shares(), self._posterior()
        weights = weights * (self.rates @ shares > self.p)  # bets matter only if the claim is true
        if not weights.sum() > 0:
            return None
        mean = (weights / weights.sum()) @ self.rates
        spread = np.sqrt(mean * (1 - mean))
        spread /= spread[shares > 1e-4].max()
        best = -np.inf
        for least in TILTS:
            candidate = np.clip(spread, least, 1.0)
            odds = shares * candidate / (shares @ candidate)
            null = project(mean[None], shares, odds, self.p)[1][0]
            growth = float(odds @ _divergence(mean, null))
            if growth > best * 1.001:
                best, tilt, picked = growth, candidate, odds
        return Bets(tilt, *project(self.rates, shares, picked, self.p), best)

    def batch_size(self, bets: Bets) -> int:
        """Paid votes under these bets: as many as they expect to need, within bounds."""
        need = (self.goal - max(0.0, self._log_wealth())) / max(bets.growth, 1e-9)
        most = max(32, int(self.paid * LARGEST_SHARE))
        return min(max(int(np.ceil(min(need, most))), SMALLEST_BATCH), self.n - self.paid)

    def settle(self, bets: Bets, strata: NDArray[np.int64], picks: NDArray[np.int64], won: ArrayLike) -> None:
        """Update the wealth by m rounds: strata (m, B) of the free draws, the picks (m,) and their votes (m,) 0/1."""
        rounds = np.arange(len(strata))
        shares = np.zeros((len(strata), STRATA))
        np.add.at(shares, (rounds[:, None], strata), 1 / strata.shape[1])
        own, vote = strata[rounds, picks], np.asarray(won, dtype=np.float64)
        tilt = shares @ bets.tilt
        weight = tilt / bets.tilt[own]
        theta, control = bets.theta[:, None], bets.null @ shares.T  # (J, 1), (J, m)
        # The smallest factor that this round could bring, over the strata that are present in it.
        heaviest = np.where(shares > 0, (bets.null / bets.tilt)[:, None, :], 0.0).max(axis=2)
        safe = 1 + theta * (control - self.p - tilt * heaviest) >= 0
        controlled = 1 + theta * (control - self.p + weight * (vote - bets.null[:, own]))
        factors = np.where(safe, controlled, 1 + theta * (weight * vote - self.p))
        with np.errstate(divide="ignore"):
            self.wealth += np.log(np.maximum(factors, 0.0)).sum(axis=1)
        self.free += np.bincount(strata.ravel(), minlength=STRATA)
        np.add.at(self.trials, own, 1)
        np.add.at(self.successes, own, vote)
        self.best = max(self.best, self._log_wealth())

    def _log_wealth(self) -> float:
        return float(logsumexp(self.log_prior + self.wealth))

    def _shares(self) -> FloatArray:
        return self.free / self.free.sum()

    def _posterior(self) -> FloatArray:
        log = self.log_prior + np.log(self.rates) @ self.successes
        log += np.log1p(-self.rates) @ (self.trials - self.successes)
        return np.exp(log - logsumexp(log))


def project(
    rates: FloatArray, shares: FloatArray, picked: FloatArray, p: float
) -> tuple[FloatArray, FloatArray]:
    """theta (J,) and the null rates (J, K): least sum_k picked_k KL(rates_k || null_k), shares . null = p.

    theta is in [0, 1 / p], and 0 for a belief that is in the null itself.
    """
    ratio = shares / np.maximum(picked, 1e-300)

    def null(theta: FloatArray) -> FloatArray:
        pull = theta[:, None] * ratio
        return 2 * rates / (pull + 1 + np.sqrt(np.maximum((pull + 1) ** 2 - 4 * pull * rates, 0)))

    low, high = np.zeros(len(rates)), np.full(len(rates), 1 / p)
    for _ in range(40):
        middle = (low + high) / 2
        above = null(middle) @ shares > p
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    inside = rates @ shares <= p
    return np.where(inside, 0.0, low), np.where(inside[:, None], rates, null(low))


def pick_draws(strata: NDArray[np.int64], tilt: FloatArray, random: np.random.Generator) -> NDArray[np.int64]:
    """One of the B draws of each round (m, B), with odds ``tilt`` of its stratum: (m,)."""
    odds = np.cumsum(tilt[strata], axis=1)
    point = random.random((len(odds), 1)) * odds[:, -1:]
    return np.minimum((odds <= point).sum(axis=1), strata.shape[1] - 1)


def _divergence(rates: FloatArray, null: ArrayLike) -> FloatArray:
    """Kullback-Leibler divergence of Bernoulli distributions."""
    other = np.clip(null, 1e-300, 1 - 1e-16)
    return xlogy(rates, rates / other) + xlogy(1 - rates, (1 - rates) / (1 - other))
