"""An MLflow model as a target: what it takes and answers follows from its signature, and from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import surrogates
from certdef.config.job import ConfigError
from certdef.release.evaluator_config import EvaluatorConfig


def columns_of(model: Any) -> list[str] | None:
    """The columns that a model takes by name, in its order; None where it takes rows as they stand."""
    inputs = _inputs(model)
    if inputs is None or inputs.is_tensor_spec():
        return None
    names = inputs.input_names()
    return names if all(isinstance(name, str) for name in names) else None


def open_model(model: Any, features: Any, config: EvaluatorConfig) -> surrogates.Target:
    """Open what MLflow evaluates. Nothing is queried.

    Args:
        model: A loaded model, or MLflow's wrapper of a function.
        features: The rows that it is evaluated on: a function gets such a table, or such an array.
        config: What it does not tell of itself.

    Raises:
        ConfigError: There is no model, or a function without a name and its number of classes.
        surrogates.TargetError: It takes or answers what no classifier of such images does.
    """
    if model is None:
        raise ConfigError(
            "model is not set: certificates need one that can be asked, predictions in a column are not enough"
        )
    options: dict[str, Any] = config.form | {"input_shape": config.shape}
    if getattr(model, "metadata", None) is None:
        if config.identity is None or (config.num_classes is None and config.classes is None):
            raise ConfigError(
                "model is a function, which has no name that a ledger could belong to: log it as a model, or give identity "
                "(a name that changes when it does) and num_classes"
            )
        function = _of_table(model.predict, features)
        return surrogates.open_target(function, identity=config.identity, layout=config.layout, **options)
    layout = {} if _takes_images(model) else {"layout": config.layout}
    named = {} if config.identity is None else {"identity": config.identity}
    try:
        return surrogates.open_target(model, **layout, **named, **options)
    except surrogates.ClassesUnknown as error:
        raise ConfigError("num_classes is not set, and the model does not tell it: give it") from error


def _inputs(model: Any) -> Any:
    signature = getattr(getattr(model, "metadata", None), "signature", None)
    return None if signature is None else signature.inputs


def _takes_images(model: Any) -> bool:
    """Whether the signature has a tensor with sides: it says how they lie, whatever the order of the data's columns."""
    inputs = _inputs(model)
    return inputs is not None and inputs.is_tensor_spec() and len(inputs.inputs[0].shape) > 2


def _of_table(predict: Callable[[Any], Any], features: Any) -> Callable[[Any], Any]:
    """A function of tables as one of arrays, where the data is a table."""
    columns: Sequence[Any] | None = getattr(features, "columns", None)
    if columns is None:
        return predict
    import pandas

    return lambda rows: predict(pandas.DataFrame(rows, columns=columns))
