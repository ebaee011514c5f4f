"""Purify the input by diffusion, then fine-tune the restoration on purified inputs (Song et al., arXiv 2402.13629).

The defended restoration is `nn.Sequential(purifier, network)`. How far to diffuse is chosen on training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from certdef.restoration.attacks import squared_error
from certdef.restoration.network import RestorationNetwork, restoration_loss
from surrogates.distillation.training import FitOptions, Training, fit


@dataclass(frozen=True)
class Level:
    """How far the purifier diffuses, and the mean PSNR in dB of what is restored at every t that was tried.

    Attributes:
        t: The chosen step.
        clean: By t, of clean images.
        attacked: By t, of attacked images.
    """

    t: int
    clean: dict[int, float]
    attacked: dict[int, float]


def choose_level(
    purifier: Callable[[int], nn.Module],
    network: nn.Module,
    seen: Tensor,
    attacked: Sequence[Tensor],
    truth: Tensor,
    grid: Sequence[int],
    *,
    loss: float = 0.5,
    batch_size: int = 64,
) -> Level:
    """The t that restores attacked images best, of those that cost clean ones no more than `loss`.

    The source varies t and says not how to choose it (unread). Where no t of the grid is cheap enough it is the smallest.

    Args:
        purifier: t to a purifier that diffuses to t.
        network: The restoration.
        seen: Degraded training images (N, C, H, W) in [0, 1]; never the test images.
        attacked: The same images under one attack or several.
        truth: The photographs.
        grid: Every t that is tried.
        loss: Largest loss of mean PSNR on clean images, in dB, before any fine-tuning.
        batch_size: Images at once.

    Raises:
        ValueError: The grid is empty.
    """
    if not grid:
        raise ValueError("the grid of t is empty: give at least one step")

    def quality(model: nn.Module, images: Tensor) -> float:
        error = squared_error(apply(model, images, batch_size), truth)
        return float(-10 * error.clamp(min=1e-12).log10().mean())

    clean, under = {}, {}
    for t in sorted(grid):
        defended = nn.Sequential(purifier(t), network)
        clean[t] = quality(defended, seen)
        under[t] = sum(quality(defended, images) for images in attacked) / len(attacked)
    least = quality(network, seen) - loss
    affordable = [t for t in clean if clean[t] >= least] or [min(clean)]
    return Level(max(affordable, key=lambda t: under[t]), clean, under)


def purify_varied(
    purifier: Callable[[int], nn.Module],
    images: Tensor,
    levels: Sequence[int],
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Purify each image (N, C, H, W) at a t of its own, drawn from the levels: the level as augmentation."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(levels), (len(images),), generator=generator).to(images.device)
    purified = torch.empty_like(images)
    for number, t in enumerate(levels):
        if (drawn == number).any():
            purified[drawn == number] = apply(purifier(t), images[drawn == number], batch_size)
    return purified


def finetune_restoration(
    network: RestorationNetwork,
    inputs: Tensor,
    truth: Tensor,
    training: Training,
    *,
    gradient: float = 0.1,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Go on training in place, inputs to truth, by L2 + perceptual loss. Returns the loss of each epoch.

    In the defense the inputs are purified. Which images are purified is unread in the source; give clean and attacked ones
    in equal parts, and the network neither forgets the one nor ignores the other. Attacked inputs that are not purified are
    plain adversarial training, with attacks on the network as it was before.

    Args:
        network: The restoration, trained.
        inputs: What the network will see, (N, C, H, W) in [0, 1].
        truth: The photographs.
        training: The recipe.
        gradient: Weight of the loss's perceptual part.
        **options: Seed, device, checkpoint and progress, as `surrogates.distillation.training.fit` takes them.
    """

    def loss(
        model: RestorationNetwork, inputs: Tensor, truth: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        return restoration_loss(model.restore(inputs), truth, gradient)

    return fit(network, (inputs, truth), loss, training, **options)


@torch.no_grad()
def apply(model: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """A model's output for images (N, C, H, W), in batches, without gradients."""
    return torch.cat([model(batch.clone()) for batch in images.split(batch_size)])
