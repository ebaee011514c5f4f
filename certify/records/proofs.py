"""Whether bounds and radii follow from the votes beside them: what a file claims, computed again."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound, randomized_lower_bound
from certify.bounds.two_sided import TOP_SHARE
from certify.certificate import Counts
from certify.noise.base import FloatArray, NoiseLaw
from certify.noise.description import open_law
from certify.noise.inclusion import Inclusion
from certify.noise.scale_mixture import GaussianScaleMixture
from certify.records.rows import EXACT
from certify.records.table import Records

CLOSE = 1e-9  # relative; of bounds and of radii in closed form, between versions of scipy
TABLE_ABOVE, TABLE_BELOW = 2e-3, 5e-2  # of a scale mixture's table, between its versions: it errs low

Mask = NDArray[np.bool_]


def unproven(records: Records, method: str, noise: NoiseLaw | dict[str, Any]) -> Mask:
    """Which records (M,), all of one method, have a bound or a radius that their votes do not give.

    What can't be computed again passes: bounds of methods that stop early, which depend on the votes between, and
    radii of laws that are known by their description only.

    Args:
        records: With counts, selected, alpha and p_lower.
        method: How the votes were drawn and bounded.
        noise: The law that they were drawn under, or its description.
    """
    wrong = _wrong_bounds(records, method)
    if method == EXACT:
        return wrong | _wrong_exact_radii(records, noise)
    law = noise if isinstance(noise, NoiseLaw) else open_law(noise)
    if law is None or method == "stratified":
        return wrong
    return wrong | _wrong_radii(records, method, law)


def _wrong_bounds(records: Records, method: str) -> Mask:
    """Where p_lower is not the bound of the votes, or the certified class does not follow from it."""
    successes, trials = votes_of_selected(records)
    known, p_lower = _kept(records.selected) >= 0, _kept(records.p_lower)
    if method == EXACT:
        bound = successes / trials
    elif method in ("fixed", "two_sided"):
        level = _kept(records.alpha) * _share(method)
        bound = lower_bounds(successes, trials, level, records.uniform)
    else:
        return np.zeros(len(records), dtype=bool)
    wrong = known & ~np.isclose(p_lower, bound, rtol=CLOSE, atol=0)
    if method == "fixed":
        wrong |= known & ((records.predict >= 0) != (p_lower > 0.5))
    return wrong


def _wrong_exact_radii(records: Records, noise: Any) -> Mask:
    """Where a radius of splitting noise is longer than half the margin of the votes, in gray levels."""
    levels = noise.get("levels") if isinstance(noise, dict) else None
    if type(levels) is not int:
        return np.zeros(len(records), dtype=bool)
    second, first = np.sort(np.pad(_kept(records.counts), ((0, 0), (1, 0))), axis=1)[:, -2:].T
    return records.radius * levels > (first - second) / 2


def _wrong_radii(records: Records, method: str, law: NoiseLaw) -> Mask:
    """Where a radius is longer than its bound proves, or shorter than the method would have said."""
    law_of_sigma = law.law if isinstance(law, Inclusion) else law
    table = isinstance(law_of_sigma, GaussianScaleMixture)
    above, below = (TABLE_ABOVE, TABLE_BELOW) if table else (CLOSE, CLOSE)
    two_sided = method == "two_sided"
    proven = _two_sided_radii(records, law) if two_sided else law.radius(_kept(records.p_lower))
    wrong = records.radius > proven * (1 + above)
    if method == "fixed":  # two-sided radii of version 0.1.0 are shorter: every rival took a share of alpha
        wrong |= (records.predict >= 0) & (records.radius < proven * (1 - below))
    return wrong


def _two_sided_radii(records: Records, law: NoiseLaw) -> FloatArray:
    """Two-sided radii (M,)."""
    counts, p_lower = _kept(records.counts), _kept(records.p_lower)
    others = counts.copy()
    np.put_along_axis(others, np.maximum(_kept(records.selected), 0)[:, None], 0, axis=1)
    level = _kept(records.alpha) * (1 - TOP_SHARE)
    strongest = others.max(axis=1, initial=0)
    rival = np.minimum(_bounds(binomial_upper_bound, strongest, counts.sum(axis=1), level), 1 - p_lower)
    radii = [
        law.two_sided_radius(float(p), float(q)) if p > q else 0.0
        for p, q in zip(p_lower, rival, strict=True)
    ]
    return np.array([radius or 0.0 for radius in radii])


def votes_of_selected(records: Records) -> tuple[Counts, Counts]:
    """Votes (M,) of the class that was bounded, and all votes (M,); of class 0 where it was not kept."""
    counts, selected = _kept(records.counts), np.maximum(_kept(records.selected), 0)
    return np.take_along_axis(counts, selected[:, None], axis=1)[:, 0], counts.sum(axis=1)


def lower_bounds(
    successes: Counts, trials: Counts, alpha: FloatArray, uniform: FloatArray | None = None
) -> FloatArray:
    """``binomial_lower_bound``, or the randomized one, where alpha (M,) differs from image to image."""
    if uniform is None:
        return _bounds(binomial_lower_bound, successes, trials, alpha)
    return _bounds(randomized_lower_bound, successes, trials, alpha, uniform)


def _bounds(
    bound: Any, successes: Counts, trials: Counts, alpha: FloatArray, *more: FloatArray
) -> FloatArray:
    bounds = np.empty(len(successes))
    for level in np.unique(alpha):
        rows = alpha == level
        bounds[rows] = bound(successes[rows], trials[rows], float(level), *(each[rows] for each in more))
    return bounds


def _share(method: str) -> float:
    return TOP_SHARE if method == "two_sided" else 1.0


def _kept(column: NDArray[Any] | None) -> NDArray[Any]:
    assert column is not None  # a .jsonl keeps it
    return column
