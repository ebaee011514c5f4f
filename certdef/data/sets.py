"""Data sets by name, split between the target's owner, our unlabelled pool, held-out images, and an auditor's.

Images are float32 (N, C, H, W) in [0, 1]. The pool carries no labels at all: nothing downstream can use them by mistake.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from certdef.config.job import ConfigError, DataConfig


@dataclass(frozen=True)
class Splits:
    """Images of one job: float32 (N, C, H, W) in [0, 1], labels int64 (N,)."""

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
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def load_data(config: DataConfig, seed: int, *, own_target: bool = False) -> Splits:
    """Load and split a data set; with `own_target` no images are set aside to train one.

    Raises:
        ConfigError: Unknown name, missing file, wrong shape, dtype or range, or too few images for the split.
    """
    if config.name not in LOADERS:
        raise ConfigError(f"unknown data set {config.name!r}: choose one of {', '.join(LOADERS)}")
    train, train_labels, test, test_labels, classes = LOADERS[config.name](config)
    random = np.random.default_rng(seed)
    order = random.permutation(len(train))
    if test is None:  # one set: the held-out part is cut from it
        order, held = order[config.heldout_images :], order[: config.heldout_images]
        test, test_labels = train[held], train_labels[held]
    else:
        held = random.permutation(len(test))[: config.heldout_images]
        test, test_labels = test[held], test_labels[held]
    aside = 0 if own_target else config.target_images
    owner, ours, spare = np.split(order, [aside, aside + config.pool_images])
    audit = spare[: config.audit_images]
    asked = {
        "target_images": len(owner),
        "pool_images": len(ours),
        "heldout_images": len(test),
        "audit_images": len(audit),
    }
    for key, got in asked.items():
        if got < getattr(config, key) and not (own_target and key == "target_images"):
            raise ConfigError(
                f"data.{key} is {getattr(config, key)}, but {config.name} has only {got} images left for it: lower it"
            )
    return Splits(
        config.name,
        classes,
        train[owner],
        train_labels[owner],
        train[ours],
        test,
        test_labels,
        train[audit],
        train_labels[audit],
    )


def data_root(config: DataConfig) -> Path:
    """The folder of the data sets: data.root, else $CERTDEF_DATA_ROOT, else ../shared/data."""
    root = Path(config.root or os.environ.get("CERTDEF_DATA_ROOT") or "../shared/data")
    if not root.is_dir():
        raise ConfigError(
            f"data.root {str(root)!r} is no folder: pass --data-root FOLDER or set CERTDEF_DATA_ROOT"
        )
    return root


def _digits(config: DataConfig):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    return images, bunch.target.astype(np.int64), None, None, tuple(str(name) for name in bunch.target_names)


def _fashion_mnist(config: DataConfig):
    from torchvision.datasets import FashionMNIST

    folder = data_root(config) / "fashion_mnist"
    parts = []
    for train in (True, False):
        try:
            part = FashionMNIST(str(folder), train=train, download=False)
        except RuntimeError as error:
            raise ConfigError(
                f"no Fashion-MNIST in {str(folder)!r}: put the four idx files into FashionMNIST/raw below it"
            ) from error
        parts += [part.data.numpy()[:, None].astype(np.float32) / 255, part.targets.numpy().astype(np.int64)]
    return *parts, tuple(part.classes)


def _cifar10_part(config: DataConfig):
    arrays = _arrays(data_root(config) / "cifar10" / "cifar10_lossless.npz")
    return (
        as_images(arrays["x_train"]), arrays["y_train"].astype(np.int64), as_images(arrays["x_test"]),
        arrays["y_test"].astype(np.int64), tuple(str(name) for name in arrays["class_names"]),
    )  # fmt: skip


def _aerial(config: DataConfig):
    arrays = _arrays(data_root(config) / "ucmerced64" / "ucmerced64.npz")
    images, labels, test = as_images(arrays["x"]), arrays["y"].astype(np.int64), arrays["split"] == 1
    return (
        images[~test], labels[~test], images[test], labels[test], tuple(str(name) for name in arrays["class_names"]),
    )  # fmt: skip


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one of our data sets; ConfigError if it is not there."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is no file: data.root must be the folder of the data sets")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _npz(config: DataConfig):
    if not config.path:
        raise ConfigError(
            "data.path is not set: data.name npz needs a file with the arrays images and labels"
        )
    images, labels = _read(config.path, "data.path", "images", "labels")
    images = as_images(images)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfigError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: expected {len(images)} whole numbers from 0"
        )
    return images, labels.astype(np.int64), None, None, tuple(str(k) for k in range(int(labels.max()) + 1))


def read_images(path: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """The array images of an .npz as float32 (N, C, H, W) in [0, 1]; ConfigError unless each has the shape (C, H, W)."""
    images = as_images(*_read(path, "images", "images"))
    if images.shape[1:] != tuple(image_shape):
        raise ConfigError(
            f"images of {path!r} have shape {images.shape[1:]}: the job's are {tuple(image_shape)}"
        )
    return images


def _read(path: str, what: str, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz by name; ConfigError that calls the path by what it is."""
    wanted = " and ".join(names)
    if not Path(path).is_file():
        raise ConfigError(f"{what} {str(path)!r} is no file: give an .npz with the arrays {wanted}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"{what} {str(path)!r} can't be read ({error}): give an .npz with the arrays {wanted}"
        ) from error


def as_images(images: np.ndarray) -> np.ndarray:
    """Any common image array as float32 (N, C, H, W) in [0, 1]; uint8 is divided by 255 here."""
    if images.size == 0:
        raise ConfigError(f"images have shape {images.shape}: there is nothing to work on")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4:
        raise ConfigError(f"images have shape {images.shape}: expected (N,H,W), (N,H,W,C) or (N,C,H,W)")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images, dtype=np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"images have dtype {images.dtype}: expected uint8, or floats in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ConfigError(
            f"images range from {low:g} to {high:g}: scale them to [0, 1], e.g. divide 8-bit levels by 255"
        )
    return np.ascontiguousarray(images, dtype=np.float32)


LOADERS = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10-part": _cifar10_part,
    "aerial": _aerial,
    "npz": _npz,
}
