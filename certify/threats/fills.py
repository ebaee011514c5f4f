"""What stands in the place of hidden pixels: a function of the pixels that are seen, and of nothing else."""

from collections.abc import Callable

import torch

from certify.errors import CertifyError

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LEVELS = 255  # filled pixels are whole 8-bit levels: rounding in a batch is not seen, and a service may take 8 bits


def cover(images: torch.Tensor, hidden: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Images (B, C, H, W) whose hidden pixels (B, H, W) are filled.

    Whoever fills gets images that are black where they are hidden: it cannot see what it must not. What it returns for
    the pixels that are seen is left out.

    Args:
        images: In [0, 1].
        hidden: Bool, of each image.
        fill: fill(images, hidden) -> images of the same shape. Another call with the same input gives the same output.

    Raises:
        CertifyError: The fill gives another shape, or values that are not finite.
    """
    where = hidden[:, None]
    filled = fill(images.masked_fill(where, 0.0), hidden)
    if filled.shape != images.shape or not filled.isfinite().all():
        raise CertifyError(
            f"a fill must return finite images of shape {tuple(images.shape)}, got {tuple(filled.shape)}: mend the fill"
        )
    return torch.where(where, (filled.clamp(0, 1) * LEVELS).round() / LEVELS, images)


def gray(images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Half of the range."""
    return torch.full_like(images, 0.5)


def mean(images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mean of the pixels that are seen, of each channel."""
    seen = (~hidden[:, None]).sum(dim=(2, 3), keepdim=True).clamp_min(1)
    total = images.masked_fill(hidden[:, None], 0.0).double().sum(dim=(2, 3), keepdim=True)
    return (total / seen).to(images.dtype).expand_as(images)


FILLS: dict[str, Fill] = {"gray": gray, "mean": mean}
