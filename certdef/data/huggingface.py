"""Data sets of the library `datasets`, saved by `save_to_disk`. The only file that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certdef.config.job import ConfigError
from certdef.data.labels import Labels, labels_from_array, labels_from_texts
from certdef.data.pictures import Pictures
from certdef.data.pixels import Form, as_images
from certdef.data.source import ArrayImages, Images, Progress, Source, no_bar
from certdef.data.tables import LABELS, PATHS

MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
TRAIN, TEST = ("train", "training"), ("test", "validation", "valid", "val")
BATCH = 1_000


def is_saved(path: Path) -> bool:
    """Whether save_to_disk wrote a folder."""
    return any((path / name).is_file() for name in MARKS)


def read_saved(path: Path, columns: Sequence[str] | None, form: Form, progress: Progress = no_bar) -> Source:
    """A data set that save_to_disk wrote; of several splits, train and test.

    Args:
        path: The folder.
        columns: The column of images and, where there are labels, that of labels; unset, they are found by their types.
        form: Size and color of the images.
        progress: A factory of progress bars like tqdm.

    Raises:
        ConfigError: The library is missing, the folder is damaged, or its columns are no images and labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"data.path {str(path)!r} was saved by the library datasets: pip install 'certdef[huggingface]'"
        ) from error
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"data.path {str(path)!r} can't be read ({reason}): save it again with save_to_disk"
        ) from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    train = next((splits[name] for name in TRAIN if name in splits), None)
    test = next((splits[name] for name in TEST if name in splits), None)
    if train is None and test is None:
        raise ConfigError(
            f"data.path {str(path)!r} has the splits {', '.join(splits)}: give one, --data.path {path / next(iter(splits), '')}"
        )
    return source_of_splits(path.name, train, test, columns, form, progress)


def source_of_splits(
    name: str, train: Any, test: Any, columns: Sequence[str] | None, form: Form, progress: Progress = no_bar
) -> Source:
    """A Dataset, or two as training and test images."""
    first = train if train is not None else test
    where, labeled = _columns(first, columns)
    images = _images(first, where, form, progress)
    labels = None if labeled is None else _labels(first, labeled)
    if train is None or test is None:
        return Source(name, images, *(labels or ()))
    test_images = _images(test, where, form, progress)
    if test_images.shape != images.shape:
        raise ConfigError(
            f"the split test has images of shape {test_images.shape}, train {images.shape}: give data.resize and data.color"
        )
    if labels is None or labeled is None:
        return Source(name, images, test_images=test_images)
    others = _labels(test, labeled)
    if others.classes != labels.classes:
        raise ConfigError(
            f"the splits have different classes in the column {labeled!r}: save it as a ClassLabel"
        )
    return Source(name, images, *labels, test_images=test_images, test_labels=others.values)


def _columns(data: Any, columns: Sequence[str] | None) -> tuple[str, str | None]:
    """The column of images, and that of labels or None."""
    import datasets

    features = data.features
    listed = f"the data set has the columns {', '.join(features)}"
    wanted = "name them with --data.columns [IMAGES,LABELS], or [IMAGES] where there are no labels"
    if columns is not None:
        missing = [name for name in columns if name not in features]
        if missing or not 1 <= len(columns) <= 2:
            raise ConfigError(f"data.columns is {list(columns)}, but {listed}: {wanted}")
        return columns[0], columns[1] if len(columns) > 1 else None
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = pictures or [name for name in features if name.lower() in (*PATHS, "images", "pixels", "x")]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = classes or [name for name in features if name.lower() in LABELS and name not in images]
    if len(images) != 1 or len(labels) > 1:
        raise ConfigError(f"{listed}: {wanted}")
    return images[0], labels[0] if labels else None


def _images(data: Any, column: str, form: Form, progress: Progress) -> Images:
    """Pictures as they were saved, not yet decoded, or arrays."""
    import datasets

    if not len(data):
        raise ConfigError("the data set is empty: give one with images")
    if not isinstance(data.features[column], datasets.Image):
        batches = data.select_columns([column]).with_format("numpy").iter(batch_size=BATCH)
        declared = _declared_type(data.features[column])
        array = np.concatenate([np.asarray(batch[column]) for batch in batches])
        # Whole numbers come as int64 whatever they were declared.
        return ArrayImages(as_images(array.astype(declared) if array.dtype.kind == "i" else array), form)
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def open(index: int) -> Path | bytes:
        picture = encoded[int(index)][column] or {}
        return picture["bytes"] if picture.get("bytes") else Path(picture.get("path") or "")

    return Pictures([f"row {number}" for number in range(len(data))], open, form, progress)


def _declared_type(kind: Any) -> str:
    """The type of the values of an array, or of lists of lists."""
    while hasattr(kind, "feature"):
        kind = kind.feature
    return kind.dtype


def _labels(data: Any, column: str) -> Labels:
    """Labels by the names of a ClassLabel, else as they are."""
    import datasets

    kind, values = data.features[column], list(data[column])
    if any(value is None for value in values) or (isinstance(kind, datasets.ClassLabel) and min(values) < 0):
        raise ConfigError(
            f"the column {column!r} has rows without a label: drop them, or name the images alone in data.columns"
        )
    if isinstance(kind, datasets.ClassLabel):
        return Labels(np.array(values, np.int64), tuple(kind.names), True)
    if isinstance(values[0], str):
        return labels_from_texts(values)
    return labels_from_array(np.asarray(values), len(values))
