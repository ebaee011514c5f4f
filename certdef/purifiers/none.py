"""No purifier: images pass as they are, and the vote is that of the bare classifier."""

from __future__ import annotations

from torch import Tensor, nn

from certdef.purifiers.base import About, PurifierSpec


class Unchanged(nn.Module):
    """Images (N, C, H, W) -> the same, clamped to [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)


PURIFIER = PurifierSpec(
    "none",
    About(
        "no purifier: the bare classifier, for a job or a comparison without one",
        "–",
        "any",
        title="no purifier",
    ),
    lambda parts: Unchanged(),
    differentiable=True,
)
