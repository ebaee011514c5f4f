"""Attacks by gradients, from torchattacks. Images are (N, C, H, W) in [0, 1], distances in the same units.

The library draws from, and reseeds, the global generator: it is forked around every call. What an attack returns is
checked too: it leaves here within eps of the original and in [0, 1]. A model gets copies of the batches, so that one
that writes into its input cannot change the attacker's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surrogates.distillation.inference import evaluating, images_at_once

# Distances are floats: a radius is kept to with this relative slack.
SLACK = 1e-6


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    seed: int,
    eot: int = 1,
    batch_size: int = 256,
    progress: Callable | None = None,
) -> Tensor:
    """Untargeted L-infinity PGD with a random start (Madry et al., ICLR 2018); step size 2.5 eps / steps.

    Args:
        model: Images to logits (N, K).
        images: The originals, (N, C, H, W).
        labels: What the attacker wants to leave, (N,).
        eps: Largest distance.
        steps: Gradient steps.
        seed: Of the random start, and of what a model draws from the global generator.
        eot: Expectation over transformation (Athalye et al., ICML 2018): each step follows the mean gradient over this
            many passes through a model that draws noise.
        batch_size: Images at once, at most; fewer of large ones.
        progress: Wraps the batches, like tqdm.

    Returns:
        Adversarial images in [0, 1] within eps.
    """
    import torchattacks

    model = OnCopies(model)
    step = {"eps": eps, "alpha": 2.5 * eps / steps, "steps": steps, "random_start": True}
    attack = torchattacks.EOTPGD(model, **step, eot_iter=eot) if eot > 1 else torchattacks.PGD(model, **step)
    device = next(model.parameters()).device
    size = images_at_once(images.shape[1:], batch_size)
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    adversarial = []
    with evaluating(model), forked(seed, device):
        for batch, label in progress(batches, desc=f"PGD {eps:g}") if progress else batches:
            adversarial.append(attack(batch.to(device), label.to(device)).cpu())
    return within(torch.cat(adversarial), images, eps)


def pgd_l2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Tensor,
    steps: int,
    seed: int,
    progress: Callable | None = None,
) -> Tensor:
    """Untargeted L2 PGD, each image within a distance of its own; one image after the other, no random start.

    Step size 2.5 eps / steps. Before a smoothed classifier (certdef.attacks.smoothed) it is the attack of Salman et al.,
    "Provably robust deep learning via adversarially trained smoothed classifiers", NeurIPS 2019.

    Args:
        model: Images to logits (N, K).
        images: The originals, (N, C, H, W).
        labels: What the attacker wants to leave, (N,).
        eps: Largest L2 distances, (N,).
        steps: Gradient steps.
        seed: Of what a model draws from the global generator.
        progress: Wraps the images, like tqdm.

    Returns:
        Adversarial images in [0, 1], each within its distance.
    """
    import torchattacks

    model = OnCopies(model)
    device = next(model.parameters()).device
    rows = list(zip(images.split(1), labels.split(1), eps.tolist(), strict=True))
    adversarial = []
    with evaluating(model), forked(seed, device):
        for image, label, radius in progress(rows, desc="PGD L2") if progress else rows:
            attack = torchattacks.PGDL2(model, radius, 2.5 * radius / steps, steps, random_start=False)
            adversarial.append(attack(image.to(device), label.to(device)).cpu() if radius > 0 else image)
    return within_l2(torch.cat(adversarial), images, eps)


def auto_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    classes: int,
    seed: int,
    eot: int = 1,
    queries: int = 5_000,
    batch_size: int = 256,
) -> Tensor:
    """AutoAttack (Croce and Hein, ICML 2020) as torchattacks has it: the first attack that a pass gets wrong is kept.

    Its version `standard`: APGD with cross-entropy, targeted APGD, targeted FAB, Square. With eot above 1 its version `rand`:
    APGD with cross-entropy and with DLR, each step by the mean of eot passes.

    Args:
        model: Images to logits (N, K).
        images: The originals, (N, C, H, W).
        labels: What the attacker wants to leave, (N,).
        eps: Largest L-infinity distance.
        steps: Of every attack by gradients (torchattacks takes 10, the paper 100).
        classes: K; the targeted losses need at least 4.
        seed: Of the starts and the squares.
        eot: Passes a step.
        queries: Of Square; 0 leaves it out.
        batch_size: Images at once, at most; fewer of large ones.
    """
    import torchattacks

    model = OnCopies(model)
    here = {"eps": eps, "seed": seed}
    if eot > 1:
        attacks = [
            torchattacks.APGD(model, **here, steps=steps, loss=loss, eot_iter=eot) for loss in ("ce", "dlr")
        ]
    else:
        attacks = [
            torchattacks.APGD(model, **here, steps=steps, loss="ce"),
            torchattacks.APGDT(model, **here, steps=steps, n_classes=classes),
            torchattacks.FAB(model, **here, steps=steps, multi_targeted=True, n_classes=classes),
            *([torchattacks.Square(model, **here, n_queries=queries)] if queries else []),
        ]
    attack = torchattacks.MultiAttack(attacks)
    device = next(model.parameters()).device
    size = images_at_once(images.shape[1:], batch_size)
    adversarial = []
    with evaluating(model), forked(seed, device):
        for batch, label in zip(images.split(size), labels.split(size), strict=True):
            adversarial.append(attack(batch.to(device), label.to(device)).detach().cpu())
    return within(torch.cat(adversarial), images, eps)


def sign_steps(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    step: float,
    steps: int,
    eot: int = 1,
) -> Tensor:
    """Images that raise a loss of any kind: sign steps from a start, each kept between low and high.

    Args:
        loss: Images (N, C, H, W) to what each raises, (N,).
        start: Images (N, C, H, W).
        low: The lowest pixels, of the same shape.
        high: The highest pixels, of the same shape.
        step: Size of a step.
        steps: How many.
        eot: Passes whose gradients are added up in each step; one graph is held at a time.
    """
    images = start
    for _ in range(steps):
        images = images.detach().requires_grad_()
        gradient = torch.zeros_like(images)
        for _ in range(eot):
            gradient += torch.autograd.grad(loss(images).sum(), images)[0]
        images = (images.detach() + step * gradient.sign()).clamp(low, high)
    return images.detach()


class OnCopies(nn.Module):
    """A model that gets a copy of every batch and hands out copies of its outputs; the gradient passes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.clone()).clone()


