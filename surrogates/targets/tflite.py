"""Targets that are TFLite files, run by LiteRT's interpreter in this process."""

import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.kinds import kind_of_op
from surrogates.targets.pixel_options import EIGHT_BITS
from surrogates.targets.reading import Reading
from surrogates.targets.records import SCORE_NAMES
from surrogates.targets.redaction import shortened
from surrogates.targets.signatures import ModelInput
from surrogates.targets.tflite_files import last_operator, normalization

INTEGERS = ("int8", "uint8", "int16", "int32", "int64")
# What images are usually scaled to; a file's own range is one of them where it comes as close as this.
USUAL_RANGES, CLOSE = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)), 0.02
# A damaged file can end the process that runs it, so a child runs it first.
TRIAL_SECONDS = 60
TRIAL = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(model_content=sys.stdin.buffer.read(), num_threads=1)
given = [int(side) for side in sys.argv[1:]]
for tensor in model.get_input_details():
    sides = [int(side) for side in tensor["shape"]]
    free = [int(side) < 0 for side in tensor["shape_signature"]] or [False] * len(sides)
    if any(free[1:]) and len(given) != len(sides):
        sys.exit(0)  # of any size, and the caller does not say which
    if any(free[1:]):
        sides = [wanted if any_side else side for side, wanted, any_side in zip(sides, given, free)]
        model.resize_tensor_input(tensor["index"], sides)
model.allocate_tensors()
for tensor in model.get_input_details():
    model.set_tensor(tensor["index"], numpy.zeros(tensor["shape"], tensor["dtype"]))
model.invoke()
for tensor in model.get_output_details():
    model.get_tensor(tensor["index"])
"""


def open_tflite(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open a TFLite file in this process.

    Raises:
        TargetError: It cannot be loaded, or does not fit what was declared.
    """
    check_options(options, ["threads"], "a TFLite model")
    return TfliteTarget(uri, declared, **options)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model: which numbers stand for which.

    Args:
        index: Its place in the graph.
        name: As the file has it.
        dtype: Its number type, by numpy's name.
        shape: Its sides, -1 for one that is free.
        scale: What one step of its integers is worth; None where the file does not say.
        zero: The integer that stands for 0.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    zero: int

    @staticmethod
    def of(details: dict[str, Any], what: str) -> "Tensor":
        """Read what the interpreter reports.

        Raises:
            TargetError: It has a scale for each channel.
        """
        scales, zeros = (details["quantization_parameters"][name] for name in ("scales", "zero_points"))
        if len(scales) > 1:
            raise TargetError(
                f"{what} has {len(scales)} scales in {details['name']}, expected 1: convert it again"
            )
        sides = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
        return Tensor(
            details["index"],
            details["name"],
            np.dtype(details["dtype"]).name,
            tuple(int(side) for side in sides),
            float(scales[0]) if len(scales) and scales[0] > 0 else None,
            int(zeros[0]) if len(zeros) else 0,
        )

    @property
    def whole(self) -> bool:
        """Whether it holds integers."""
        return self.dtype in INTEGERS

    @property
    def range(self) -> tuple[float, float]:
        """The numbers that its lowest and highest integer stand for."""
        kind = np.iinfo(self.dtype)
        scale = 1.0 if self.scale is None else self.scale
        return (kind.min - self.zero) * scale, (kind.max - self.zero) * scale

    def real(self, values: np.ndarray) -> np.ndarray:
        """Return what this tensor's values stand for."""
        if not self.whole or self.scale is None:
            return values
        return (values.astype(np.float32) - self.zero) * np.float32(self.scale)


