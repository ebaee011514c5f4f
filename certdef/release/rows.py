"""Rows of a table as images, and their labels as classes: what MLflow's evaluation hands over is two-dimensional."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from certdef.config.job import ConfigError
from certdef.data.labels import labels_from_array
from certdef.release.evaluator_config import EvaluatorConfig
from surrogates import Target
from surrogates.targets.layouts import order_of

ROUNDING = 1e-4  # by so much a pixel may miss [0, 1] after the normalization is undone; it is clipped
LEAST_SPAN = 0.1  # of the pixel range, that the data use: pixels that use less are in another range


def values_of(features: Any, columns: Sequence[Any] | None) -> np.ndarray:
    """The features as a matrix (N, F) of float64.

    Args:
        features: A table or an array.
        columns: The columns that the model takes, in its order; None for all of them as they stand.

    Raises:
        ConfigError: Columns that the model takes are missing, or values that are no numbers.
    """
    if columns is not None and hasattr(features, "columns"):
        missing = [name for name in columns if name not in features.columns]
        if missing:
            raise ConfigError(
                f"data lacks the column {missing[0]!r} that the model takes: evaluate it on data with its columns"
            )
        features = features[list(columns)]
    try:
        values = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"data holds values that are no numbers ({error}): give the pixels of an image in the columns of a row"
        ) from error
    if len(values) == 0:
        raise ConfigError("data has no rows: give at least one image")
    return values


def images_of(values: np.ndarray, config: EvaluatorConfig) -> np.ndarray:
    """Rows (N, F) as images (N, C, H, W), float32 in [0, 1]: pixel range and normalization are undone.

    Raises:
        ConfigError: Rows of another length than image_shape, or pixels outside pixel_range; it names the key.
    """
    shape = config.shape
    if values.shape[1:] != (prod(shape),):
        given = " x ".join(map(str, config.image_shape))
        raise ConfigError(
            f"image_shape is {config.image_shape}, {prod(shape)} values ({given}), but data has {values.shape[1]} columns: "
            "give the sides of an image, (H, W) or (C, H, W)"
        )
    if not np.isfinite(values).all():
        raise ConfigError(
            "data holds pixels that are no finite number (NaN or infinity): leave such rows out"
        )
    if order_of(config.layout, shape) == "hwc":
        images = values.reshape(len(values), *shape[1:], shape[0]).transpose(0, 3, 1, 2)
    else:
        images = values.reshape(len(values), *shape)
    low, high = config.pixel_range
    images = (images - low) / (high - low)
    for name in ("std", "mean"):
        channels = getattr(config, name)
        if channels is not None:
            if len(channels) not in (1, shape[0]):
                raise ConfigError(f"{name} has {len(channels)} values, but images have {shape[0]} channels")
            each = np.reshape(channels, (-1, 1, 1))
            images = images * each if name == "std" else images + each
    _check_range(values, images, config)
    return np.ascontiguousarray(images.clip(0, 1), dtype=np.float32)


def _check_range(values: np.ndarray, images: np.ndarray, config: EvaluatorConfig) -> None:
    """Refuse pixels that are in another range than was said."""
    least, most = float(values.min()), float(values.max())
    normalized = config.mean is not None or config.std is not None
    keys = "pixel_range, mean and std" if normalized else "pixel_range"
    said = f"pixel_range is {config.pixel_range}" + (
        f", mean {config.mean}, std {config.std}" if normalized else ""
    )
    seen = f"data holds values from {least:g} to {most:g}"
    remedy = f"give {keys} as the data and the model have them, e.g. pixel_range=(0, 255)"
    if images.min() < -ROUNDING or images.max() > 1 + ROUNDING:
        where = f", {images.min():g} to {images.max():g} in [0, 1]" if normalized else ""
        raise ConfigError(f"{said}, but {seen}{where}: {remedy}")
    span = float(images.max() - images.min())
    if span < LEAST_SPAN:
        raise ConfigError(f"{said}, but {seen}, {100 * span:.2g}% of it: {remedy}")


def classes_of(labels: Any, count: int, target: Target) -> np.ndarray:
    """Labels as classes of the target, int64 (N,).

    Raises:
        ConfigError: There are none, or some that are no classes of the target.
    """
    if labels is None:
        raise ConfigError("data has no labels: name them, mlflow.models.evaluate(..., targets=...)")
    plain = np.asarray(np.asarray(labels).tolist())  # a column of texts comes as objects
    names = None if target.class_names is None else np.array(target.class_names)
    found = labels_from_array(plain.astype(np.int64) if plain.dtype == bool else plain, count, names)
    if found.by_name and names is None:
        raise ConfigError(
            f"labels of the data are texts, such as {str(plain[0])!r}: give classes, their names in the order of the model's classes"
        )
    if found.values.max() >= target.num_classes:
        raise ConfigError(
            f"labels of the data go up to {found.values.max()}, but the model has {target.num_classes} classes: "
            "give num_classes, or data of its classes"
        )
    return found.values
