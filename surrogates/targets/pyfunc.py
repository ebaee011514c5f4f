"""Targets that are MLflow models, loaded in this process through mlflow.pyfunc."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.classes import REMEDY, by_index, class_indices, order_mark, own_classes
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.kinds import detected
from surrogates.targets.records import LABEL_NAMES, SCORE_NAMES, named_columns, numbers
from surrogates.targets.signatures import ModelInput, refuse_fixed_batch

# Flavors whose model runs in this process and dies with it; any other may call a service that charges.
IN_PROCESS = frozenset(
    f"mlflow.{flavor}"
    for flavor in ("sklearn", "pytorch", "xgboost", "lightgbm", "catboost", "tensorflow", "keras", "onnx")
)

CODELESS = (".pt", ".pth", ".pkl", ".joblib", ".safetensors")
LACKING = "the model's k-th class is not class k, so that logits lack some: use another output_kind"

# MLflow's names of number types in tables, as numpy has them.
COLUMN_TYPES = {"double": "float64", "float": "float32", "long": "int64", "integer": "int32"}


def open_mlflow(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open an MLflow model of `models:/...`, `runs:/...` or a folder, in this process.

    Raises:
        TargetError: It cannot be loaded, or does not fit what was declared.
    """
    check_options(options, [], "an MLflow model in this process")
    return PyfuncTarget(load_pyfunc(uri), declared)


class PyfuncTarget(Target):
    """An MLflow pyfunc model, queried as its signature has it.

    A signature of rows or of columns gets flat rows (N, C*H*W), one of tensors (N, C, H, W) or (N, H, W, C), each in the
    signature's number type; a model without a signature gets float32 (N, C, H, W). The number of classes and the kind of
    output come from the signature where it reports them, and from the classes of a scikit-learn model.

    Raises:
        ClassesUnknown: num_classes was not declared, and the signature does not report it.
        TargetError: The signature contradicts what was declared, or takes or gives what no classifier of images does.
    """

    def __init__(self, model: Any, declared: Declared) -> None:
        signature = model.metadata.signature
        inside = model.loader_module in IN_PROCESS
        self._model = model
        self._inputs = None if signature is None else signature.inputs
        self._taken = taken = _input(self._inputs).placed(declared)
        outputs = None if signature is None else signature.outputs
        classes, kind, sure = _outputs(outputs, declared, without_batch=taken.without_batch)
        own = own_classes(_raw(model), "the model") if inside else None
        self._indices = None if own is None else class_indices(own, declared.names, "the model")
        if self._indices is not None:
            classes = declared.names.count if declared.names else int(max(self._indices)) + 1
        declared = declared.agreed(num_classes=classes)
        if sure and declared.output_kind is None:
            declared = replace(declared, output_kind=kind)
        if self._inputs is not None:
            declared = taken.honored(declared)
            if not inside:
                declared = refuse_fixed_batch(taken.batch, declared, taken.what)
        self._inside = inside
        super().__init__(
            declared.identity or _identity(model) + order_mark(self._indices),
            declared.classes_of("the model's signature"),
            declared.kind(kind or "probabilities"),
            charged_when_sent=not inside,
            num_features=taken.num_features,
            batch_size=min(filter(None, (taken.batch, declared.batch_size)), default=None),
            **declared.handed,
        )
        if self.output_kind == "logits" and order_mark(self._indices):
            raise TargetError(LACKING)

    def answer(self, pixels: np.ndarray) -> Answers:
        count, arranged = len(pixels), self._taken.arranged(pixels, fill=self._inside)
        rows = count if self._taken.without_batch else len(arranged)
        answer = self.unpacked(self._model.predict(self._table(arranged)), rows)
        if isinstance(answer, tuple):  # labels and scores of the best classes
            return self.parse_values(tuple(part[:count] for part in answer), count)
        return self.parse_values(self._by_index(self._taken.answered(answer, count)), count)

    def _by_index(self, answer: Any) -> Any:
        """Return scores in the order of the model's own classes in that of the indices; labels unchanged."""
        scores = np.ndim(answer) == 2 and np.shape(answer)[1] > 1
        if self._indices is None or not scores or not order_mark(self._indices):
            return answer
        scores = numbers(answer)
        if len(self._indices) < self.num_classes and detected(scores, scores.shape[1], "logits") == "logits":
            raise TargetError(LACKING)
        return by_index(scores, self._indices, self.num_classes)

    def _table(self, pixels: np.ndarray) -> Any:
        if self._inputs is None or self._inputs.is_tensor_spec():
            return pixels
        import pandas

        table = pandas.DataFrame(pixels, columns=self._inputs.input_names())
        kinds = [COLUMN_TYPES.get(column.type.name, self.pixels.dtype) for column in self._inputs.inputs]
        if set(kinds) > {self.pixels.dtype}:  # MLflow makes no float of a double
            table = table.astype(dict(zip(table.columns, kinds, strict=True)))
        return table


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
        if ":" not in uri and Path(uri).suffix in CODELESS:
            raise TargetError(
                f"{uri!r} holds weights or a pickle, and not the code that runs them: log the model with MLflow "
                "(models:/NAME/1), export it as NAME.onnx, or give the object in Python (surrogates.open_target)"
            ) from error
        if ":" not in uri and not Path(uri).is_dir():
            raise TargetError(
                f"{uri!r} is no folder of an MLflow model, and no NAME.onnx, NAME.tflite or NAME.yaml (a mapping): check "
                "the path, or give an address (models:/, runs:/, http://, ...)"
            ) from error
        raise TargetError(
            f"cannot load the MLflow model {uri!r} ({reason}): check the URI and MLFLOW_TRACKING_URI"
        ) from error


