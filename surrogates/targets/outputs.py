"""Which part of a model's output is its answer, where it hands out several: a dictionary, a tuple, an object."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from surrogates.errors import TargetError

Parts = dict[Any, Any]  # by name or position
NUMPYS = (torch.float16, torch.float32, torch.float64)  # numpy has no other fractions


def parts_of(answer: Any, count: int | None = None) -> Parts | None:
    """Return the parts of an output by name or position, None where it is one array.

    Args:
        answer: What a model returned: a dictionary, a data class, a named tuple, an object with `logits`, a tuple, or a
            list of arrays.
        count: Number of images: a list of as many rows is one array.
    """
    if isinstance(answer, Mapping):
        return dict(answer)
    if is_dataclass(answer) and not isinstance(answer, type):
        values = {each.name: getattr(answer, each.name) for each in fields(answer)}
        return {name: value for name, value in values.items() if value is not None}
    if hasattr(answer, "logits"):
        return {"logits": answer.logits}
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return dict(zip(answer._fields, answer, strict=True))
    if isinstance(answer, tuple) and any(np.ndim(plain(part)) for part in answer):
        return dict(enumerate(answer))
    arrays = isinstance(answer, list) and bool(answer) and all(_is_array(part) for part in answer)
    if arrays and not _are_rows(answer, count):
        return dict(enumerate(answer))
    return None


def named(parts: Parts, output: str | int) -> Any:
    """Return the part that the caller names, or counts from 0.

    Raises:
        TargetError: There is none.
    """
    if output in parts:
        return parts[output]
    place = int(output) if str(output).isdecimal() else None
    if place is not None and place < len(parts):
        return list(parts.values())[place]
    raise TargetError(f"output is {output!r}, but the model answers {_listed(parts)}: choose one of them")


def by_shape(parts: Parts, count: int, num_classes: int) -> Any:
    """Return the only part that can be the answer: scores (N, K), else labels or one score an image.

    A pair of labels and scores of the best classes, one of whole numbers, is returned as such.

    Raises:
        TargetError: Several can be, or none.
    """
    arrays = {name: plain(part) for name, part in parts.items() if _is_array(part) or isinstance(part, list)}
    if len(arrays) == len(parts) == 2 and (pair := _ranking(list(arrays.values()), count, num_classes)):
        return pair
    whole = [name for name, part in arrays.items() if _sides(part) == (count, num_classes)]
    slim = [name for name, part in arrays.items() if _sides(part) == (count,)]
    found = whole or slim
    if len(found) != 1:
        raise ambiguous(parts)
    return arrays[found[0]]


def ambiguous(parts: Parts) -> TargetError:
    """Return the error for an output of which any part may be meant."""
    if all(isinstance(name, int) for name in parts):
        return TargetError(
            f"target answered a tuple of {len(parts)}, expected numbers: open a function that returns one of them, or "
            f"give output, the place of one: {_listed(parts)}"
        )
    return TargetError(f"target answered {_listed(parts)}: give output, the name of one of them")


def plain(value: Any) -> Any:
    """Return a tensor as an array in main memory, and a list of tensors as one of arrays; anything else unchanged.

    Raises:
        TargetError: A tensor that is no array of real numbers.
    """
    if isinstance(value, list) and value and all(isinstance(row, torch.Tensor) for row in value):
        return [plain(row) for row in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_complex():
        raise TargetError(
            f"target answered {value.dtype}, expected real numbers: return their size or real part"
        )
    try:
        value = value.detach().cpu()
        value = value.dequantize() if value.is_quantized else value
        value = value if value.layout == torch.strided else value.to_dense()
        return (value if value.dtype in NUMPYS or not value.is_floating_point() else value.float()).numpy()
    except (TypeError, RuntimeError) as error:
        raise TargetError(
            f"target answered a tensor that is no array ({type(error).__name__}): return a dense one"
        ) from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0


def _are_rows(answer: list[Any], count: int | None) -> bool:
    """Whether a list of arrays is one row an image: (K,), or (1, K) as a model of single images gives."""
    shapes = {tuple(part.shape) for part in answer}
    if len(shapes) > 1 or count not in (None, len(answer)):
        return False
    (shape,) = shapes
    return len(shape) == 1 or (len(shape) == 2 and shape[0] == 1 and len(answer) > 1)


def _sides(part: Any) -> tuple[int, ...] | None:
    """Return the shape without sides of 1 behind the first; None of what has no shape or holds no numbers."""
    try:
        array = np.asarray(part)
    except ValueError:  # rows of different lengths
        return None
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        return None
    return (array.shape[0], *(side for side in array.shape[1:] if side != 1))


def _ranking(parts: list[Any], count: int, num_classes: int) -> tuple[Any, Any] | None:
    """Return labels (N, k) and scores (N, k) of the best classes, in whatever order they come; None where they are none."""
    arrays = [np.asarray(part) for part in parts if _sides(part) is not None]
    if len(arrays) != 2 or arrays[0].shape != arrays[1].shape or arrays[0].ndim != 2:
        return None
    kinds = [array.dtype.kind for array in arrays]
    if sorted(kind in "iu" for kind in kinds) != [False, True] or len(arrays[0]) != count:
        return None
    labels, scores = arrays if kinds[0] in "iu" else arrays[::-1]
    distinct = all(len(set(row)) == len(row) for row in labels.tolist())
    good = distinct and labels.min(initial=0) >= 0 and labels.max(initial=0) < num_classes
    return (labels, scores) if good else None


def _listed(parts: Parts) -> str:
    """Return the parts as an error lists them: name, number type and shape."""
    texts = []
    for name, part in list(parts.items())[:8]:
        about = type(part).__name__
        if _is_array(part):
            about = f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
        texts.append(f"{name} ({about})")
    return ", ".join(texts) + (" ..." if len(parts) > len(texts) else "")
