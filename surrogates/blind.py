"""Can two lists of images be told apart without any model? Then membership inference on them measures that, too.

Members and non-members must be of one distribution. A classifier that sees the images and labels alone, and no answer of
the model under attack, is trained on one half of both lists and tried on the other (a classifier two-sample test: Lopez-Paz and
Oquab, ICLR 2017; as a blind baseline of membership inference: Das, Zhang and Tramèr, "Blind baselines beat membership
inference attacks for foundation models", 2024). Whatever it gains over a coin, it gains by how the lists were made. Beside it the
classes of both lists are compared as such, by a permutation test: trees that look at pixels overlook them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surrogates.errors import SurrogateError
from surrogates.intervals import auc_interval
from surrogates.targets import check_images

LEAST = 20  # images of each list: of fewer, half are too few to see anything
GRID = 8  # cells a side that an image is averaged over
TREES = 100
PERMUTATIONS = 2_000
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

Labeled = tuple[Any, Any]  # images (N, C, H, W) float32 in [0, 1] and labels (N,)


@dataclass(frozen=True)
class Blind:
    """How well images and labels alone tell members from non-members, on halves that nothing was trained on.

    Args:
        auc: Area under the ROC curve; 0.5 is a coin.
        lower: Of its 95% DeLong interval.
        upper: Of the same.
        p: How likely lists of one distribution look so different: the smaller one of Mann and Whitney's one-sided p-value on these
            halves and p_classes, doubled because there are two (Bonferroni).
        p_classes: Of the numbers of images of each class alone: chi-squared, by permutation.
        images: That it was tried on.
    """

    auc: float
    lower: float
    upper: float
    p: float
    p_classes: float
    images: int


def told_apart(members: Labeled, nonmembers: Labeled, *, seed: int = 0, tail: float = 0.025) -> Blind:
    """Train on one half of each list, try on the other.

    Args:
        members: Images and labels.
        nonmembers: The same.
        seed: Of the halves and the trees.
        tail: Probability with which each bound of the interval fails, about.

    Raises:
        SurrogateError: Fewer than 20 images in a list, or images of two shapes.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.ensemble import RandomForestClassifier

    lists = [(check_images(images), np.asarray(labels)) for images, labels in (members, nonmembers)]
    sizes = [len(images) for images, _ in lists]
    if min(sizes) < LEAST or lists[0][0].shape[1:] != lists[1][0].shape[1:]:
        shapes = " and ".join(str(images.shape) for images, _ in lists)
        raise SurrogateError(
            f"members and non-members have shapes {shapes}: give at least {LEAST} images each, of one shape"
        )
    random = np.random.default_rng(seed)
    halves = [np.array_split(features(*each)[random.permutation(len(each[0]))], 2) for each in lists]
    seen = np.concatenate([half[0] for half in halves])
    is_member = np.repeat([1, 0], [len(half[0]) for half in halves])
    forest = RandomForestClassifier(TREES, class_weight="balanced", random_state=seed, n_jobs=1)
    forest.fit(seen, is_member)
    scores = [forest.predict_proba(half[1])[:, 1] for half in halves]
    p_images = float(mannwhitneyu(scores[0], scores[1], alternative="greater").pvalue)
    p_classes = classes_alike(lists[0][1], lists[1][1], random)
    return Blind(
        *auc_interval(scores[0], scores[1], tail),
        p=min(1.0, 2 * min(p_images, p_classes)),
        p_classes=p_classes,
        images=sum(map(len, scores)),
    )


def classes_alike(members: NDArray[Any], nonmembers: NDArray[Any], random: np.random.Generator) -> float:
    """The p-value of chi-squared for the classes (M,) and (N,) of two lists, exact by permutation up to their number."""
    _, classes = np.unique(np.concatenate([members, nonmembers]), return_inverse=True)
    every = np.bincount(classes)
    expected = every * len(members) / len(classes)

    def statistic(chosen: NDArray[Any]) -> float:  # the other list's part is this times a constant
        return float((np.square(np.bincount(chosen, minlength=len(every)) - expected) / every).sum())

    seen = statistic(classes[: len(members)])
    drawn = [statistic(random.permutation(classes)[: len(members)]) for _ in range(PERMUTATIONS)]
    return (1 + sum(each >= seen - 1e-9 for each in drawn)) / (1 + PERMUTATIONS)


def features(images: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float64]:
    """What is seen of each image, (N, F): its label, coarse pixels, and a channel's levels, contrast and grain."""
    count, channels, height, width = images.shape
    rows, columns = (np.array_split(np.arange(side), min(GRID, side)) for side in (height, width))
    coarse = [
        images[:, :, row[0] : row[-1] + 1, column[0] : column[-1] + 1].mean(axis=(2, 3))
        for row in rows
        for column in columns
    ]
    flat = images.reshape(count, channels, -1)
    levels = np.quantile(flat, QUANTILES, axis=2).transpose(1, 0, 2).reshape(count, -1)
    grain = [
        np.abs(np.diff(images, axis=axis)).mean(axis=(2, 3)) for axis in (2, 3) if images.shape[axis] > 1
    ]
    return np.concatenate(
        [labels.reshape(-1, 1), *coarse, levels, flat.mean(axis=2), flat.std(axis=2), *grain], axis=1
    ).astype(np.float64)
