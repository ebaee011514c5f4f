"""Antialiased bilinear resizing, a part of what some targets do to an image before their model sees it.

The same image becomes the same bytes in any batch and on any computer: sums have a fixed order, and no library's kernels
choose another one. A ledger knows images by their bytes.
"""

from functools import lru_cache

import numpy as np

VALUES = 2**16  # of one block, so that what lies between the two passes stays in the cache


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return images of another size.

    Torch's interpolate(mode="bilinear", antialias=True) and Pillow's BILINEAR do the same up to rounding: a triangle of two
    input pixels, or where an image becomes smaller of two output pixels, around the center of each output pixel.

    Args:
        images: (N, C, H, W) float32.
        size: Height and width, in pixels.

    Returns:
        (N, C, *size) float32; the images themselves where they have that size.
    """
    if images.shape[2:] == size:
        return images
    count, channels, height, width = images.shape
    planes = images.reshape(count * channels, height, width)
    result = np.empty((count * channels, *size), np.float32)
    step = max(1, VALUES // (max(height, size[0]) * max(width, size[1])))
    for start in range(0, len(planes), step):
        block = _resampled(planes[start : start + step], size[1], axis=2)
        result[start : start + step] = _resampled(block, size[0], axis=1)
    return result.reshape(count, channels, *size)


def _resampled(planes: np.ndarray, wanted: int, axis: int) -> np.ndarray:
    """Return planes (N, H, W) with so many pixels along an axis."""
    if planes.shape[axis] == wanted:
        return planes
    places, weights = taps(planes.shape[axis], wanted)
    if axis == 1:
        weights = weights[:, :, None]
    total = np.take(planes, places[0], axis, mode="clip")  # any other mode checks each place
    total *= weights[0]
    part = np.empty_like(total)
    for place, weight in zip(places[1:], weights[1:], strict=True):
        np.take(planes, place, axis, out=part, mode="clip")
        part *= weight
        total += part
    return total


@lru_cache(maxsize=64)
def taps(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of a row make up each pixel of another, and with what weights.

    Args:
        length: Pixels of the row.
        wanted: Pixels of the other row.

    Returns:
        Positions (T, wanted), and weights (T, wanted) float32 that sum to 1 over T.
    """
    scale = length / wanted
    reach = max(scale, 1.0)
    centers = (np.arange(wanted) + 0.5) * scale
    first = np.maximum(np.floor(centers - reach + 0.5).astype(int), 0)
    last = np.minimum(np.floor(centers + reach + 0.5).astype(int), length)  # exclusive
    places = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(0, 1 - abs(places + 0.5 - centers) / reach) * (places < last)
    weights /= weights.sum(axis=0)
    return np.minimum(places, length - 1), weights.astype(np.float32)
