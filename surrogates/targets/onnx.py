"""Targets that are ONNX files, run by ONNX Runtime in this process."""

import os
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.classes import REMEDY, by_index, class_indices, text_labels
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.kinds import OUTPUT_KINDS
from surrogates.targets.layouts import is_row
from surrogates.targets.onnx_files import digest_of
from surrogates.targets.onnx_graph import kind_of_output
from surrogates.targets.reading import Reading
from surrogates.targets.records import LABEL_NAMES, named_columns
from surrogates.targets.signatures import ModelInput

WHOLE = ("tensor(int", "tensor(uint", "tensor(string")  # types of labels
TIE = 1e-6  # scores that are closer than this may be ranked either way
# ONNX's names of number types that are not numpy's.
NUMBER_TYPES = {"float": "float32", "double": "float64"}
# What a model's metadata may say of its images: "Image metadata" in ONNX's MetadataProps.md.
COLORS = {"Gray8": "gray", "Rgb8": "rgb", "Bgr8": "bgr"}
RANGES = {
    "NominalRange_0_255": (0.0, 255.0),
    "Normalized_0_1": (0.0, 1.0),
    "Normalized_1_1": (-1.0, 1.0),
    "NominalRange_16_235": (16.0, 235.0),
}


def open_onnx(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open an ONNX file in this process.

    Raises:
        TargetError: It cannot be loaded, or does not fit what was declared.
    """
    check_options(options, ["threads"], "an ONNX model")
    return OnnxTarget(uri, declared, **options)


class OnnxTarget(Target):
    """An ONNX model with one input; layout, number type and classes are read from its graph where it reports them.

    It runs on the CPU, or on the GPU where onnxruntime was installed for one. identity is the sha256 of the file and
    of every file of weights that its graph names. The kind of its scores is that of the graph's last operation where that
    tells, else that of the first answer. It dies with this process, so that a lost answer costs nothing.

    Args:
        threads: Threads of one query; unset, as many as there are cores.

    Raises:
        ClassesUnknown: num_classes was not declared, and the graph does not report it.
        TargetError: The file cannot be used, or the graph contradicts what was declared.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        declared: Declared,
        threads: int | None = None,
    ) -> None:
        what = f"model {path}"
        digest = digest_of(Path(path))
        self._session = _session(Path(path), threads)
        self._input, taken = _only_input(self._session, what)
        self._taken = taken = taken.placed(declared)
        chosen = _chosen_output(self._session, what, declared.output, declared.output_kind)
        self._output = chosen.name
        self._own_labels = _label_output(self._session, chosen)
        for read in (chosen, self._own_labels):
            if read is not None and "string" in read.type and declared.names is None:
                raise TargetError(f"{what} answers the names of its classes in {read.name}: {REMEDY}")
        columns = _columns(chosen.shape, taken.without_batch)
        classes = columns if columns is not None and columns > 1 else None
        declared = taken.honored(declared.agreed(num_classes=classes))
        if declared.output_kind is None:
            whole = chosen.type.startswith(WHOLE)
            known = "labels" if whole else kind_of_output(Path(path), chosen.name, columns)
            declared = replace(declared, output_kind=known)
        scores = ("probabilities", "logits") if classes is not None else OUTPUT_KINDS
        super().__init__(
            declared.identity or f"onnx:{digest}",
            declared.classes_of(what),
            declared.kind("probabilities", scores),
            charged_when_sent=False,
            input_shape=declared.input_shape,
            num_features=taken.num_features,
            batch_size=min(
                (size for size in (taken.batch, declared.batch_size) if size is not None), default=None
            ),
            pixels=declared.pixels,
            reading=Reading(declared.names),
        )

    def answer(self, pixels: np.ndarray) -> Any:
        names = [self._output] + ([self._own_labels.name] if self._own_labels else [])
        outputs = self._session.run(names, {self._input: self._taken.arranged(pixels)})
        answer, *labels = (self._taken.answered(output, len(pixels)) for output in outputs)
        if isinstance(answer, list) and answer and isinstance(answer[0], dict):  # scikit-learn's ZipMap
            seen = sorted(answer[0])
            scores = np.array([[row[label] for label in seen] for row in answer])
            answer = by_index(scores, class_indices(seen, self.reading.names, "the model"), self.num_classes)
        if labels:
            self._check_order(np.asarray(answer), text_labels(labels[0], self.reading.names))
            self._own_labels = None  # once is enough
        return answer

    def _check_order(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Check that the k-th column of scores is what the model itself calls class k.

        Raises:
            TargetError: It names the class and the column.
        """
        best = scores.argmax(axis=1)
        clear = np.ptp(np.sort(scores, axis=1)[:, -2:], axis=1) > TIE
        wrong = clear & (best != labels.ravel())
        if wrong.any():
            raise TargetError(
                f"the model answers class {labels.ravel()[wrong][0]} where column {best[wrong][0]} of its scores is "
                "largest: give classes=[...], its own classes in the order of its columns"
            )


def _columns(shape: list[Any] | None, without_batch: bool) -> int | None:
    """Return how many columns an output has, None where its shape does not tell."""
    sides = (shape or [])[0 if without_batch else 1 :]
    if not sides or not all(isinstance(side, int) for side in sides) or not is_row(sides):
        return None
    return prod(sides)


def _only_input(session: Any, what: str) -> tuple[str, ModelInput]:
    """Return the name of the only input, and what it takes."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise TargetError(f"{what} takes {len(inputs)} inputs, expected 1: open a function that calls it")
    kind = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    sides = tuple(side if isinstance(side, int) and side > 0 else -1 for side in inputs[0].shape)
    metadata = session.get_modelmeta().custom_metadata_map
    taken = ModelInput(
        what,
        NUMBER_TYPES.get(kind, kind),
        sides,
        color=COLORS.get(metadata.get("Image.BitmapPixelFormat", "")),
        pixel_range=RANGES.get(metadata.get("Image.NominalPixelRange", "")),
    )
    return inputs[0].name, taken


def _label_output(session: Any, chosen: Any) -> Any:
    """Return the output with the model's own labels beside the scores that are read; None where there is none."""
    found = [output for output in session.get_outputs() if output.name in (*LABEL_NAMES, "output_label")]
    scores = chosen.type.startswith(("tensor(float", "tensor(double", "seq(map("))
    flat = [output for output in found if output.type.startswith(WHOLE) and len(output.shape) == 1 and scores]
    return flat[0] if len(flat) == 1 else None


def _chosen_output(session: Any, what: str, name: str | int | None, kind: str | None) -> Any:
    """Return the output to read: the named or counted one, the only one, or the one with a known name or kind."""
    outputs = {output.name: output for output in session.get_outputs()}
    if name not in outputs and str(name).isdecimal() and int(str(name)) < len(outputs):
        name = list(outputs)[int(str(name))]
    if name is not None and name not in outputs:
        raise TargetError(f"output is {name!r}, but {what} gives {', '.join(outputs)}: choose one of them")
    if name is not None or len(outputs) == 1:
        return outputs[next(iter(outputs)) if name is None else name]
    known = named_columns(list(outputs), kind)
    if known is not None:
        return outputs[known]
    raise TargetError(f"{what} gives outputs {', '.join(outputs)}: give output='one of them'")


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
