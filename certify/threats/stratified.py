"""Scale mixtures by strata of sigma: a bound for each stratum instead of one for all, chosen before sampling.

Cut the law of sigma into S strata of equal probability and draw n / S votes in each. With p_s the lower bound
of stratum s at level alpha / S, an adversary who sees sigma keeps in it no less than (Neyman-Pearson; P_s, Q_s
and A_t as in noise.radius_table, sigma restricted to the stratum)

    k_s(r) = max over t of Q_s(A_t) - e^t (P_s(A_t) - p_s),

and the radius is the largest r at which the mean of the k_s is 1/2. Every t gives a true bound, so a coarse search
costs length, never soundness; and so do lower edges in place of sigma. Strata gain where the votes differ between
them and lose by the S bounds: the pooled bound is the default because it was longer in trials.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from certify.bounds.binomial import binomial_lower_bound, smallest_n
from certify.certificate import Certificate, Certificates, Counts
from certify.errors import CertifyError, check_alpha, check_count
from certify.noise.base import ROUNDING, FloatArray, NoiseLaw
from certify.noise.bisection import largest
from certify.noise.radius_table import FLOAT32, SLACK
from certify.noise.scale_mixture import GaussianScaleMixture
from certify.noise.sigma_cells import SigmaCells
from certify.noise.truncation import truncated
from certify.smoothing import SmoothedClassifier
from certify.voting.checks import check_images, check_indices
from certify.voting.chunks import PREDICTION, SELECTION

CELLS, TRIED = 256, 32  # of a stratum's law of sigma, and of thresholds
MOST = 12  # strata: each has its own stage of the vote engine's seeds


def strata_of(noise: NoiseLaw, strata: int) -> list[GaussianScaleMixture]:
    """The law of sigma given each of ``strata`` intervals of equal probability, from low to high sigma.

    Raises:
        CertifyError: The law is no scale mixture with a continuous law of sigma, or not 2 <= strata <= 12.
    """
    if not isinstance(noise, GaussianScaleMixture) or noise.cells.atoms:
        raise CertifyError(f"strata need a scale mixture with a continuous law of sigma, got {noise!r}")
    if check_count("strata", strata, 2) > MOST:
        raise CertifyError(f"strata must be at most {MOST}, got {strata}: use fewer, wider ones")
    cuts = noise.law.ppf(np.linspace(0, 1, strata + 1))
    low, high = np.maximum(cuts[:-1], 0.0), cuts[1:]
    return [GaussianScaleMixture(truncated(noise.law, a, b)) for a, b in zip(low, high, strict=True)]


def stratified_radius(p_lower: FloatArray, strata: list[SigmaCells]) -> float:
    """Radius for lower bounds (S,) of the top class in strata of equal weight."""

    def keeps(radius: float) -> bool:
        kept = [_kept(p, radius, law) for p, law in zip(p_lower, strata, strict=True)]
        return float(np.mean(kept)) >= 0.5 * (1 + ROUNDING)

    if not p_lower.mean() > 0.5:
        return 0.0
    return largest(keeps, 0.0, 20 * max(float(law.sigma[-1]) for law in strata), steps=40)


def _kept(p: float, r: float, law: SigmaCells) -> float:
    """k_s(r), rounded down, over thresholds that would be best if one of the cells were the whole stratum."""
    if not 0 < p < 1:
        return 0.0
    sigma = law.sigma[:: max(1, len(law.sigma) // TRIED)]
    u = (ndtri(p) - r / (2 * sigma[:, None])) / sigma[:, None]  # t / r
    threshold, shift = u * law.sigma, r / (2 * law.sigma)
    hit_p = ndtr(threshold + shift) @ law.mass + (1 - law.mass.sum())  # the rest has sigma = 0
    hit_q = ndtr(threshold - shift) @ law.mass
    with np.errstate(over="ignore", invalid="ignore"):
        kept = hit_q - np.exp(u[:, 0] * r) * (hit_p - p + SLACK) - SLACK
    return max(0.0, float(np.max(kept, initial=0.0, where=np.isfinite(kept))))


def cells_of(noise: GaussianScaleMixture) -> SigmaCells:
    """At most CELLS cells of the law of sigma, merged towards their lower edges."""
    law = noise.cells
    starts = np.arange(0, len(law.sigma), max(1, len(law.sigma) // CELLS))
    sigma = law.sigma[starts] * (1 - FLOAT32)
    return SigmaCells(sigma, np.add.reduceat(law.mass, starts), atoms=law.atoms)


def certify_stratified(
    smoothed: SmoothedClassifier,
    images: Any,
    *,
    strata: int = 4,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    indices: Sequence[int] | None = None,
    on_certificate: Callable[[int, Certificate, float], None] | None = None,
    progress: Any = None,
) -> Certificates:
    """As ``smoothed.certify``, with one bound a stratum of sigma.

    Args:
        smoothed: Its noise is a scale mixture with a continuous law of sigma.
        images: (N, C, H, W) in [0, 1].
        strata: S, intervals of equal probability.
        n: Draws of the estimation, divided equally between the strata.
        n0, alpha, indices, on_certificate, progress: As in ``SmoothedClassifier.certify``.

    Raises:
        CertifyError: A law without strata, or too few votes to certify anything.
    """
    check_count("n0", n0)
    check_alpha(alpha)
    laws = strata_of(smoothed.noise, strata)
    each = check_count("n", n) // strata
    enough = smallest_n(np.nextafter(0.5, 1), alpha / strata)
    if each < enough:
        raise CertifyError(
            f"n={n} is too small for {strata} strata at alpha={alpha:g}: use n >= {strata * enough}"
        )
    images = check_images(images)
    names = check_indices(indices, len(images))
    smoothed.check_alone(images)
    certificates = Certificates()
    for index, image in zip(names, images, strict=True):
        start = time.perf_counter()
        count = partial(_count, smoothed, image[None], index, progress)
        counts0 = count(smoothed.noise, SELECTION, n0)
        votes = [count(law, PREDICTION + 1 + stratum, each) for stratum, law in enumerate(laws)]
        certificates.append(_certificate(smoothed, counts0, np.stack(votes), laws, alpha))
        if on_certificate is not None:
            on_certificate(index, certificates[-1], time.perf_counter() - start)
    return certificates


def _count(
    smoothed: SmoothedClassifier,
    image: torch.Tensor,
    index: int,
    progress: Any,
    law: NoiseLaw,
    stage: int,
    draws: int,
) -> Counts:
    """Votes (K,) of one image (1, C, H, W) under a law of its own."""
    engine, classes = smoothed.engine, smoothed.num_classes
    return engine.count(
        smoothed.base, image, law, classes, draws, indices=[index], stage=stage, progress=progress
    )[0]


def _certificate(
    smoothed: SmoothedClassifier,
    counts0: Counts,
    votes: Counts,
    laws: list[GaussianScaleMixture],
    alpha: float,
) -> Certificate:
    """From selection votes (K,) and the votes (S, K) of the strata."""
    top = int(np.argmax(counts0))
    p_lower = binomial_lower_bound(votes[:, top], votes.sum(axis=1), alpha / len(laws))
    radius = stratified_radius(p_lower, [cells_of(law) for law in laws])
    certificate = Certificate.of(
        top,
        radius or None,
        float(p_lower.mean()),
        counts0,
        votes.sum(axis=0),
        smoothed.noise,
        alpha=alpha,
        method="stratified",
        subject=smoothed.subject,
    )
    return replace(certificate, noise={**certificate.noise, "strata": len(laws)})
