"""The Gaussian scale mixture: one sigma per image from any law, then N(0, sigma^2) on every pixel.

Proof that ``GaussianScaleMixture.radius`` is sound. Move the image by delta, |delta| = r, and let the
adversary see sigma (this only helps). Along delta the noise is P: N(0, sigma^2) and, moved, Q: N(r, sigma^2),
sigma under both from the same law. The class keeps a region A with P(A) >= p; it survives when Q(A) >= 1/2
for every such A.

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

The noise that is sampled has a piecewise-linear quantile function through the same edges (not the exact law):
each cell has the same probability, and every sigma drawn in it is at least the cell's lower edge, so step 2
covers it.
"""

import hashlib
import json
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy.stats
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, ndtri

from certify.errors import CertifyError
from certify.noise.base import FloatArray, NoiseLaw

CELLS = 4096  # edges at ndtr(2 sinh(x)), x uniform: fine where the mass is, and out to 8 standard deviations
EDGE_SHRINK = 1e-9  # relative; covers the error of scipy's quantile functions
MAX_ATOMS = 4096
KNOT_RATIO = 1.03  # between neighbouring radii of the table
P_STEP = (
    2.5e-4  # p is first rounded down to a grid with this relative step in Phi^-1(p): costs at most 0.025%
)
FLOAT32 = 1.2e-7  # relative; the sampled sigma is rounded to the dtype of the noise
SLACK = 1e-12  # above the rounding error of a sum over all cells


