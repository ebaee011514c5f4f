"""Fine-tuning of a classifier on denoised images, so that it knows what a denoiser leaves of an image (You et al., NeurIPS 2023,
arXiv 2302.01056)."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from surrogates.distillation.training import FitOptions, Training, fit


def finetune(
    classifier: nn.Module,
    denoiser: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: Training,
    *,
    sigma: float = 30 / 255,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Train a classifier in place on noisy images, denoised by a frozen denoiser; returns the mean loss of each epoch.

    Each image gets a noise level of its own from U(0, sigma), is denoised, clamped to [0, 1] and classified; the loss is
    the cross-entropy. Published with the encoder of the NIM itself as classifier: NIMClassifier(nim, classes).

    Args:
        classifier: (N, C, H, W) in [0, 1] -> logits (N, K).
        denoiser: A function of the noisy image alone, e.g. a NIM; not changed.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        training: Epochs, batch, rate.
        sigma: Highest noise level in [0,1] pixel units; 30 8-bit levels as published.
        options: Seed, device, checkpoint and progress, as for fit.

    Raises:
        ValueError: A sigma that is negative or not finite, or what fit refuses.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(
            f"sigma must be 0 or more in [0,1] pixel units, got {sigma}: 30 8-bit levels are {30 / 255:.3f}"
        )
    denoiser.to(options.get("device", "cpu")).eval()

    def loss(model: nn.Module, clean: Tensor, truth: Tensor, *, generator: torch.Generator) -> Tensor:
        levels = sigma * torch.rand(len(clean), 1, 1, 1, generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        with torch.no_grad():
            denoised = denoiser(clean + levels * noise).clamp(0, 1)
        return nn.functional.cross_entropy(model(denoised).float(), truth)

    return fit(classifier, (images, labels), loss, training, **options)
