"""Targets that are ONNX files, run by ONNX Runtime in this process."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.formats import layout_of
from surrogates.targets.onnx_files import digest_of
from surrogates.targets.records import LABEL_NAMES, SCORE_NAMES

PIXEL_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(uint8)": "uint8"}


def open_onnx(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open an ONNX file in this process.

    Raises:
        TargetError: It cannot be loaded, or does not fit what was declared.
    """
    check_options(options, ["output", "threads"], "an ONNX model")
    if declared.dtype is not None:
        raise TargetError("dtype is read from the ONNX model: leave it out")
    return OnnxTarget(uri, declared, **options)


class OnnxTarget(Target):
    """An ONNX model with one input; layout, number type and classes are read from its graph where it reports them.

    It runs on the CPU, or on the GPU where onnxruntime was installed for one. identity is the sha256 of the file and
    of every file of weights that its graph names. Scores are probabilities unless output_kind is given. It
    dies with this process, so that a lost answer costs nothing.

    Args:
        output: Name of the output to read, where there are several.
        threads: Threads of one query; unset, as many as there are cores.

    Raises:
        ClassesUnknown: num_classes was not declared, and the graph does not report it.
        TargetError: The file cannot be used, or the graph contradicts what was declared.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        declared: Declared,
        output: str | None = None,
        threads: int | None = None,
    ) -> None:
        digest = digest_of(Path(path))
        self._session = _session(Path(path), threads)
        self._input, dtype, sides = _only_input(self._session, path)
        chosen = _chosen_output(self._session, path, output, declared.output_kind)
        self._output = chosen.name
        classes = chosen.shape[1] if chosen.shape and len(chosen.shape) == 2 else None
        declared = declared.agreed(
            num_classes=classes if isinstance(classes, int) and classes > 1 else None,
            dtype=dtype,
            layout=declared.layout or layout_of(sides, declared.input_shape),
        )
        super().__init__(
            declared.identity or f"onnx:{digest}",
            declared.classes_of(f"model {path}"),
            declared.output_kind or ("labels" if "int" in chosen.type else "probabilities"),
            charged_when_sent=False,
            input_shape=declared.input_shape or _image_shape(sides, declared.pixels.layout),
            num_features=sides[1] if len(sides) == 2 and sides[1] > 0 else None,
            batch_size=declared.batch_size or (sides[0] if sides[0] > 0 else None),
            pixels=declared.pixels,
        )

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        answer = self._session.run([self._output], {self._input: pixels})[0]
        if isinstance(answer, list) and answer and isinstance(answer[0], dict):  # scikit-learn's ZipMap
            return np.array([[row[label] for label in sorted(row)] for row in answer])
        return answer


def _only_input(session: Any, path: str | os.PathLike[str]) -> tuple[str, str, list[int]]:
    """Return name, number type and sides of the only input, -1 for a side that is free."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise TargetError(
            f"model {path} takes {len(inputs)} inputs, expected 1: open a function that calls it"
        )
    if inputs[0].type not in PIXEL_TYPES:
        raise TargetError(f"model {path} takes {inputs[0].type}, expected one of {', '.join(PIXEL_TYPES)}")
    sides = [side if isinstance(side, int) else -1 for side in inputs[0].shape]
    return inputs[0].name, PIXEL_TYPES[inputs[0].type], sides


def _chosen_output(session: Any, path: str | os.PathLike[str], name: str | None, kind: str | None) -> Any:
    """Return the output to read: the named one, the only one, or the one with a known name or kind."""
    outputs = {output.name: output for output in session.get_outputs()}
    if name is not None and name not in outputs:
        raise TargetError(
            f"output is {name!r}, but model {path} gives {', '.join(outputs)}: choose one of them"
        )
    if name is not None or len(outputs) == 1:
        return outputs[name or next(iter(outputs))]
    names = LABEL_NAMES if kind == "labels" else SCORE_NAMES + LABEL_NAMES
    for known in names:
        if known in outputs:
            return outputs[known]
    raise TargetError(f"model {path} gives outputs {', '.join(outputs)}: give output='one of them'")


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise TargetError(f"{path} needs onnxruntime: pip install 'certdef[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
    options.log_severity_level = 3  # errors only
    # Threads that spin between batches would take the cores from whoever prepares the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TargetError(f"cannot load the ONNX model {path} ({reason}): check the file") from error


def _image_shape(sides: list[int], layout: str) -> tuple[int, int, int] | None:
    if len(sides) != 4 or min(sides[1:]) < 1:
        return None
    return (sides[3], sides[1], sides[2]) if layout == "hwc" else (sides[1], sides[2], sides[3])
