"""The images of a job: a data set by name or by its path, split into the target's training images, the unlabeled pool,
held-out images, and audit images.

Images are float32 (N, C, H, W) in [0, 1]. The pool carries no labels at all: nothing downstream can use any by mistake.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch

from certdef.config.job import FILES, ConfigError, DataConfig
from certdef.config.names import unknown_data_set
from certdef.data.arrays import read_npy_source, read_npz_source
from certdef.data.folders import SUFFIXES, TABLES, read_folder
from certdef.data.labels import numbered_classes
from certdef.data.named import NAMED
from certdef.data.pixels import Form
from certdef.data.source import Progress, Source, no_bar
from certdef.data.tables import read_table
from surrogates.distillation.augmentation import moved

UNKNOWN = -1  # the label of an image that has none, until the target has answered it
KINDS = "a folder of pictures, a .csv of paths and labels, an .npz, an .npy, or a folder that datasets saved"


@dataclass(frozen=True)
class Splits:
    """Images of one job: float32 (N, C, H, W) in [0, 1], labels int64 (N,).

    Attributes:
        name: Of the data set.
        classes: Names of the classes, in the order of labels; empty where there are no labels yet.
        target_images: What a target is trained on here; empty for a user's own target.
        target_labels: Their labels.
        pool: Unlabeled images, queried and used for pre-training.
        heldout_images: What every figure is measured on.
        heldout_labels: Their labels; UNKNOWN where the data set has none, until the target has answered them.
        audit_images: Of no model's training set, for membership inference.
        audit_labels: Their labels.
        labeled: Whether the labels are the data set's; else right means the target's own clean answer.
        named: Whether the classes have names of their own.
        by_name: Whether the labels are these names, so that nothing else says which class of a target they are.
        prepared: What was done to each image before the noise, in words; empty for nothing.
        heldout_photographs: Number of the photograph that each held-out image is cut from, (heldout,); None where each image
            stands alone.
        heldout_rows: Row of each held-out image in the data set, or in its own test set, from 0, (heldout,); None where
            images were not taken from one.
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
    labeled: bool = True
    named: bool = False
    by_name: bool = False
    prepared: str = ""
    heldout_photographs: np.ndarray | None = None
    heldout_rows: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.heldout_images.shape
        return channels, height, width

    @property
    def remarks(self) -> dict[str, str]:
        """What every figure of a job has to say beside it: whose labels are right, what was done to the images."""
        right = {} if self.labeled else {"right": OWN_ANSWERS}
        return right | ({"prepared": self.prepared} if self.prepared else {})

    def class_name(self, label: int) -> str:
        """The name of a class; of one that the data set lacks, and the target has, its number."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def answered(self, labels: np.ndarray) -> Splits:
        """The same images, of which the target's own clean answers (heldout,) are the labels."""
        return replace(self, heldout_labels=np.asarray(labels, np.int64))

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


OWN_ANSWERS = "the target's own clean answer, as the images have no labels"