def _identity(model: Any) -> str:
    return f"mlflow:{getattr(model, 'model_id', None) or model.metadata.model_uuid}"


def _raw(model: Any) -> Any:
    """Return the object of its own library that a model wraps, None where it hides it."""
    try:
        return model.get_raw_model()
    except (AttributeError, NotImplementedError):
        return None


def _input(inputs: Any) -> ModelInput:
    """Return what a signature says of the only input: a tensor, or columns of one number type; it may be silent.

    Raises:
        TargetError: Several tensors, or columns that are no pixels.
    """
    what = "the model's signature"
    if inputs is None:
        return ModelInput(what, "float32", ())
    if inputs.is_tensor_spec():
        if len(inputs.inputs) > 1:
            names = ", ".join(str(spec.name) for spec in inputs.inputs)
            raise TargetError(f"{what} takes tensors {names}, expected 1: open a function that calls it")
        spec = inputs.inputs[0]
        return ModelInput(what, spec.type.name, tuple(int(side) for side in spec.shape))
    kinds = [getattr(column.type, "name", "array") for column in inputs.inputs]
    types = {COLUMN_TYPES.get(kind, kind) for kind in kinds}
    if types == {"float32", "float64"}:
        types = {"float64"}
    if len(types) > 1:
        raise TargetError(
            f"{what} takes columns of {', '.join(sorted(types))}, expected one number type: "
            "open a function that calls it"
        )
    return ModelInput(what, types.pop(), (-1, len(kinds)))


def _outputs(
    outputs: Any, declared: Declared, *, without_batch: bool = False
) -> tuple[int | None, str | None, bool]:
    """Return the number of classes and the kind of output as far as the signature reports them, and whether it is sure.

    Raises:
        TargetError: The output is text, and the caller does not list the names of the classes.
    """
    if outputs is None:
        return None, None, False
    columns = outputs.inputs
    if outputs.is_tensor_spec():
        shape, kind = columns[0].shape, columns[0].type.kind
        if kind not in "biuf" and declared.names is None:
            raise TargetError(f"the model's signature answers {columns[0].type.name}: {REMEDY}")
        if without_batch and prod(shape) > 1:
            return int(prod(shape)), None, False
        if len(shape) == 1 or without_batch:
            return None, "labels", kind != "f"
        return (int(shape[1]) if len(shape) == 2 and shape[1] > 1 else None), None, False
    by_name = {column.name: getattr(column.type, "name", "array") for column in columns}
    read = columns[0].name if len(columns) == 1 else named_columns(list(by_name), declared.output_kind)
    read = declared.output if declared.output in by_name else read
    if read is None and len(columns) > 1:
        if not set(by_name.values()) <= {*COLUMN_TYPES}:
            raise TargetError(
                f"the model's signature answers fields {', '.join(by_name)}, "
                f"expected one of {', '.join(SCORE_NAMES + LABEL_NAMES)}: open a function that calls it"
            )
        return len(columns), None, False
    kind = by_name[read]
    if kind == "string" and declared.names is None:
        raise TargetError(f"the model's signature answers texts in {read!r}: {REMEDY}")
    whole = kind in ("string", "long", "integer", "boolean")
    return None, "labels" if whole or (read in LABEL_NAMES and kind != "array") else None, whole
