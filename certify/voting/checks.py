"""What is checked before and around a vote: images, their indices, the device, labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.errors import CertifyError


def check_images(images: Any) -> torch.Tensor:
    """Return images as a float32 tensor (N, C, H, W).

    Raises:
        CertifyError: They are empty, not finite, outside [0, 1], or not floats of 4 axes.
    """
    if not isinstance(images, torch.Tensor):
        # torch takes no negative strides and warns of memory that it may not write to: those are copied
        images = torch.as_tensor(np.require(images, requirements=["C", "W"]))
    shape = tuple(images.shape)
    if images.ndim != 4 or 0 in shape:
        raise CertifyError(
            f"images must be a non-empty (N, C, H, W) array, got shape {shape}: add or fill the axes"
        )
    if not images.is_floating_point():
        raise CertifyError(f"images must be floats in [0, 1], got {images.dtype}: divide 8-bit pixels by 255")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise CertifyError(
            f"images must be in [0, 1], got values from {low} to {high}: rescale or clip, do not normalize"
        )
    return images.detach().to(torch.float32)


def check_indices(indices: Sequence[int] | None, count: int) -> list[int]:
    """Return ``count`` distinct non-negative indices (0, 1, ... if None), or raise CertifyError."""
    if indices is None:
        return list(range(count))
    names = [int(index) for index in indices]
    if len(names) != count or len(set(names)) != count or min(names, default=0) < 0:
        got = f"{len(set(names))} distinct in {len(names)}"
        raise CertifyError(
            f"indices must be {count} distinct integers >= 0, one an image, got {got}: name each once"
        )
    return names


def check_labels(labels: ArrayLike, count: int, num_classes: int) -> NDArray[np.int64]:
    """Return ``labels`` as int64 (count,), or raise CertifyError unless they are classes, one a draw."""
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise CertifyError(
            f"draw must return one integer label for each of {count} draws, got {labels.dtype} of shape "
            f"{labels.shape}: return an integer array ({count},)"
        )
    check_range(int(labels.min()), int(labels.max()), num_classes)
    return labels.astype(np.int64)


def check_known(known_class: ArrayLike, count: int, num_classes: int) -> NDArray[np.int64]:
    """Return ``known_class`` as int64 (count,), or raise CertifyError unless it names a class for each image."""
    known = np.asarray(known_class)
    if known.shape != (count,) or not np.issubdtype(known.dtype, np.integer):
        raise CertifyError(
            f"known_class must be ({count},) integers, got {known.dtype} of shape {known.shape}: one an image"
        )
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise CertifyError(
            f"known_class must be in [0, {num_classes}), got {wrong}: leave images without a label out, or leave "
            "known_class out"
        )
    return known.astype(np.int64)


def check_range(low: int, high: int, num_classes: int) -> None:
    """Raise CertifyError unless the smallest and the largest label are classes."""
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise CertifyError(
            f"labels must be in [0, {num_classes}), got {wrong}: check num_classes={num_classes}"
        )


def resolve_device(classify: Any, device: torch.device | str | None) -> torch.device:
    """The device to draw on: the module's own, else ``device``, else the CPU; CertifyError if they differ."""
    wanted = None if device is None else torch.device(device)
    if not isinstance(classify, torch.nn.Module):
        return wanted or torch.device("cpu")
    own = next((tensor.device for tensor in (*classify.parameters(), *classify.buffers())), None)
    if own is None or wanted is None:
        return own or wanted or torch.device("cpu")
    if own.type != wanted.type or wanted.index not in (None, own.index):
        raise CertifyError(
            f"device is {wanted} but the model is on {own}: move the model first, or drop device="
        )
    return own
