"""Images of the report as PNG bytes and `data:` addresses; what the denoiser receives and returns."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import certify
from certdef.report.canvas import as_png, canvas


def denoising_steps(
    denoiser: nn.Module | None, noise: certify.NoiseLaw, images: NDArray[np.float32], seed: int
) -> tuple[Tensor, Tensor]:
    """One noise draw for each image (N, C, H, W) in [0, 1], and the denoiser's output: (noisy, denoised)."""
    clean = torch.from_numpy(images)
    noisy = clean + noise.sample(tuple(clean.shape), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return noisy, denoiser(noisy.clone()) if denoiser else noisy


def png(image: NDArray[Any] | Tensor) -> bytes:
    """An image (C, H, W), clipped to [0, 1], pixel by pixel; in color if C is 3, else the mean in gray."""
    from matplotlib.image import imsave

    pixels = np.clip(np.asarray(image, dtype=np.float32), 0, 1)
    if len(pixels) != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True), 3, axis=0)
    file = io.BytesIO()
    imsave(file, np.round(255 * pixels.transpose(1, 2, 0)).astype(np.uint8), format="png")
    return file.getvalue()


def image_strip(columns: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Some images before and after, a row each: columns of images (N, C, H, W) in [0, 1], each under its title."""
    rows = len(next(iter(columns.values())))
    figure, panels = canvas(1.3 * len(columns), 1.3 * rows + 0.3, rows, len(columns))
    for number, (title, images) in enumerate(columns.items()):
        panels[number].set_title(title, fontsize=8)
        for axes, image in zip(panels[number :: len(columns)], images.clip(0, 1), strict=True):
            axes.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    return as_png(figure)


def data_uri(content: bytes) -> str:
    """PNG bytes as a `data:` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
