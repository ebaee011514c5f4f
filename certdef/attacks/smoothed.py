"""The strongest attack we have on a smoothed classifier, beside what is proven of it.

PGD follows the gradient of the soft vote, averaged over noise draws (Salman et al., NeurIPS 2019), in L2, as the
certificate is. Within a certified radius it must change nothing; how far above the certified curve its accuracy stays is
what the proof, or the attack, leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import certify
from certdef.attacks import gradient as attacks


class SoftVote(nn.Module):
    """The smoothed classifier as a function with a gradient: (N, C, H, W) -> log of the mean probability (N, K).

    Args:
        base: Noisy images -> logits.
        noise: The smoothing noise; every pass draws anew.
        draws: Noise draws an image and pass.
        seed: Of the noise.
    """

    def __init__(self, base: nn.Module, noise: certify.NoiseLaw, draws: int, seed: int):
        super().__init__()
        self.base, self.noise, self.draws = base, noise, draws
        device = next(base.parameters()).device
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        copies = images.repeat_interleave(self.draws, 0)  # (N * draws, C, H, W)
        noise = self.noise.sample(tuple(copies.shape), generator=self.generator, device=copies.device)
        logs = self.base(copies + noise).log_softmax(1).reshape(len(images), self.draws, -1)
        return logs.logsumexp(dim=1) - np.log(self.draws)


def attack_smoothed(
    base: nn.Module, noise: certify.NoiseLaw, images: Tensor, labels: Tensor, radii: Tensor, *,
    steps: int, draws: int, seed: int, progress: Callable | None = None,
) -> Tensor:  # fmt: skip
    """Adversarial images for the vote under `noise`, each within radii (N,) in L2 of its original and in [0, 1]."""
    vote = SoftVote(base, noise, draws, seed)
    return attacks.pgd_l2(vote, images, labels, eps=radii, steps=steps, seed=seed, progress=progress)


def changed(
    smoothed: certify.SmoothedClassifier, certificates: Sequence[certify.Certificate], adversarial: Tensor, *,
    n: int, alpha: float,
) -> NDArray[np.int64]:  # fmt: skip
    """Which certified predictions a fresh vote of n draws contradicts at the adversarial images: indices.

    The vote names a class only where it is sure of it, so each certificate that holds is contradicted with probability at
    most alpha. An abstention contradicts nothing: near the end of the radius the vote is close.
    """
    sure = np.array([certificate.prediction != certify.ABSTAIN for certificate in certificates])
    claimed = np.array([certificate.prediction for certificate in certificates])
    seen = smoothed.predict(adversarial, n=n, alpha=alpha)
    return np.flatnonzero(sure & (seen != certify.ABSTAIN) & (seen != claimed))


def curve(
    smoothed: certify.SmoothedClassifier, images: Tensor, labels: Tensor, radii: Sequence[float], *, n0: int, n: int,
    votes: int, alpha: float, steps: int, draws: int, seed: int, progress: Callable | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """At each L2 radius, from 0: certified accuracy and, above it, accuracy under the attack; [share, lower, upper].

    Args:
        smoothed: Certified with n0 + n draws an image; its base is a module with a gradient.
        votes: Draws of a prediction under attack; abstentions count as wrong, here and there.
    """
    certificates = smoothed.certify(images, n0=n0, n=n, alpha=alpha)
    right = np.array([certificate.prediction for certificate in certificates]) == labels.numpy()
    proven = np.array([certificate.radius for certificate in certificates])
    rows = []
    every = [0.0, *(radius for radius in radii if radius > 0)]
    for radius in progress(every, desc="PGD on the vote") if progress else every:
        reach = torch.full((len(images),), radius)
        shown = images
        if radius:
            shown = attack_smoothed(
                smoothed.base, smoothed.noise, images, labels, reach, steps=steps, draws=draws, seed=seed
            )
        seen = smoothed.predict(shown, n=votes, alpha=alpha) == labels.numpy()
        rows.append(
            {"radius": radius, "certified": _share(right & (proven >= radius)), "attacked": _share(seen)}
        )
    return rows


def _share(hits: NDArray[np.bool_]) -> list[float]:
    low, high = certify.binomial_interval(int(hits.sum()), len(hits))
    return [float(hits.mean()), float(low), float(high)]
