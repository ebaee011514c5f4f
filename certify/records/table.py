"""Records of M images as columns."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Records:
    """Records of M images, in the order of the file; what a ``.tsv`` does not hold is None.

    Attributes:
        idx, label, predict: (M,).
        radius: (M,), 0 where abstained.
        correct: (M,).
        seconds: (M,), NaN where not recorded.
        p_lower: (M,).
        counts: (M, K).
        config: Of the header.
        selected: (M,), the class that was bounded, also where abstained; -1 where it was not kept.
        method: How the votes were drawn and bounded; several are joined by commas.
        sound: No radius is approximate.
        alpha: (M,), level of each certificate.
        n0: (M,), votes that selected the class; those of ``counts`` are others.
        noise: ``describe()`` of the law that the votes were drawn under; None where nothing names it.
        known_class: The classes were named before any vote: an abstention may be another class that wins.
        uniform: (M,), the draws of a randomized bound; None for Clopper and Pearson's.
        image: (M,), digests of the images' pixels; None unless every record has one.
        row: (M,), rows of the images in the file of data, from 0; None unless every record has one.
    """

    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    p_lower: NDArray[np.float64] | None = None
    counts: NDArray[np.int64] | None = None
    config: dict[str, Any] | None = None
    selected: NDArray[np.int64] | None = None
    method: str | None = None
    sound: bool = True
    alpha: NDArray[np.float64] | None = None
    n0: NDArray[np.int64] | None = None
    noise: dict[str, Any] | None = None
    known_class: bool = False
    uniform: NDArray[np.float64] | None = None
    image: NDArray[np.str_] | None = None
    row: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.idx)

    def take(self, rows: NDArray[Any]) -> Self:
        """The records at ``rows``, positions or a mask (M,)."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: each[rows] for name, each in columns.items() if isinstance(each, np.ndarray)}
        )
