"""Arrays of images in .npz and .npy files, under whatever keys."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from certdef.config.job import ConfigError, DataConfig
from certdef.data.labels import labels_from_array
from certdef.data.npz import read_npy, read_npz
from certdef.data.pixels import Form, as_images
from certdef.data.source import ArrayImages, Source

# Keys of images and labels, the best known first; their case does not matter.
IMAGES = ("images", "image", "x", "data", "imgs", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "classes", "arr_1")
TRAIN, TEST = ("train", "training", "tr"), ("test", "testing", "te", "val", "valid", "validation")
BESIDE = ("class_names", "layout")


class Keys(NamedTuple):
    """Names of arrays of images, and of their labels where there are any."""

    images: str
    labels: str | None


def read_npz_source(config: DataConfig) -> Source:
    """The images of an .npz and, where it has any, their labels; `class_names` and `layout` beside them.

    Raises:
        ConfigError: No such arrays, several that may be meant, or images and labels that can't be used.
    """
    path, form = Path(config.path or ""), Form.of(config)
    known = _names(path)
    train, test = _keys(path, known, config)
    wanted = [name for keys in (train, test) if keys for name in keys if name]
    arrays = read_npz(path, wanted, "data.path", BESIDE)
    names, layout = arrays.get("class_names"), _layout(arrays)
    images = ArrayImages(as_images(arrays[train.images], layout), form)
    source = Source(path.stem, images)
    if train.labels:
        source = Source(path.stem, images, *labels_from_array(arrays[train.labels], len(images), names))
    if test is None:
        return source
    test_images = ArrayImages(as_images(arrays[test.images], layout), form)
    if test_images.shape != images.shape:
        raise ConfigError(
            f"{test.images} has images of shape {test_images.shape}, {train.images} {images.shape}: resize them"
        )
    if not (train.labels and test.labels):
        return Source(path.stem, images, test_images=test_images)
    every = np.concatenate([np.asarray(arrays[name]).reshape(-1) for name in (train.labels, test.labels)])
    for name, count in ((train.labels, len(images)), (test.labels, len(test_images))):
        labels_from_array(arrays[name], count, names)  # each by itself, for its errors
    labels = labels_from_array(every, len(every), names)
    parts = labels.values[: len(images)], labels.values[len(images) :]
    return Source(path.stem, images, parts[0], *labels[1:], test_images=test_images, test_labels=parts[1])


def read_npy_source(config: DataConfig) -> Source:
    """The images of an .npy, without labels."""
    path = Path(config.path or "")
    return Source(path.stem, ArrayImages(as_images(read_npy(path, "data.path")), Form.of(config)))


def read_images(path: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """The array images of an .npz as float32 (N, C, H, W) in [0, 1]; ConfigError unless each has the shape (C, H, W)."""
    arrays = read_npz(path, ["images"], "images", ["layout"])
    images = as_images(arrays["images"], _layout(arrays))
    if images.shape[1:] != tuple(image_shape):
        raise ConfigError(
            f"images of {path!r} have shape {images.shape[1:]}: the job's are {tuple(image_shape)}"
        )
    return images


def _names(path: Path) -> list[str]:
    """The arrays of an .npz; none where it is no zip, which reading it will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _keys(path: Path, known: Sequence[str], config: DataConfig) -> tuple[Keys, Keys | None]:
    """Which arrays are the images and labels, and which those of its own test set, where it has one."""
    if config.images_key or config.labels_key:
        return _named(path, known, config.images_key, config.labels_key), None
    if "images" in known and ("labels" in known or len(known) == 1):
        return Keys("images", "labels" if "labels" in known else None), None
    by_part = {part: _part(path, known, names) for part, names in (("train", TRAIN), ("test", TEST))}
    whole = _pair(path, known, IMAGES, LABELS)
    if whole is not None:
        return whole, None
    if by_part["train"] and by_part["test"]:
        return by_part["train"], by_part["test"]
    some = by_part["test"] or by_part["train"]
    if some is not None:
        return some, None
    if not known:
        return Keys("images", "labels"), None  # reading them says what is wrong with the file
    raise ConfigError(
        f"data.path {str(path)!r} has the arrays {', '.join(known)}: name those of images and labels with --data.images_key "
        "and --data.labels_key"
    )


def _part(path: Path, known: Sequence[str], parts: Sequence[str]) -> Keys | None:
    """x_test and y_test, or test_images and test_labels."""
    for part in parts:
        names = [
            tuple(
                form.format(name, part)
                for name in each
                for form in ("{0}_{1}", "{1}_{0}", "{0}{1}", "{1}{0}")
            )
            for each in (IMAGES, LABELS)
        ]
        found = _pair(path, known, *names)
        if found is not None:
            return found
    return None


def _pair(path: Path, known: Sequence[str], images: Sequence[str], labels: Sequence[str]) -> Keys | None:
    """The first names of each that the file has; None without images."""
    by_name = {name.lower(): name for name in known}
    found = [[by_name[name] for name in names if name in by_name] for names in (images, labels)]
    if not found[0]:
        return None
    if len(found[0]) > 1 or len(found[1]) > 1:
        several = ", ".join(found[0] if len(found[0]) > 1 else found[1])
        raise ConfigError(
            f"data.path {str(path)!r} has the arrays {several}: name the one that is meant with --data.images_key and "
            "--data.labels_key"
        )
    return Keys(found[0][0], found[1][0] if found[1] else None)


def _named(path: Path, known: Sequence[str], images: str | None, labels: str | None) -> Keys:
    """The arrays that the options name; the other one is looked for."""
    listed = f"data.path {str(path)!r} has the arrays {', '.join(known)}"
    for option, name in (("images_key", images), ("labels_key", labels)):
        if name and known and name not in known:
            raise ConfigError(f"data.{option} is {name!r}, but {listed}: name one of them")
    found = _pair(path, known, [images.lower()] if images else IMAGES, [labels.lower()] if labels else LABELS)
    if found is None:
        raise ConfigError(f"{listed}: name that of the images with --data.images_key")
    return Keys(images or found.images, labels or found.labels)


def _layout(arrays: dict[str, np.ndarray]) -> str | None:
    return str(arrays["layout"]) if "layout" in arrays else None
