"""Data sets by name, split into the target's training images, the unlabeled pool, held-out images, and audit images.

Images are float32 (N, C, H, W) in [0, 1]. The pool carries no labels at all: nothing downstream can use any by mistake.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certdef.config.job import ConfigError, DataConfig
from certdef.data.npz import read_npz
from surrogates.targets.formats import channel_axis


class Source(NamedTuple):
    """A data set before it is split: images (N, C, H, W) in [0, 1], labels (N,); its own test set where it has one."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


@dataclass(frozen=True)
class Splits:
    """Images of one job: float32 (N, C, H, W) in [0, 1], labels int64 (N,).

    Attributes:
        name: Of the data set.
        classes: Names of the classes.
        target_images: What a target is trained on here; empty for a user's own target.
        target_labels: Their labels.
        pool: Unlabeled images, queried and used for pre-training.
        heldout_images: What every figure is measured on.
        heldout_labels: Their labels.
        audit_images: Of no model's training set, for membership inference.
        audit_labels: Their labels.
    """

    name: str
    classes: tuple[str, ...]
    target_images: np.ndarray
    target_labels: np.ndarray
    pool: np.ndarray
    heldout_images: np.ndarray
    heldout_labels: np.ndarray
    audit_images: np.ndarray
    audit_labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.heldout_images.shape
        return channels, height, width

    @cached_property
    def pool_digest(self) -> str:
        """Identifies the images of the pool, and their order."""
        return digest(self.pool)

    @cached_property
    def heldout_digest(self) -> str:
        """Identifies the held-out images and labels, and their order."""
        return digest(self.heldout_images, self.heldout_labels)

    @cached_property
    def target_digest(self) -> str:
        """Identifies the images and labels that a target is trained on here, and their order."""
        return digest(self.target_images, self.target_labels)

    @cached_property
    def audit_digest(self) -> str:
        """Identifies the auditor's images and labels, and their order."""
        return digest(self.audit_images, self.audit_labels)


