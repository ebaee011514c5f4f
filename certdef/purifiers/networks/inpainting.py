"""Hidden pixels filled by the networks of purifiers: fills for certify.threats.patches, from seen pixels alone.

Both are functions fill(images, hidden) -> images. `certify.threats.fills.cover` blackens what is hidden before they are
asked, rounds what they return to 8 bits, and leaves every pixel that is seen as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from certdef.purifiers.networks.multiscale import MultiscaleNIM
from certdef.purifiers.networks.nim import MIM
from certify.threats.fills import mean


class MaskedFill(nn.Module):
    """The masked autoencoder as it was trained: patches that are seen whole go in, all others come out.

    Args:
        model: A trained MIM, for images of its own size.
    """

    def __init__(self, model: MIM):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Images (B, C, H, W), hidden (B, H, W) -> images as predicted, in [0, 1]; mid-gray where nothing is seen."""
        side = self.model.shape.patch_size
        patches = nn.functional.max_pool2d(hidden[:, None].float(), side).flatten(1) > 0  # (B, T)
        counts = patches.sum(dim=1)
        filled = torch.full_like(images, 0.5)
        for count in counts.unique().tolist():  # a batch of the network hides as many in each image
            if count < patches.shape[1]:
                rows = counts == count
                filled[rows] = self.model.fill_in(images[rows], patches[rows]).clamp(0, 1)
        return filled


class DenoisedFill(nn.Module):
    """A denoiser that was trained on noise fills holes too, step by step: noise on all, denoise, put back what is seen.

    It starts from the mean of the seen pixels, and the noise falls from step to step, as in the reverse process of a
    diffusion model (Lugmayr et al., "RePaint", CVPR 2022). The noise of each step is drawn once, from a seed, and is the
    same for all images: the fill is a fixed function of what is seen.

    Args:
        denoiser: Noisy images (N, C, H, W) -> denoised images; it was trained under many levels of noise.
        steps: How many.
        highest, lowest: Standard deviations of the first and the last noise, in [0, 1] pixel units.
        seed: Of the noise.
    """

    def __init__(
        self,
        denoiser: MultiscaleNIM,
        steps: int = 6,
        highest: float = 0.35,
        lowest: float = 0.05,
        seed: int = 0,
    ):
        super().__init__()
        self.denoiser, self.seed = denoiser, seed
        self.sigmas = torch.linspace(highest, lowest, steps).tolist()

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Images (B, C, H, W), hidden (B, H, W) -> images, in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        where = hidden[:, None]
        now = torch.where(where, mean(images, hidden), images)
        for sigma in self.sigmas:
            noise = torch.randn((1, *images.shape[1:]), generator=generator).to(images.device)
            now = torch.where(where, self.denoiser(now + sigma * noise), images)
        return now.clamp(0, 1)
