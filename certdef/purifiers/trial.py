"""A foreign purifier is tried once, before anything is paid: what it must be is what a certificate rests on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from certdef.config.job import ConfigError
from certdef.purifiers.registry import one_line

IMAGES = 5
TOLERANCE = 1e-4  # of a pixel: rounding differs with the size of a batch


def check_purifier_module(name: str, module: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Try a purifier on noisy images: eval mode, shape, dtype, range, and an untouched input.

    Args:
        name: As the user wrote it, for the error.
        module: Images (N, C, H, W) -> images in [0, 1].
        image_shape: (C, H, W).

    Raises:
        ConfigError: The first rule that it breaks, or the error that it raised.
    """
    images = _noisy_images(module, image_shape)
    with torch.random.fork_rng():
        purified = _purify(name, module, images)
    _check(name, not any(part.training for part in module.modules()), "stays in training mode: use eval mode")
    given = f"{tuple(purified.shape)} for images of shape {tuple(images.shape)}"
    _check(name, purified.shape == images.shape, f"returns shape {given}: keep the shape")
    kept = f"returns {purified.dtype} for {images.dtype} images: keep the dtype"
    _check(name, purified.dtype == images.dtype, kept)
    inside = bool(((purified >= 0) & (purified <= 1)).all())
    values = f"[{float(purified.min()):.3g}, {float(purified.max()):.3g}]"
    _check(name, inside, f"returns pixels in {values}: clamp them to [0, 1]")


def check_denoiser(name: str, build: Callable[[], nn.Module], image_shape: tuple[int, int, int]) -> None:
    """Try a denoiser, in addition, on whether it is one function, and of each noisy image alone.

    Args:
        name: As the user wrote it, for the error.
        build: Builds it; the certificate and the attack build it for themselves.
        image_shape: (C, H, W).

    Raises:
        ConfigError: The first rule that it breaks, or the error that it raised.
    """
    module = build()
    check_purifier_module(name, module, image_shape)
    images, purify = _noisy_images(module, image_shape), partial(_purify, name, module)
    others = torch.cat([images[:1], 1 - images[1:]])
    with torch.random.fork_rng():
        purified, again = purify(images), purify(images)
        turned, beside = purify(images.flip(0)).flip(0), purify(others)
        alone = torch.cat([purify(image[None]) for image in images])
        rebuilt = _purify(name, build(), images)
    differs = "answers the same images differently: a denoiser draws no noise and keeps no state"
    _check(name, _close(again, purified), differs)
    together = "depends on the other images of the batch: purify each image by itself"
    _check(name, _close(turned, purified), together)
    _check(name, _close(beside[:1], purified[:1]), together)
    _check(name, _close(alone, purified), together)
    _check(name, _close(rebuilt, purified), "is another function when it is built again: load fixed weights")


def _noisy_images(module: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Noisy images, not clamped: those of a vote leave [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(IMAGES, *image_shape, generator=generator)
    noisy = clean + 0.25 * torch.randn(clean.shape, generator=generator)
    parameter = next(module.parameters(), None)
    return noisy if parameter is None else noisy.to(parameter.device)


def _purify(name: str, module: nn.Module, images: Tensor) -> Tensor:
    """The module's answer to a copy of the images, which it must leave as they are."""
    batch = images.clone()
    with torch.inference_mode():
        try:
            purified = module(batch)
        except Exception as error:  # whatever a foreign module trips over
            problem = f"fails on images of shape {tuple(images.shape)}: {one_line(error)}"
            raise ConfigError(f"purifier {name!r} {problem}") from error
    _check(name, isinstance(purified, Tensor), f"returns a {type(purified).__name__}: return a tensor")
    _check(name, torch.equal(batch, images), "modifies its input: work on a copy")
    return purified


def _close(purified: Tensor, expected: Tensor) -> bool:
    return bool(torch.allclose(purified, expected, rtol=0, atol=TOLERANCE))


def _check(name: str, kept: bool, problem: str) -> None:
    if not kept:
        raise ConfigError(f"purifier {name!r} {problem}")
