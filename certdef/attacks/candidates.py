"""The choice among what several searches find: of each image the candidate that the system most often gets wrong.

An attacker who knows a system may ask it as often as he likes before he submits anything. Where it draws noise, a single
wrong answer says little: he submits what was wrong most often in passes of his own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certdef.attacks.gradient import forked, within
from surrogates.distillation.inference import evaluating, images_at_once

Ask = Callable[[Tensor], Tensor]  # images to logits or log-scores (N, K), one query an image
Search = Callable[[Tensor, Tensor], Tensor]  # originals (N, C, H, W) and labels (N,) to candidates


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best other logit less the label's, (N,): positive where the label is not the answer (Carlini and Wagner, S&P 2017)."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(dim=1) - logits[own]


def strongest(
    searches: Sequence[Search],
    system: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    seed: int,
    passes: int = 1,
    batch_size: int = 256,
) -> Tensor:
    """Of each image what the system most often gets wrong, of all that the searches find and the image itself.

    Args:
        searches: What is tried, on one batch after the other.
        system: What chooses: passes of the attacker's own.
        images: The originals, (N, C, H, W) in [0, 1].
        labels: What the attacker wants to leave, (N,).
        eps: Largest L-infinity distance.
        seed: Of what the searches and the system draw from the global generator.
        passes: Passes that judge a candidate.
        batch_size: Images at once, at most; fewer of large ones.

    Returns:
        Adversarial images in [0, 1] within eps.
    """
    device = next(system.parameters()).device
    size = images_at_once(images.shape[1:], batch_size)
    chosen = []
    with evaluating(system), forked(seed, device):
        for batch, label in zip(images.split(size), labels.split(size), strict=True):
            originals, truth = batch.to(device), label.to(device)
            found = (within(search(originals, truth), originals, eps) for search in searches)
            chosen.append(most_often_wrong(system, originals, found, truth, passes).cpu())
    return within(torch.cat(chosen), images, eps)


def most_often_wrong(
    system: nn.Module, images: Tensor, candidates: Iterable[Tensor], labels: Tensor, passes: int
) -> Tensor:
    """Of each image the candidate that most of these passes get wrong, the image itself unless one does better."""
    best, lost = images, wrong(system, images, labels, passes)
    for found in candidates:
        often = wrong(system, found, labels, passes)
        best = torch.where((often > lost)[:, None, None, None], found, best)
        lost = torch.maximum(lost, often)
    return best


@torch.no_grad()
def wrong(system: nn.Module, images: Tensor, labels: Tensor, passes: int) -> Tensor:
    """How often each image is wrong, (N,); of equals what has the larger mean margin counts a little more."""
    wrongs = torch.zeros(len(images), device=images.device)
    margins = torch.zeros_like(wrongs)
    for _ in range(passes):
        logits = system(images.clone())
        wrongs += logits.argmax(dim=1) != labels
        margins += margin(logits, labels)
    return wrongs + torch.sigmoid(margins / passes) / 2
