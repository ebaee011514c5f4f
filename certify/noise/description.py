"""Laws by their descriptions: whether votes were drawn under a law, and that law again."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from certify.errors import CertifyError
from certify.noise.base import NoiseLaw
from certify.noise.gaussian import Gaussian
from certify.noise.inclusion import Inclusion
from certify.noise.laplace import Laplace
from certify.noise.scale_mixture import GaussianScaleMixture
from certify.noise.sigma_cells import SigmaCells
from certify.noise.uniform import Uniform, UniformLinf

INCLUDED = "by inclusion from "
RADIUS_ONLY = ("norm", "radius", "dimensions", "mean_sigma")  # parts of a description that no draw depends on
ULPS = 1e-15  # relative; below the margin by which every radius is rounded down

# Families whose quantiles are quick: a file may name any, and is not to keep its reader busy.
QUICK = (
    "beta chi2 expon gamma gengamma halfnorm invgamma loguniform lognorm pareto powerlaw triang truncexpon truncnorm "
    "uniform weibull_max weibull_min"
)
SIGMAS = (1e-9, 1e9)  # in [0, 1] pixel units; beyond them the table of radii is not made to work


OPENERS: dict[str, Callable[[dict[str, Any]], NoiseLaw]] = {}  # by the law's name, of other rooms


def open_law(description: dict[str, Any]) -> NoiseLaw | None:
    """The law that ``describe()`` describes; None for an approximate one, one's own, or what is no description."""
    try:
        law = _open(description)
        usable = law is not None and law.norm == description.get("norm") and law.radius(0.75) >= 0
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return law if usable else None


def _open(description: dict[str, Any]) -> NoiseLaw | None:
    how = str(description.get("radius", ""))
    if how.startswith(INCLUDED):
        law = open_law({**description, "norm": how.removeprefix(INCLUDED), "radius": None})
        return None if law is None else Inclusion(law, description["norm"], description["dimensions"])
    match description.get("law"):
        case "gaussian":
            return Gaussian(description["sigma"])
        case "laplace":
            return Laplace(description["scale"])
        case "uniform" if description.get("norm") == "linf":
            return UniformLinf(description["half_width"], description["dimensions"])
        case "uniform":
            return Uniform(description["half_width"])
        case "gaussian_scale_mixture":
            mixture = GaussianScaleMixture(_law_of_sigma(description))
            low, high = mixture.cells.sigma[[0, -1]]
            return mixture if SIGMAS[0] < low <= high < SIGMAS[1] else None
    opener = OPENERS.get(str(description.get("law")))
    return None if opener is None else opener(description)


def _law_of_sigma(description: dict[str, Any]) -> Any:
    if "atoms" in description:
        values = np.asarray(description["atoms"], dtype=np.float64)
        return scipy.stats.rv_discrete(
            values=(values, np.asarray(description["probabilities"], dtype=np.float64))
        )
    args, kwds = description["args"], description["kwds"]
    if "quantiles_sha256" in description or description["sigma"] not in QUICK.split():
        raise CertifyError("this law of sigma is known by its description only")
    if not all(type(value) in (int, float) for value in (*args, *kwds.values())):
        raise CertifyError("parameters of a law of sigma must be numbers")
    return getattr(scipy.stats, description["sigma"])(*args, **kwds)


def same_draws(description: dict[str, Any], noise: NoiseLaw) -> bool:
    """Whether votes under the described law are votes under ``noise``, whatever the norm of its radius.

    The same law may be spelled in another way: ``gamma(a=25, ...)`` and ``gamma(25, ...)``, an ``Inclusion`` and its
    law, numbers that differ by their last bits.
    """
    noise = _without_inclusion(noise)
    if _equal(_draws(description), _draws(noise.describe())):
        return True
    opened = open_law(description)
    mine = _cells(noise)
    other = None if opened is None else _cells(_without_inclusion(opened))
    if mine is None or other is None or mine.sigma.shape != other.sigma.shape:
        return False
    same = [
        np.allclose(getattr(mine, name), getattr(other, name), rtol=ULPS, atol=0)
        for name in ("sigma", "mass")
    ]
    return all(same) and mine.atoms == other.atoms


def _without_inclusion(noise: NoiseLaw) -> NoiseLaw:
    return noise.law if isinstance(noise, Inclusion) else noise


def _cells(noise: NoiseLaw) -> SigmaCells | None:
    """The law of sigma, also of one Gaussian; None for a law that is no mixture of Gaussians."""
    if isinstance(noise, Gaussian):
        return SigmaCells(np.array([noise.sigma]), np.ones(1), atoms=True)
    return noise.cells if isinstance(noise, GaussianScaleMixture) else None


def _draws(description: dict[str, Any]) -> Any:
    """The part of a description that decides the draws, as plain JSON values."""
    description = json.loads(json.dumps(description))
    known = description.get("law") in ("gaussian", "laplace", "uniform", "gaussian_scale_mixture", "iid")
    if known or str(description.get("radius", "")).startswith(INCLUDED):
        description = {name: value for name, value in description.items() if name not in RADIUS_ONLY}
    else:
        description.pop("norm", None)
    if description.get("law") == "iid":
        description.pop("seed", None)  # of the samples that estimate its radius
    return {name: value for name, value in description.items() if name not in ("grid", "strata")}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ULPS)
    return bool(one == other)
