"""De^3: noise, decode, clamp (You et al., NeurIPS 2023, arXiv 2302.01056), by one draw or by a vote.

With fresh noise for every draw and a majority vote this is denoised smoothing; certify.SmoothedClassifier counts the
votes for a proof, Vote for an answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, Denoiser, NetworkSpec, Parts, PurifierSpec
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.networks.nim import MIM


class DeCubed(nn.Module):
    """De^3 as a defense of its own: noise, decode, clamp. (N, C, H, W) -> (N, C, H, W) in [0, 1]. Differentiable.

    Args:
        denoiser: A trained NIM, or any other denoiser that is a function of the noisy image alone.
        sigma: Noise level in [0,1] pixel units, the test-time dial between accuracy and robustness; 0 decodes without noise.
        generator: Source of the noise; unset, torch's default.
        draws: How many images are decoded from noise of their own and averaged.

    Raises:
        ValueError: A sigma that is negative or not finite, or no draw.
    """

    def __init__(
        self, denoiser: nn.Module, sigma: float, generator: torch.Generator | None = None, draws: int = 1
    ):
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(
                f"sigma must be 0 or more in [0,1] pixel units, got {sigma}: 75 8-bit levels are {75 / 255:.3f}"
            )
        self.denoiser, self.sigma, self.generator, self.draws = denoiser, sigma, generator, _draws(draws)

    def forward(self, images: Tensor) -> Tensor:
        total = self._draw(images)
        for _ in range(self.draws - 1):
            total = total + self._draw(images)
        return total / self.draws

    def _draw(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=self.generator, device=images.device)
        return self.denoiser(images + self.sigma * noise).clamp(0, 1)


class FillIn(nn.Module):
    """De^3's masked counterpart: hide patches, fill in, clamp. (N, C, H, W) -> (N, C, H, W) in [0, 1]. Differentiable.

    Args:
        model: A trained MIM.
        ratio: Share of the patches that is hidden, the dial; 0 hides none.
        generator: Source of the masks; unset, torch's default.

    Raises:
        ValueError: A ratio outside [0, 1).
    """

    def __init__(self, model: MIM, ratio: float = 0.75, generator: torch.Generator | None = None):
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio is the share of hidden patches in [0, 1), got {ratio}: try 0.75")
        self.model, self.ratio, self.generator = model, ratio, generator

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.model.draw_mask(len(images), self.ratio, self.generator, images.device)
        return self.model.fill_in(images, hidden).clamp(0, 1)


class Vote(nn.Module):
    """The share of draws in which the classifier chose each class: (N, C, H, W) in [0, 1] -> (N, K), rows add up to 1.

    Not differentiable: a vote has no gradient. An attacker averages the classifier's gradient over draws instead (EOT).

    Args:
        purifier: One that draws, e.g. DeCubed.
        classifier: Images -> logits or probabilities (N, K).
        draws: Votes.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module, draws: int):
        super().__init__()
        self.purifier, self.classifier, self.draws = purifier, classifier, _draws(draws)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        votes = torch.zeros((), dtype=torch.int64, device=images.device)
        for _ in range(self.draws):
            scores = self.classifier(self.purifier(images.clone()))
            votes = votes + nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1])
        return votes / self.draws


class Kept(nn.Module):
    """A denoiser that leaves a share of the noise in: noisy images (N, C, H, W) -> images (N, C, H, W) in [0, 1].

    The mean of all clean images that a noisy one may come from has no fine texture. A classifier that was trained on
    photographs knows texture and grain, and smoothness not. It remains a function of the noisy image alone.

    Args:
        denoiser: Noisy images -> denoised images.
        keep: Share of the difference that is added back, in [0, 1).

    Raises:
        ValueError: A share out of its range.
    """

    def __init__(self, denoiser: nn.Module, keep: float):
        super().__init__()
        if not 0 <= keep < 1:
            raise ValueError(f"keep is a share of the noise in [0, 1), got {keep}: try 0.05")
        self.denoiser, self.keep = denoiser, keep

    def forward(self, noisy: Tensor) -> Tensor:
        clean = self.denoiser(noisy.clone())
        return (clean + self.keep * (noisy - clean)).clamp(0, 1)


def _draws(draws: int) -> int:
    if not (isinstance(draws, int) and draws > 0):
        raise ValueError(f"draws must be a positive whole number, got {draws!r}: try 1")
    return draws


def de_cubed(network: NetworkSpec, name: str, about: About, denoiser: str, keep: float = 0.0) -> PurifierSpec:
    """De^3 with one network: a NIM, or another denoiser. In a vote the network stands alone: the law's noise is enough.

    Args:
        network: The denoiser.
        name: Of the purifier.
        about: The purifier in words.
        denoiser: The denoiser in words.
        keep: Share of the noise that is left in where nim.keep is unset.
    """

    def settings(config: RunConfig) -> dict[str, float]:
        share = keep if config.nim.keep is None else config.nim.keep
        return {"sigma": config.attack.sigma_255 / 255} | ({"keep": share} if share else {})

    def build(parts: Parts) -> nn.Module:
        share, module = parts.settings.get("keep", 0.0), parts.networks[network.role]
        return Kept(module, share) if share else module

    return PurifierSpec(
        name,
        about,
        lambda parts: DeCubed(build(parts), parts.settings["sigma"], parts.generator),
        settings,
        networks=lambda config: (network,),
        denoiser=Denoiser(denoiser, build, "network", settings=("keep",)),
        differentiable=True,
    )


SOURCE = "You et al., NeurIPS 2023, arXiv 2302.01056"
THREAT = "knows the classifier; one noise draw differentiated, no expectation over draws"

PURIFIER = de_cubed(
    NIM_MAE,
    "de3",
    About(
        "De^3: noise, then the decoder of a masked autoencoder trained on noisy images",
        SOURCE,
        THREAT,
        papers=("nim", "mae"),
        title="De^3",
    ),
    denoiser="the NIM",
)
