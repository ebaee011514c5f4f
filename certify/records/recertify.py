"""Certify again, offline: another alpha, norm or bound from the votes that a run kept, without a new sample."""

import json
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.bounds.binomial import binomial_lower_bound, randomized_lower_bound
from certify.bounds.sequential import betting_lower_bound
from certify.bounds.two_sided import two_sided_radius
from certify.certificate import Counts
from certify.errors import CertifyError, check_alpha
from certify.noise.base import NoiseLaw
from certify.noise.description import same_draws
from certify.noise.inclusion import Inclusion
from certify.records.proofs import unproven, votes_of_selected
from certify.records.table import Records

BOUNDS = ("one_sided", "two_sided", "randomized")


def recertify(records: Records, noise: NoiseLaw, alpha: float, bound: str = "one_sided") -> Records:
    """The records that the same votes give at another ``alpha``, under ``noise`` or with another ``bound``.

    Choose alpha and bound before seeing the result: the best of several is not a certificate.

    Args:
        records: Read from a ``.jsonl``. Sequential votes keep their validity by the betting bound alone;
            group-sequential and guided ones cannot be certified again.
        noise: The law that the votes were drawn under, or an ``Inclusion`` of it for another norm.
        alpha: Probability of a wrong certificate, in (0, 0.5).
        bound: "one_sided", "two_sided", or "randomized" for records that keep its uniform draw.

    Raises:
        CertifyError: Records without counts, drawn under another law, or a bound that the law or the method does
            not have.
    """
    alpha = check_alpha(alpha)
    counts, selected = _checked(records, bound)
    _check_law(records, noise)
    chosen = np.maximum(selected, 0)  # -1: the class of an abstention was not kept; it stays one
    if bound == "two_sided":
        pairs = [
            two_sided_radius(row, int(top), noise, alpha) for row, top in zip(counts, chosen, strict=True)
        ]
        p_lower, radius = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        certified = radius > 0
    else:
        p_lower = _lower_bounds(records, alpha, bound)
        radius = noise.radius(p_lower)
        certified = p_lower > 0.5
    certified &= selected >= 0
    predict = np.where(certified, chosen, -1)
    return replace(
        records,
        predict=predict,
        radius=np.where(certified, radius, 0.0),
        correct=certified & (predict == records.label),
        p_lower=p_lower,
        sound=records.sound and noise.sound,
        alpha=np.full(len(records), alpha),
        noise=noise.describe(),
        uniform=records.uniform if bound == "randomized" else None,
        config={
            **(records.config or {}),
            "recertified": {"alpha": alpha, "bound": bound, **noise.describe()},
        },
    )


def _lower_bounds(records: Records, alpha: float, bound: str) -> NDArray[np.float64]:
    """One-sided bounds (M,) at ``alpha`` that the way of drawing the votes allows."""
    successes, trials = votes_of_selected(records)
    if records.method == "sequential":
        drawn = zip(successes.tolist(), trials.tolist(), strict=True)
        return np.array([betting_lower_bound(k, n, alpha) for k, n in drawn])
    if bound == "randomized":
        assert records.uniform is not None  # checked
        return np.asarray(randomized_lower_bound(successes, trials, alpha, records.uniform))
    return np.asarray(binomial_lower_bound(successes, trials, alpha))


def _checked(records: Records, bound: str) -> tuple[Counts, NDArray[np.int64]]:
    """Counts (M, K) and selected classes (M,) that can be certified again by ``bound``, or CertifyError."""
    if bound not in BOUNDS:
        raise CertifyError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}: try 'one_sided'")
    if records.counts is None or records.selected is None:
        raise CertifyError("these records hold no counts: read the .jsonl, not the .tsv")
    if records.method not in ("fixed", "two_sided", "sequential"):
        raise CertifyError(f"votes of method {records.method!r} cannot be certified again: draw them 'fixed'")
    if bound == "two_sided" and records.method == "sequential":
        raise CertifyError(
            "bound 'two_sided' needs a fixed number of votes, got 'sequential': use 'one_sided'"
        )
    if bound == "randomized" and records.uniform is None:
        raise CertifyError(
            "bound 'randomized' needs the uniform draw of each record, made before its votes: certify with "
            "bound='randomized', or use 'one_sided'"
        )
    return records.counts, records.selected


def _check_law(records: Records, noise: NoiseLaw) -> None:
    """Raise CertifyError unless the votes were drawn under ``noise``, as far as the records tell.

    Records that do not name their law tell it by their radii.
    """
    if not isinstance(noise, NoiseLaw):
        raise CertifyError(f"noise must be a noise law, got {noise!r}: try certify.Gaussian(0.25)")
    if records.noise is not None:
        if not same_draws(records.noise, noise):
            drawn, given = (json.dumps(each)[:300] for each in (records.noise, noise.describe()))
            raise CertifyError(f"these votes were drawn under {drawn}, got {given}: give that law")
        kept, told = (each.get("dimensions") for each in (records.noise, noise.describe()))
        if None not in (kept, told) and kept != told:
            raise CertifyError(f"the images of these records have {kept} dimensions, got {told}: give {kept}")
    elif records.alpha is not None and records.method is not None:
        drawn_law = noise.law if isinstance(noise, Inclusion) else noise
        if (
            unproven(records, records.method, noise).any()
            and unproven(records, records.method, drawn_law).any()
        ):
            raise CertifyError(
                f"the radii of these records do not follow from their votes under {noise!r}: give their law"
            )


def recover_successes(radius: ArrayLike, noise: NoiseLaw, n: int, alpha: float) -> NDArray[np.int64]:
    """Votes of the top class behind rounded one-sided radii, the nearest of n + 1 possible ones; -1 at 0.

    For logs that keep radii only. A radius off this lattice by more than its rounding comes from another noise,
    n or alpha.
    """
    k = np.arange(n // 2, n + 1)
    lattice = noise.radius(binomial_lower_bound(k, n, alpha))
    k, lattice = k[lattice > 0], lattice[lattice > 0]
    radius = np.asarray(radius, dtype=np.float64)
    above = np.clip(np.searchsorted(lattice, radius), 1, len(lattice) - 1)
    nearest = np.where(radius - lattice[above - 1] < lattice[above] - radius, above - 1, above)
    return np.where(radius > 0, k[nearest], -1)