class TfliteTarget(Target):
    """A TFLite model with one input; shape, number types and their scales, and the kind of output are read from the file.

    Integers are what the file says they stand for: pixels become the model's own numbers, then its integers, and integers
    that it answers become scores. Images go in one by one, which is as fast as any batch and gives the same answers
    whatever the batch. identity is the sha256 of the file. It dies with this process, so that a lost answer costs
    nothing.

    Args:
        threads: Threads of one query; 1 where unset.

    Raises:
        ClassesUnknown: num_classes was not declared, and the model answers labels.
        TargetError: The file cannot be used, or contradicts what was declared.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        declared: Declared,
        threads: int | None = None,
    ) -> None:
        what = f"model {path}"
        if threads is not None and (type(threads) is not int or threads < 1):
            raise TargetError(f"threads must be a whole number of at least 1, got {threads!r}")
        self._content = _content(Path(path))
        self._threads = threads or 1
        self._own = threading.local()
        _try_out(self._content, path, declared)
        model = self._interpreter()
        self._input = _only_input(model, what)
        self._output = _chosen_output(model, what, declared.output)
        taken, declared = _taken(self._input, _normalized(self._content, declared), what)
        self._taken = taken = taken.placed(declared)
        classes, kind = self._answered(declared, what)
        declared = declared.agreed(num_classes=classes, output_kind=None if declared.output_kind else kind)
        super().__init__(
            declared.identity or f"tflite:{hashlib.sha256(self._content).hexdigest()}",
            declared.classes_of(what),
            declared.kind("logits"),
            charged_when_sent=False,
            input_shape=declared.input_shape,
            num_features=taken.num_features,
            batch_size=declared.batch_size,
            pixels=declared.pixels,
            reading=Reading(declared.names),
        )

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        return self._outputs(pixels)

    def _outputs(self, pixels: np.ndarray) -> np.ndarray:
        """Return labels (N,) or scores (N, K)."""
        model, count = self._interpreter(), self._taken.batch or 1
        rows = []
        for start in range(0, len(pixels), count):
            block = self._taken.arranged(pixels[start : start + count])
            if self._own.sides != block.shape:
                model.resize_tensor_input(self._input.index, block.shape, strict=True)
                model.allocate_tensors()
                self._own.sides = block.shape
            model.set_tensor(self._input.index, block)
            model.invoke()
            answer = model.get_tensor(self._output.index)
            if answer.size == 0 or answer.size % count:
                raise TargetError(
                    f"the model answered shape {answer.shape} to {count} images of {block.shape}"
                )
            rows.append(answer.reshape(count, -1))
        answers = self._output.real(np.concatenate(rows)[: len(pixels)])
        return answers[:, 0] if self._output.whole and answers.shape[1] == 1 else answers

    def _answered(self, declared: Declared, what: str) -> tuple[int | None, str | None]:
        """Return the number of classes and the kind of output, from its answer to a black image and the graph."""
        try:
            operator = last_operator(self._content, self._output.index)
        except ValueError:
            operator = None
        if operator in ("ARG_MAX", "ARG_MIN"):
            return None, "labels"
        try:
            columns = self._outputs(_black(self._taken, declared))
        except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
            reason = shortened((str(error).splitlines() or [type(error).__name__])[0], 200)
            raise TargetError(f"cannot run {what} on a black image ({reason}): check the file") from error
        width = columns.shape[1] if columns.ndim == 2 else 1
        kind = None if operator is None else kind_of_op(operator, width)
        return (width if width > 1 else 2 if kind == "probabilities" else None), kind

    def _interpreter(self) -> Any:
        """Return this thread's own interpreter: none is safe to share, or of use in a forked child."""
        own = self._own
        if getattr(own, "process", None) != os.getpid():
            # What a child inherits is kept: ending it would wait for threads that are the parent's.
            own.inherited = getattr(own, "model", None)
            own.model, own.process = _loaded(self._content, self._threads), os.getpid()
            own.sides = None
        return own.model


def _black(taken: ModelInput, declared: Declared) -> np.ndarray:
    """Return a black image as the model takes it."""
    if min(taken.sides, default=-1) > 0:
        return np.zeros((1, *taken.sides), taken.dtype)
    if declared.input_shape is None:
        raise TargetError(
            f"{taken.what} takes images of any size: give input_shape=(channels, height, width)"
        )
    return declared.pixels.encode(np.zeros((1, *declared.input_shape), np.float32))


