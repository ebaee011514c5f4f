"""Data sets by name: those that ship with libraries, and those of the folder data.root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from certdef.config.job import ConfigError, DataConfig
from certdef.data.npz import read_npz
from certdef.data.pixels import Form, as_images
from certdef.data.source import ArrayImages, Source


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
    return _source(config, images, bunch.target, _names(bunch.target_names))


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
    labels, test_labels = (part.targets.numpy() for part in parts)
    return _source(config, images, labels, tuple(parts[0].classes), test_images, test_labels)


def _cifar10_part(config: DataConfig) -> Source:
    arrays = _arrays(
        data_root(config) / "cifar10" / "cifar10_lossless.npz",
        *("x_train", "y_train", "x_test", "y_test", "class_names"),
    )
    images, test_images = as_images(arrays["x_train"]), as_images(arrays["x_test"])
    names = _names(arrays["class_names"])
    return _source(config, images, arrays["y_train"], names, test_images, arrays["y_test"])


def _aerial(config: DataConfig) -> Source:
    arrays = _arrays(data_root(config) / "ucmerced64" / "ucmerced64.npz", "x", "y", "split", "class_names")
    images, labels, test = as_images(arrays["x"]), arrays["y"], arrays["split"] == 1
    names = _names(arrays["class_names"])
    return _source(config, images[~test], labels[~test], names, images[test], labels[test])


def _names(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays of a data set below data.root, by name; ConfigError if it is missing."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is no file: data.root must be the folder of the data sets")
    return read_npz(path, names, "data set")


def _source(
    config: DataConfig,
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    test_images: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> Source:
    form = Form.of(config)
    return Source(
        config.name,
        ArrayImages(images, form),
        labels.astype(np.int64),
        classes,
        test_images=None if test_images is None else ArrayImages(test_images, form),
        test_labels=None if test_labels is None else test_labels.astype(np.int64),
    )


NAMED: dict[str, Callable[[DataConfig], Source]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10-part": _cifar10_part,
    "aerial": _aerial,
}
