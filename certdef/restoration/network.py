"""The restoration network and its training: a degraded photograph in, the photograph out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from certdef.restoration.display import Display, under_display
from surrogates.distillation.training import FitOptions, Training, fit


@dataclass(frozen=True)
class RestorationShape:
    """Size of a restoration network: everything needed to build it again from its weights."""

    image_shape: tuple[int, int, int]
    width: int = 32
    depth: int = 4


class RestorationNetwork(nn.Module):
    """Degraded images (N, C, H, W) in [0, 1] to restored images (N, C, H, W), clamped to [0, 1].

    A small residual network: what it adds to the image comes from `depth` blocks of two 3x3 convolutions at half the
    resolution, a 2x2 block of pixels being its channels (as in FFDNet, Zhang et al., IEEE TIP 2018): four times faster, and
    twice the field of view. No image depends on the rest of its batch. Fully convolutional: it takes every even size.

    Raises:
        ValueError: Height or width is odd.
    """

    def __init__(self, shape: RestorationShape):
        super().__init__()
        self.shape = shape
        _even(shape.image_shape)
        channels = 4 * shape.image_shape[0]
        self.enter = nn.Conv2d(channels, shape.width, 3, padding=1)
        self.blocks = nn.Sequential(*[_Block(shape.width) for _ in range(shape.depth)])
        self.leave = nn.Conv2d(shape.width, channels, 3, padding=1)
        for weight in self.leave.parameters():  # an untrained network changes nothing
            nn.init.zeros_(weight)

    def restore(self, images: Tensor) -> Tensor:
        """The photograph as predicted, (N, C, H, W), not clamped."""
        _even(tuple(images.shape[1:]))
        folded = nn.functional.pixel_unshuffle(images - 0.5, 2)  # (N, 4C, H/2, W/2)
        return images + nn.functional.pixel_shuffle(self.leave(self.blocks(self.enter(folded))), 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.restore(images).clamp(0, 1)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


def restoration_loss(restored: Tensor, truth: Tensor, gradient: float = 0.1, scales: int = 3) -> Tensor:
    """L2 and a perceptual part, a scalar: mean squared error + gradient * L1 of the image gradients at several scales.

    The perceptual part stands in for the published one, a distance of VGG features: edges at full, half and quarter
    resolution, which need no weights trained elsewhere.
    """
    total = nn.functional.mse_loss(restored, truth)
    error = restored - truth  # the gradient is linear: that of the error is the error's
    for scale in range(scales):
        along = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        total = total + gradient * along / scales
        if scale + 1 < scales:
            error = nn.functional.avg_pool2d(error, 2)
    return total


def train_restoration(
    network: RestorationNetwork,
    photographs: Tensor,
    training: Training,
    *,
    display: Display | None = None,
    gradient: float = 0.1,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Train in place to undo the display; every epoch degrades every photograph anew. Returns the loss of each epoch.

    Args:
        network: The restoration, untrained.
        photographs: The truth, (N, C, H, W) in [0, 1].
        training: The recipe.
        display: What they are seen through; unset, the display as set in `Display`.
        gradient: Weight of the loss's perceptual part.
        **options: Seed, device, checkpoint and progress, as `surrogates.distillation.training.fit` takes them.
    """
    display = display or Display()

    def loss(model: RestorationNetwork, truth: Tensor, *, generator: torch.Generator) -> Tensor:
        return restoration_loss(model.restore(under_display(truth, generator, display)), truth, gradient)

    return fit(network, photographs, loss, training, **options)


def _even(shape: tuple[int, ...]) -> None:
    if shape[-1] % 2 or shape[-2] % 2:
        raise ValueError(
            f"images of {shape[-2]}x{shape[-1]} do not fold into 2x2 blocks: cut them to even sizes"
        )
