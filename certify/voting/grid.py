"""Noise on a grid: 8-bit images and their noise added without any rounding error (Voracek and Hein 2023)."""

import torch

from certify.errors import CertifyError, check_count

FINE = 2**10  # parts of a gray level to which the noise is rounded
LARGEST = 2**13 * FINE - 2**9 * FINE  # noise beyond this many parts would not add exactly in float32


def add_on_grid(image: torch.Tensor, draws: torch.Tensor, grid: int) -> torch.Tensor:
    """Image (C, H, W) plus noise (B, C, H, W) rounded to 1 / FINE of a gray level, a sum without rounding error.

    Whole gray levels X and noise N = round(FINE * grid * z) / FINE have at most 23 bits together, so X + N is
    exact, and equals the rounded X + grid * z: a function of image plus noise alone, as the proof needs. Noise
    beyond 30 in [0, 1] units is clamped, which sigma <= 3 makes rarer than 1e-20.
    """
    levels = (image.double() * grid).round().float()
    noise = (draws.double() * (grid * FINE)).round().clamp(-LARGEST, LARGEST).div(FINE).float()
    return (levels + noise) / grid


def check_grid(images: torch.Tensor, grid: int) -> None:
    """Raise CertifyError unless the images hold whole multiples of 1 / ``grid``, and grid <= 255."""
    check_count("grid", grid)
    if grid > 255 or (images.double() * grid - (images.double() * grid).round()).abs().max() > 1e-3:
        raise CertifyError(f"images must hold whole multiples of 1/{grid}, grid <= 255: round them first")
