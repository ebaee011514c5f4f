"""Approximate radii for any i.i.d. noise, by the likelihood ratio (UniCR: Hong et al., ECCV 2022).

For a shift delta the Neyman-Pearson lemma gives the smallest probability p(delta) that survives it: with
L = sum_i log f(z_i - delta_i) - log f(z_i) and t its median under the shifted noise, p(delta) = P(L <= t)
under the noise at rest. The radius is the longest shift that p survives in the worst direction. Both steps
are approximate: p(delta) comes from samples, or from the normal limit of the sum where the shift is spread
over many pixels, and the worst direction is sought among shifts that are equal on m of the d pixel values,
m = 1, ..., d. So nothing here is proven, and every radius is marked ``sound = False``.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy.stats
import torch
from scipy.special import ndtr

from certify.errors import CertifyError, check_count, check_positive
from certify.noise.base import FloatArray, NoiseLaw, Shape

SAMPLES = 10_000  # draws for a likelihood-ratio distribution
SUMMED = 8  # pixels up to which the sum is sampled; beyond, its normal limit stands in
RADII = 48  # of the table
FEWEST_BEYOND = 20  # samples beyond the quantile: with fewer, p cannot be distinguished from 1
QUANTILES = 2**16  # cells of the sampler's quantile table
NORMS = {"l1": 1.0, "l2": 0.5, "linf": 0.0}  # |delta| = step * m^power for m equal entries


@dataclass(frozen=True)
class IID(NoiseLaw):
    """Independent noise from ``law`` on every pixel value: an approximate radius in ``norm``.

    Args:
        law: A frozen continuous scipy.stats distribution of one pixel's noise, symmetric about 0.
        norm: "l1", "l2" or "linf".
        dimensions: Number of pixel values of an image.
        seed: Of the samples that estimate the radius.

    Raises:
        CertifyError: A law without a density or a finite scale, or an unknown norm.
    """

    law: Any
    norm: str
    dimensions: int
    seed: int = 0
    sound: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.law, name, None)) for name in ("logpdf", "ppf", "std")):
            raise CertifyError(f"law must be a frozen continuous scipy.stats law, got {self.law!r}")
        if self.norm not in NORMS:
            raise CertifyError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}: try 'l2'")
        check_count("dimensions", self.dimensions)
        spread = self.law.ppf(0.75) - self.law.ppf(0.25)
        if not np.isfinite(spread) or spread <= 0 or abs(self.law.ppf(0.5)) > 1e-6 * spread:
            raise CertifyError(
                f"law must be symmetric about 0 with a finite scale, got {self.law!r}: center it"
            )

    @property
    def mean_sigma(self) -> float:
        """Standard deviation of a pixel's noise."""
        return float(self.law.std())

    def describe(self) -> dict[str, Any]:
        dist = self.law.dist
        identity = {"density": dist.name, "args": [float(value) for value in self.law.args]}
        identity["kwds"] = {name: float(value) for name, value in sorted(self.law.kwds.items())}
        if type(dist) is not type(getattr(scipy.stats, dist.name, None)):
            quantiles = self.law.ppf(np.linspace(0.001, 0.999, 999))
            identity["quantiles_sha256"] = hashlib.sha256(quantiles.tobytes()).hexdigest()
        return {
            "law": "iid",
            "norm": self.norm,
            **identity,
            "dimensions": self.dimensions,
            "seed": self.seed,
            "radius": "approximate",
        }

    def compute_radius(self, p: FloatArray) -> FloatArray:
        radius, needed = self._table()
        return np.interp(p, np.append(0.5, needed), np.append(0.0, radius))

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        radius, needed = self._table()
        return np.interp(r, np.append(0.0, radius), np.append(0.5, needed), right=np.inf)

    def _table(self) -> tuple[FloatArray, FloatArray]:
        return _table(str(self.describe()), self)

    def __hash__(self) -> int:
        return hash(str(self.describe()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IID) and self.describe() == other.describe()

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Inverse transform of a uniform, by linear interpolation of a fine quantile table."""
        table = _quantiles(str(self.describe()), self).to(device)
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).mul_(QUANTILES)
        cell = u.long().clamp_(max=QUANTILES - 1)
        return torch.lerp(table[cell], table[cell + 1], u - cell).to(dtype)


def generalized_normal(shape: float, scale: float, norm: str, dimensions: int) -> IID:
    """Noise of density exp(-|z / scale|^shape), ``scale`` in [0, 1] pixel units; the radius is approximate."""
    law = scipy.stats.gennorm(check_positive("shape", shape), scale=check_positive("scale", scale))
    return IID(law, norm, dimensions)


@lru_cache(maxsize=16)
def _quantiles(_: str, noise: IID) -> torch.Tensor:
    # The outermost cells end at a tail of 2^-40, where the sampler's law is cut.
    levels = np.clip(np.linspace(0, 1, QUANTILES + 1), 2.0**-40, 1 - 2.0**-40)
    return torch.from_numpy(np.asarray(noise.law.ppf(levels), dtype=np.float64))


@lru_cache(maxsize=16)
def _table(_: str, noise: IID) -> tuple[FloatArray, FloatArray]:
    """Radii and the p that each needs, increasing, up to where the samples cannot distinguish p from 1."""
    rng = np.random.default_rng(noise.seed)
    spreads = np.unique(np.round(np.geomspace(1, noise.dimensions, 7)).astype(int)).tolist()
    draws = {m: noise.law.rvs((SAMPLES, min(m, SUMMED)), random_state=rng) for m in spreads}

    def worst(length: float) -> float:
        return max(_survives(noise.law, draws[m], length / m ** NORMS[noise.norm], m) for m in spreads)

    limit, last = 1 - FEWEST_BEYOND / SAMPLES, float(noise.law.ppf(1 - 1e-4))
    while worst(last) > limit:
        last /= 2
    radius = np.linspace(0, 2 * last, RADII + 1)[1:]
    needed = np.maximum.accumulate([worst(length) for length in radius])
    kept = needed <= limit
    return radius[kept], np.maximum(needed[kept], 0.5)


def _survives(law: Any, z: FloatArray, step: float, m: int) -> float:
    """p(delta) for ``m`` entries of size ``step``, from draws z (SAMPLES, min(m, SUMMED))."""
    with np.errstate(invalid="ignore"):
        at_rest = _without_nan(law.logpdf(z - step) - law.logpdf(z))
        shifted = _without_nan(law.logpdf(z) - law.logpdf(z + step))
    if m == z.shape[1]:
        return _neyman_pearson(at_rest.sum(axis=1), shifted.sum(axis=1))
    start = law.support()[0]
    if np.isfinite(start):  # bounded support: what counts is the overlap of the two cubes
        return min(1.5 - law.sf(start + step) ** m, 1.0)
    gap = m * (shifted.mean() - at_rest.mean())  # the normal limit of both sums
    return float(ndtr(gap / (np.sqrt(m) * at_rest.std())))


def _without_nan(ratio: FloatArray) -> FloatArray:
    """Log ratios with 0 where both densities are 0."""
    return np.where(np.isnan(ratio), 0.0, ratio)


def _neyman_pearson(at_rest: FloatArray, shifted: FloatArray) -> float:
    """P(L <= t) with t the median of the shifted L; a tie at t is split as the median splits it."""
    t = np.sort(shifted)[(len(shifted) - 1) // 2]
    tie = np.mean(shifted == t)
    part = (0.5 - np.mean(shifted < t)) / tie
    return float(np.mean(at_rest < t) + part * np.mean(at_rest == t))
