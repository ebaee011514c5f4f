"""A gradient estimated from scores alone (NES: Ilyas et al., "Black-box adversarial attacks with limited queries", ICML 2018).

Each probe asks for an image with a random pattern added, and with the same pattern taken away; the difference of the margins
says how far the pattern points up. Errors of the answers average out over the probes and the steps, so that it sees through
the noise of a system which defeats a search that keeps what answered best. Patterns are signs, and as large as the noise asks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certdef.attacks.candidates import Ask, margin
from certdef.attacks.gradient import within

PROBES = 10  # a step: antithetic pairs whose mean is followed
MOMENTUM = 0.8
STEP = 0.25  # first step size, in units of eps; it falls to zero in a straight line
SIZES = (0.25, 0.5, 1.0)  # of a pattern, in units of eps
TRIALS = 8  # pairs of each size, to choose one


def nes(ask: Ask, images: Tensor, labels: Tensor, *, eps: float, queries: int, seed: int) -> Tensor:
    """NES, L-infinity: adversarial images (N, C, H, W) in [0, 1] within eps, by at most `queries` an image.

    Args:
        ask: Images (N, C, H, W) to logits or log-scores (N, K), one query an image; it gets copies.
        images: The originals in [0, 1].
        labels: What the attacker wants to leave, (N,).
        eps: Largest distance.
        queries: At most so many an image.
        seed: Of the patterns.
    """
    generator = torch.Generator().manual_seed(seed)

    def signs() -> Tensor:
        return torch.randint(2, images.shape, generator=generator) * 2.0 - 1

    def rise(at: Tensor, pattern: Tensor) -> Tensor:
        """By how much the margin is larger with the pattern than without, (N,)."""
        up, down = (margin(ask((at + sign * pattern).clamp(0, 1)), labels) for sign in (1, -1))
        return up - down

    size, spent = probe_size(rise, images, signs, eps, queries)
    steps = (queries - spent) // (2 * PROBES)
    now, slope = images, torch.zeros_like(images)
    for step in range(steps):
        total = torch.zeros_like(images)
        for _ in range(PROBES):
            pattern = size * signs()
            total += rise(now, pattern)[:, None, None, None] * pattern
        slope = MOMENTUM * slope + total
        now = within(now + STEP * eps * (1 - step / steps) * slope.sign(), images, eps)
    return now


def probe_size(
    rise: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    signs: Callable[[], Tensor],
    eps: float,
    queries: int,
) -> tuple[float, int]:
    """The smallest size whose differences stand out of the noise, for most images; and the queries of an image that it took.

    The noise is that of the same pattern, asked again: for no size is the half of the differences' variance its own.
    """
    if queries < 20 * TRIALS:
        return eps, 0
    for number, share in enumerate(SIZES[:-1], 1):
        patterns = [share * eps * signs() for _ in range(TRIALS)]
        first, again = (torch.stack([rise(images, each) for each in patterns]) for _ in range(2))
        noise = (first - again).square().mean(dim=0) / 2
        if (first.var(dim=0) > 2 * noise).float().mean() > 0.5:
            return share * eps, 4 * TRIALS * number
    return SIZES[-1] * eps, 4 * TRIALS * (len(SIZES) - 1)
