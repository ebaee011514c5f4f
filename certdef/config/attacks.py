"""How a job is attacked, as configured: the transfer attack of every job, and the threat ladder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackConfig:
    """PGD on the surrogate, transferred to the target.

    Args:
        eps: L-infinity budgets in [0,1] pixel units.
        steps: PGD steps.
        images: Held-out images attacked.
        sigma_255: Noise level of De^3 as a defense (8-bit levels), set at test time; 0 is off.
    """

    eps: tuple[float, ...] = (0.1, 0.2, 0.3)
    steps: int = 20
    images: int = 400
    sigma_255: float = 75.0


@dataclass(frozen=True)
class LadderConfig:
    """The threat ladder: attacks of stronger and stronger threat models on each purifier (certdef attack --ladder).

    Args:
        enabled: Evaluate it in the whole job too, for the report.
        systems: Purifiers to compare, beside none and the job's own.
        eps: L-infinity budget of every attack, in [0,1] pixel units.
        large_eps: Budget at which robust accuracy should be 0, a gradient masking check.
        images: Held-out images that the surrogate is attacked on (free).
        target_images: Held-out images that the target is attacked on (paid).
        steps: PGD steps.
        restarts: Runs of APGD with each loss, each from another kind of start; where no noise is drawn five times as
            many on a bare network, and twice as many behind a purifier.
        eot: Noise draws a step, where the purifier draws noise.
        square_queries: Queries an image of Square, which needs scores; where the purifier draws noise, of NES, and a fifth as
            many of Square; 0 is off.
        decision_queries: Queries an image of HopSkipJump, which needs labels (extra attacks); 0 is off.
        looks: Queries that Square and HopSkipJump average over where the purifier draws noise. Also
            --ladder.repeats.
        students: Further surrogates of the same paid answers, which transfer to the target together; 0 is off.
        resubmissions: How often an image is submitted in the worst-of-N attack and its clean control.
        smoothed_images: Held-out images for the certificate of the smoothed classifier beside its accuracy under PGD; 0 is off.
        smoothed_draws: Noise draws a step of that attack.
        workers: Processes that share the images of the surrogate out; each attacks its part by a seed of its own.
    """

    enabled: bool = False
    systems: tuple[str, ...] = ()
    eps: float = 0.1
    large_eps: float = 0.5
    images: int = 60
    target_images: int = 20
    steps: int = 50
    restarts: int = 1
    eot: int = 8
    square_queries: int = 5_000
    decision_queries: int = 500
    looks: int = 4
    students: int = 3
    resubmissions: int = 10
    smoothed_images: int = 20
    smoothed_draws: int = 16
    workers: int = 1
