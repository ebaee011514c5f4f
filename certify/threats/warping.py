"""Images whose pixels are looked up elsewhere: shifts, rotations and averages along a path, by bilinear interpolation.

Places outside the image have the value of the nearest pixel at its border.
"""

import torch
from torch.nn.functional import grid_sample, pad


def look_up(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) at places (B, H, W) in pixels: the value at (0, 0) is the first pixel's."""
    height, width = images.shape[-2:]
    # grid_sample has -1 and 1 at the outer edges of the first and the last pixel
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixels of images (B, C, H, W) are: x and y, both (1, H, W)."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return x[None].to(images.dtype), y[None].to(images.dtype)


def shifted(images: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W), moved by (B,) pixels to the right and down."""
    x, y = places(images)
    return look_up(images, x - dx[:, None, None], y - dy[:, None, None])


def rotated(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W), turned about their centers by angles (B,) in radians."""
    x, y = places(images)
    height, width = images.shape[-2:]
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    cos, sin = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
    return look_up(images, cos * x + sin * y + (width - 1) / 2, cos * y - sin * x + (height - 1) / 2)


def moved_along(
    images: torch.Tensor, lengths: torch.Tensor, angles: torch.Tensor, steps: int
) -> torch.Tensor:
    """The mean of images (B, C, H, W) over paths of lengths (B,) in pixels, at angles (B,) in radians."""
    parts = torch.linspace(-0.5, 0.5, steps)
    dx, dy = lengths * torch.cos(angles), lengths * torch.sin(angles)
    total = torch.zeros_like(images)
    for part in parts:
        total += shifted(images, part * dx, part * dy)
    return total / steps


def gaussian_blurred(images: torch.Tensor, sigmas: torch.Tensor, reach: int) -> torch.Tensor:
    """Images (B, C, H, W), each blurred by a Gaussian of its own sigma (B,) in pixels, cut off at ``reach`` pixels."""
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    weights = torch.exp(-(offsets**2) / (2 * sigmas[:, None].clamp_min(1e-3) ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]  # (B, taps, 1, 1, 1)
    height, width = images.shape[-2:]
    across = pad(images, (reach, reach, 0, 0), mode="replicate")
    blurred = torch.zeros_like(images)
    for tap in range(len(offsets)):
        blurred += weights[:, tap] * across[..., tap : tap + width]
    down = pad(blurred, (0, 0, reach, reach), mode="replicate")
    twice = torch.zeros_like(images)
    for tap in range(len(offsets)):
        twice += weights[:, tap] * down[..., tap : tap + height, :]
    return twice
