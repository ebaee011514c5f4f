"""Augmentation of a student's images: shifts, noise and what stands behind the noise."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from surrogates.distillation.inference import evaluating


class Noise(Protocol):
    """Anything that draws additive noise of a shape, in [0, 1] pixel units."""

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, device: Any = None
    ) -> torch.Tensor:
        """Return float32 noise of the shape."""
        ...


def perturbed(images: torch.Tensor, noise: Noise, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return images with noise added, or, by a law that says how (``perturb``), transformed."""
    own = getattr(noise, "perturb", None)
    if own is not None:
        return own(images, generator)
    return images + noise.sample(tuple(images.shape), generator=generator, device=images.device)


def shifted(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image by its own random offset of up to `shift` pixels; the border is repeated."""
    if shift == 0:
        return images
    count, channels, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift), mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images mirrored, each shifted by up to an eighth of its height; the border is repeated."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return shifted(torch.where(mirrored, images.flip(-1), images), max(1, images.shape[2] // 8), generator)


def denoised(denoiser: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
    """Return what a frozen denoiser, in eval mode, makes of noisy images (N, C, H, W); it is given a copy."""
    with evaluating(denoiser), torch.no_grad():
        return denoiser(noisy.clone())
