"""The law of sigma cut into cells: one table for the proof of a radius and for the sampler.

Smaller sigma is safe (step 2 of the proof in radius_table), so the proof puts the mass of each cell on the cell's
lower edge, and the mass below the lowest edge on sigma = 0. The noise that is drawn has a piecewise-linear
quantile function through the same edges (not the exact law): each cell has the same probability, and every sigma
drawn in it is at least the cell's lower edge, so step 2 covers it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from certify.errors import CertifyError
from certify.noise.base import FloatArray

CELLS = 4096  # edges at ndtr(2 sinh(x)), x uniform: fine where the mass is, and out to 8 standard deviations
EDGE_SHRINK = 1e-9  # relative; covers the error of scipy's quantile functions
MAX_ATOMS = 4096
MOST_OCTAVES = 400  # from the smallest to the largest sigma: squares of ratios stay finite
FINER = 4096  # cells that the proof adds where the law is wide
WIDE = 6e-4  # mean relative width of the cells from which it does: NIM's are narrower


@dataclass(frozen=True)
class SigmaCells:
    """The law of sigma as m cells.

    Attributes:
        sigma: Lower edges (m,).
        mass: Probabilities (m,); the remaining mass has sigma = 0.
        atoms: The cells are the exact atoms of a discrete law, so nothing is interpolated between them.
    """

    sigma: FloatArray
    mass: FloatArray
    atoms: bool

    def sampling_tables(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Left level, value there and slope of the piecewise-linear quantile function, one entry a piece."""
        if self.atoms:
            level = np.concatenate([[0.0], np.cumsum(self.mass)[:-1]])
            return level, self.sigma.copy(), np.zeros_like(self.sigma)
        # Below the first edge and above the last one sigma stays constant.
        level = np.concatenate([[0.0], _levels()])
        low = np.concatenate([self.sigma[:1], self.sigma])
        width = np.diff(_levels())  # 0 for some of the topmost cells, where float64 levels coincide
        slope = np.divide(np.diff(self.sigma), width, out=np.zeros_like(width), where=width > 0)
        rise = np.concatenate([[0.0], slope, [0.0]])
        return level, low, rise


def sigma_cells(law: Any) -> SigmaCells:
    """The cells of a frozen scipy.stats law of sigma.

    Raises:
        CertifyError: ``law`` is no frozen law, puts mass on sigma <= 0, or has no finite quantiles.
    """
    if not all(callable(getattr(law, name, None)) for name in ("ppf", "cdf", "mean")):
        raise CertifyError(
            f"law must be a frozen scipy.stats law, got {law!r}: try scipy.stats.gamma(25, scale=3/255)"
        )
    try:
        below = float(law.cdf(0.0))
    except TypeError:  # a distribution family without its parameters
        raise CertifyError(
            f"law must be frozen, got {law!r}: give its parameters, gamma(25, scale=3/255)"
        ) from None
    if not below == 0:
        raise CertifyError(
            f"law must put all its mass on sigma > 0, got P(sigma <= 0) = {below:.3g}: truncate it"
        )
    cells = _atoms(law) if callable(getattr(law, "pmf", None)) else _intervals(law)
    if not np.all(np.isfinite(cells.sigma)) or not np.all(cells.sigma > 0):
        ends = cells.sigma[[0, -1]]
        raise CertifyError(f"law must have finite quantiles above 0, got {ends}: check its parameters")
    low, high = cells.sigma.min(), cells.sigma.max()
    if np.log(high) - np.log(low) > MOST_OCTAVES * np.log(2):
        raise CertifyError(
            f"law spreads sigma from {low:.3g} to {high:.3g}, too far for float64: truncate it, certify.truncated(law, low)"
        )
    return cells


def refined(cells: SigmaCells, law: Any, weights: FloatArray) -> SigmaCells:
    """Cells for the proof, up to 4096 more where they cost much radius; below both the exact and the drawn law.

    A cell is divided at equal steps of probability. The new edges are the smaller ones of the exact quantile function
    and the piecewise-linear one of the sampler, so step 2 covers both.

    Args:
        cells: Of a continuous law of sigma.
        law: That law.
        weights: Relative loss of radius for a relative loss of sigma in each cell, at some radii (k, m).
    """
    levels, sigma = np.append(_levels(), 1.0), cells.sigma
    width = np.append(np.log(sigma[1:] / sigma[:-1]), 0.0) * (cells.mass > 0)
    cost = width * weights.mean(axis=0)
    if cost.sum() < WIDE:
        return cells
    share = np.sqrt(cost)  # the least cost for a number of cells
    pieces = 1 + np.floor(FINER * share / share.sum()).astype(int)
    cell = np.repeat(np.arange(len(sigma)), pieces)
    part = (np.arange(len(cell)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[cell]
    level = levels[cell] + part * np.diff(levels)[cell]
    drawn = sigma[cell] + part * (np.append(sigma[1:], sigma[-1]) - sigma)[cell]
    exact = np.asarray(law.ppf(level), dtype=np.float64) * (1 - EDGE_SHRINK)
    edges = np.maximum(np.minimum(drawn, exact), sigma[cell])  # a cell's own lower edge holds for all of it
    edges = np.minimum.accumulate(edges[::-1])[::-1]
    return SigmaCells(edges, np.diff(np.append(level, 1.0)), atoms=False)


def _levels() -> FloatArray:
    """Probability levels of the m lower edges, in (0, 1)."""
    return ndtr(2 * np.sinh(np.linspace(-1, 1, CELLS) * np.arcsinh(4)))


def _intervals(law: Any) -> SigmaCells:
    levels = _levels()
    edges = np.asarray(law.ppf(levels), dtype=np.float64) * (1 - EDGE_SHRINK)
    edges = np.minimum.accumulate(edges[::-1])[::-1]  # should a quantile function wobble, its lower envelope
    return SigmaCells(edges, np.diff(np.append(levels, 1.0)), atoms=False)


def _atoms(law: Any) -> SigmaCells:
    dist = getattr(law, "dist", law)
    low, high = law.ppf(0.0) + 1, law.ppf(1 - 1e-15)  # scipy's discrete ppf(0) is one below the support
    values = np.asarray(dist.xk if hasattr(dist, "xk") else np.arange(low, high + 1), dtype=np.float64)
    if len(values) > MAX_ATOMS:
        raise CertifyError(f"law may have at most {MAX_ATOMS} atoms, got {len(values)}: use a continuous law")
    mass = np.asarray(law.pmf(values), dtype=np.float64)
    order = np.argsort(values)[mass[np.argsort(values)] > 0]
    values, mass = values[order], mass[order]
    if not np.all(np.isfinite(mass)) or not np.isclose(mass.sum(), 1, atol=1e-9, rtol=0):
        raise CertifyError(
            f"the probabilities of law must sum to 1, got {mass.sum():.6g}: give all its atoms"
        )
    return SigmaCells(values, mass / mass.sum(), atoms=True)