@dataclass(frozen=True, eq=False)
class GaussianScaleMixture(NoiseLaw):
    """sigma ~ ``law`` once per draw, then N(0, sigma^2) on every pixel, with a proven l2 radius.

    ``law`` is any frozen scipy.stats distribution of sigma > 0 in [0, 1] pixel units, continuous or discrete,
    for example ``scipy.stats.gamma(25, scale=3 / 255)`` or ``scipy.stats.rv_discrete(values=(sigmas,
    probabilities))``. The proof is in the module's docstring; the radius is at most about 0.2% below the
    exact one. Raises CertifyError if the law puts mass on sigma <= 0 or gives no finite quantiles.
    """

    law: Any
    norm: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        _ = self._quantiles  # a bad law is refused here, not at the first vote

    @property
    def mean_sigma(self) -> float:
        """Mean of sigma: names the law in tables, and must never be used for a radius."""
        return float(self.law.mean())

    def describe(self) -> dict[str, Any]:
        mean = self.mean_sigma if math.isfinite(self.mean_sigma) else None
        return {"law": "gaussian_scale_mixture", "norm": self.norm, **self._identity, "mean_sigma": mean}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GaussianScaleMixture) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> str:
        return json.dumps(self.describe(), sort_keys=True)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        dist = getattr(self.law, "dist", self.law)
        identity = {
            "sigma": dist.name,
            "args": [_plain(value) for value in getattr(self.law, "args", ())],
            "kwds": {name: _plain(value) for name, value in sorted(getattr(self.law, "kwds", {}).items())},
        }
        if type(dist) is not type(getattr(scipy.stats, str(dist.name), None)):
            # The name and parameters of a home-made law do not identify it: its atoms or quantiles do.
            if self._quantiles.atoms:
                identity["atoms"] = self._quantiles.sigma.tolist()
                identity["probabilities"] = self._quantiles.mass.tolist()
            else:
                identity["quantiles_sha256"] = hashlib.sha256(self._quantiles.sigma.tobytes()).hexdigest()
        return identity

    @cached_property
    def _quantiles(self) -> "_Quantiles":
        return _quantiles(self.law)

    @property
    def flat_at_half(self) -> bool:
        """Whether E[1/sigma] is infinite, so that the radius has slope zero at p = 1/2: small p earn nothing.

        Judged by how fast P(sigma <= s) vanishes with s: no faster than s itself.
        """
        if self._quantiles.atoms:
            return False
        near, nearer = self.law.ppf(1e-10), self.law.ppf(1e-12)
        return bool(near > nearer * (1 + 1e-9) and math.log(100) <= 1.01 * math.log(near / nearer))

    def _radius(self, p: FloatArray) -> FloatArray:
        return _table(self).radius(p)

    def _p_required(self, r: FloatArray) -> FloatArray:
        return _table(self).p_required(r)

    def _sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        sigma = self._sample_sigma(shape[0], generator, device)
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return noise.mul_(sigma.to(dtype).reshape(-1, *[1] * (len(shape) - 1)))

    def _sample_sigma(
        self, draws: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        """One sigma per draw, float64, made on the device without waiting for it."""
        level, low, rise = self._on(device)
        u = torch.rand(draws, generator=generator, device=device, dtype=torch.float64)
        cell = torch.searchsorted(level, u, right=True).sub_(1)  # level[0] = 0, so cell >= 0
        return low[cell] + (u - level[cell]) * rise[cell]

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cache = self.__dict__.setdefault("_sampling_tables", {})
        if device not in cache:
            cache[device] = tuple(
                torch.from_numpy(table).to(device) for table in self._quantiles.sampling_tables()
            )
        return cache[device]


def nim_noise() -> GaussianScaleMixture:
    """The NIM pre-training noise: sigma ~ Gamma(shape 25, scale 3) / 255 (You et al., NeurIPS 2023)."""
    return GaussianScaleMixture(scipy.stats.gamma(25, scale=3 / 255))


# --- the law of sigma as cells ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quantiles:
    """Cells of probability ``mass`` and lower edge ``sigma``, both (m,); the remaining mass has sigma = 0 in
    the proof.

    ``atoms``: the cells are the exact atoms of a discrete law, so nothing is interpolated between them.
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


def _levels() -> FloatArray:
    """Probability levels of the m lower edges, in (0, 1)."""
    return ndtr(2 * np.sinh(np.linspace(-1, 1, CELLS) * np.arcsinh(4)))


def _quantiles(law: Any) -> _Quantiles:
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
    quantiles = _atoms(law) if callable(getattr(law, "pmf", None)) else _cells(law)
    if not np.all(np.isfinite(quantiles.sigma)) or not np.all(quantiles.sigma > 0):
        ends = quantiles.sigma[[0, -1]]
        raise CertifyError(f"law must have finite quantiles above 0, got {ends}: check its parameters")
    return quantiles


def _cells(law: Any) -> _Quantiles:
    levels = _levels()
    edges = np.asarray(law.ppf(levels), dtype=np.float64) * (1 - EDGE_SHRINK)
    edges = np.minimum.accumulate(edges[::-1])[
        ::-1
    ]  # should a quantile function wobble, its lower envelope is safe
    return _Quantiles(edges, np.diff(np.append(levels, 1.0)), atoms=False)


def _atoms(law: Any) -> _Quantiles:
    dist = getattr(law, "dist", law)
    low, high = (
        law.ppf(0.0) + 1,
        law.ppf(1 - 1e-15),
    )  # scipy puts ppf(0) of a discrete law one below its support
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
    return _Quantiles(values, mass / mass.sum(), atoms=True)


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


# --- the radius ---------------------------------------------------------------------------------------------


def _q_sufficient(r: FloatArray, u: FloatArray, law: _Quantiles, rows: int = 64) -> FloatArray:
    """1 - p_suff(r, t) of the module's docstring, rounded down; r, u = t / r and the answer are (k,)."""
    q = np.empty(len(r))
    half = 0.5 / law.sigma
    for start in range(0, len(r), rows):
        part = slice(start, start + rows)
        r_, u_ = r[part, None], u[part, None]
        shift, threshold = r_ * half, u_ * law.sigma  # (rows, m): r / (2 sigma) and sigma t / r
        miss_p = (
            ndtr(-(threshold + shift)) @ law.mass
        )  # 1 - P(A_t); cells of sigma = 0 add nothing here or below
        hit_q = ndtr(threshold - shift) @ law.mass  # Q(A_t)
        price = np.exp(-u[part] * r[part])
        q[part] = miss_p * (1 - SLACK) - price * (0.5 - hit_q + SLACK)
    return q


def _best_u(r: FloatArray, law: _Quantiles) -> FloatArray:
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


@lru_cache(maxsize=16)
def _table(noise: GaussianScaleMixture) -> "_RadiusTable":
    if noise.flat_at_half:
        warnings.warn(
            f"E[1/sigma] is infinite for {noise.describe()['sigma']}: its radius has slope zero at p = 1/2; "
            "consider certify.truncated(law, low)",
            UserWarning,
            stacklevel=6,
        )
    return _RadiusTable(noise._quantiles)


class _RadiusTable:
    """Radii, their thresholds u = t / r and z = Phi^-1(p_suff) on a geometric grid; built once per law."""

    def __init__(self, quantiles: _Quantiles) -> None:
        self.law = law = replace(quantiles, sigma=quantiles.sigma * (1 - FLOAT32))
        unit = 1 / np.sum(law.mass / law.sigma)  # R(p) ~ unit * Phi^-1(p) for small radii
        last = 8 * unit
        while _q_sufficient(np.array([last]), _best_u(np.array([last]), law), law)[0] > 1e-17:
            last *= 2
        r = np.exp(np.arange(np.log(1e-4 * unit), np.log(last), np.log(KNOT_RATIO)))
        u = _best_u(r, law)
        q = _q_sufficient(r, u, law)
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

    def p_required(self, r: FloatArray) -> FloatArray:
        return np.clip(1 - _q_sufficient(r, self.threshold(r), self.law), 0.5, 1.0)

    def radius(self, p: FloatArray) -> FloatArray:
        """Radii for p in (1/2, 1], each verified by p_suff(r, t) <= p."""
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
            proven = _q_sufficient(r, self.threshold(r), self.law) >= q[pending]
            radius[pending[proven]] = np.maximum(radius[pending[proven]], r[proven])
            pending = pending[~proven]
        return radius
