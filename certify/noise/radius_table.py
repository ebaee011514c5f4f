"""The l2 radius of a Gaussian scale mixture: its proof, and a table that makes it fast.

Move the image by delta, |delta| = r, and let the adversary see sigma (this only helps). Along delta the noise is
P: N(0, sigma^2) and, moved, Q: N(r, sigma^2), sigma under both from the same law. The class keeps a region A with
P(A) >= p; it survives when Q(A) >= 1/2 for every such A.

1. Dual bound. For lambda = e^t and A_t = {dQ/dP <= lambda} (Neyman-Pearson), every A has
   Q(A) - lambda P(A) >= Q(A_t) - lambda P(A_t), so Q(A) >= 1/2 as soon as p >= p_suff(r, t), where

       p_suff(r, t) = P(A_t) + e^-t (1/2 - Q(A_t)),
       P(A_t) = E Phi(sigma t / r + r / (2 sigma)),    Q(A_t) = E Phi(sigma t / r - r / (2 sigma)).

   This holds for *any* t: an inexact t costs tightness, to second order, never soundness. The best t solves
   Q(A_t) = 1/2 and gives the exact p(r). Smaller r follow, as p(r) increases with r.
2. Smaller sigma is safe. If sigma' <= sigma under some coupling, the experiment (sigma, N(., sigma^2)) is the
   experiment (sigma', N(., sigma'^2)) plus an independent N(0, sigma^2 - sigma'^2): a garbling, which can
   only shrink what an adversary can do (Blackwell). So the law may be replaced by the *lower* edge of each
   cell of a partition in quantile space; the mass below the lowest edge gets sigma = 0 (A_t has P-mass 1 and
   Q-mass 0 there), and the top cell keeps its lower edge.
3. Two-sided. A class with P(A) >= a keeps at least kept(a) = max over t of Q(A_t) - e^t (P(A_t) - a), by the bound
   of step 1. A rival with P(B) <= b gets at most 1 - kept(1 - b): its complement keeps the rest. So the class wins
   everywhere within r while kept(a) + kept(1 - b) > 1; with b = 1 - a this is kept(a) > 1/2, the radius above. Both
   sums stand on the same lower edges, as step 2 is about the experiment and not about a region. A and B may be the two
   tails of dQ/dP, so no longer radius holds for the adversary who sees sigma; for a constant sigma this is
   sigma/2 (Phi^-1(a) - Phi^-1(b)).
"""

from dataclasses import replace

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, ndtri

from certify.noise.base import FloatArray
from certify.noise.bisection import largest
from certify.noise.sigma_cells import SigmaCells

KNOT_RATIO = 1.03  # between neighboring radii of the table
P_STEP = 2.5e-4  # p is rounded down to a grid with this relative step in Phi^-1(p): costs at most 0.025%
FLOAT32 = 1.2e-7  # relative; the sampled sigma is rounded to the dtype of the noise
WEIGHED = ndtri([0.505, 0.53, 0.6, 0.8, 0.95, 0.999, 1 - 1e-6])  # Phi^-1(p) at which the cells should be fine
SLACK = 1e-12  # above the rounding error of a sum over all cells


class RadiusTable:
    """Radii, their thresholds u = t / r and z = Phi^-1(p_suff) on a geometric grid; built once per law."""

    def __init__(self, cells: SigmaCells) -> None:
        self.law = law = replace(cells, sigma=cells.sigma * (1 - FLOAT32))
        unit = 1 / np.sum(law.mass / law.sigma)  # R(p) ~ unit * Phi^-1(p) for small radii
        last = 8 * unit
        while q_sufficient(np.array([last]), _best_u(np.array([last]), law), law)[0] > 1e-17:
            last *= 2
        r = np.exp(np.arange(np.log(1e-4 * unit), np.log(last), np.log(KNOT_RATIO)))
        u = _best_u(r, law)
        q = q_sufficient(r, u, law)
        usable = (q > 1e-18) & (q < 0.5)
        r, u, z = r[usable], u[usable], -ndtri(q[usable])
        rising = np.diff(np.maximum.accumulate(z), prepend=0.0) > 0
        self.r, self.u, self.z = r[rising], u[rising], z[rising]
        self._log_r = PchipInterpolator(np.log(self.z), np.log(self.r))
        self._log_u = PchipInterpolator(np.log(self.r), np.log(self.u))

    def threshold(self, r: FloatArray) -> FloatArray:
        """u interpolated at r, in proportion to r outside the grid."""
        inside = np.clip(r, self.r[0], self.r[-1])
        return np.exp(self._log_u(np.log(inside))) * (r / inside)

    def weights(self) -> FloatArray:
        """Relative loss of radius for a relative loss of sigma in each cell (k, m), at k radii from p = 0.505 on.

        The derivative of q_sufficient in log sigma, at the best t, is r / sigma times the density of
        N(0, 1) at sigma t / r + r / (2 sigma); its sum over the cells is that in -log r.
        """
        r = np.exp(self._log_r(np.log(np.minimum(WEIGHED, self.z[-1]))))[:, None]
        sigma, u = self.law.sigma, self.threshold(r)
        loss = self.law.mass * r / sigma * np.exp(-0.5 * (u * sigma + r / (2 * sigma)) ** 2)
        return loss / loss.sum(axis=1, keepdims=True)

    def p_required(self, r: FloatArray) -> FloatArray:
        """p_suff(r, t) at the table's threshold, for radii (M,)."""
        return np.clip(1 - q_sufficient(r, self.threshold(r), self.law), 0.5, 1.0)

    def radius(self, p: FloatArray) -> FloatArray:
        """Radii (M,) for p (M,) in (1/2, 1], each verified by p_suff(r, t) <= p."""
        z = np.minimum(-ndtri(1 - p), self.z[-1])  # 1 - p is exact; past the table its last radius stands
        level, inverse = np.unique(np.floor(np.log(z) / P_STEP), return_inverse=True)
        return self._verified(np.exp(level * P_STEP) * (1 - 1e-12))[inverse]

    def two_sided_radius(self, p_top: float, p_rival: float) -> float:
        """Radius where the top class has at least ``p_top`` and every other at most ``p_rival``: step 3, verified."""

        def stays(r: float) -> bool:
            return kept(1 - p_top, r, self.law) + kept(p_rival, r, self.law) > 1

        surer = max(p_top, 1 - p_rival)  # the more certain of the two can be in the lead no longer than this
        high = 1.01 * float(self.radius(np.array([max(surer, 0.5 + 1e-12)]))[0])
        return largest(stays, 0.0, high, steps=25)

    def _verified(self, z: FloatArray) -> FloatArray:
        q = ndtr(-z)
        inside = np.maximum(z, self.z[0])
        guess = np.exp(self._log_r(np.log(inside))) * (z / inside)
        # Fallback, rarely needed: the last radius of the grid that was itself verified for this p.
        knot = np.searchsorted(self.z, z, side="right") - 1
        radius = np.where(knot >= 0, self.r[np.maximum(knot, 0)], 0.0)
        pending = np.arange(len(z))
        for shrink in (1e-6, 1e-5, 1e-4, 1e-3):
            r = guess[pending] * (1 - shrink)
            proven = q_sufficient(r, self.threshold(r), self.law) >= q[pending]
            radius[pending[proven]] = np.maximum(radius[pending[proven]], r[proven])
            pending = pending[~proven]
        return radius


