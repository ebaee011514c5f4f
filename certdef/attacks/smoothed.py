"""The strongest attack we have on a smoothed classifier, beside what is proven of it.

PGD follows the gradient of the soft vote, averaged over noise draws (Salman et al., NeurIPS 2019), in L2, as the
certificate is. Within a certified radius it must change nothing; how far above the certified curve its accuracy stays is
what the proof, or the attack, leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import certify
from certdef.attacks import gradient


@dataclass(frozen=True)
class VoteAttack:
    """PGD on the soft vote.

    Args:
        steps: Gradient steps.
        draws: Noise draws of an image in each step.
        seed: Of the noise.
    """

    steps: int
    draws: int
    seed: int


class SoftVote(nn.Module):
    """The smoothed classifier as a function with a gradient: (N, C, H, W) to the log of the mean probability (N, K).

    Args:
        base: Noisy images to logits.
        noise: The smoothing noise, or the law of a transformation's parameter; every pass draws anew.
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
        noisy = self.noise.perturb(copies, self.generator)
        logs = self.base(noisy).log_softmax(1).reshape(len(images), self.draws, -1)
        return logs.logsumexp(dim=1) - np.log(self.draws)


def attack_smoothed(
    base: nn.Module,
    noise: certify.NoiseLaw,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    *,
    steps: int,
    draws: int,
    seed: int,
    progress: Callable | None = None,
) -> Tensor:
    """Adversarial images for the vote under `noise`, each within radii (N,) in L2 of its original and in [0, 1]."""
    vote = SoftVote(base, noise, draws, seed)
    return gradient.pgd_l2(vote, images, labels, eps=radii, steps=steps, seed=seed, progress=progress)


def changed(
    smoothed: certify.SmoothedClassifier,
    certificates: Sequence[certify.Certificate],
    adversarial: Tensor,
    *,
    n: int,
    alpha: float,
) -> NDArray[np.int64]:
    """Which certified predictions a fresh vote of n draws contradicts at the adversarial images: indices.

    The vote names a class only where it is sure of it, so each certificate that holds is contradicted with probability at
    most alpha. An abstention contradicts nothing: near the end of the radius the vote is close.
    """
    certified = np.array([certificate.prediction for certificate in certificates])
    voted = smoothed.predict(adversarial, n=n, alpha=alpha)
    sure = (certified != certify.ABSTAIN) & (voted != certify.ABSTAIN)
    return np.flatnonzero(sure & (voted != certified))


def curve(
    smoothed: certify.SmoothedClassifier,
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    attack: VoteAttack,
    *,
    n0: int,
    n: int,
    votes: int,
    alpha: float,
    progress: Callable | None = None,
) -> list[dict[str, Any]]:
    """At each L2 radius, from 0: certified accuracy and, above it, accuracy under the attack; [share, lower, upper].

    Args:
        smoothed: Certified with n0 + n draws an image; its base is a module with a gradient.
        images: (N, C, H, W) in [0, 1].
        labels: The truth, (N,).
        radii: L2 radii in [0, 1] pixel units.
        attack: PGD on the vote.
        n0: Draws that choose the class.
        n: Draws that bound its probability.
        votes: Draws of a prediction under attack; abstentions count as wrong, here and there.
        alpha: Probability that a certificate, or a prediction, is wrong.
        progress: Wraps the radii, like tqdm.
    """
    certificates = smoothed.certify(images, n0=n0, n=n, alpha=alpha)
    right = np.array([certificate.prediction for certificate in certificates]) == labels.numpy()
    proven = np.array([certificate.radius for certificate in certificates])
    points = []
    every = [0.0, *(radius for radius in radii if radius > 0)]
    for radius in progress(every, desc="PGD on the vote") if progress else every:
        adversarial = _attacked(smoothed, images, labels, radius, attack) if radius else images
        voted = smoothed.predict(adversarial, n=votes, alpha=alpha) == labels.numpy()
        certified = _share(right & (proven >= radius))
        points.append({"radius": radius, "certified": certified, "attacked": _share(voted)})
    return points


def _attacked(
    smoothed: certify.SmoothedClassifier, images: Tensor, labels: Tensor, radius: float, attack: VoteAttack
) -> Tensor:
    if not isinstance(smoothed.base, nn.Module):
        raise TypeError("PGD on the vote needs a base with a gradient: give a torch module")
    radii = torch.full((len(images),), radius)
    return attack_smoothed(
        smoothed.base,
        smoothed.noise,
        images,
        labels,
        radii,
        steps=attack.steps,
        draws=attack.draws,
        seed=attack.seed,
    )


def _share(hits: NDArray[np.bool_]) -> list[float]:
    low, high = certify.binomial_interval(int(hits.sum()), len(hits))
    return [float(hits.mean()), float(low), float(high)]
