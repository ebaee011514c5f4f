"""Neural contextual iterative smoothing (Cha et al., WACV 2024, arXiv 2106.11644): smooth, restore, and again."""

from __future__ import annotations

from torch import Tensor, nn


class NCIS(nn.Module):
    """Smooth and restore, `iterations` times: (N, C, H, W) in [0, 1] -> the same. Differentiable, without noise.

    Gaussian smoothing takes the attack away and some of the image with it; a blind-spot network, trained on natural images,
    brings back what belongs there. Against attackers who do not know of it only: benchmarks/ncis.py shows what is left
    against one who does.

    Args:
        network: A blind-spot network trained by train_blind_spot(..., smoothing=smoothing).
        smoothing: The smoothing that it was trained to undo.
        iterations: How often. (Unread: in the paper the order of the two; here each iteration smooths once and restores once.)
    """

    def __init__(self, network: nn.Module, smoothing: nn.Module, iterations: int = 1):
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {iterations}")
        self.network, self.smoothing, self.iterations = network, smoothing, iterations

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.iterations):
            images = self.network(self.smoothing(images))
        return images