def q_sufficient(r: FloatArray, u: FloatArray, law: SigmaCells, rows: int = 64) -> FloatArray:
    """1 - p_suff(r, t) of the module's docstring, rounded down; r, u = t / r and the answer are (k,)."""
    q = np.empty(len(r))
    half = 0.5 / law.sigma
    for start in range(0, len(r), rows):
        part = slice(start, start + rows)
        r_, u_ = r[part, None], u[part, None]
        shift, threshold = r_ * half, u_ * law.sigma  # (rows, m): r / (2 sigma) and sigma t / r
        miss_p = ndtr(-(threshold + shift)) @ law.mass  # 1 - P(A_t); cells of sigma = 0 add nothing to either
        hit_q = ndtr(threshold - shift) @ law.mass  # Q(A_t)
        price = np.exp(-u[part] * r[part])
        q[part] = miss_p * (1 - SLACK) - price * (0.5 - hit_q + SLACK)
    return q


def kept(miss: float, r: float, law: SigmaCells) -> float:
    """Least Q(A) of a region with P(A) >= 1 - ``miss``, rounded down: step 3 of the module's docstring."""
    u = _u_that_misses(miss, r, law)
    shift, threshold = r / (2 * law.sigma), u * law.sigma
    miss_p = float(ndtr(-(threshold + shift)) @ law.mass)  # 1 - P(A_t), exact also where P(A_t) is near 1
    hit_q = float(ndtr(threshold - shift) @ law.mass)
    return hit_q - SLACK - float(np.exp(u * r)) * (miss - miss_p * (1 - SLACK))


def _u_that_misses(miss: float, r: float, law: SigmaCells) -> float:
    """u = t / r with P(A_t) = 1 - miss, by bisection on the thinned cells: a near-optimal t is enough."""
    sigma, mass = _thinned(law)
    ends = np.sort((-ndtri(miss) - r / (2 * sigma)) / sigma)  # solutions if one cell were the whole law

    def misses_too_much(u: float) -> bool:
        return bool(ndtr(-(u * sigma + r / (2 * sigma))) @ mass > miss)

    low, high = 0, len(ends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if misses_too_much(ends[middle]) else (low, middle)
    return largest(misses_too_much, float(ends[low]), float(ends[high]), steps=18)


def _thinned(law: SigmaCells) -> tuple[FloatArray, FloatArray]:
    """About 256 sigmas and their masses in place of all cells."""
    stride = max(1, len(law.sigma) // 256)
    starts = np.arange(0, len(law.sigma), stride)
    sigma = law.sigma[np.minimum(starts + stride // 2, len(law.sigma) - 1)]
    return sigma, np.add.reduceat(law.mass, starts)


def _best_u(r: FloatArray, law: SigmaCells) -> FloatArray:
    """u = t / r with Q(A_t) = 1/2, by bisection on the thinned cells: a near-optimal t is enough."""
    sigma, mass = _thinned(law)
    low, high = np.log(r / (2 * sigma[-1] ** 2)), np.log(r / (2 * sigma[0] ** 2))
    for _ in range(45):
        middle = (low + high) / 2
        u = np.exp(middle)[:, None]
        short = ndtr(u * sigma - r[:, None] / (2 * sigma)) @ mass < 0.5 * mass.sum()
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.exp((low + high) / 2)
