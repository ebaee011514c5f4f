"""Attacks on images, from torchattacks: inputs and outputs (N, C, H, W) in [0, 1], eps in the same units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def pgd(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int, batch_size: int = 256,
        progress: Callable | None = None) -> Tensor:  # fmt: skip
    """Untargeted L-infinity PGD with a random start (Madry et al., ICLR 2018); step size 2.5 eps / steps.

    `labels` are what the attacker wants to leave, (N,). Returns adversarial images in [0, 1] within eps.
    """
    import torchattacks

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    attack = torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps, random_start=True)
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    found = []
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):  # the library draws from, and reseeds, the global generator
        torch.manual_seed(seed)
        for batch, label in progress(batches, desc=f"PGD {eps:g}") if progress else batches:
            found.append(attack(batch.to(device), label.to(device)).cpu())
    model.train(training)
    adversarial = torch.cat(found)
    # Not taken on trust: what leaves here is an image within eps of the original.
    return torch.minimum(torch.maximum(adversarial, images - eps), images + eps).clamp(0, 1)
