"""Neural contextual iterative smoothing (Cha et al., WACV 2024, arXiv 2106.11644): smooth, restore, and again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, Denoiser, Parts, PurifierSpec
from certdef.purifiers.gs import SOURCE, THREAT, GaussianSmoothing, smoothing_settings
from certdef.purifiers.networks.blind_spot import RESTORER


class NCIS(nn.Module):
    """Smooth and restore, `iterations` times: (N, C, H, W) in [0, 1] -> the same. Differentiable, without noise.

    Gaussian smoothing takes the attack away and some of the image with it; a blind-spot network, trained on natural images,
    brings back what belongs there. Against attackers who do not know of it only: benchmarks/ncis.py measures one who does.

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


def _settings(config: RunConfig) -> dict[str, Any]:
    return smoothing_settings(config) | {"iterations": config.blind_spot.iterations}


def _build(parts: Parts) -> NCIS:
    smoothing = {name: value for name, value in parts.settings.items() if name != "iterations"}
    return NCIS(parts.networks["blind_spot"], GaussianSmoothing(**smoothing), parts.settings["iterations"])


PURIFIER = PurifierSpec(
    "ncis",
    About(
        "NCIS: Gaussian smoothing, restored by a network that is blind to the pixel it restores",
        SOURCE,
        THREAT,
        papers=("ncis",),
    ),
    _build,
    _settings,
    networks=lambda config: (RESTORER,),
    denoiser=Denoiser("smoothing and network", _build),
    differentiable=True,
)
