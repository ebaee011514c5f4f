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
"""

from dataclasses import replace

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, ndtri

from certify.noise.base import FloatArray
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


def _best_u(r: FloatArray, law: SigmaCells) -> FloatArray:
    """u = t / r with Q(A_t) = 1/2, by bisection on every 16th cell: a near-optimal t is enough."""
    stride = max(1, len(law.sigma) // 256)
    starts = np.arange(0, len(law.sigma), stride)
    mass = np.add.reduceat(law.mass, starts)
    sigma = law.sigma[np.minimum(starts + stride // 2, len(law.sigma) - 1)]
    low, high = np.log(r / (2 * sigma[-1] ** 2)), np.log(r / (2 * sigma[0] ** 2))
    for _ in range(45):
        middle = (low + high) / 2
        u = np.exp(middle)[:, None]
        short = ndtr(u * sigma - r[:, None] / (2 * sigma)) @ mass < 0.5 * mass.sum()
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.exp((low + high) / 2)
