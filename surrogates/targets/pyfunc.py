"""Targets that are MLflow models, loaded in this process through mlflow.pyfunc."""

from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.formats import PixelFormat
from surrogates.targets.records import unpack

# Flavours whose model runs in this process and dies with it; any other may call a service that charges.
IN_PROCESS = frozenset(
    f"mlflow.{flavour}"
    for flavour in ("sklearn", "pytorch", "xgboost", "lightgbm", "catboost", "tensorflow", "keras", "onnx")
)


class PyfuncTarget(Target):
    """An MLflow pyfunc model, asked in the layout that its signature names.

    A 2-D tensor input or a table of columns gets flat rows (N, C*H*W), anything else (N, C, H, W). The
    number of classes and the kind of output come from the signature where it tells them.
    """

    def __init__(
        self,
        model: Any,
        num_classes: int | None = None,
        output_kind: str | None = None,
        *,
        identity: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        signature = model.metadata.signature
        self._model = model
        self._inputs = None if signature is None else signature.inputs
        known_classes, known_kind = _outputs(None if signature is None else signature.outputs)
        if None not in (num_classes, known_classes) and num_classes != known_classes:
            raise TargetError(
                f"num_classes is {num_classes}, but the model's signature says {known_classes}: leave num_classes out"
            )
        num_classes = known_classes if num_classes is None else num_classes
        if num_classes is None:
            raise TargetError(
                "the model's signature does not tell its number of classes: "
                "give open_target(..., num_classes=...)"
            )
        shape, features = _input_layout(self._inputs)
        if shape is not None and input_shape is not None and shape != tuple(input_shape):
            raise TargetError(f"input_shape is {tuple(input_shape)}, but the model's signature says {shape}")
        super().__init__(
            identity or f"mlflow:{getattr(model, 'model_id', None) or model.metadata.model_uuid}",
            num_classes,
            output_kind or known_kind or "probabilities",
            charged_when_sent=model.loader_module not in IN_PROCESS,
            input_shape=input_shape or shape,
            num_features=features,
            batch_size=batch_size,
            pixels=pixels,
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
    """Load an MLflow model from `models:/...`, `runs:/...` or a folder; TargetError names the URI."""
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
    """Return the number of classes and the kind of output as far as the signature tells them."""
    if outputs is None:
        return None, None
    if not outputs.is_tensor_spec():
        return (len(outputs.inputs), None) if len(outputs.inputs) > 1 else (None, None)
    spec = outputs.inputs[0]
    if len(spec.shape) == 1:
        return None, "labels"
    return (int(spec.shape[1]), None) if len(spec.shape) == 2 and spec.shape[1] > 1 else (None, None)
