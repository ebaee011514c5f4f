"""The denoiser that certdef ships: a NIM pre-trained on dead leaves, so that no data set and no licence is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from certdef.data.dead_leaves import dead_leaves
from certdef.purifiers.networks.multiscale import MultiscaleNIM, MultiscaleShape
from surrogates.distillation.training import FitOptions, Training, fit
from surrogates.errors import check_positive_integers

CROP = 32
LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601


@dataclass(frozen=True)
class LeavesTraining:
    """How the shipped denoiser was trained; the defaults are its own.

    Args:
        images: Dead-leaves images.
        side: Of an image, in pixels.
        epochs: Passes, each with one crop of every image.
        batch_size: Crops a step.
        learning_rate: Peak rate of AdamW.
        lowest, highest: Ends of the uniform law of sigma, in [0, 1] pixel units; one sigma a crop.
        gray: Share of the crops that are gray, with gray noise.
        precision: float32, bfloat16, or on CUDA float16.
        seed: Of images, weights and noise.
    """

    images: int = 3_000
    side: int = 128
    epochs: int = 290
    batch_size: int = 32
    learning_rate: float = 2e-3
    lowest: float = 0.03
    highest: float = 0.35
    gray: float = 0.15
    precision: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive_integers(images=self.images, epochs=self.epochs, batch_size=self.batch_size)
        if self.side < CROP:
            raise ValueError(f"side {self.side} is less than a crop: use at least {CROP}")


def train_on_leaves(
    recipe: LeavesTraining,
    *,
    drawn: Callable[..., Iterable[int]] | None = None,
    **options: Unpack[FitOptions],
) -> MultiscaleNIM:
    """Draw the images and train the network on them, from a seed alone.

    Args:
        recipe: How.
        drawn: Wraps the numbers of the images while they are drawn, like tqdm.
        options: Device, checkpoint and progress, as for fit.
    """
    images = torch.from_numpy(dead_leaves(recipe.images, recipe.side, recipe.seed, drawn))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = MultiscaleNIM(MultiscaleShape())
    pretrain_multiscale(network, images, recipe, **options)
    return network


def pretrain_multiscale(
    network: MultiscaleNIM, images: Tensor, recipe: LeavesTraining, **options: Unpack[FitOptions]
) -> list[float]:
    """Train in place on crops of images (N, 3, H, W), uint8; returns the mean loss of each epoch.

    The loss is the mean absolute error: with it the classifiers behind the network keep more of their accuracy than with
    the squared error of the paper (docs/purifiers.md).
    """
    training = Training(
        recipe.epochs,
        recipe.batch_size,
        recipe.learning_rate,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        ema=0.999,
        precision=recipe.precision,
    )

    def denoising(model: MultiscaleNIM, batch: Tensor, *, generator: torch.Generator) -> Tensor:
        clean = random_crops(batch, generator)
        noise, gray = _noise(clean, recipe, generator)
        clean = torch.where(gray, luminance(clean), clean)
        return F.l1_loss(model.reconstruct(clean + noise).float(), clean)

    options.setdefault("seed", recipe.seed)
    return fit(network, images, denoising, training, **options)


def random_crops(images: Tensor, generator: torch.Generator, side: int = CROP) -> Tensor:
    """One crop of each image (N, 3, H, W) uint8, mirrored or turned, its channels in any order: (N, 3, side, side) in [0, 1]."""
    count, _, height, width = images.shape

    def draw(limit: int) -> list[int]:
        return torch.randint(limit, (count,), generator=generator, device=generator.device).tolist()

    crops = []
    for image, top, left, turns, mirrored, order in zip(
        images, draw(height - side + 1), draw(width - side + 1), draw(4), draw(2), draw(6), strict=True
    ):
        crop = image[:, top : top + side, left : left + side].rot90(turns, (1, 2))
        crop = crop.flip(2) if mirrored else crop
        crops.append(crop.roll(order, 0).flip(0) if order >= 3 else crop.roll(order, 0))
    return torch.stack(crops).float() / 255


def luminance(images: Tensor) -> Tensor:
    """Color images (N, 3, H, W) as gray ones of three equal channels."""
    weights = images.new_tensor(LUMINANCE)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def _noise(clean: Tensor, recipe: LeavesTraining, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a sigma of each crop's own, (N, 3, H, W), and which crops are gray, (N, 1, 1, 1)."""
    one_each, device = (len(clean), 1, 1, 1), clean.device
    span = recipe.highest - recipe.lowest
    sigma = recipe.lowest + span * torch.rand(one_each, generator=generator, device=device)
    noise = sigma * torch.randn(clean.shape, generator=generator, device=device)
    gray = torch.rand(one_each, generator=generator, device=device) < recipe.gray
    return torch.where(gray, noise[:, :1].expand_as(noise), noise), gray
