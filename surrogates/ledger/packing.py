"""Answers as the bytes that a ledger keeps: labels in the smallest type that holds them, scores as float32."""

from collections.abc import Sequence

import numpy as np

from surrogates.targets.base import Answers

Kept = tuple[bytes, bytes | None]  # the labels and the scores of one key


def pack(answers: Answers, num_classes: int, *, scores: bool) -> list[Kept]:
    """Return the answer of each query as the bytes that are kept."""
    labels = answers.labels.astype(label_type(num_classes))
    whole, wide = labels.tobytes(), labels.itemsize
    every = [whole[start : start + wide] for start in range(0, len(whole), wide)]
    if not scores or answers.scores is None:
        return [(label, None) for label in every]
    values = answers.scores.astype("<f4")
    return [(label, row.tobytes()) for label, row in zip(every, values, strict=True)]


def unpack(kept: Sequence[Kept], num_classes: int) -> Answers:
    """Return kept answers, one group after the other; scores where every group has them."""
    labels, scores = join(kept)
    classes = np.frombuffer(labels, label_type(num_classes)).astype(np.int64)
    if scores is None:
        return Answers(classes)
    return Answers(classes, np.frombuffer(scores, "<f4").astype(np.float32).reshape(len(classes), -1))


def join(kept: Sequence[Kept]) -> Kept:
    """Return the answers of several keys as those of one; scores where every key has them."""
    tables = [scores for _, scores in kept if scores is not None]
    return b"".join(labels for labels, _ in kept), b"".join(tables) if len(tables) == len(kept) else None


def share(blob: bytes, position: int, count: int) -> bytes:
    """Return the part of one of `count` keys."""
    size = len(blob) // count
    return blob[size * position : size * (position + 1)]


def label_type(num_classes: int) -> np.dtype:
    """Return the smallest unsigned type, little-endian, that holds every label."""
    return np.min_scalar_type(num_classes - 1).newbyteorder("<")
