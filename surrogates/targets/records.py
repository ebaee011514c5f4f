"""The shapes in which models hand out their answers: arrays, tables, lists of records, named columns."""

import re
from typing import Any

import numpy as np
import torch

from surrogates.errors import TargetError
from surrogates.targets.classes import REMEDY, ClassNames, text_labels

SCORE_NAMES = ("scores", "probabilities", "logits", "predict_proba")
LABEL_NAMES = ("labels", "label", "prediction", "predict")


def unpack(answer: Any, names: ClassNames | None = None) -> Any:
    """Return the scores or labels in an array, a table, a list of records or a dictionary of columns.

    A column of a known name is taken; without one, columns of numbers are the classes: by the names that the caller
    lists, by the numbers in the columns' names, else in their order.

    Args:
        names: The names of the classes, where the caller lists them; labels become their indices.

    Raises:
        TargetError: Records that differ, columns of no known name, or labels that are not listed.
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
        answer = {name: [record[name] for record in answer] for name in answer[0]}
    if isinstance(answer, dict):
        return _column(answer, names)
    return _labels(answer, names)


def numbers(values: Any) -> np.ndarray:
    """Return an answer as an array of numbers or truth values; texts that look like numbers are none.

    Raises:
        TargetError: It holds anything else.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
    elif isinstance(values, tuple) and any(np.ndim(part) for part in values):
        raise TargetError(
            f"target answered a tuple of {len(values)}, expected numbers: open a function that returns one of them"
        )
    else:
        plain = values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
        odd = _odd(plain)
        try:
            array = np.asarray(values)
            if array.dtype == object and odd is None:  # nothing for a number is NaN
                array = array.astype(np.float64)
        except (TypeError, ValueError):  # rows of different lengths, or no numbers at all
            array = np.asarray(None)
        if odd is not None or array.dtype.kind not in "biuf":
            got = "" if odd is None else f", got {str(odd)[:40]!r}"
            raise TargetError(f"target answered {type(values).__name__}, expected numbers{got}")
    return array


def named_columns(columns: list[Any]) -> str | None:
    """Return the column that holds an answer by its name, None where no name is known."""
    return next((name for name in SCORE_NAMES + LABEL_NAMES if name in columns), None)


def _column(columns: dict[Any, Any], names: ClassNames | None) -> Any:
    name = named_columns(list(columns))
    if name is not None:
        return _labels(columns[name], names)
    alone = next(iter(columns.values())) if len(columns) == 1 else None
    if isinstance(alone, torch.Tensor):
        return alone
    try:
        arrays = [np.asarray(column) for column in columns.values()]
    except ValueError:  # rows of different lengths
        arrays = []
    if len(arrays) == 1 and (names is not None or arrays[0].dtype.kind in "biuf"):
        return _labels(alone, names)
    if any(isinstance(_odd(column), bool) for column in columns.values()):
        raise TargetError("the model answered True or False in a column of scores, expected numbers")
    plain = all(_odd(column) is None for column in columns.values())
    kinds = {array.dtype.kind if plain and array.ndim == 1 else "?" for array in arrays}
    # A whole number beside fractions is no score but a class, a count or a time.
    alike = len({array.shape for array in arrays}) == 1
    if alike and (kinds <= {"f"} or kinds <= {"i", "u"} or (names is not None and kinds <= set("fiu"))):
        return np.stack([arrays[place] for place in _order(list(columns), names)], axis=1)
    raise TargetError(
        f"the model answered fields {sorted(map(str, columns))}, "
        f"expected one of {', '.join(SCORE_NAMES + LABEL_NAMES)}"
    )


def _order(columns: list[Any], names: ClassNames | None) -> list[int]:
    """Return the place of each class's column, from class 0 on."""
    if names is not None:
        found = [names.index(column) for column in columns]
    else:
        matches = [re.fullmatch(r"(.*?)(\d+)", str(column), re.DOTALL) for column in columns]
        parts = [match.groups() for match in matches if match is not None]
        if len(parts) < len(columns) or len({prefix for prefix, _ in parts}) > 1:
            return list(range(len(columns)))
        found = [int(number) for _, number in parts]
    if sorted(found) != list(range(len(columns))):
        raise TargetError(
            f"the model answered fields {sorted(map(str, columns))[:4]}, expected one for each class from 0 on: "
            + (REMEDY if names is None else "list all of them in classes")
        )
    return [found.index(index) for index in range(len(columns))]


def _labels(values: Any, names: ClassNames | None) -> Any:
    """Return labels as the indices of the names that the caller lists; anything else unchanged."""
    if names is None or isinstance(values, tuple):
        return values
    array = np.asarray(values)
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
