"""Targets that are Keras models in this process, on whichever backend; Keras itself is not imported here."""

import hashlib
import json
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.callables import qualified_name
from surrogates.targets.declared import Declared
from surrogates.targets.kinds import kind_of_op
from surrogates.targets.records import named_columns
from surrogates.targets.signatures import ModelInput

LIBRARIES = ("keras", "tf_keras")
AT_ONCE = 256  # images in one step of `predict`


def is_keras(thing: object) -> bool:
    """Whether an object is a Keras model, which with the torch backend is a torch module too."""
    return any(
        each.__name__ == "Model" and each.__module__.split(".")[0] in LIBRARIES
        for each in type(thing).__mro__
    )


class KerasTarget(Target):
    """A Keras model, asked by `predict` for images or rows as its input has them.

    Layout, number type, classes and the kind of the scores come from its layers where they tell. It dies with this
    process, so that a lost answer costs nothing.

    Raises:
        ClassesUnknown: num_classes was not declared, and the model does not report it.
        TargetError: It has several inputs, or outputs of which none was chosen, or contradicts what was declared.
    """

    def __init__(self, model: Any, declared: Declared) -> None:
        what = f"Keras model {model.name}"
        taken = _input(model, declared, what).placed(declared)
        self._names = _output_names(model)
        layer, columns = _output(model, declared, self._names, what)
        classes = columns if columns is not None and columns > 1 else None
        declared = taken.honored(declared.agreed(num_classes=classes))
        if declared.output_kind is None:
            declared = declared.agreed(output_kind=_kind(layer, columns))
        super().__init__(
            declared.identity or f"{qualified_name(type(model))}:{_digest(model)}",
            declared.classes_of(what),
            declared.kind("probabilities"),
            charged_when_sent=False,
            num_features=taken.num_features,
            batch_size=min(filter(None, (taken.batch, declared.batch_size)), default=None),
            **declared.handed,
        )
        self._taken, self._model = taken, model

    def answer(self, pixels: np.ndarray) -> Any:
        arranged = self._taken.arranged(pixels)
        answer = self._model.predict(arranged, verbose=0, batch_size=self._taken.batch or AT_ONCE)
        if isinstance(answer, list | tuple):
            answer = dict(zip(self._names, answer, strict=True))
        if isinstance(answer, dict):
            return {name: self._taken.answered(part, len(pixels)) for name, part in answer.items()}
        return self._taken.answered(answer, len(pixels))


def _input(model: Any, declared: Declared, what: str) -> ModelInput:
    """Return what the only input takes; a model that was never built leaves it to the caller."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        if declared.layout is None:
            raise TargetError(f"{what} does not tell what it takes: give layout='hwc', 'chw' or 'flat'")
        return ModelInput(what, declared.dtype or "float32", ())
    if len(inputs) != 1:
        raise TargetError(f"{what} takes {len(inputs)} inputs, expected 1: open a function that calls it")
    sides = tuple(-1 if side is None else int(side) for side in inputs[0].shape)
    return ModelInput(what, str(getattr(inputs[0].dtype, "name", inputs[0].dtype)), sides)


def _output_names(model: Any) -> list[str]:
    """Return the names of its outputs, in order; empty where it was never built."""
    if not getattr(model, "outputs", None):
        return []
    outputs = model.compute_output_spec(model.inputs[0]) if len(model.inputs) == 1 else None
    return list(outputs) if isinstance(outputs, dict) else list(getattr(model, "output_names", None) or [])


def _output(model: Any, declared: Declared, names: list[str], what: str) -> tuple[Any, int | None]:
    """Return the layer that gives the scores, None where it is not known, and their number of columns.

    Raises:
        TargetError: There are several outputs, and none is chosen.
    """
    outputs = getattr(model, "outputs", None) or []
    widths = [each.shape[-1] if len(each.shape) > 1 else None for each in outputs]
    if len(outputs) < 2:
        return model, widths[0] if widths else None
    wanted: Any = declared.output
    if wanted is None:
        fitting = [name for name, width in zip(names, widths, strict=True) if width == declared.num_classes]
        wanted = named_columns(names, declared.output_kind) or (fitting[0] if len(fitting) == 1 else None)
    if wanted not in names and str(wanted).isdecimal() and int(str(wanted)) < len(names):
        wanted = names[int(str(wanted))]
    if wanted not in names:
        listed = ", ".join(f"{name} ({width})" for name, width in zip(names, widths, strict=True))
        raise TargetError(f"{what} gives outputs {listed}: give output='one of them'")
    by_name = {layer.name: layer for layer in model.layers}
    return by_name.get(wanted), widths[names.index(wanted)]


def _kind(layer: Any, columns: int | None) -> str | None:
    """Return the kind that the last layer gives, as far as its activation tells."""
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    activation = getattr(getattr(layer, "activation", None), "__name__", None)
    if activation == "linear" and getattr(layer, "kernel", None) is not None:
        return "logits"
    return kind_of_op(activation or type(layer).__name__, columns)


def _digest(model: Any) -> str:
    """Return 16 hexadecimal digits of sha256 over configuration and weights, the same when it is saved and loaded again."""
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype}{weight.shape}".encode() + np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]
