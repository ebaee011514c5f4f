"""The two lists of membership inference: images that a target was trained on, and others, with labels in its classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from certdef.config.job import ConfigError, DataConfig, RunConfig
from certdef.data.matching import match_labels
from certdef.data.sets import Splits, digest, load_source, split
from certdef.data.source import Source
from surrogates.blind import LEAST

NAMES = ("members", "nonmembers")
Labeled = tuple[NDArray[np.float32], NDArray[np.int64]]  # images (N, C, H, W) in [0, 1], labels (N,)


@dataclass(frozen=True)
class Lists:
    """Images that a target was trained on, and others."""

    members: Labeled
    nonmembers: Labeled

    def __len__(self) -> int:
        return len(self.members[1]) + len(self.nonmembers[1])

    @cached_property
    def digests(self) -> dict[str, str]:
        """Identifies the images and labels of each list, and their order."""
        return {name: digest(*getattr(self, name)) for name in NAMES}


def listed_images(config: RunConfig) -> int:
    """How many images both lists have; 0 where there are none, or where they can't be read, which is said elsewhere."""
    with suppress(ConfigError):
        if config.membership.wanted:
            return sum(len(_source(config, name)) for name in NAMES)
    return 0


def read_lists(
    config: RunConfig, shape: tuple[int, int, int], class_names: Sequence[str] | None, num_classes: int
) -> Lists:
    """Both lists; pictures are decoded.

    Args:
        config: The job.
        shape: (C, H, W) of its images.
        class_names: What the target calls its classes; None where it does not say.
        num_classes: How many it has.

    Raises:
        ConfigError: All at once: a list that can't be read, has no labels, other classes, another shape, too few images, or
            images of the other list.
    """
    found: dict[str, Labeled] = {}
    problems: list[str] = []
    for name in NAMES:
        try:
            found[name] = _read(config, name, shape, class_names, num_classes)
        except ConfigError as error:
            path = getattr(config.membership, name)
            problems += [f"membership.{name} {path!r}: {line}" for line in str(error).splitlines()]
    if not problems:
        both = {digest(each) for each in found["members"][0]} & {
            digest(each) for each in found["nonmembers"][0]
        }
        if both:
            problems.append(
                f"membership.nonmembers {config.membership.nonmembers!r}: {len(both)} images of it are in membership.members "
                "too: an image is one or the other, leave it out of one list"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return Lists(**found)


def _source(config: RunConfig, name: str) -> Source:
    return load_source(_like_data(config.data, getattr(config.membership, name)))


def _like_data(data: DataConfig, path: str) -> DataConfig:
    """How a list is read: as the job's own images are, always with its labels."""
    labels = None if data.labels == "ignore" else data.labels
    return replace(
        data, path=path, labels=labels, target_images=0, pool_images=0, pool_copies=0, audit_images=0
    )


def _read(
    config: RunConfig,
    name: str,
    shape: tuple[int, int, int],
    class_names: Sequence[str] | None,
    num_classes: int,
) -> Labeled:
    source = _source(config, name)
    if source.test_images is not None:
        raise ConfigError("it has a training and a test set: name one of them, a list has no parts")
    if source.labels is None:
        raise ConfigError(
            "it has no labels, and the attack compares the answer with the true label: add them"
        )
    if len(source) < LEAST:
        raise ConfigError(
            f"it has {len(source)} images: give at least {LEAST}, and 100 or more for low false positive rates"
        )
    if source.image_shape != shape:
        raise ConfigError(
            f"its images have shape {source.image_shape}, those of the job {shape}: give such images, or --data.resize and --data.color"
        )
    whole = replace(_like_data(config.data, ""), heldout_images=len(source))
    splits: Splits = split(source, whole, config.seed, own_target=True)
    matched = match_labels(splits, class_names, num_classes, whole.labels)
    return matched.heldout_images, matched.heldout_labels
