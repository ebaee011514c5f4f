"""A NIM for images of any size: convolutions at full and half resolution around a ViT at a quarter.

Pre-training is that of noisy image modeling (nim.py): one random sigma an image, the clean pixels are predicted, the
network is not told sigma. The ViT's patches are embedded by convolutions (Xiao et al., "Early convolutions help
transformers see better", NeurIPS 2021) and decoded by convolutions that also see the noisy pixels, as in a U-Net
(Ronneberger et al., MICCAI 2015): for the same training time it denoises photographs better than patches of pixels do
(docs/purifiers.md has the figures). The ViT sees tiles of 32x32 pixels. Where they lie on a larger image is read off the
last bits of the noisy pixels: it changes from draw to draw, and the network stays a function of the noisy image alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # pixels of the side of a token
WINDOW = 8  # tokens of the side of what the ViT sees together: 32 pixels
CHUNK_PIXELS = 2**20  # in one pass: bounds the memory, whatever the batch


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
        channels, height, width = noisy.shape[1:]
        if channels not in (1, 3) or min(height, width) < 8:
            raise ValueError(
                f"the denoiser takes images of 1 or 3 channels and at least 8x8 pixels, got {tuple(noisy.shape[1:])}"
            )
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
        size = max(1, CHUNK_PIXELS // (noisy.shape[2] * noisy.shape[3]))
        return torch.cat([self.reconstruct(part) for part in noisy.split(size)]).clamp(0, 1)


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
        width, height, breadth = tokens.shape[1:]
        rows, below = _places(height, offsets[:, 0])  # (N, T) each
        columns, right = _places(breadth, offsets[:, 1])
        image = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        plane = tokens.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]  # (N, T, U, width)
        count, down, across = plane.shape[:3]
        tiled = plane.reshape(count, down // WINDOW, WINDOW, across // WINDOW, WINDOW, width).transpose(2, 3)
        features = self.blocks(tiled.reshape(-1, WINDOW**2, width) + self.position)
        features = features.reshape(count, down // WINDOW, across // WINDOW, WINDOW, WINDOW, width)
        plane = features.transpose(2, 3).reshape(count, down, across, width)
        return plane[image, below[:, :, None], right[:, None]].permute(0, 3, 1, 2)


def _places(side: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Where tiles take their rows from, (N, T), mirrored at the edges, and where the rows then are, (N, side)."""
    total = WINDOW * (math.ceil(side / WINDOW) + (side > WINDOW))
    first = offset % (total - side + 1) % WINDOW
    wanted = torch.arange(total, device=offset.device) - first[:, None]
    mirrored = wanted.abs() % max(1, 2 * side - 2)
    return torch.minimum(mirrored, (2 * side - 2 - mirrored).abs()), (
        torch.arange(side, device=offset.device) + first[:, None]
    )


def tile_offsets(noisy: Tensor) -> Tensor:
    """Two whole numbers for each image (N, C, H, W), (N, 2): sums of last bits of its pixels, as good as random under noise."""
    bits = noisy.detach().float().contiguous().view(torch.int32).flatten(1)
    return torch.stack([(bits & 255).sum(dim=1), (bits >> 8 & 255).sum(dim=1)], dim=1)
