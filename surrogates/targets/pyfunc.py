"""Targets that are MLflow models, loaded in this process through mlflow.pyfunc."""

from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.records import unpack

# Flavors whose model runs in this process and dies with it; any other may call a service that charges.
IN_PROCESS = frozenset(
    f"mlflow.{flavor}"
    for flavor in ("sklearn", "pytorch", "xgboost", "lightgbm", "catboost", "tensorflow", "keras", "onnx")
)


def open_mlflow(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open an MLflow model of `models:/...`, `runs:/...` or a folder, in this process.

    Raises:
        TargetError: It cannot be loaded, or does not fit what was declared.
    """
    check_options(options, [], "an MLflow model in this process")
    return PyfuncTarget(load_pyfunc(uri), declared)


class PyfuncTarget(Target):
    """An MLflow pyfunc model, queried in the layout that its signature names.

    A 2-D tensor input or a table of columns gets flat rows (N, C*H*W), anything else (N, C, H, W). The number of
    classes and the kind of output come from the signature where it reports them.

    Raises:
        ClassesUnknown: num_classes was not declared, and the signature does not report it.
        TargetError: The signature contradicts what was declared.
    """

    def __init__(self, model: Any, declared: Declared) -> None:
        signature = model.metadata.signature
        self._model = model
        self._inputs = None if signature is None else signature.inputs
        classes, kind = _outputs(None if signature is None else signature.outputs)
        shape, features = _input_layout(self._inputs)
        declared = declared.agreed(num_classes=classes, input_shape=shape)
        super().__init__(
            declared.identity or f"mlflow:{getattr(model, 'model_id', None) or model.metadata.model_uuid}",
            declared.classes_of("the model's signature"),
            declared.output_kind or kind or "probabilities",
            charged_when_sent=model.loader_module not in IN_PROCESS,
            input_shape=declared.input_shape,
            num_features=features,
            batch_size=declared.batch_size,
            pixels=declared.pixels,
        )

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        return unpack(self._model.predict(self._arrange(pixels)))

    def _arrange(self, pixels: np.ndarray) -> Any:
        if self._inputs is None:
            return pixels
        rows = pixels.reshape(len(pixels), -1)
        if not self._inputs.is_tensor_spec():
            import pandas

            return pandas.DataFrame(rows.astype(np.float64), columns=self._inputs.input_names())
        spec = self._inputs.inputs[0]
        return (rows if len(spec.shape) == 2 else pixels).astype(spec.type)


def load_pyfunc(uri: str) -> Any:
    """Load an MLflow model from `models:/...`, `runs:/...` or a folder.

    Raises:
        TargetError: There is none, or it cannot be loaded.
    """
    import mlflow.pyfunc

    try:
        return mlflow.pyfunc.load_model(uri)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"cannot load the MLflow model {uri!r} ({reason}): check the URI and MLFLOW_TRACKING_URI"
        ) from error


def _input_layout(inputs: Any) -> tuple[tuple[int, int, int] | None, int | None]:
    """Return (C, H, W) and the number of values per image, each None where the signature is silent."""
    if inputs is None:
        return None, None
    if not inputs.is_tensor_spec():
        return None, len(inputs.inputs)
    sides = tuple(int(side) for side in inputs.inputs[0].shape[1:])
    if len(sides) == 3 and min(sides) > 0:
        return sides, None
    return None, sides[0] if len(sides) == 1 and sides[0] > 0 else None


def _outputs(outputs: Any) -> tuple[int | None, str | None]:
    """Return the number of classes and the kind of output as far as the signature reports them."""
    if outputs is None:
        return None, None
    if not outputs.is_tensor_spec():
        return (len(outputs.inputs), None) if len(outputs.inputs) > 1 else (None, None)
    spec = outputs.inputs[0]
    if len(spec.shape) == 1:
        return None, "labels"
    return (int(spec.shape[1]), None) if len(spec.shape) == 2 and spec.shape[1] > 1 else (None, None)