def _normalized(content: bytes, declared: Declared) -> Declared:
    """Return what was declared with the normalization in the file's metadata, where the caller says nothing of it."""
    found = normalization(content)
    if found is None or not (declared.pixel_range is declared.mean is declared.std is None):
        return declared
    mean, std = found  # of pixels from 0 to 255
    if len(mean) == len(std) == 1:
        return replace(declared, pixel_range=(-mean[0] / std[0], (255 - mean[0]) / std[0]))
    return replace(declared, mean=tuple(each / 255 for each in mean), std=tuple(each / 255 for each in std))


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise TargetError(f"cannot read the TFLite model {path} (it is no regular file): check the path")
        return path.read_bytes()
    except OSError as error:
        raise TargetError(
            f"cannot read the TFLite model {path} ({error.strerror}): check the path"
        ) from error


def _try_out(content: bytes, path: str | os.PathLike[str], declared: Declared) -> None:
    """Run a file in a child process on a black image, where its size is known.

    Raises:
        TargetError: It cannot be run.
    """
    channels, *sides = declared.model_shape or (0,)
    shape = (1, channels, *sides) if declared.layout == "chw" else (1, *sides, channels)
    command = [sys.executable, "-P", "-c", TRIAL, *map(str, shape)]
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=TRIAL_SECONDS)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [""]
        if done.returncode == 0:
            return
        if "No module named 'ai_edge_litert'" in said[-1]:
            raise TargetError(f"{path} needs ai-edge-litert: pip install 'certdef[tflite]'")
        reason = said[-1] if done.returncode > 0 else f"signal {-done.returncode} ended its first run"
    except subprocess.TimeoutExpired:
        reason = f"its first run takes more than {TRIAL_SECONDS} s"
    raise TargetError(f"cannot load the TFLite model {path} ({shortened(reason, 200)}): check the file")


def _loaded(content: bytes, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content, num_threads=threads)


def _only_input(model: Any, what: str) -> Tensor:
    inputs = model.get_input_details()
    if len(inputs) != 1:
        raise TargetError(f"{what} takes {len(inputs)} inputs, expected 1: open a function that calls it")
    return Tensor.of(inputs[0], what)


def _chosen_output(model: Any, what: str, wanted: str | int | None) -> Tensor:
    """Return the output to read: the named one, the only one, or the one with a known name."""
    outputs = [Tensor.of(details, what) for details in model.get_output_details()]
    names = [tensor.name for tensor in outputs]
    if wanted is not None:
        places = [place for place, name in enumerate(names) if str(wanted) in (name, str(place))]
        if not places:
            raise TargetError(
                f"output is {wanted!r}, but {what} gives {', '.join(names)}: choose one of them"
            )
        return outputs[places[0]]
    if len(outputs) == 1:
        return outputs[0]
    for known in SCORE_NAMES:
        if known in names:
            return outputs[names.index(known)]
    raise TargetError(f"{what} gives outputs {', '.join(names)}: give output='one of them', or its position")


def _taken(tensor: Tensor, declared: Declared, what: str) -> tuple[ModelInput, Declared]:
    """Return what the model takes, and what was declared with its layout, shape and range.

    Raises:
        TargetError: A contradiction, or integers that may stand for anything.
    """
    taken = ModelInput(what, tensor.dtype, tensor.shape, tensor.scale, tensor.zero)
    honored = taken.honored(declared)
    free = declared.pixel_range is None and declared.mean is None and declared.std is None
    if free and tensor.dtype in EIGHT_BITS and tensor.scale is not None:
        low, high = tensor.range
        if not any(
            np.allclose((low, high), ends, rtol=0, atol=CLOSE * (ends[1] - ends[0])) for ends in USUAL_RANGES
        ):
            raise TargetError(
                f"{what} takes {tensor.dtype} that stand for {low:g} to {high:g}: give pixel_range, what 0 and 1 become, "
                "or mean and std"
            )
    return taken, honored