def digest(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits that identify arrays by type, shape and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def load_data(config: DataConfig, seed: int, *, own_target: bool = False) -> Splits:
    """Load and split a data set; with `own_target` no images are set aside to train one.

    Raises:
        ConfigError: Unknown name, missing file, wrong shape, dtype or range, or too few images for the split.
    """
    return split(load_source(config), config, seed, own_target=own_target)


def load_source(config: DataConfig) -> Source:
    """Load a data set.

    Raises:
        ConfigError: Unknown name, missing file, or wrong shape, dtype or range.
    """
    if config.name not in LOADERS:
        raise ConfigError(f"unknown data set {config.name!r}: choose one of {', '.join(LOADERS)}")
    return LOADERS[config.name](config)


def source_of(images: Any, labels: Any = None, class_names: Sequence[str] | None = None) -> Source:
    """A data set of arrays or tensors: images as in data.path, labels (N,) from 0."""
    arrays = {"images": np.asarray(images), "labels": np.asarray(labels)}
    names = None if class_names is None else np.asarray(class_names)
    return _source(arrays | ({} if names is None else {"class_names": names}))


def split(source: Source, config: DataConfig, seed: int, *, own_target: bool = False) -> Splits:
    """Split a data set; with `own_target` no images are set aside to train one.

    Raises:
        ConfigError: Too few images.
    """
    images, labels, random = source.images, source.labels, np.random.default_rng(seed)
    order = random.permutation(len(images))
    if source.test_images is None or source.test_labels is None:  # the held-out part is cut from the set
        order, held = order[config.heldout_images :], order[: config.heldout_images]
        test, test_labels = images[held], labels[held]
    else:
        held = random.permutation(len(source.test_images))[: config.heldout_images]
        test, test_labels = source.test_images[held], source.test_labels[held]
    aside = 0 if own_target else config.target_images
    target, pool, spare = np.split(order, [aside, aside + config.pool_images])
    audit = spare[: config.audit_images]
    sizes = {"target": len(target), "pool": len(pool), "heldout": len(test), "audit": len(audit)}
    _check_sizes(config, sizes if not own_target else {**sizes, "target": config.target_images})
    return Splits(
        name=config.name,
        classes=source.classes,
        target_images=images[target],
        target_labels=labels[target],
        pool=images[pool],
        heldout_images=test,
        heldout_labels=test_labels,
        audit_images=images[audit],
        audit_labels=labels[audit],
    )


def _check_sizes(config: DataConfig, sizes: dict[str, int]) -> None:
    for part, size in sizes.items():
        wanted = getattr(config, f"{part}_images")
        if size < wanted:
            raise ConfigError(
                f"data.{part}_images is {wanted}, but {config.name} has only {size} images left for it: lower it, or the other numbers of images"
            )


def data_root(config: DataConfig) -> Path:
    """The folder of the data sets: data.root, else $CERTDEF_DATA_ROOT, else ../shared/data."""
    root = Path(config.root or os.environ.get("CERTDEF_DATA_ROOT") or "../shared/data")
    if not root.is_dir():
        raise ConfigError(
            f"data.root {str(root)!r} is no folder: pass --data-root FOLDER or set CERTDEF_DATA_ROOT"
        )
    return root


def _digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    return Source(images, bunch.target.astype(np.int64), _names(bunch.target_names))


def _fashion_mnist(config: DataConfig) -> Source:
    from torchvision.datasets import FashionMNIST

    folder = data_root(config) / "fashion_mnist"
    try:
        parts = [FashionMNIST(str(folder), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise ConfigError(
            f"no Fashion-MNIST in {str(folder)!r}: put the four idx files into FashionMNIST/raw below it"
        ) from error
    images, test_images = (part.data.numpy()[:, None].astype(np.float32) / 255 for part in parts)
    labels, test_labels = (part.targets.numpy().astype(np.int64) for part in parts)
    return Source(images, labels, tuple(parts[0].classes), test_images, test_labels)


def _cifar10_part(config: DataConfig) -> Source:
    arrays = _arrays(
        data_root(config) / "cifar10" / "cifar10_lossless.npz",
        *("x_train", "y_train", "x_test", "y_test", "class_names"),
    )
    return Source(
        images=as_images(arrays["x_train"]),
        labels=arrays["y_train"].astype(np.int64),
        classes=_names(arrays["class_names"]),
        test_images=as_images(arrays["x_test"]),
        test_labels=arrays["y_test"].astype(np.int64),
    )


def _aerial(config: DataConfig) -> Source:
    arrays = _arrays(data_root(config) / "ucmerced64" / "ucmerced64.npz", "x", "y", "split", "class_names")
    images, labels, test = as_images(arrays["x"]), arrays["y"].astype(np.int64), arrays["split"] == 1
    return Source(images[~test], labels[~test], _names(arrays["class_names"]), images[test], labels[test])


def _names(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays of a data set below data.root, by name; ConfigError if it is missing."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is no file: data.root must be the folder of the data sets")
    return read_npz(path, names, "data set")


def _npz(config: DataConfig) -> Source:
    if not config.path:
        raise ConfigError(
            "data.path is not set: data.name npz needs a file with the arrays images and labels"
        )
    return _source(read_npz(config.path, ["images", "labels"], "data.path", ["class_names", "layout"]))


def _source(arrays: dict[str, np.ndarray]) -> Source:
    images, labels = as_images(arrays["images"], _layout(arrays)), arrays["labels"]
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: expected {len(images)} whole numbers from 0"
        )
    if labels.min() < 0:
        raise ConfigError(f"labels go down to {labels.min()}: number the classes from 0")
    return Source(images, labels.astype(np.int64), _class_names(labels, arrays.get("class_names")))


def _class_names(labels: np.ndarray, given: np.ndarray | None) -> tuple[str, ...]:
    """Names of the classes: as given, else their numbers, if each of them occurs."""
    seen = np.unique(labels)
    if given is not None:
        names = _names(np.atleast_1d(given))
        if len(set(names)) != len(names) or int(seen[-1]) >= len(names):
            raise ConfigError(
                f"class_names lists {len(set(names))} names, but labels go up to {seen[-1]}: list one for each class"
            )
        return names
    if int(seen[0]) != 0 or int(seen[-1]) != len(seen) - 1:
        few = f"{', '.join(map(str, seen[:3]))}{' ...' if len(seen) > 3 else ''} up to {seen[-1]}"
        raise ConfigError(
            f"labels are {few}, {len(seen)} in all: number the classes from 0 without a gap, or add the array "
            "class_names with the name of every class"
        )
    return _names(range(len(seen)))


def read_images(path: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """The array images of an .npz as float32 (N, C, H, W) in [0, 1]; ConfigError unless each has the shape (C, H, W)."""
    arrays = read_npz(path, ["images"], "images", ["layout"])
    images = as_images(arrays["images"], _layout(arrays))
    if images.shape[1:] != tuple(image_shape):
        raise ConfigError(
            f"images of {path!r} have shape {images.shape[1:]}: the job's are {tuple(image_shape)}"
        )
    return images


def _layout(arrays: dict[str, np.ndarray]) -> str | None:
    return str(arrays["layout"]) if "layout" in arrays else None


def as_images(images: np.ndarray, layout: str | None = None) -> np.ndarray:
    """Any common image array as float32 (N, C, H, W) in [0, 1]; uint8 is divided by 255 here.

    Args:
        layout: chw or hwc, where four axes do not tell which of them is the channels.

    Raises:
        ConfigError: It names what was seen and how to say it.
    """
    if images.size == 0:
        raise ConfigError(f"images have shape {images.shape}: give at least one")
    if layout not in (None, "chw", "hwc"):
        raise ConfigError(f"layout is {layout!r}: use chw or hwc")
    if images.ndim == 3:
        if images.shape[-1] in (1, 3, 4):
            raise ConfigError(
                f"images have shape {images.shape}, perhaps of one image (H,W,C): give (N,H,W), (N,H,W,C) or (N,C,H,W)"
            )
        images = images[:, None]
    elif images.ndim == 4:
        axis = channel_axis(images.shape[1:])
        if layout is None and axis is None:
            raise ConfigError(
                f"images have shape {images.shape}, where the channels may be first or last: "
                "add the array layout to the file, with the text chw or hwc"
            )
        if layout == "hwc" or (layout is None and axis == 2):
            images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4:
        raise ConfigError(f"images have shape {images.shape}: expected (N,H,W), (N,H,W,C) or (N,C,H,W)")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images, dtype=np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"images have dtype {images.dtype}: expected uint8, or floats in [0, 1]")
    low, high = images.min(), images.max()
    if np.isnan(low):
        raise ConfigError("images hold pixels that are no number (NaN): leave such images out")
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ConfigError(
            f"images range from {low:.9g} to {high:.9g}: scale them to [0, 1], e.g. divide 8-bit levels by 255, "
            "and clip what rounding has left outside"
        )
    return np.ascontiguousarray(images, dtype=np.float32)


LOADERS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10-part": _cifar10_part,
    "aerial": _aerial,
    "npz": _npz,
}
