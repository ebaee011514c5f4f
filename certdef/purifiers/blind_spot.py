"""A blind-spot network as denoiser, trained on noisy images alone (Batson & Royer, ICML 2019, arXiv 1901.11365)."""

from __future__ import annotations

from certdef.purifiers.base import About, Denoiser, PurifierSpec
from certdef.purifiers.gs import SOURCE, THREAT
from certdef.purifiers.networks.blind_spot import DENOISER

PURIFIER = PurifierSpec(
    "blind-spot",
    About(
        "a blind-spot network trained on noisy images alone",
        f"Batson, Royer, ICML 2019, arXiv 1901.11365; network of {SOURCE}",
        THREAT,
        papers=("noise2self", "ncis"),
    ),
    lambda parts: parts.networks[DENOISER.role],
    networks=lambda config: (DENOISER,),
    denoiser=Denoiser("the network", lambda parts: parts.networks[DENOISER.role], "network"),
    differentiable=True,
)