class Tally:
    """How many images a gradient was asked for."""

    gradients = 0


class Tallied(nn.Module):
    """A model that counts the images which pass it with a gradient."""

    def __init__(self, model: nn.Module, tally: Tally):
        super().__init__()
        self.model, self.tally = model, tally

    def forward(self, images: Tensor) -> Tensor:
        self.tally.gradients += len(images) * (torch.is_grad_enabled() and images.requires_grad)
        return self.model(images)


class StraightThrough(nn.Module):
    """A purifier for BPDA (Athalye et al., ICML 2018): its output, with the gradient of the identity."""

    def __init__(self, purifier: nn.Module):
        super().__init__()
        self.purifier = purifier

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            moved = self.purifier(images.clone()) - images
        return images + moved


def within(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest images within eps (L-infinity) of the originals and in [0, 1]."""
    return torch.minimum(torch.maximum(adversarial, images - eps), images + eps).clamp(0, 1)


def within_l2(adversarial: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Images on the way from the originals, in [0, 1], at most eps (N,) away in L2, less the slack of floats."""
    moved = adversarial.clamp(0, 1) - images
    length = moved.flatten(1).norm(dim=1)
    share = (eps * (1 - SLACK) / length.clamp_min(1e-12)).clamp_max(1)
    return images + moved * share[:, None, None, None]


@contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators start from `seed` inside and are as they were outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
