"""The forms in which models hand out their answers: arrays, tables, lists of records, named columns, tuples, objects."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.classes import REMEDY, ClassNames, text_labels
from surrogates.targets.outputs import ambiguous, by_shape, named, parts_of, plain

SCORE_NAMES = ("scores", "probabilities", "logits", "predict_proba", "probs")
LABEL_NAMES = ("labels", "label", "prediction", "predict", "class", "class_id", "predicted_class")
LIKELY = {"logits": ("logits",), "probabilities": ("probabilities", "predict_proba", "probs")}


@dataclass(frozen=True)
class Expected:
    """What is looked for in a model's output.

    Args:
        count: Number of images.
        num_classes: Number of classes.
        kind: What was declared or is known of the answers; None where they tell.
        output: Name or place of the part that the caller wants.
        order: The names of the columns that were taken for the classes in their order, of each answer so far; None for an
            answer whose rows have them in several orders.
    """

    count: int
    num_classes: int
    kind: str | None = None
    output: str | int | None = None
    order: list[tuple[Any, ...] | None] = field(default_factory=list)


def unpack(answer: Any, names: ClassNames | None = None, expected: Expected | None = None) -> Any:
    """Return the scores or labels in an array, a table, a list of records, a dictionary of columns, a tuple or an object.

    A part of a known name is taken; without one, columns of numbers are the classes: by the names that the caller
    lists, by the numbers in the columns' names, else in their order. Of other parts the only one that has the shape of
    an answer is taken. Labels and scores of the best classes come back as a pair.

    Args:
        names: The names of the classes, where the caller lists them; labels become their indices.
        expected: What is looked for.

    Raises:
        TargetError: Records that differ, parts of which none or several may be meant, or labels that are not listed.
    """
    if hasattr(answer, "columns") and hasattr(answer, "to_dict"):  # a table of pandas
        if not answer.columns.is_unique:
            raise TargetError("the model answered columns of the same name, expected one of each")
        answer = answer.to_dict("list")
    elif hasattr(answer, "to_numpy"):
        answer = answer.to_numpy()
    elif isinstance(answer, list) and answer and all(isinstance(record, dict) for record in answer):
        if any(record.keys() != answer[0].keys() for record in answer):
            raise TargetError("the model answered records with different fields, expected the same in each")
        if expected is not None and any([*record] != [*answer[0]] for record in answer):
            expected.order.append(None)  # of columns, if it turns out to be the order of the classes
        answer = {name: [record[name] for record in answer] for name in answer[0]}
    if expected is not None and expected.kind == "top_k" and type(answer) is tuple and len(answer) == 2:
        return _pair(plain(answer[0]), plain(answer[1]), names)
    parts = parts_of(answer, None if expected is None else expected.count)
    if expected is not None and expected.output is not None:
        if parts is None and _are_heads(answer, expected.count):
            parts = dict(enumerate(answer))
        if parts is None:
            raise TargetError(f"output is {expected.output!r}, but the model answers one array: leave it out")
        return _labels(named(parts, expected.output), names)
    if parts is None:
        return _labels(answer, names)
    if all(isinstance(name, int) for name in parts) and not isinstance(answer, Mapping):
        return _of_tuple(parts, names, expected)
    return _column({name: plain(part) for name, part in parts.items()}, names, expected)


def _are_heads(answer: Any, count: int) -> bool:
    """Whether nested lists are the parts of a tuple that became JSON, each with a row an image, and not rows themselves."""
    if not isinstance(answer, list) or not all(
        isinstance(part, list) and len(part) == count for part in answer
    ):
        return False
    return len(answer) != count or any(isinstance(part[0], list) for part in answer)


def numbers(values: Any) -> np.ndarray:
    """Return an answer as an array of numbers or truth values; texts that look like numbers are none.

    Raises:
        TargetError: It holds anything else.
    """
    if values is None:
        raise TargetError("target answered nothing (None), expected numbers: let it return its answer")
    values = plain(values)
    if isinstance(values, tuple) and any(np.ndim(part) for part in values):
        raise TargetError(
            f"target answered a tuple of {len(values)}, expected numbers: open a function that returns one of them"
        )
    else:
        odd = _odd(values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values)
        try:
            array = np.asarray(values)
            if array.dtype == object and odd is None:  # nothing for a number is NaN
                array = array.astype(np.float64)
        except (TypeError, ValueError):  # rows of different lengths, or no numbers at all
            array = np.asarray(None)
        if odd is not None or array.dtype.kind not in "biuf":
            got = "" if odd is None else f", got {str(odd)[:40]!r}"
            texts = isinstance(odd, str) or array.dtype.kind in "US"
            got += f": if these are names, {REMEDY}" if texts else ""
            raise TargetError(f"target answered {type(values).__name__}, expected numbers{got}")
    return array


def named_columns(columns: list[Any], kind: str | None = None) -> str | None:
    """Return the column that holds an answer by its name, as a kind likes it best; None where no name is known."""
    wanted = LABEL_NAMES + SCORE_NAMES if kind == "labels" else SCORE_NAMES + LABEL_NAMES
    return next((name for name in (*LIKELY.get(kind or "", ()), *wanted) if name in columns), None)


def _of_tuple(parts: dict[Any, Any], names: ClassNames | None, expected: Expected | None) -> Any:
    if len(parts) == 1:
        return _labels(parts[0], names)
    if expected is None:
        raise ambiguous(parts)
    return _labels(by_shape(parts, expected.count, expected.num_classes), names)


def _column(columns: dict[Any, Any], names: ClassNames | None, expected: Expected | None) -> Any:
    kind = None if expected is None else expected.kind
    name = named_columns(list(columns), kind)
    label = next((each for each in LABEL_NAMES if each in columns), None)
    if name in SCORE_NAMES and label is not None:
        ranks = np.shape(_rows(columns[label])), np.shape(_rows(columns[name]))
        if len(ranks[0]) == 2 and ranks[0] == ranks[1] and kind in (None, "top_k"):
            return _pair(columns[label], columns[name], names)
        if len(ranks[1]) == 1:  # how sure it is of its label
            name = label
    if name is not None:
        return _labels(columns[name], names)
    alone = next(iter(columns.values())) if len(columns) == 1 else None
    arrays = [_rows(column) for column in columns.values()]
    if len(arrays) == 1 and (names is not None or arrays[0].dtype.kind in "biuf"):
        return _labels(alone, names)
    if any(isinstance(_odd(column), bool) for column in columns.values()):
        raise TargetError("the model answered True or False in a column of scores, expected numbers")
    plain_ones = all(_odd(column) is None for column in columns.values())
    kinds = {array.dtype.kind if plain_ones and array.ndim == 1 else "?" for array in arrays}
    # A whole number beside fractions is no score but a class, a count or a time.
    alike = len({array.shape for array in arrays}) == 1
    if alike and (kinds <= {"f"} or kinds <= {"i", "u"} or (names is not None and kinds <= set("fiu"))):
        return np.stack([arrays[place] for place in _order(list(columns), names, expected)], axis=1)
    if expected is not None and any(array.ndim > 1 for array in arrays):
        return _labels(by_shape(columns, expected.count, expected.num_classes), names)
    raise TargetError(
        f"the model answered fields {sorted(map(str, columns))}, "
        f"expected one of {', '.join(SCORE_NAMES + LABEL_NAMES)}: give output, the name of one of them"
    )


def _rows(column: Any) -> np.ndarray:
    """Return a column as an array, to look at its shape; an empty one where it is none."""
    try:
        return np.asarray(column)
    except ValueError:  # rows of different lengths
        return np.asarray(None)


def _pair(labels: Any, scores: Any, names: ClassNames | None) -> tuple[Any, Any]:
    """Return labels (N, k) and scores (N, k) of the best classes, the labels as indices."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.dtype.kind == "f" and scores.dtype.kind in "iu":  # the other way round
        labels, scores = scores, labels
    return (labels if names is None else text_labels(labels, names).reshape(labels.shape)), scores


