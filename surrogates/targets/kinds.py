"""The kind of a target's answers: declared, reported by the target, or told by its first answer."""

import threading
import warnings
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from surrogates.errors import TargetError

OUTPUT_KINDS = ("labels", "top_k", "probabilities", "logits")

# Published probabilities are often rounded, so a value may pass 0 or 1 by this much ...
PROBABILITY_SLACK = 1e-3
# ... and a row's sum may miss 1 by as much as two decimals lose in each class, within these ends.
SUM_SLACK = (0.02, 0.5)
# Rows that sum to the same by this share, and not to 1, are percentages or counts.
SAME_SUM = 1e-3

# What the last operation of a graph gives, by its name in lower case without underscores, in ONNX and in TFLite.
PROBABILITIES = ("softmax", "qlinearsoftmax")
ONE_SIGMOID = ("sigmoid", "qlinearsigmoid", "logistic")  # probabilities where there is one column
LOGITS = frozenset(
    [
        "logsoftmax",
        "gemm",
        "qgemm",
        "matmul",
        "qlinearmatmul",
        "matmulinteger",
        "fullyconnected",
        "conv",
        "qlinearconv",
        "convinteger",
        "conv2d",
        "globalaveragepool",
        "averagepool2d",
    ]
)


class OutputKind:
    """The kind of a target's answers; every view of a target shares one.

    Args:
        name: A key of OUTPUT_KINDS.
        assumed: Whether nobody says so, and the first answer tells.
        possible: What the first answer may then be.

    Attributes:
        name: The kind: where it is assumed, that of the first answer once there is one.
        key: What a ledger keeps the answers under: the name at opening, which no answer changes.
        is_assumed: Whether there was no answer yet that could tell.
        is_declared: Whether the caller or the target says so; else an answer tells.
        is_proven: Whether an answer showed that logits are no probabilities.

    Raises:
        TargetError: There is no such kind.
    """

    def __init__(self, name: str, *, assumed: bool = False, possible: tuple[str, ...] = OUTPUT_KINDS) -> None:
        check_kind(name)
        self.name = self.key = name
        self.possible = possible if assumed else (name,)
        self.is_assumed, self.is_declared, self.is_proven = assumed, not assumed, False
        self._warned = False
        self._lock = threading.RLock()  # requests of one query are answered at once

    def settle(self, name: str) -> None:
        """Take the kind that an answer told, now or in an earlier run; nothing where it is known."""
        if self.is_assumed:
            check_kind(name)
            self.name, self.is_assumed = name, False

    def alone(self) -> AbstractContextManager[object]:
        """Let one answer at a time tell the kind; nobody waits once it is known."""
        return self._lock if self.is_assumed else nullcontext()

    def warn_once(self, message: str) -> None:
        """Warn of what a kind may not be, once for a target."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=2)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.RLock())


def check_kind(name: str) -> None:
    """Check the name of a kind.

    Raises:
        TargetError: There is no such kind.
    """
    if name not in OUTPUT_KINDS:
        raise TargetError(f"output_kind must be one of {', '.join(OUTPUT_KINDS)}, got {name!r}")


def kind_of_op(name: str, columns: int | None) -> str | None:
    """Return the kind that the last operation of a graph gives, None where its name does not tell.

    Args:
        name: As ONNX or TFLite has it: Softmax, FULLY_CONNECTED.
        columns: Of the output; None where they are not known.
    """
    plain = name.lower().replace("_", "")
    if plain in PROBABILITIES or (plain in ONE_SIGMOID and columns == 1):
        return "probabilities"
    return "logits" if plain in LOGITS else None


def detected(values: np.ndarray, num_classes: int, default: str) -> str:
    """Return the kind of an answer.

    A vector is labels; with two classes one of fractions is the score of class 1. Rows in [0, 1] that sum to 1 are
    probabilities, others logits, and NaN stands for the classes that a top k does not name.

    Args:
        values: (N,), (N, 1) or (N, K), in the number type that the target gave.
        default: The kind where they don't tell: zeros and ones alone.

    Raises:
        TargetError: They are percentages or counts.
    """
    if values.dtype.kind == "b":
        return "labels"
    if values.ndim < 2 or (values.shape[1:] == (1,) and num_classes != 1):
        if values.dtype.kind in "iu" or num_classes > 2:
            return "labels"
        if default == "labels" and np.isin(values, (0, 1)).all():
            return "labels"
        return "probabilities" if _in_unit(values) else "logits"
    if np.isnan(values).any():
        return "top_k"
    total = values.sum(axis=1)
    if np.isin(values, (0, 1)).all() and (total != 1).any():
        return default if default != "labels" else "logits"
    if _in_unit(values) and (abs(total - 1) <= sum_slack(num_classes)).all():
        return "probabilities"
    _refuse_shares(values, total)
    return "logits"


def sum_slack(num_classes: int) -> float:
    """Return by how much the sum of a row of probabilities may miss 1."""
    return float(np.clip(num_classes * 0.005, *SUM_SLACK))


def check_scores(values: np.ndarray, kind: OutputKind, name: str) -> None:
    """Check that scores (N, K) can be of a kind.

    Raises:
        TargetError: They can't. Logits that can be probabilities are warned of where they were declared.
    """
    low, high, total = np.nanmin(values), np.nanmax(values), np.nansum(values, axis=1)
    if name == "logits":
        _check_logits(values, total, kind)
        return
    if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
        raise TargetError(
            f"target answered {high if high > 1 else low:.4g}, expected probabilities in [0, 1]: "
            "open it with output_kind='logits'"
        )
    slack = sum_slack(values.shape[1])
    part = name == "top_k"  # what it does not name is missing in the sum
    wrong = (total > 1 + slack) | ((total <= 0) if part else (total < 1 - slack))
    if wrong.any():
        raise TargetError(
            f"target answered a row that sums to {total[wrong][0]:.4g}, expected probabilities that sum to 1: "
            "open it with output_kind='logits' if these are scores of another kind"
        )


def _check_logits(values: np.ndarray, total: np.ndarray, kind: OutputKind) -> None:
    """Check that logits (N, K) are no probabilities, until a row proves it; zeros and ones alone do not tell."""
    if kind.is_proven or np.isin(values, (0, 1)).all():
        return
    if values.min() < 0 or values.max() > 1:
        kind.is_proven = True
        return
    if (abs(total - 1) > SAME_SUM).any():
        kind.is_proven = True
        if not kind.is_declared:
            kind.warn_once(
                "target answered rows in [0, 1] that do not sum to 1, taken as logits: give output_kind='logits' if "
                "they are, or open a function that turns them into probabilities"
            )
        return
    message = (
        "target answered rows in [0, 1] that sum to 1 as logits: open it with output_kind='probabilities'"
    )
    if not kind.is_declared:
        raise TargetError(message)
    kind.is_proven = True  # by the caller's word
    kind.warn_once(f"{message} unless they are logits indeed")


def _in_unit(values: np.ndarray) -> bool:
    return bool(values.min() >= -PROBABILITY_SLACK and values.max() <= 1 + PROBABILITY_SLACK)


def _refuse_shares(values: np.ndarray, total: np.ndarray) -> None:
    """Refuse percentages and counts, which no logits look like: none is negative, and all rows have one sum above 1.

    Raises:
        TargetError: They are.
    """
    if values.min() < 0 or total.min() < 1.5:
        return
    if abs(total - 100).max() < 0.5 or (len(total) > 1 and np.ptp(total) <= SAME_SUM * total.max()):
        raise TargetError(
            f"target answered rows that sum to {total[0]:.4g}, as percentages or counts do: open a function that "
            "divides them by their sum, or give output_kind='logits' if they are scores of another kind"
        )
