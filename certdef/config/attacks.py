"""How a job is attacked, as configured: the transfer attack of every job, and the threat ladder."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Attacks of other kinds than pixels within a distance, by the threat's name, and how far each may go by default.
OTHER_ATTACKS = {
    "patch": "5%",
    "brightness": "0.2",
    "contrast": "0.3",
    "translation": "1",
    "blur-exponential": "1",
    "blur-uniform": "1",
    "blur-folded": "1",
}
BUDGETS = {
    "patch": "rows x columns of pixels or a share of the image, as patch=3x3 or patch=5%",
    "brightness": "a change of pixel values in (0, 1], as brightness=0.2",
    "contrast": "a change of the factor in (0, 1), as contrast=0.3",
    "translation": "a length in pixels above 0, as translation=1",
}
BLUR_BUDGET = "a standard deviation in pixels above 0, as blur-exponential=1"
PATCH = re.compile(r"[1-9]\d*x[1-9]\d*|\d+(?:\.\d+)?%")


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
        processes: Of this computer, which share the images of the surrogate out; each attacks its part by a seed of its own.
        threats: Attacks of other kinds, each a row with its own budget and no part of the worst case: patch (5% of the image), brightness
            (0.2), contrast (0.3), translation (1 pixel), blur-exponential, blur-uniform and blur-folded (1 pixel), or with another
            budget, as in [patch=3x3,brightness=0.1]. Beside them what certdef certify --threat has proven in the same work_dir.
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
    processes: int = 1
    threats: tuple[str, ...] = ()


def other_attack(text: str) -> tuple[str, str]:
    """Name and budget of an entry of ladder.threats.

    Raises:
        ValueError: Nobody knows the name, or the budget is none; says which may be used.
    """
    name, given, value = text.partition("=")
    if name not in OTHER_ATTACKS:
        raise ValueError(f"{name!r} is no attack of another kind: use {', '.join(OTHER_ATTACKS)}")
    budget = value if given else OTHER_ATTACKS[name]
    if not _is_budget(name, budget):
        raise ValueError(f"{text!r} has no budget that can be used: give {BUDGETS.get(name, BLUR_BUDGET)}")
    return name, budget


def _is_budget(name: str, text: str) -> bool:
    if name == "patch":
        return PATCH.fullmatch(text) is not None and not re.match(r"0*(\.0*)?%", text)
    try:
        number = float(text)
    except ValueError:
        return False
    most = {"brightness": 1.0, "contrast": math.nextafter(1, 0)}.get(name, 1e6)
    return 0 < number <= most
