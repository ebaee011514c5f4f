"""Records of M images as columns."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.certificate import ABSTAIN, Certificate, Framed, law_in_words, rounded
from certify.errors import CertifyError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Records(Framed):
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

    def __repr__(self) -> str:
        if not len(self):
            return "Records(0 images)"
        correct, abstained = int(self.correct.sum()), int((self.predict == ABSTAIN).sum())
        noise = "" if self.noise is None else f", noise={law_in_words(self.noise)!r}"
        levels = [] if self.alpha is None else np.unique(self.alpha).tolist()
        alpha = f", alpha={levels[0]:g}" if len(levels) == 1 else ""
        return (
            f"Records({len(self)} images, {correct} correct, {abstained} abstained, "
            f"radius {rounded(self.radius.min())} to {rounded(self.radius.max())}{noise}{alpha}"
            f"{'' if self.sound else ', approximate'})"
        )

    @classmethod
    def of(cls, certificates: Sequence[Certificate], labels: ArrayLike) -> Self:
        """The records of certificates that are at hand, without a file: for a curve or a picture.

        Args:
            certificates: One or more, of one noise law, with their images' positions as ``idx``.
            labels: The true classes, (M,); -1 where one is not known, which counts as wrong.

        Raises:
            CertifyError: There is no certificate, they are of several laws or numbers of classes, or the labels are not (M,)
                integers.

        Examples:
            >>> from certify import Certificate, Gaussian
            >>> certificate = Certificate.of(
            ...     selected=1, radius=0.4, p_lower=0.95, counts0=np.array([0, 9]), counts=np.array([1, 99]),
            ...     noise=Gaussian(0.25), alpha=0.001, method="fixed", subject="model",
            ... )
            >>> Records.of([certificate], [1])
            Records(1 images, 1 correct, 0 abstained, radius 0.4 to 0.4, noise='gaussian sigma=0.25', alpha=0.001)
        """
        truth = np.asarray(labels)
        if truth.shape != (len(certificates),) or truth.dtype.kind not in "iu" or not len(certificates):
            raise CertifyError(
                f"labels must be integers ({len(certificates)},), got {truth.dtype} {truth.shape}: one a certificate"
            )
        first = certificates[0]
        for number, each in enumerate(certificates):
            if each.noise != first.noise or len(each.counts) != len(first.counts):
                raise CertifyError(
                    f"certificate {number} is of another noise law or number of classes than the first: "
                    "make records of each by themselves"
                )
        predict = np.array([each.prediction for each in certificates], dtype=np.int64)
        return cls(
            idx=np.arange(len(certificates), dtype=np.int64),
            label=truth.astype(np.int64),
            predict=predict,
            radius=np.array([each.radius for each in certificates], dtype=np.float64),
            correct=(predict != ABSTAIN) & (predict == truth),
            seconds=np.full(len(certificates), np.nan),
            p_lower=np.array([each.p_lower for each in certificates], dtype=np.float64),
            counts=np.array([each.counts for each in certificates], dtype=np.int64),
            selected=np.array([each.selected for each in certificates], dtype=np.int64),
            method=", ".join(sorted({each.method for each in certificates})),
            sound=all(each.sound for each in certificates),
            alpha=np.array([each.alpha for each in certificates], dtype=np.float64),
            n0=np.array([each.n0 for each in certificates], dtype=np.int64),
            noise=first.noise,
            known_class=any(each.known_class for each in certificates),
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row an image, with the columns that the records have; ``n`` is the number of votes in ``counts``."""
        import pandas

        known = {field.name: getattr(self, field.name) for field in fields(self)}
        columns = {
            name: each
            for name, each in known.items()
            if isinstance(each, np.ndarray)
            and each.ndim == 1
            and not (name == "seconds" and np.isnan(each).all())
        }
        if self.counts is not None:
            columns["n"] = self.counts.sum(axis=1)
        return pandas.DataFrame(columns)

    def take(self, rows: NDArray[Any]) -> Self:
        """The records at ``rows``, positions or a mask (M,)."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: each[rows] for name, each in columns.items() if isinstance(each, np.ndarray)}
        )
