"""Denoised views of a student's images: made once, drawn from in every step.

A denoiser costs many times what a step of a small student does, so that a new view an image and step is not to be had. A
bounded number of views is denoised before the first step. The bound is in bytes, and so bounds the denoiser's work too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from surrogates.distillation.inference import images_at_once

VIEW_BYTES = 2**28  # of all views, as float32
MOST_VIEWS = 100  # of an image: 400 made no better students (docs/surrogates.md)
BATCH_SIZE = 256  # images through the denoiser at once
ANOTHER_SEED = 7_919  # the views' noise is not that of the training's order


def number_of_views(values: int, views: int, epochs: int) -> int:
    """Return how many views an image gets: as many as the training can use and VIEW_BYTES hold, at least one step's.

    Args:
        values: Of all images, N * C * H * W.
        views: That a step takes of an image.
        epochs: Of the training.
    """
    held = VIEW_BYTES // (values * 4)
    return max(views, min(views * epochs, held, MOST_VIEWS))


def denoised_views(
    augmented: Callable[[Tensor, torch.Generator], Tensor], images: Tensor, views: int, epochs: int, seed: int
) -> Tensor:
    """Return views (N, V, C, H, W) of images (N, C, H, W), each with noise of its own; the seed decides them.

    Args:
        augmented: augmented(images, generator) -> one noisy and denoised view of each image.
        images: On the device of the training.
        views: That a step takes of an image.
        epochs: Of the training.
        seed: Of the noise, and of what the denoiser draws.
    """
    device, count = images.device, number_of_views(images.numel(), views, epochs)
    made = images.new_empty(len(images), count, *images.shape[1:])
    generator = torch.Generator(device).manual_seed(seed + ANOTHER_SEED)
    size = images_at_once(images.shape[1:], BATCH_SIZE)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + ANOTHER_SEED)
        for view in range(count):
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                made[part, view] = augmented(images[part], generator)
    return made


def drawn_views(made: Tensor, views: int, generator: torch.Generator) -> Tensor:
    """Return `views` different ones of each image's views: (N, V, C, H, W) -> (views * N, C, H, W), a copy."""
    count, every = made.shape[:2]
    order = torch.rand((count, every), generator=generator, device=made.device).argsort(dim=1)
    image = torch.arange(count, device=made.device)
    return made[image, order[:, :views].T].flatten(0, 1)
