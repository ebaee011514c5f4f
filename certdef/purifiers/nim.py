"""Noisy image modelling and De^3 (You et al., "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial
Defense", NeurIPS 2023, arXiv 2302.01056).

Pre-training is a masked autoencoder with noise in the place of masks: noisy = x + sigma z with one random sigma an
image, no clipping, every patch through a ViT encoder, a small ViT decoder predicts the clean pixels of all patches.

Two departures from the published code, both needed by certificates: the targets are raw pixels, and the denoiser is a
function of the noisy image alone. (The published inference un-normalises each patch with the mean and variance of the
un-noised input, which lets an attack through and voids any certificate.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from surrogates import TrainingCheckpoint


@dataclass(frozen=True)
class NIMShape:
    """Size of a NIM: everything needed to build it again from its weights."""

    image_shape: tuple[int, int, int]
    patch_size: int = 4
    width: int = 64
    depth: int = 3
    heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 1


class NIM(nn.Module):
    """NIM-MAE: noisy images (N, C, H, W) -> denoised images (N, C, H, W), clamped to [0, 1].

    Raises:
        ValueError: The image is not a whole number of patches.
    """

    def __init__(self, shape: NIMShape):
        super().__init__()
        channels, height, width = shape.image_shape
        if height % shape.patch_size or width % shape.patch_size:
            raise ValueError(
                f"patch_size {shape.patch_size} does not divide the image {height}x{width}: choose one that does"
            )
        self.shape = shape
        self.grid = (height // shape.patch_size, width // shape.patch_size)
        self.embed = PatchEmbed((height, width), shape.patch_size, channels, shape.width)
        self.encoder = nn.Sequential(
            *[Block(shape.width, shape.heads, qkv_bias=True) for _ in range(shape.depth)],
            nn.LayerNorm(shape.width),
        )
        self.bridge = nn.Linear(shape.width, shape.decoder_width)
        self.decoder = nn.Sequential(
            *[Block(shape.decoder_width, shape.heads, qkv_bias=True) for _ in range(shape.decoder_depth)],
            nn.LayerNorm(shape.decoder_width),
        )
        self.head = nn.Linear(shape.decoder_width, shape.patch_size**2 * channels)
        for name, size in (("position", shape.width), ("decoder_position", shape.decoder_width)):
            self.register_buffer(
                name, build_sincos2d_pos_embed(self.grid, size)[None], persistent=False
            )  # (1, T, D)
        self.apply(_initialise)

    def encode(self, noisy: Tensor) -> Tensor:
        """Features of every patch, (N, T, width)."""
        return self.encoder(self.embed(noisy - 0.5) + self.position)

    def reconstruct(self, noisy: Tensor) -> Tensor:
        """The clean image as predicted, (N, C, H, W), not clamped."""
        decoded = self.head(
            self.decoder(self.bridge(self.encode(noisy)) + self.decoder_position)
        )  # (N, T, P*P*C)
        channels, patch, (rows, columns) = self.shape.image_shape[0], self.shape.patch_size, self.grid
        patches = decoded.reshape(-1, rows, columns, patch, patch, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch, columns * patch) + 0.5

    def forward(self, noisy: Tensor) -> Tensor:
        return self.reconstruct(noisy).clamp(0, 1)


class NIMClassifier(nn.Module):
    """A NIM's encoder, copied, with a linear head: (N, C, H, W) in [0, 1] -> logits (N, K)."""

    def __init__(self, nim: NIM, num_classes: int):
        super().__init__()
        self.embed, self.encoder = copy.deepcopy(nim.embed), copy.deepcopy(nim.encoder)
        self.register_buffer("position", nim.position.clone(), persistent=False)
        self.head = nn.Linear(nim.shape.width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The mean over all patches, (N, width)."""
        return self.encoder(self.embed(images - 0.5) + self.position).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class DeCubed(nn.Module):
    """De^3 as a defence of its own: noise, decode, clamp. (N, C, H, W) -> (N, C, H, W) in [0, 1].

    Args:
        denoiser: A trained NIM.
        sigma: Noise level in [0,1] pixel units, the test-time dial between accuracy and robustness; 0 decodes without noise.
        generator: Source of the noise; unset, torch's default.
    """

    def __init__(self, denoiser: nn.Module, sigma: float, generator: torch.Generator | None = None):
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(
                f"sigma must be 0 or more in [0,1] pixel units, got {sigma}: 75 8-bit levels are {75 / 255:.3f}"
            )
        self.denoiser, self.sigma, self.generator = denoiser, sigma, generator

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=self.generator, device=images.device)
        return self.denoiser(images + self.sigma * noise)


def pretrain_nim(
    model: NIM, images: Tensor, noise: Any, *, epochs: int, batch_size: int, base_learning_rate: float, warmup: float = 0.05,
    seed: int = 0, device: torch.device | str = "cpu", checkpoint: Any = None, progress: Callable | None = None,
) -> list[float]:  # fmt: skip
    """Pre-train in place on unlabelled images; returns the mean loss of each epoch.

    The loss is the mean squared error over all patches, raw pixels. AdamW (0.9, 0.95), weight decay 0.05, rate
    base_learning_rate * batch/256 with a linear warm-up and a cosine decay, as published.

    Args:
        images: (N, C, H, W) in [0, 1].
        noise: A law with sample(shape, generator=, device=) that draws one sigma an image, e.g. certify.nim_noise().
        checkpoint: Path of a resumable checkpoint; an interrupted training goes on to the same weights.
        progress: Wraps the epochs, e.g. tqdm.
    """
    device = torch.device(device)
    images, model = images.to(device), model.to(device).train()
    generator = torch.Generator(device).manual_seed(seed)
    rate = base_learning_rate * batch_size / 256
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    start = max(1, round(warmup * epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda epoch: min(
            (epoch + 1) / start,
            0.5 * (1 + math.cos(math.pi * max(0, epoch - start) / max(1, epochs - start))),
        ),
    )
    saved = TrainingCheckpoint(checkpoint, model, optimizer, generator, schedule) if checkpoint else None
    first = saved.load() if saved else 0
    history = saved.history if saved else []
    remaining = range(first, epochs)
    for epoch in progress(remaining) if progress else remaining:
        total = torch.zeros((), device=device)
        for batch in torch.randperm(len(images), generator=generator, device=device).split(batch_size):
            clean = images[batch]
            noisy = clean + noise.sample(clean.shape, generator=generator, device=device)
            loss = nn.functional.mse_loss(model.reconstruct(noisy), clean)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        schedule.step()
        history.append(total.item() / len(images))
        if saved and (epoch + 1) % max(1, epochs // 20) == 0:
            saved.save(epoch)
    model.eval()
    return list(history)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