def _order(columns: list[Any], names: ClassNames | None, expected: Expected | None) -> list[int]:
    """Return the place of each class's column, from class 0 on."""
    if names is not None:
        found = [names.index(column) for column in columns]
    else:
        matches = [re.fullmatch(r"(.*?)(\d+)", str(column), re.DOTALL) for column in columns]
        parts = [match.groups() for match in matches if match is not None]
        if len(parts) < len(columns) or len({prefix for prefix, _ in parts}) > 1:
            if expected is not None:
                _keep_order(columns, expected.order)
            return list(range(len(columns)))
        found = [int(number) for _, number in parts]
    if sorted(found) != list(range(len(columns))):
        raise TargetError(
            f"the model answered fields {sorted(map(str, columns))[:4]}, expected one for each class from 0 on: "
            + (REMEDY if names is None else "list all of them in classes")
        )
    return [found.index(index) for index in range(len(columns))]


def _keep_order(columns: list[Any], order: list[tuple[Any, ...] | None]) -> None:
    """Refuse columns that are the classes in their order where that is not the order of every answer."""
    if any(former != tuple(columns) for former in order):
        raise TargetError(
            f"the model answered fields {columns[:4]} in more than one order, and they are the classes: {REMEDY}"
        )
    order[:] = [tuple(columns)]


def _labels(values: Any, names: ClassNames | None) -> Any:
    """Return labels as the indices of the names that the caller lists; anything else unchanged."""
    if names is None or isinstance(values, tuple):
        return values
    array = np.asarray(plain(values))
    column = array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind != "f"  # else one score
    return text_labels(array, names) if array.ndim == 1 or column else values


def _odd(values: Any) -> Any:
    """Return the first text or truth value in nested lists, beside anything else; None where there is none."""
    if not isinstance(values, list | tuple):
        return None
    kinds = {type(value) for value in values}
    if kinds & {list, tuple}:
        return next((odd for value in values if (odd := _odd(value)) is not None), None)
    if str in kinds or (bool in kinds and len(kinds) > 1):
        return next(value for value in values if isinstance(value, str | bool))
    return None
