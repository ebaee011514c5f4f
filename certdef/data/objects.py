"""Images that a caller has in Python: arrays, tensors, pictures, data sets of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from certdef.config.job import ConfigError
from certdef.data.labels import Labels, labels_from_array
from certdef.data.pixels import Form, as_images
from certdef.data.source import ArrayImages, Images, Source


def source_of(
    images: Any,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    form: Form | None = None,
    name: str = "images",
) -> Source:
    """The data set of images that are in memory.

    Args:
        images: An array or tensor (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1]; a sequence of PIL images, of
            arrays or tensors, all of one size unless the form gives one; or a torch Dataset of (image, label) pairs, of
            images alone, or of dictionaries with image and label.
        labels: Whole numbers from 0 or names, one an image; unset, those of the data set, else none.
        class_names: Names of the classes, in the order of whole numbers.
        form: Size and color of the images.
        name: What tables and the page call them.

    Raises:
        ConfigError: Images or labels that can't be used.
    """
    form = form or Form()
    own: Any = None
    if hasattr(images, "features") and hasattr(images, "cast_column"):  # of the library datasets
        from certdef.data.huggingface import source_of_splits

        found = source_of_splits(name, images, None, None, form)
        return (
            found
            if labels is None
            else replace(found, **_labels(labels, len(found.images), class_names)._asdict())
        )
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu().numpy()
    if isinstance(images, np.ndarray):
        taken: Images = ArrayImages(as_images(images), form)
    else:
        array, own = _items(images, form)
        taken = ArrayImages(array)
        class_names = class_names if class_names is not None else getattr(images, "classes", None)
    labels = own if labels is None else labels
    if labels is None:
        return Source(name, taken)
    return Source(name, taken, *_labels(labels, len(taken), class_names))


def _labels(labels: Any, count: int, class_names: Sequence[str] | None) -> Labels:
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    return labels_from_array(array, count, None if class_names is None else np.array(class_names, dtype=str))


def _items(images: Any, form: Form) -> tuple[np.ndarray, list[Any] | None]:
    """Every image (N, C, H, W) of a sequence or data set, read once, and its labels where it has any."""
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")) or isinstance(images, str | bytes):
        raise ConfigError(
            f"images is a {type(images).__name__}: give an array, a tensor, a list of pictures, or a torch Dataset with a "
            "length"
        )
    count, labels = len(images), []
    if not count:
        raise ConfigError("images is empty: give at least one")
    done: np.ndarray | None = None
    for index in range(count):
        item, label = _split(images[index])
        image = _image(item, form, index)
        if done is None:
            done = _room(count, image.shape)
        if image.shape != done.shape[1:]:
            raise ConfigError(
                f"image {index} has shape {image.shape}, the first one {done.shape[1:]}: resize them all, or give data.resize "
                "and data.color"
            )
        done[index] = image
        labels.append(label)
    assert done is not None
    missing = [index for index, label in enumerate(labels) if label is None]
    if 0 < len(missing) < count:
        raise ConfigError(
            f"{len(missing):,} of {count:,} images have no label, the first one at {missing[0]}: give labels to all, or to none"
        )
    return done, None if missing else [_plain(label) for label in labels]


def _room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    need, free = 4 * count * int(np.prod(shape)), psutil.virtual_memory().available
    if need > free:
        raise ConfigError(
            f"{count:,} images of shape {shape} need {need / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are free: give fewer or "
            "smaller ones (data.resize)"
        )
    return np.empty((count, *shape), np.float32)


def _split(item: Any) -> tuple[Any, Any]:
    """Image and label of an item, None where it has no label."""
    if isinstance(item, dict):
        names = {str(name).lower(): value for name, value in item.items()}
        image = next(
            (names[name] for name in ("image", "images", "img", "x", "pixel_values") if name in names), None
        )
        label = next((names[name] for name in ("label", "labels", "target", "y") if name in names), None)
        if image is None:
            raise ConfigError(
                f"an item of images has the keys {', '.join(map(str, item))}: call the image 'image'"
            )
        return image, label
    if isinstance(item, tuple | list) and len(item) >= 2 and np.ndim(item[1]) == 0:
        return item[0], item[1]
    return (item[0] if isinstance(item, tuple | list) and len(item) == 1 else item), None


def _image(item: Any, form: Form, index: int) -> np.ndarray:
    """One image as (C, H, W) float32 in [0, 1], in its form."""
    if isinstance(item, Image.Image):
        from certdef.data.pictures import BadPicture, from_pil

        try:
            return from_pil(item, form)
        except BadPicture as error:
            raise ConfigError(f"image {index} {error}") from error
        except ConfigError as error:
            raise ConfigError(f"image {index}: {error}") from error
    array = item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
    try:
        return form.apply(as_images(array[None]))[0]
    except ConfigError as error:
        raise ConfigError(f"image {index}: {error}") from error


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, torch.Tensor | np.generic) else label