def digest(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits that identify arrays by type, shape and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def load_source(config: DataConfig, progress: Progress = no_bar) -> Source:
    """The data set of a configuration; pictures are looked at and not yet decoded.

    Raises:
        ConfigError: Unknown name, missing file, no images, or labels that are none.
    """
    return _open_path(config, progress) if config.path else _open_name(config)


def _open_name(config: DataConfig) -> Source:
    if config.name in FILES:
        raise ConfigError(f"data.path is not set: give {KINDS}")
    if config.name not in NAMED:
        raise ConfigError(unknown_data_set(config.name))
    return NAMED[config.name](config)


def _open_path(config: DataConfig, progress: Progress) -> Source:
    path, form = Path(config.path or ""), Form.of(config)
    suffix = path.suffix.lower()
    if config.name == "npz" and not path.is_dir() and suffix not in TABLES:
        return replace(read_npz_source(config), name="npz")
    if not path.exists():
        raise ConfigError(f"data.path {str(path)!r} is not there: give {KINDS}")
    if path.is_dir():
        from certdef.data import huggingface

        if huggingface.is_saved(path):
            return huggingface.read_saved(path, config.columns, form, progress)
        return read_folder(path.resolve(), form, progress)
    if suffix == ".npz":
        return read_npz_source(config)
    if suffix == ".npy":
        return read_npy_source(config)
    if suffix in TABLES:
        return read_table(path, config.columns, form, progress)
    one = (
        f": it is one picture, give its folder, {str(path.parent)!r}"
        if suffix in SUFFIXES
        else f": give {KINDS}"
    )
    raise ConfigError(f"data.path {str(path)!r} is no data set{one}")


def load_data(
    config: DataConfig, seed: int, *, own_target: bool = False, progress: Progress = no_bar
) -> Splits:
    """Load and split a data set: load_source, then split."""
    return split(load_source(config, progress), config, seed, own_target=own_target, progress=progress)


def split(
    source: Source,
    config: DataConfig,
    seed: int,
    *,
    own_target: bool = False,
    progress: Progress = no_bar,
) -> Splits:
    """Split a data set; pictures are decoded now.

    Args:
        source: The data set.
        config: How large the parts are, and whether the labels are ignored.
        seed: Decides the split.
        own_target: Set no images aside to train a target; the data set may lack labels, and some of the target's classes.
        progress: A factory of progress bars like tqdm.

    Raises:
        ConfigError: Too few images, no labels where a target is trained here, or pictures that are broken.
    """
    if config.labels == "ignore":
        source = replace(source, labels=None, test_labels=None, classes=None, by_name=False)
    if source.labels is None and not own_target:
        raise ConfigError(
            f"{source.name} has no labels, and a target that is trained here needs some: add them, or give your own target.uri"
        )
    classes = _classes(source, own_target)
    random = np.random.default_rng(seed)
    order = random.permutation(len(source.images))
    if source.test_images is None:  # the held-out part is cut from the set
        order, held = order[config.heldout_images :], order[: config.heldout_images]
        test, test_labels = source.images, source.labels
    else:
        held = random.permutation(len(source.test_images))[: config.heldout_images]
        test, test_labels = source.test_images, source.test_labels
    aside = 0 if own_target else config.target_images
    target, pool, spare = np.split(order, [aside, aside + config.pool_images])
    audit = spare[: config.audit_images]
    sizes = {"heldout": len(held), "target": len(target), "pool": len(pool), "audit": len(audit)}
    _check_sizes(
        config, source, {part: size for part, size in sizes.items() if part != "target" or not own_target}
    )
    _check_memory(sum(map(len, (target, pool, held, audit))) + config.pool_copies * len(pool), source)
    taken = {
        part: source.images.take(chosen, progress) for part, chosen in (("target", target), ("pool", pool))
    }
    return Splits(
        name=source.name,
        classes=classes,
        target_images=taken["target"],
        target_labels=_of(source.labels, target),
        pool=with_copies(taken["pool"], config.pool_copies, seed),
        heldout_images=test.take(held, progress),
        heldout_labels=_of(test_labels, held),
        audit_images=source.images.take(audit, progress),
        audit_labels=_of(source.labels, audit),
        labeled=source.labels is not None,
        named=source.classes is not None,
        by_name=source.by_name,
        prepared=Form.of(config).in_words,
        heldout_rows=held,
    )


def with_copies(images: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """The images (N, C, H, W), then so many moved copies of all of them, ((1 + copies) * N, C, H, W)."""
    if not copies:
        return images
    generator = torch.Generator().manual_seed(seed)
    moves = [moved(torch.from_numpy(images), generator).numpy() for _ in range(copies)]
    return np.concatenate([images, *moves])


def _of(labels: np.ndarray | None, chosen: np.ndarray) -> np.ndarray:
    return np.full(len(chosen), UNKNOWN) if labels is None else labels[chosen]


def _classes(source: Source, own_target: bool) -> tuple[str, ...]:
    """The names of the classes, of bare numbers these; none without labels."""
    if source.classes is not None or source.labels is None:
        return source.classes or ()
    parts = [labels for labels in (source.labels, source.test_labels) if labels is not None]
    return numbered_classes(np.concatenate(parts), gaps=own_target)


def _check_sizes(config: DataConfig, source: Source, sizes: dict[str, int]) -> None:
    """Refuse parts that are larger than what is there, in the order in which they are cut."""
    wanted = {part: getattr(config, f"{part}_images") for part in sizes}
    for part, size in sizes.items():
        if size < wanted[part]:
            test = (
                "" if source.test_images is None else f" and {len(source.test_images):,} of its own test set"
            )
            others = [
                f"data.{each}_images {count}" for each, count in wanted.items() if each != part and count
            ]
            trained = (
                "; a target is trained here, unless --target.uri names your own"
                if wanted.get("target")
                else ""
            )
            raise ConfigError(
                f"data.{part}_images is {wanted[part]}, but {source.name} has only {size} images left for it, of "
                f"{len(source.images):,} in all{test}: lower it, or the other numbers of images ({', '.join(others)}){trained}"
            )


def _check_memory(count: int, source: Source) -> None:
    shape = source.image_shape
    need, free = 4 * count * int(np.prod(shape)), psutil.virtual_memory().available
    if need > free:
        raise ConfigError(
            f"{count:,} images of shape {shape} need {need / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are free: lower "
            "data.pool_images or data.resize"
        )
