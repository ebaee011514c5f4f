"""The Gaussian scale mixture: one sigma per image from any law, then N(0, sigma^2) on every pixel.

The proof of its radius is in radius_table; sigma_cells holds the law of sigma, for the proof and the sampler.
"""

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import scipy.stats
import torch

from certify.noise.base import FloatArray, NoiseLaw, Shape
from certify.noise.radius_table import RadiusTable
from certify.noise.sigma_cells import SigmaCells, refined, sigma_cells


@dataclass(frozen=True, eq=False)
class GaussianScaleMixture(NoiseLaw):
    """sigma ~ ``law`` once per draw, then N(0, sigma^2) on every pixel, with a proven l2 radius.

    The radius is never above the exact one, and below it by at most 0.2% from p = 0.52 on (0.05% for NIM noise), as
    measured on 34 laws; docs/certify.md has the exceptions.

    Args:
        law: Any frozen scipy.stats distribution of sigma > 0 in [0, 1] pixel units, continuous or discrete, for
            example ``scipy.stats.gamma(25, scale=3 / 255)`` or
            ``scipy.stats.rv_discrete(values=(sigmas, probabilities))``.

    Raises:
        CertifyError: The law puts mass on sigma <= 0, gives no finite quantiles, or spreads over 400 octaves.
    """

    law: Any
    norm = "l2"

    def __post_init__(self) -> None:
        _ = self.cells  # a bad law is refused here, not at the first vote

    @cached_property
    def cells(self) -> SigmaCells:
        """The law of sigma as the proof and the sampler use it."""
        return sigma_cells(self.law)

    @property
    def mean_sigma(self) -> float:
        """Mean of sigma: names the law in tables, and must never be used for a radius."""
        return float(self.law.mean())

    @property
    def flat_at_half(self) -> bool:
        """Whether E[1/sigma] is infinite, so that the radius has slope zero at p = 1/2: small p earn nothing.

        Judged by how fast P(sigma <= s) vanishes with s: no faster than s itself.
        """
        if self.cells.atoms:
            return False
        near, nearer = self.law.ppf(1e-10), self.law.ppf(1e-12)
        return bool(near > nearer * (1 + 1e-9) and math.log(100) <= 1.01 * math.log(near / nearer))

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
            # The name and parameters of a user's own law do not identify it: its atoms or quantiles do.
            if self.cells.atoms:
                identity["atoms"] = self.cells.sigma.tolist()
                identity["probabilities"] = self.cells.mass.tolist()
            else:
                identity["quantiles_sha256"] = hashlib.sha256(self.cells.sigma.tobytes()).hexdigest()
        return identity

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return _table(self).radius(p)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return _table(self).p_required(r)

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        return _table(self).two_sided_radius(p_top, p_rival)

    def wins(self, p_top: float, p_rival: float, radius: float) -> bool:
        return p_top >= p_rival if radius == 0 else _table(self).wins(p_top, p_rival, radius)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        sigma = self.sample_sigma(shape[0], generator, device)
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return noise.mul_(sigma.to(dtype).reshape(-1, *[1] * (len(shape) - 1)))

    def sample_sigma(
        self, draws: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        """One sigma per draw, float64 (draws,), sampled on the device without waiting for it."""
        level, low, rise = self._tables_on(device)
        u = torch.rand(draws, generator=generator, device=device, dtype=torch.float64)
        cell = torch.searchsorted(level, u, right=True).sub_(1)  # level[0] = 0, so cell >= 0
        return low[cell] + (u - level[cell]) * rise[cell]

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        cache = self.__dict__.setdefault("_sampling_tables", {})
        if device not in cache:
            tables = self.cells.sampling_tables()
            cache[device] = tuple(torch.from_numpy(table).to(device) for table in tables)
        return cache[device]


def nim_noise() -> GaussianScaleMixture:
    """The NIM pre-training noise: sigma ~ Gamma(shape 25, scale 3) / 255 (You et al., NeurIPS 2023).

    Examples:
        >>> round(nim_noise().radius(0.99), 4)
        0.6589
    """
    return GaussianScaleMixture(scipy.stats.gamma(25, scale=3 / 255))


@lru_cache(maxsize=16)
def _table(noise: GaussianScaleMixture) -> RadiusTable:
    if noise.flat_at_half:
        warnings.warn(
            f"E[1/sigma] is infinite for {noise.describe()['sigma']}: its radius has slope zero at p = 1/2; "
            "consider certify.truncated(law, low)",
            UserWarning,
            stacklevel=4,  # the caller of radius() or p_required()
        )
    table = RadiusTable(noise.cells)
    if noise.cells.atoms:
        return table
    finer = refined(noise.cells, noise.law, table.weights())
    return table if finer is noise.cells else RadiusTable(finer)


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
