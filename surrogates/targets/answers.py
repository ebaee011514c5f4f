"""What a target answers to images, and how a raw answer is checked and turned into it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.kinds import OutputKind, check_scores, detected
from surrogates.targets.records import numbers


@dataclass(frozen=True, eq=False)
class Answers:
    """What a target answers to N images.

    Args:
        labels: (N,) int64.
        scores: (N, K) float32, or None where the target keeps its scores to itself; NaN for the classes that a target
            which answers its top k alone did not name.
        lost: Queries of attempts that got no answer, may have been charged all the same, and were repeated.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None
    lost: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        scores = (
            "labels alone" if self.scores is None else f"labels and scores of {self.scores.shape[1]} classes"
        )
        lost = f", lost={self.lost}" if self.lost else ""
        return f"Answers({len(self)} images, {scores}{lost})"

    def copy(self) -> "Answers":
        """Return answers that share no memory with these."""
        scores = None if self.scores is None else self.scores.copy()
        return replace(self, labels=self.labels.copy(), scores=scores)

    @staticmethod
    def concatenate(parts: "list[Answers]") -> "Answers":
        """Join answers in order; scores are kept when every part has them."""
        scores = [part.scores for part in parts if part.scores is not None]
        return Answers(
            np.concatenate([part.labels for part in parts]),
            np.concatenate(scores) if len(scores) == len(parts) else None,
            sum(part.lost for part in parts),
        )


def parsed(raw: object, count: int, num_classes: int, kind: OutputKind) -> Answers:
    """Return a raw answer to `count` images as Answers; where the kind is assumed, it tells it.

    Raises:
        TargetError: It names what was expected and what came.
    """
    with kind.alone():
        if isinstance(raw, tuple) and _is_ranking(raw, kind):
            name, values = "top_k", _spread(raw, num_classes)
        else:
            values = _flat(numbers(raw), count, num_classes)
            name = _kind_of(values, count, num_classes, kind)
            if values.dtype.kind == "b" and (name != "labels" or num_classes != 2):
                raise TargetError(f"target answered truth values, expected {name} as numbers")
            values = values.astype(np.float64)
        try:
            answers = _checked(values, count, num_classes, name, kind)
        except TargetError as error:
            if kind.is_declared or kind.is_assumed:
                raise
            raise TargetError(
                f"{error} (taken as {kind.name} since its first answer; output_kind says otherwise)"
            ) from None
        kind.settle(name)
        return answers


def kind_of_kept(answers: Answers, kind: OutputKind) -> str:
    """Return the kind of answers that a ledger kept: the given one where they may well be of it.

    Args:
        kind: That of the target now.
    """
    if answers.scores is None:
        return "labels"
    try:
        name = detected(answers.scores, answers.scores.shape[1], kind.name)
    except TargetError:  # percentages that somebody declared to be logits
        name = "logits"
    return name


def _kind_of(values: np.ndarray, count: int, num_classes: int, kind: OutputKind) -> str:
    """Return the kind that is known, else the one that the answer tells."""
    if not kind.is_assumed or values.ndim > 2 or 0 in values.shape or values.shape[:1] != (count,):
        return kind.name
    odd = np.isinf(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if odd.any() or (values.ndim == 2 and np.isnan(values.astype(np.float64)).all(axis=1).any()):
        return kind.name  # the check names it
    name = detected(values, num_classes, kind.name)
    return name if name in kind.possible else kind.name


def _checked(values: np.ndarray, count: int, num_classes: int, name: str, kind: OutputKind) -> Answers:
    """Check numbers (N,), (N, 1) or (N, K) of a kind."""
    expected = (count,) if name == "labels" else (count, num_classes)
    values = _widened(values, count, num_classes, name)
    if values.ndim != len(expected):
        other = "labels" if values.ndim == 1 else "probabilities' or 'logits"
        raise TargetError(
            f"target answered shape {values.shape}, expected {expected}: "
            f"open it with output_kind='{other}' if that is what it gives"
        )
    if len(values) != count:
        raise TargetError(f"target answered {len(values)} rows, expected {count}: one for each image")
    if values.shape != expected:
        raise TargetError(f"target answered {values.shape[1]} classes, expected {num_classes}")
    unnamed = np.isnan(values) if name == "top_k" else np.zeros(values.shape, bool)
    bad = ~np.isfinite(values) & ~unnamed
    if bad.any():
        raise TargetError(f"target answered {values[bad][0]}, expected finite {name}")
    if name == "labels":
        return Answers(_labels(values, num_classes))
    if unnamed.all(axis=1).any():
        raise TargetError("target named no class for an image, expected at least 1")
    check_scores(values, kind, name)
    with np.errstate(over="ignore"):
        scores = values.astype(np.float32)
    if not (np.isfinite(scores) | unnamed).all():
        raise TargetError(f"target answered {np.nanmax(abs(values)):.4g}, too large for float32 scores")
    return Answers(np.nanargmax(scores, axis=1).astype(np.int64), scores)


def _flat(values: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Return scores without the sides of 1 that a convolution leaves: (N, K, 1, 1) as (N, K)."""
    sides = [side for side in values.shape[1:] if side != 1]
    if values.ndim > 2 and values.shape[0] == count and sides in ([num_classes], []):
        return values.reshape(count, -1)
    return values


def _widened(values: np.ndarray, count: int, num_classes: int, name: str) -> np.ndarray:
    """Return an answer of one column as labels, or as scores of two classes: that of class 1, and what it leaves to 0."""
    column = values.shape == (count, 1)
    if name == "labels":
        return values[:, 0] if column else values
    if num_classes != 2 or name == "top_k" or not (column or values.shape == (count,)):
        return values
    values = values.reshape(count, 1)
    rest = 1 - values if name == "probabilities" else np.zeros_like(values)
    return np.concatenate([rest, values], axis=1)


def _is_ranking(raw: tuple[Any, ...], kind: OutputKind) -> bool:
    """Whether a tuple is a pair of labels and scores of the best classes, as `records` hands it on."""
    return len(raw) == 2 and (
        kind.name == "top_k" or (kind.is_assumed and any(np.ndim(part) > 0 for part in raw))
    )


def _spread(raw: tuple[Any, ...], num_classes: int) -> np.ndarray:
    """Return a pair of labels (N, k) and scores (N, k) as scores (N, K)."""
    labels, best = (numbers(part).astype(np.float64) for part in raw)
    if labels.ndim != 2 or labels.shape != best.shape:
        raise TargetError(
            f"target answered labels {labels.shape} and scores {best.shape}, expected both (N, k)"
        )
    scores = np.full((len(labels), num_classes), np.nan)
    np.put_along_axis(scores, _labels(labels, num_classes), best, axis=1)
    return scores


def _labels(values: np.ndarray, num_classes: int) -> np.ndarray:
    wrong = (values != np.floor(values)) | (values < 0) | (values >= num_classes)
    if wrong.any():
        raise TargetError(
            f"target answered label {values[wrong][0]:g}, expected an integer in [0, {num_classes})"
        )
    return values.astype(np.int64)
