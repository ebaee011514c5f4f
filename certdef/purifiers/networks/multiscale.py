"""A NIM for images of any size: convolutions at full and half resolution around a ViT at a quarter.

Pre-training is that of noisy image modeling (nim.py): one random sigma an image, the clean pixels are predicted, the
network is not told sigma. The ViT's patches are embedded by convolutions (Xiao et al., "Early convolutions help
transformers see better", NeurIPS 2021) and decoded by convolutions that also see the noisy pixels, as in a U-Net
(Ronneberger et al., MICCAI 2015): for the same training time it denoises photographs better than patches of pixels do
(docs/purifiers.md has the figures). The ViT sees tiles of 32x32 pixels. Where they lie on a larger image is read off the
last bits of the noisy pixels: it changes from draw to draw, and the network stays a function of the noisy image alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certdef.purifiers.networks.tiles import Tiling, chunks, tile_offsets

SMALLEST = 8  # pixels of the side of an image
STRIDE = 4  # pixels of the side of a token
WINDOW = 8  # tokens of the side of what the ViT sees together: 32 pixels


@dataclass(frozen=True)
class MultiscaleShape:
    """Size of a MultiscaleNIM: everything needed to build it again from its weights.

    Args:
        fine, half: Channels at full and half resolution.
        width, depth, heads: Of the ViT.
        blocks: Residual blocks at half resolution, before and after the ViT; at full resolution there is one.
    """

    fine: int = 24
    half: int = 48
    width: int = 128
    depth: int = 2
    heads: int = 4
    blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("fine", "half", "width", "depth", "heads", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of its {self.heads} heads")


class MultiscaleNIM(nn.Module):
    """Noisy images (N, C, H, W) -> denoised images (N, C, H, W), clamped to [0, 1]; C is 1 or 3, H and W are at least 8.

    A gray image is denoised as a color image of three equal channels, whose mean is taken.

    Raises:
        ValueError: Images of another form.
    """

    def __init__(self, shape: MultiscaleShape):
        super().__init__()
        self.shape = shape
        fine, half, width = shape.fine, shape.half, shape.width
        self.enter = nn.Sequential(nn.Conv2d(3, fine, 3, padding=1), _Residual(fine))
        self.down = nn.Sequential(
            nn.Conv2d(fine, half, 2, stride=2), *(_Residual(half) for _ in range(shape.blocks))
        )
        self.embed = nn.Sequential(nn.Conv2d(half, width, 2, stride=2), _Residual(width))
        self.encoder = _Tiles(shape)
        self.decode = nn.Sequential(_Residual(width), _enlarged(width, half))
        self.up = nn.Sequential(*(_Residual(half) for _ in range(shape.blocks)), _enlarged(half, fine))
        self.leave = nn.Sequential(_Residual(fine), nn.Conv2d(fine, 3, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def reconstruct(self, noisy: Tensor) -> Tensor:
        """The clean image as predicted, (N, C, H, W), not clamped."""
        check_images(noisy.shape[1:])
        channels, height, width = noisy.shape[1:]
        images = noisy.expand(-1, 3, -1, -1)
        right, below = -width % STRIDE, -height % STRIDE
        padded = F.pad(images, (0, right, 0, below), mode="reflect")
        fine = self.enter((padded - 0.5).contiguous(memory_format=torch.channels_last))
        half = self.down(fine)
        tokens = self.encoder(self.embed(half), tile_offsets(noisy))
        half = self.up[:-1](half + self.decode(tokens))
        clean = padded + self.leave(fine + self.up[-1](half))
        clean = clean[:, :, :height, :width]
        return clean.mean(dim=1, keepdim=True) if channels == 1 else clean

    def forward(self, noisy: Tensor) -> Tensor:
        return torch.cat([self.reconstruct(part) for part in chunks(noisy)]).clamp(0, 1)


def check_images(shape: Sequence[int]) -> None:
    """Raise ValueError for images (C, H, W) that a MultiscaleNIM does not take."""
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < SMALLEST:
        raise ValueError(
            f"the denoiser takes images of 1 or 3 channels and at least {SMALLEST}x{SMALLEST} pixels, got {channels} "
            f"channels of {height}x{width}: train one on your pool (--purifier de3), or smooth them (--purifier gs)"
        )


class _Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(F.gelu(self.first(features)))


def _enlarged(channels: int, fewer: int) -> nn.Module:
    """Twice the height and width, with fewer channels."""
    return nn.Sequential(nn.Conv2d(channels, 4 * fewer, 1), nn.PixelShuffle(2))


class _Tiles(nn.Module):
    """A ViT on tiles of WINDOW x WINDOW tokens, which lie at an offset of its own on each image."""

    def __init__(self, shape: MultiscaleShape):
        from timm.models.vision_transformer import Block  # timm takes seconds to import

        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, WINDOW**2, shape.width))
        self.blocks = nn.Sequential(
            *(Block(shape.width, shape.heads, qkv_bias=True) for _ in range(shape.depth))
        )

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Features of every token.

        Args:
            tokens: (N, width, h, w).
            offsets: (N, 2), whole numbers: how far the first tile begins above the image, and left of it.
        """
        height, breadth = tokens.shape[2:]
        tiling = Tiling.at(offsets, height, breadth, WINDOW)
        tiles = tiling.cut(tokens)  # (N * T * U, WINDOW, WINDOW, width)
        features = self.blocks(tiles.flatten(1, 2) + self.position)
        return tiling.join(features.unflatten(1, (WINDOW, WINDOW)))
