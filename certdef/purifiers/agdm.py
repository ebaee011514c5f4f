"""AGDM (Lin et al., "Robust Diffusion Models for Adversarial Purification", arXiv 2403.16067): DiffPure whose reverse steps
are guided by the latent space of an auxiliary network that was trained adversarially.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, NetworkSpec, Parts, PurifierSpec
from certdef.purifiers.diffpure import DiffPure, chain_settings
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork, outside
from certdef.purifiers.networks.robust import ROBUST
from certdef.purifiers.one_step import ONE_STEP
from surrogates.distillation.inference import features

DISTANCES = ("cosine", "l2")


class AGDM(DiffPure):
    """DiffPure with guidance: (N, C, H, W) in [0, 1] -> (N, C, H, W) in [0, 1].

    From the mean of each reverse step, scale * variance * gradient is subtracted; the gradient, in z, is of the distance
    between the latent of the current clean estimate and that of the input. The latent is what the auxiliary network's
    last linear layer receives. The last reverse step has variance 0 and is not guided: of few steps that is much.

    The paper was not readable on scale and distance (unread): both are chosen by validation, benchmarks/agdm.py.
    The gradient is taken through the diffusion network, which costs a backward pass a step.

    Args:
        network: A trained diffusion network.
        classifier: The adversarially trained auxiliary network, images in [0, 1] -> logits.
        t: Noise steps, 1 to network.steps.
        scale: Strength of the guidance; 0 is DiffPure.
        distance: cosine (1 - cosine of the angle) or l2 (squared, over the squared length of the input's latent).
        steps: Reverse steps, evenly spaced; unset, all t of them.
        generator: Source of the noise; unset, torch's default.
    """

    def __init__(
        self,
        network: DiffusionNetwork,
        classifier: nn.Module,
        t: int,
        scale: float,
        *,
        distance: str = "cosine",
        steps: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(network, t, steps, generator)
        if not 0 <= scale < float("inf"):
            raise ValueError(f"scale must be 0 or more, got {scale}: 0 is no guidance")
        if distance not in DISTANCES:
            raise ValueError(f"unknown distance {distance!r}: use {' or '.join(DISTANCES)}")
        self.classifier, self.scale, self.distance = classifier, scale, distance

    def estimate(self, z: Tensor, images: Tensor, now: int) -> tuple[Tensor, Tensor | float]:
        if not self.scale:
            return super().estimate(z, images, now)
        attacked = torch.is_grad_enabled() and z.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, since tensors of inference mode can't be differentiated.
            z = z if attacked else z.clone().requires_grad_()
            images = images if attacked else images.clone()
            clean, _ = super().estimate(z, images, now)
            latent, reference = (features(self.classifier, part) for part in (outside(clean), images))
            distance = self.latent_distance(latent, reference)
            (gradient,) = torch.autograd.grad(distance.sum(), z, create_graph=attacked)
        return (clean if attacked else clean.detach()), self.scale * gradient

    def latent_distance(self, latent: Tensor, reference: Tensor) -> Tensor:
        """Distance of latents (N, D), one an image (N,)."""
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(latent, reference, dim=1)
        return (latent - reference).square().sum(1) / reference.square().sum(1).clamp_min(1e-12)


def _settings(config: RunConfig) -> dict[str, Any]:
    return chain_settings(config) | {"scale": config.diffusion.guidance}


def _networks(config: RunConfig) -> tuple[NetworkSpec, ...]:
    """In the order of training: the auxiliary network may be trained on what the diffusion network's schedule diffuses."""
    return (DIFFUSION, ROBUST) if config.diffusion.robust_diffused else (ROBUST, DIFFUSION)


def _build(parts: Parts) -> AGDM:
    network = parts.network("diffusion", DiffusionNetwork)
    return AGDM(network, parts.networks["robust"], **parts.settings, generator=parts.generator)


PURIFIER = PurifierSpec(
    "agdm",
    About(
        "AGDM: DiffPure guided by the latent space of an adversarially trained network",
        "Lin et al., arXiv 2403.16067",
        "knows classifier and purifier",
        papers=("agdm", "diffpure", "ddpm"),
    ),
    _build,
    _settings,
    networks=_networks,
    denoiser=ONE_STEP,
    differentiable=True,
)
