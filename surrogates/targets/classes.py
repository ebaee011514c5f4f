"""What a model calls its classes, and the index that each name stands for."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.redaction import shortened

# What YAML 1.1 reads as a truth value, so that a list of names may hold it while the target answers true or false.
WORDS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}
LARGEST_INDEX = 100_000  # a class called 20240101 is a name, not an index
REMEDY = "give classes=[...], their names in the order of your labels"


@dataclass(frozen=True)
class ClassNames:
    """The index of each name that a target may answer.

    Args:
        indices: Several names may stand for one index.
    """

    indices: dict[str, int]

    @staticmethod
    def of(classes: Any) -> "ClassNames":
        """Return the names in a list, in the order of their indices, or in a map of names to indices.

        Raises:
            TargetError: Neither, or a name stands for two classes.
        """
        indices: dict[str, int] = {}
        if isinstance(classes, list | tuple | np.ndarray) and all(map(_is_name, classes)):
            indices = {name_of(name): index for index, name in enumerate(classes)}
        elif isinstance(classes, dict) and all(
            type(index) is int and 0 <= index <= LARGEST_INDEX for index in classes.values()
        ):
            indices = {name_of(name): index for name, index in classes.items()}
        if len(indices) < 2 or len(indices) != len(classes):
            raise TargetError(
                f"classes is {classes!r}: list the label names in the order of their indices, "
                "or map each name to its index"
            )
        return ClassNames(indices)

    @property
    def count(self) -> int:
        """The number of classes."""
        return max(self.indices.values()) + 1

    @property
    def in_order(self) -> tuple[str, ...]:
        """The name of each class, the first one where several stand for it; its index where it has none."""
        first = {index: name for name, index in reversed(self.indices.items())}
        return tuple(first.get(index, str(index)) for index in range(self.count))

    def index(self, label: Any) -> int:
        """Return the index of a label: a text is looked up as it stands, a number or truth value by its value.

        Where no name is a number, a whole number is an index. Of two classes that are called by numbers, truth values
        are 0 and 1.

        Raises:
            TargetError: It is not listed.
        """
        if isinstance(label, bool | np.bool_):
            names = [name for name in self.indices if name.lower() in WORDS[bool(label)]]
            if self.count == 2 and all(map(_is_number, self.indices)):
                return self.index(int(label))
        elif isinstance(label, int | float | np.number):
            names = [name for name in self.indices if _number(name) == label]
            if not any(map(_is_number, self.indices)) and label in range(self.count):
                return int(label)
        else:
            names = [label] if isinstance(label, str) and label in self.indices else []
        if len({self.indices[name] for name in names}) != 1:
            close = difflib.get_close_matches(str(label)[:80], list(self.indices), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise TargetError(
                f"target answered label {shortened(repr(label), 60)}, which classes does not list{hint}"
            )
        return self.indices[names[0]]


def name_of(label: Any) -> str:
    """Return a class's name as text; 3.0 is 3, and True is true."""
    if isinstance(label, bool | np.bool_):
        return str(label).lower()
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def own_classes(estimator: Any, name: str) -> np.ndarray | None:
    """Return the classes that an estimator was fitted to, None where it does not report them.

    Raises:
        TargetError: It answers several outputs at once.
    """
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return None
    if isinstance(classes, list | tuple) and any(np.ndim(output) for output in classes):
        raise TargetError(f"{name} answers {len(classes)} outputs, expected 1: open a function that calls it")
    return np.asarray(classes)


def class_indices(seen: Sequence[Any] | np.ndarray, names: ClassNames | None, what: str) -> np.ndarray:
    """Return the index that each of a model's own classes stands for, in the model's order.

    Args:
        seen: What the model calls its classes; whole numbers from 0, also written as text, stand for themselves.
        names: The names that the caller lists; they decide.
        what: The model, for errors.

    Raises:
        TargetError: The classes are neither whole numbers nor listed.
    """
    if names is not None:
        return np.array([names.index(_plain(label)) for label in seen])
    numbers = [_number(name_of(label)) for label in seen]
    whole = [int(number) for number in numbers if number is not None and number.is_integer()]
    plain = [str(number) for number in whole] == [name_of(label) for label in seen]
    if not plain or len(set(whole)) != len(whole) or not 0 <= min(whole) <= max(whole) <= LARGEST_INDEX:
        some = ", ".join(repr(_plain(label)) for label in seen[:3])
        raise TargetError(f"{what} has classes {some}{' ...' if len(seen) > 3 else ''}: {REMEDY}")
    return np.array(whole)


def by_index(scores: np.ndarray, indices: np.ndarray, num_classes: int) -> np.ndarray:
    """Return probabilities (N, K) with a column for each index, 0 for the classes that the model does not know.

    Where several of the model's classes have one index, it is one of them: their sum.

    Raises:
        TargetError: An index that is no class.
    """
    if max(indices) >= num_classes:
        raise TargetError(f"target answered class {max(indices)}, but num_classes is {num_classes}: {REMEDY}")
    if np.array_equal(indices, np.arange(num_classes)):
        return scores
    spread = np.zeros((len(scores), num_classes))
    np.add.at(spread.T, indices, np.asarray(scores).T)
    return spread


def order_mark(indices: np.ndarray | None) -> str:
    """Return what an identity has besides the model where its k-th class is not class k; empty where it is."""
    if indices is None or np.array_equal(indices, np.arange(len(indices))):
        return ""
    return f":{hashlib.sha256(repr(indices.tolist()).encode()).hexdigest()[:8]}"


def text_labels(labels: np.ndarray, names: ClassNames | None) -> np.ndarray:
    """Return labels (N,) as indices where the caller lists their names; unchanged without."""
    if names is None:
        return labels
    return np.array([names.index(_plain(label)) for label in labels.ravel()])


def _plain(label: Any) -> Any:
    """Return a label of numpy's as one of Python's."""
    return label.item() if isinstance(label, np.generic) else label


def _is_name(label: Any) -> bool:
    """Whether a label is one value: `- cat: 0` in a list is a map of its own."""
    return not isinstance(label, dict | list | tuple | set | np.ndarray)


def _is_number(text: str) -> bool:
    return _number(text) is not None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
