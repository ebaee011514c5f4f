"""A blind-spot network as denoiser, trained on noisy images alone (Batson & Royer, ICML 2019, arXiv 1901.11365)."""

from __future__ import annotations

import torch
from torch import nn

from certdef.purifiers.base import About, Denoiser, Networks, PurifierSpec, Settings
from certdef.purifiers.gs import SOURCE, THREAT
from certdef.purifiers.networks.blind_spot import DENOISER


def _build(settings: Settings, networks: Networks, generator: torch.Generator | None = None) -> nn.Module:
    return networks["blind_spot_noisy"]


PURIFIER = PurifierSpec(
    "blind-spot",
    About(
        "a blind-spot network trained on noisy images alone",
        f"Batson, Royer, ICML 2019, arXiv 1901.11365; network of {SOURCE}",
        THREAT,
        papers=("noise2self", "ncis"),
    ),
    _build,
    networks=lambda config: (DENOISER,),
    denoiser=Denoiser("the network", _build, "network"),
    differentiable=True,
)
