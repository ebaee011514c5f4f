"""DiffPure (Nie et al., "Diffusion Models for Adversarial Purification", ICML 2022, arXiv 2205.07460): diffuse to a step t,
then back to a clean image. With the t that certdef.purifiers.uad_rs chooses it is UAD-RS (arXiv 2307.16865).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, Parts, PurifierSpec
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork, inside, outside
from certdef.purifiers.one_step import ONE_STEP


class DiffPure(nn.Module):
    """Noise up to step t, reverse to 0: (N, C, H, W) in [0, 1] -> (N, C, H, W) in [0, 1].

    Published t of 1,000: 100 for CIFAR-10 under L-infinity 8/255, 150 for ImageNet under 4/255. A reverse step draws from
    the posterior q(z_s | z_t, clean estimate) (Ho et al. 2020, equations 6 and 7, for any s < t); over strided steps that
    is DDIM with eta = 1.

    The whole chain can be differentiated: of several steps each is recomputed in the backward pass, so that memory does not
    grow with the steps as a stored chain would.

    Args:
        network: A trained diffusion network.
        t: Noise steps, 1 to network.steps.
        steps: Reverse steps, evenly spaced; unset, all t of them.
        generator: Source of the noise; unset, torch's default.
    """

    def __init__(
        self,
        network: DiffusionNetwork,
        t: int,
        steps: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 1 <= t <= network.steps:
            raise ValueError(
                f"t must be between 1 and {network.steps} noise steps, got {t}: DiffPure's 0.1 is 100"
            )
        if steps is not None and not steps >= 1:
            raise ValueError(f"steps must be 1 or more reverse steps, got {steps}")
        self.network, self.t, self.generator = network, t, generator
        self.times = strided(t, steps)

    def forward(self, images: Tensor) -> Tensor:
        z = self.network.diffuse(inside(images), self._all(self.t, images), self._draw(images))
        several = len(self.times) > 2
        for now, then in pairwise(self.times):
            # Drawn once, not again in the backward pass.
            noise = self._draw(images) if then else torch.zeros_like(images)
            if several and torch.is_grad_enabled() and z.requires_grad:
                z = checkpoint(self.step, z, images, noise, now, then, use_reentrant=False)
            else:
                z = self.step(z, images, noise, now, then)
        return outside(z)

    def estimate(self, z: Tensor, images: Tensor, now: int) -> tuple[Tensor, Tensor | float]:
        """The clean image behind z, in [-1, 1], and the direction that the step is pushed against, in units of its variance."""
        return self.network.clean(z, self._all(now, z)), 0.0

    def step(self, z: Tensor, images: Tensor, noise: Tensor, now: int, then: int) -> Tensor:
        """One reverse step from z_now to z_then, in [-1, 1] units, with this noise."""
        clean, against = self.estimate(z, images, now)
        keep, kept = self.network.keep[now], self.network.keep[then]
        ratio = keep / kept  # of the signal, squared, between the two steps
        variance = (1 - ratio) * (1 - kept) / (1 - keep)
        mean = kept.sqrt() * (1 - ratio) / (1 - keep) * clean + ratio.sqrt() * (1 - kept) / (1 - keep) * z
        return mean - variance * against + variance.sqrt() * noise

    def _draw(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device)

    @staticmethod
    def _all(t: int, like: Tensor) -> Tensor:
        return torch.full((len(like),), t, device=like.device)


def strided(t: int, steps: int | None) -> list[int]:
    """Noise steps visited on the way from t to 0, both included: strided(100, 4) = [100, 75, 50, 25, 0]."""
    count = t if steps is None else min(steps, t)
    return [round(t * remaining / count) for remaining in range(count, -1, -1)]


def chain_settings(config: RunConfig) -> dict[str, Any]:
    """The reverse chain as configured."""
    return {"t": config.diffusion.t, "steps": config.diffusion.steps}


def build_diffpure(parts: Parts) -> DiffPure:
    """DiffPure from its settings and the network `diffusion`."""
    network = parts.network("diffusion", DiffusionNetwork)
    return DiffPure(network, **parts.settings, generator=parts.generator)


PURIFIER = PurifierSpec(
    "diffpure",
    About(
        "DiffPure: diffuse to a step t, then the whole reverse chain",
        "Nie et al., ICML 2022, arXiv 2205.07460",
        "knows classifier and purifier, with gradients through the chain",
        papers=("diffpure", "ddpm"),
    ),
    build_diffpure,
    chain_settings,
    networks=lambda config: (DIFFUSION,),
    denoiser=ONE_STEP,
    differentiable=True,
)
