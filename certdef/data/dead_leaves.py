"""Dead-leaves images: training images for denoisers without a data set and without a licence.

Random shapes fall on one another until they cover the plane; their sizes follow a power law, so that the image looks
alike at every scale, as photographs do (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 41, 2001).
Denoisers trained on them come close to those trained on photographs (Achddou, Gousseau and Ladjal, "Synthetic images as
a regularity prior for image restoration neural networks", SSVM 2021). Shapes, textures and colors here are our own
choice: discs, ellipses and boxes; plain, shaded, striped or with noise of a 1/f spectrum; colors of a small palette.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SCALE = 2  # images are drawn larger, blurred and reduced, as a lens and a sensor do
POWER = 3.0  # of the law of the radii: density r ** -POWER
MOST_LEAVES = 6_000


@dataclass(frozen=True)
class _Style:
    """What the leaves of one image have in common; lengths in pixels of the drawing, colors about [0, 1]."""

    smallest: float
    largest: float
    dark: float
    bright: float
    tints: np.ndarray  # (K, 3), each sums to 0
    textures: list[np.ndarray]  # (side, side), mean 0, deviation 1

    @staticmethod
    def draw(random: np.random.Generator, side: int) -> _Style:
        tints = random.normal(0, random.uniform(0.02, 0.18), (random.integers(2, 6), 3))
        dark, bright = np.sort(random.uniform(-0.1, 1.1, 2))
        if bright - dark < 0.4:
            dark, bright = dark - 0.2, bright + 0.2
        return _Style(
            smallest=SCALE * random.uniform(1, 6),
            largest=side * random.uniform(0.15, 0.6),
            dark=dark,
            bright=bright,
            tints=tints - tints.mean(axis=1, keepdims=True),
            textures=[_texture(random, side) for _ in range(3)],
        )


def dead_leaves(
    count: int, side: int, seed: int, progress: Callable[..., Iterable[int]] | None = None
) -> np.ndarray:
    """Return dead-leaves images, uint8 (count, 3, side, side); the k-th depends on the seed and k alone.

    Args:
        count: How many.
        side: Of an image, in pixels.
        seed: Of the images.
        progress: Wraps the numbers of the images, like tqdm.
    """
    numbers: Iterable[int] = range(count)
    images = np.empty((count, 3, side, side), np.uint8)
    for number in progress(numbers) if progress else numbers:
        images[number] = np.rint(255 * dead_leaves_image(np.random.default_rng([seed, number]), side))
    return images


def dead_leaves_image(random: np.random.Generator, side: int) -> np.ndarray:
    """Return one image, float (3, side, side) in [0, 1]."""
    wide = SCALE * side
    style = _Style.draw(random, wide)
    canvas = np.full((wide, wide, 3), random.uniform(style.dark, style.bright), np.float32)
    free = np.ones((wide, wide), bool)  # leaves are laid from the top one down, each where nothing covers it
    for _ in range(MOST_LEAVES):
        _lay(random, style, canvas, free)
        if not free.any():
            break
    sharp = random.random() < 0.8
    blur = SCALE / 2 * (random.uniform(0.4, 1.1) if sharp else random.uniform(1.1, 2.5))
    image = ndimage.gaussian_filter(canvas.clip(-0.05, 1.05), (blur, blur, 0))
    image = image.reshape(side, SCALE, side, SCALE, 3).mean(axis=(1, 3))
    exposure = np.exp(random.normal(0, 0.2))  # a gamma curve
    return (image.clip(0, 1) ** exposure).transpose(2, 0, 1)


def _lay(random: np.random.Generator, style: _Style, canvas: np.ndarray, free: np.ndarray) -> None:
    """Lay one more leaf under those that lie there."""
    wide, radius = len(canvas), _radius(random, style)
    center = random.uniform(-0.5 * radius, wide + 0.5 * radius, 2)
    top, left = np.maximum(0, (center - radius).astype(int))
    bottom, right = np.minimum(wide, (center + radius).astype(int) + 2)
    window = np.s_[top:bottom, left:right]
    if not free[window].any():
        return
    down = np.arange(top, bottom, dtype=np.float32)[:, None] - center[0]
    across = np.arange(left, right, dtype=np.float32)[None] - center[1]
    angle = random.uniform(0, np.pi)
    along = np.cos(angle) * across + np.sin(angle) * down
    beside = np.cos(angle) * down - np.sin(angle) * across
    flat = random.uniform(0.35, 1) if random.random() < 0.6 else 1.0
    if random.random() < 0.35:
        inside = np.maximum(abs(along), abs(beside) / flat) < 0.8 * radius
    else:
        inside = along**2 + (beside / flat) ** 2 < radius**2
    inside &= free[window]
    if inside.any():
        canvas[window][inside] = _shade(random, style, along, beside, inside, radius)
        free[window][inside] = False


def _radius(random: np.random.Generator, style: _Style) -> float:
    """A radius from the power law between the style's ends, by its inverse distribution function."""
    low, high = style.smallest ** (1 - POWER), style.largest ** (1 - POWER)
    share = random.random()
    return float((low * (1 - share) + high * share) ** (1 / (1 - POWER)))


def _shade(
    random: np.random.Generator,
    style: _Style,
    along: np.ndarray,
    beside: np.ndarray,
    inside: np.ndarray,
    radius: float,
) -> np.ndarray:
    """Colors (n, 3) of the pixels inside a leaf: a plain color, with texture, slope or stripes."""
    along, beside = along[inside], beside[inside]
    color = random.uniform(style.dark, style.bright) + style.tints[random.integers(len(style.tints))]
    shade = np.tile((color + random.normal(0, 0.02, 3)).astype(np.float32), (len(along), 1))
    kind = random.random()
    if kind < 0.75:
        texture = style.textures[random.integers(len(style.textures))]
        start = [
            random.integers(0, limit - size + 1)
            for limit, size in zip(texture.shape, inside.shape, strict=True)
        ]
        part = texture[start[0] : start[0] + inside.shape[0], start[1] : start[1] + inside.shape[1]]
        strength = abs(random.normal(0, 0.09)) * random.uniform(0.7, 1.3, 3)
        shade += part[inside][:, None] * strength.astype(np.float32)
    if kind > 0.5:
        slope = random.normal(0, 0.25, 2) / radius
        shade += (slope[0] * beside + slope[1] * along)[:, None].astype(np.float32)
    if 0.4 < kind < 0.55:
        frequency = np.exp(random.uniform(np.log(0.08), np.log(1.2)))  # radians a pixel
        stripes = random.uniform(0.03, 0.2) * np.sin(frequency * along + random.uniform(0, 6))
        shade += stripes[:, None].astype(np.float32)
    return shade


def _texture(random: np.random.Generator, side: int) -> np.ndarray:
    """Noise (side, side) whose amplitude falls with a power of the frequency between .6 and 2; mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf  # no mean
    waves = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
    texture = np.fft.irfft2(waves / frequency ** random.uniform(0.6, 2.0), s=(side, side))
    return (texture / texture.std()).astype(np.float32)
