"""How many votes of an image are drawn, by which method, and the certificate that they give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import certify.core as core
from certify.bounds.binomial import smallest_n
from certify.bounds.sequential import UNIT, Plan, make_plan
from certify.bounds.two_sided import certify_two_sided, check_two_sided
from certify.certificate import Certificate, Counts
from certify.errors import CertifyError, check_alpha, check_count
from certify.noise.base import NoiseLaw

METHODS = ("fixed", "two_sided", "sequential", "group_sequential")
BOUNDS = ("clopper_pearson", "randomized")


@dataclass(frozen=True)
class Sampling:
    """How many votes of an image are drawn, and what they are to prove; refused where it could certify nothing.

    Attributes:
        n0: Draws that select the class.
        n: Draws that bound its probability: all of them ("fixed", "two_sided"), or at most.
        alpha: Probability of a wrong certificate, in (0, 0.5).
        method: "fixed" (Cohen et al. 2019), "two_sided" (bounds the runner-up too), "sequential" or
            "group_sequential" (stop as soon as every one of ``radii`` is decided or out of reach of n draws).
        radii: Of the methods that stop early; default 0, 0.25, 0.5, ...
        bound: Of "fixed": "clopper_pearson", or "randomized" (Stevens 1950), which is never shorter and takes a uniform
            draw of the image's own.
    """

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    method: str = "fixed"
    radii: Sequence[float] | None = None
    bound: str = "clopper_pearson"

    def __post_init__(self) -> None:
        check_count("n0", self.n0)
        check_count("n", self.n)
        object.__setattr__(self, "alpha", check_alpha(self.alpha))
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise CertifyError(f"method must be one of {known}, got {self.method!r}: try method='fixed'")
        if self.bound not in BOUNDS:
            known = ", ".join(BOUNDS)
            raise CertifyError(
                f"bound must be one of {known}, got {self.bound!r}: try bound='clopper_pearson'"
            )
        if self.randomized and self.method != "fixed":
            raise CertifyError(
                f"bound 'randomized' is known for method='fixed', got {self.method!r}: choose one of the two"
            )

    @property
    def randomized(self) -> bool:
        """Whether the bound takes a uniform draw."""
        return self.bound == "randomized"

    def plan(self, noise: NoiseLaw, unit: int = UNIT) -> Plan | None:
        """The sequential test; None for a fixed number of votes.

        Raises:
            CertifyError: n is too small to certify anything, or the law lacks what the method needs.
        """
        if self.method in ("sequential", "group_sequential"):
            return make_plan(noise, self.radii, self.n, self.alpha, self.method, unit)
        if self.radii is not None:
            raise CertifyError(
                f"radii is not used by method={self.method!r}, got {self.radii!r}: leave it out"
            )
        if self.method == "two_sided":
            check_two_sided(noise)
        enough = smallest_n(np.nextafter(0.5, 1), self.alpha)
        if self.n < enough:
            raise CertifyError(
                f"n={self.n} is too small to certify anything at alpha={self.alpha:g}: use n >= {enough}"
            )
        return None


@dataclass(frozen=True)
class Votes:
    """What was drawn of one image: two disjoint sets of votes (K,), and the draw of a randomized bound.

    Attributes:
        counts0: Votes that select the class; none where it is known.
        counts: Votes that bound its probability.
        claimed: Levels of a sequential test that they claim.
        known_class: The class that was named before any vote.
        uniform: In [0, 1).
    """

    counts0: Counts
    counts: Counts
    claimed: int
    known_class: int | None
    uniform: float | None


def certificate_of(
    votes: Votes, noise: NoiseLaw, sampling: Sampling, plan: Plan | None, subject: str
) -> Certificate:
    """What the votes prove, by the method of ``sampling`` (and its ``plan``) that drew them."""
    counts0, counts, known = votes.counts0, votes.counts, votes.known_class
    if plan is not None:
        return plan.certificate(counts0, counts, votes.claimed, noise, subject=subject, known_class=known)
    if sampling.method == "two_sided":
        return certify_two_sided(counts0, counts, noise, sampling.alpha, subject=subject, known_class=known)
    return core.certify(
        counts0, counts, noise, sampling.alpha, subject=subject, known_class=known, uniform=votes.uniform
    )
