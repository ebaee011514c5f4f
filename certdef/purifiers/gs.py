"""Gaussian smoothing, once or several times: the simplest purifier, and the first half of NCIS.

Attacks put high frequencies into an image; natural images have little there. (Cha et al., "Dealing with Adversarial
Perturbations via Neural Contextual Iterative Smoothing", WACV 2024, arXiv 2106.11644; kernel, sigma and number of
passes are unread.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, Denoiser, Parts, PurifierSpec


class GaussianSmoothing(nn.Module):
    """Convolve with a Gaussian, `passes` times: (N, C, H, W) in [0, 1] -> the same. Differentiable, without noise.

    Variances add: i passes of s are one of s * sqrt(i), but for the cut-off of the kernel and the border, where the
    image is mirrored.

    Args:
        kernel: Side of the kernel in pixels, odd.
        sigma: Standard deviation of the kernel in pixels (not in pixel values).
        passes: How often it is applied.
    """

    weights: Tensor

    def __init__(self, kernel: int = 5, sigma: float = 0.7, passes: int = 1):
        super().__init__()
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of pixels from 3, got {kernel}")
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma of the smoothing must be above 0 (pixels), got {sigma}")
        if passes < 1:
            raise ValueError(f"passes must be 1 or more, got {passes}")
        self.sigma, self.passes, self.reach = sigma, passes, kernel // 2
        offsets = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        weights = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("weights", (weights / weights.sum()).float(), persistent=False)  # (kernel,)

    def forward(self, images: Tensor) -> Tensor:
        """ValueError if the kernel reaches over the whole image."""
        channels, side = images.shape[1], min(images.shape[2:])
        if self.reach >= side:
            raise ValueError(
                f"kernel {2 * self.reach + 1} is too large for images of {side} pixels: use {2 * side - 1} at most"
            )
        column = self.weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        row = self.weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        for _ in range(self.passes):
            images = functional.pad(images, [self.reach] * 4, mode="reflect")
            images = functional.conv2d(images, column, groups=channels)
            images = functional.conv2d(images, row, groups=channels)
        return images.clamp(0, 1)  # an average of numbers in [0, 1], but for rounding


def smoothing_settings(config: RunConfig) -> dict[str, Any]:
    """Those of GaussianSmoothing, as configured."""
    return {"kernel": config.gs.kernel, "sigma": config.gs.sigma, "passes": config.gs.passes}


def _build(parts: Parts) -> GaussianSmoothing:
    return GaussianSmoothing(**parts.settings)


SOURCE = "Cha et al., WACV 2024, arXiv 2106.11644"
THREAT = "knows the classifier, not that a purifier is there"

PURIFIER = PurifierSpec(
    "gs",
    About("Gaussian smoothing, repeated", SOURCE, THREAT, papers=("ncis",)),
    _build,
    smoothing_settings,
    denoiser=Denoiser("the smoothing", _build),
    differentiable=True,
)
