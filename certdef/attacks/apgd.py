"""Auto-PGD with several losses, on a system that may draw noise.

APGD (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020) needs no step size: it halves its own where the loss no longer grows. A single loss fails on some images, so
there are three; and where a network answers the same all over a region, its gradient leads nowhere, so there are three kinds
of start: anywhere, along a slow wave, and towards an image with another label. A system that draws noise answers an image
differently each time, and a step follows the mean over several passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certdef.attacks.candidates import Search, margin
from certdef.attacks.gradient import OnCopies, within

MOMENTUM = 0.75  # alpha of the paper
WAVES = 5  # points a side of a slow wave
GROWING = 0.75  # rho: with a smaller share of steps that raise the loss the step size is halved

Loss = Callable[[Tensor, Tensor], Tensor]


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin over the distance of the first and the third logit, (N,), which no scale of the logits changes (APGD's DLR).

    Of two classes, the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
    return margin(logits, labels) / (first - third + 1e-12)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each image, (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "DLR": difference_of_logits_ratio,
    "margin": margin,
}


def anywhere(images: Tensor, labels: Tensor) -> Tensor:
    """Directions from -1 to 1, each pixel by itself."""
    return 2 * torch.rand_like(images) - 1


def along_a_wave(images: Tensor, labels: Tensor) -> Tensor:
    """Signs of a smooth random field with WAVES points a side: low frequencies, to which networks are most sensitive."""
    coarse = torch.randn(*images.shape[:2], WAVES, WAVES, device=images.device)
    return F.interpolate(coarse, size=images.shape[2:], mode="bicubic").sign()


def towards_another(images: Tensor, labels: Tensor) -> Tensor:
    """Signs of the way to an image with another label, drawn from the batch; anywhere where there is none."""
    other = labels[:, None] != labels[None]
    some = other.any(dim=1)
    drawn = torch.multinomial(torch.where(some[:, None], other, True).float(), 1)[:, 0]
    return torch.where(some[:, None, None, None], (images[drawn] - images).sign(), anywhere(images, labels))


Start = Callable[[Tensor, Tensor], Tensor]
STARTS: tuple[Start, ...] = (anywhere, along_a_wave, towards_another)


def searches(
    models: Sequence[nn.Module],
    *,
    eps: float,
    steps: int,
    eot: int = 1,
    restarts: int = 1,
    starts: Sequence[Start] = STARTS,
) -> list[Search]:
    """APGD with every loss on every model, each as a search of its own.

    Args:
        models: Whose gradients are followed, images to logits (N, K): the system, or stand-ins of it.
        eps: Largest L-infinity distance.
        steps: Of each run.
        eot: Passes whose mean each step follows.
        restarts: Runs of every loss on every model, the next one from the next kind of start.
        starts: Kinds of start, which take turns.
    """

    def search(model: nn.Module, loss: Loss, start: Start, originals: Tensor, truth: Tensor) -> Tensor:
        at = originals + eps * start(originals, truth)
        return apgd(model, originals, truth, loss, start=at, eps=eps, steps=steps, eot=eot)

    return [
        partial(search, model, loss, starts[(number + restart) % len(starts)])
        for model, (number, loss), restart in product(models, enumerate(LOSSES.values()), range(restarts))
    ]


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    start: Tensor,
    eps: float,
    steps: int,
    eot: int = 1,
) -> Tensor:
    """APGD, L-infinity: the iterate with the highest mean loss, (N, C, H, W).

    Args:
        model: Images to logits (N, K), on the device of the images.
        images: The originals in [0, 1].
        labels: What the attacker wants to leave, (N,).
        loss: Logits and labels to what is raised, (N,).
        start: Where it starts, cut to what is within eps.
        eps: Largest distance.
        steps: How many.
        eot: Passes whose mean each step follows and is judged by.
    """
    model = OnCopies(model)

    def look(at: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of each image and its gradient."""
        at = at.detach().requires_grad_()
        total = torch.zeros(len(at), device=at.device)
        slope = torch.zeros_like(at)
        for _ in range(eot):
            value = loss(model(at), labels)
            slope += torch.autograd.grad(value.sum(), at)[0]
            total += value.detach()
        return total / eot, slope

    def project(moved: Tensor) -> Tensor:
        return within(moved, images, eps)

    now = project(start)
    before = now
    value, slope = look(now)
    best, highest, best_slope = now, value, slope
    size = torch.full((len(images), 1, 1, 1), 2 * eps, device=images.device)
    grown = torch.zeros(len(images), device=images.device)
    halved = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    at_last, last = highest, 0
    for step in range(1, steps + 1):
        straight = project(now + size * slope.sign())
        carried = MOMENTUM if step > 1 else 1.0
        now, before = project(now + carried * (straight - now) + (1 - carried) * (now - before)), now
        previous, (value, slope) = value, look(now)
        grown += value > previous
        better = value > highest
        wide = better[:, None, None, None]
        best, best_slope = torch.where(wide, now, best), torch.where(wide, slope, best_slope)
        highest = torch.where(better, value, highest)
        if step in checkpoints(steps):
            stuck = (grown < GROWING * (step - last)) | (~halved & (highest <= at_last))
            halved, at_last, last, grown = stuck, highest, step, torch.zeros_like(grown)
            wide = stuck[:, None, None, None]
            size = torch.where(wide, size / 2, size)
            now, slope = torch.where(wide, best, now), torch.where(wide, best_slope, slope)
            before, value = torch.where(wide, now, before), torch.where(stuck, highest, value)
    return best.detach()


def checkpoints(steps: int) -> set[int]:
    """The steps after which APGD looks at its step size."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1}
