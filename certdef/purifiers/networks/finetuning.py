"""Fine-tuning of a classifier on denoised images, so that it knows what a denoiser shows it (You et al., NeurIPS 2023,
arXiv 2302.01056)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from surrogates.distillation.training import Training, fit


def finetune(
    classifier: nn.Module, denoiser: nn.Module, images: Tensor, labels: Tensor, training: Training, *,
    sigma: float = 30 / 255, seed: int = 0, device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None, progress: Callable | None = None,
) -> list[float]:  # fmt: skip
    """Train a classifier in place on what a frozen denoiser makes of noisy images; returns the mean loss of each epoch.

    Each image gets a noise level of its own from U(0, sigma), is denoised, clamped to [0, 1] and classified; the loss is
    the cross-entropy. Published with the encoder of the NIM itself as classifier: NIMClassifier(nim, classes).

    Args:
        classifier: (N, C, H, W) in [0, 1] -> logits (N, K).
        denoiser: A function of the noisy image alone, e.g. a NIM; not changed.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        sigma: Highest noise level in [0,1] pixel units; 30 8-bit levels as published.

    Raises:
        ValueError: A sigma that is negative or not finite, or what fit refuses.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(
            f"sigma must be 0 or more in [0,1] pixel units, got {sigma}: 30 8-bit levels are {30 / 255:.3f}"
        )
    denoiser.to(device).eval()

    def loss(model: nn.Module, clean: Tensor, truth: Tensor, *, generator: torch.Generator) -> Tensor:
        levels = sigma * torch.rand(len(clean), 1, 1, 1, generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        with torch.no_grad():
            shown = denoiser(clean + levels * noise).clamp(0, 1)
        return nn.functional.cross_entropy(model(shown).float(), truth)

    return fit(
        classifier, (images, labels), loss, training,
        seed=seed, device=device, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
