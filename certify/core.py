"""The theorem on one screen: CERTIFY and PREDICT of Cohen, Rosenfeld and Kolter (2019), from counts of votes.

The base classifier f answers a class for every noisy image. The smoothed classifier g answers the class that f most
probably answers:  g(x) = argmax_c P(f(x + eps) = c),  eps ~ noise.

Theorem 1. If P(f(x + eps) = c_A) >= p_A > 1/2, all other classes together have at most p_B = 1 - p_A, and
g(x + delta) = c_A for every |delta| < R, with R = sigma Phi^-1(p_A) in l2 for eps ~ N(0, sigma^2), and
R = noise.radius(p_A) in noise.norm for another law.

p_A is unknown: it is bounded from below by votes, and the bound is wrong with probability at most alpha.
"""

import numpy as np
from scipy.stats import binomtest

from certify.bounds.binomial import binomial_lower_bound, randomized_lower_bound
from certify.certificate import ABSTAIN, Certificate, Counts, class_to_bound
from certify.noise.base import NoiseLaw


def certify(
    counts0: Counts,
    counts: Counts,
    noise: NoiseLaw,
    alpha: float,
    *,
    subject: str = "model",
    known_class: int | None = None,
    uniform: float | None = None,
) -> Certificate:
    """CERTIFY: the class of the smoothed classifier and its radius, or ABSTAIN; wrong w.p. at most ``alpha``.

    It abstains where no radius is proven (R is None). A radius of 0 is no abstention: the class is proven at the image.

    Args:
        counts0: Votes (K,) of n0 draws, which select the class; of equal counts the lowest class.
        counts: Votes (K,) of n other draws, which bound its probability. Counts do not show whether the two sets
            of draws are disjoint: that is the caller's duty, and without it the bound does not hold.
        noise: The law that both were drawn under.
        alpha: Probability of a wrong certificate, in (0, 0.5).
        subject: Whose votes they are.
        known_class: The class, if it was named before any vote: then counts0 is not looked at.
        uniform: U in [0, 1) of the randomized bound, drawn apart from the votes.
    """
    # c_A <- top index in counts0: a guess, by draws that the bound does not see
    c_A = class_to_bound(counts0, known_class)
    # p_A <- LOWERCONFBOUND(counts[c_A], n, 1 - alpha): one-sided, Clopper and Pearson, or Stevens
    votes = int(counts[c_A]), int(counts.sum()), alpha
    p_A = binomial_lower_bound(*votes) if uniform is None else randomized_lower_bound(*votes, uniform)
    # if p_A > 1/2 return prediction c_A and radius R, else return ABSTAIN
    R = noise.radius(p_A) if p_A > 0.5 else None
    return Certificate.of(
        c_A,
        R,
        p_A,
        counts0,
        counts,
        noise,
        alpha=alpha,
        method="fixed",
        subject=subject,
        known_class=known_class is not None,
        uniform=uniform,
    )


def predict(counts: Counts, alpha: float) -> int:
    """PREDICT: the class of the smoothed classifier without a radius, or ABSTAIN; wrong w.p. at most ``alpha``.

    One set of votes selects the top two and tests them, at no further alpha (Hung and Fithian 2019). Equal top counts
    abstain, so their order does not matter.

    Args:
        counts: Votes (K,) of n draws.
        alpha: Probability of a wrong class, in (0, 0.5).
    """
    # c_A, c_B <- top two indices in counts; n_A, n_B <- counts[c_A], counts[c_B]
    c_A = int(np.argmax(counts))
    n_B, n_A = np.sort(counts)[-2:]
    # if BINOMPVALUE(n_A, n_A + n_B, 1/2) <= alpha return c_A, else return ABSTAIN: the two-sided test of the top two
    return c_A if binomtest(int(n_A), int(n_A + n_B), 0.5).pvalue <= alpha else ABSTAIN
