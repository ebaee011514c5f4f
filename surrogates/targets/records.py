"""The shapes in which models hand out their answers: arrays, tables, lists of records, named columns."""

from typing import Any

import numpy as np

from surrogates.errors import TargetError

SCORE_NAMES = ("scores", "probabilities", "logits", "predict_proba")
LABEL_NAMES = ("labels", "label", "prediction", "predict")


def unpack(answer: Any) -> Any:
    """Return the scores or labels in an array, a table, a list of records or a dictionary of columns.

    A column of a known name is taken; without one, columns of numbers are the classes in their order.

    Raises:
        TargetError: Records that differ, or columns of no known name.
    """
    if hasattr(answer, "to_numpy"):
        return answer.to_numpy()
    if isinstance(answer, list) and answer and all(isinstance(record, dict) for record in answer):
        if any(record.keys() != answer[0].keys() for record in answer):
            raise TargetError("the model answered records with different fields, expected the same in each")
        columns = {name: [record[name] for record in answer] for name in answer[0]}
        return _column(columns)
    if isinstance(answer, dict):
        return _column(answer)
    return answer


def _column(columns: dict[str, Any]) -> Any:
    for name in SCORE_NAMES + LABEL_NAMES:
        if name in columns:
            return columns[name]
    if any(
        isinstance(value, bool) for column in columns.values() if isinstance(column, list) for value in column
    ):
        raise TargetError("the model answered True or False in a column of scores, expected numbers")
    try:
        values = [np.asarray(column) for column in columns.values()]
    except ValueError:  # rows of different lengths
        values = []
    alike = len({value.shape for value in values}) == 1
    if len(values) > 1 and alike and all(value.ndim == 1 and value.dtype.kind in "fiu" for value in values):
        return np.stack(values, axis=1)
    raise TargetError(
        f"the model answered fields {sorted(map(str, columns))}, "
        f"expected one of {', '.join(SCORE_NAMES + LABEL_NAMES)}"
    )
