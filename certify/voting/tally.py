"""From a classifier's answers to counts of votes."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from certify.certificate import Counts
from certify.errors import CertifyError
from certify.voting.checks import check_range

NAMES = (
    "logits",
    "scores",
    "probabilities",
    "probs",
    "labels",
)  # of the part of an output that is the answer
NO_TOP = -(2**63)  # stands for the label of a row of scores that name no class


class Tally:
    """Votes (N, K) of N images, counted on their device without waiting for it."""

    def __init__(self, images: int, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device
        self._counts = torch.zeros(images * num_classes, dtype=torch.int64, device=device)
        self._extremes = torch.tensor([0, 0], device=device)  # smallest and largest label so far

    def add(self, answers: Any, owner: torch.Tensor) -> None:
        """Count answers (B, K) scores or (B,) labels to noisy images of the images at ``owner`` (B,).

        Raises:
            CertifyError: They are neither, or (on a CPU: elsewhere ``counts`` raises) a label is no class.
        """
        labels = hard_labels(answers, len(owner), self.num_classes).to(self.device)
        low, high = self._extremes
        self._extremes = torch.stack([torch.minimum(low, labels.min()), torch.maximum(high, labels.max())])
        if self.device.type == "cpu":  # elsewhere once at the end: this would wait for every batch
            self._check()
        slot = owner * self.num_classes + labels.clamp(0, self.num_classes - 1)
        self._counts.index_add_(0, slot, torch.ones_like(slot))  # bincount would wait for the device

    def counts(self) -> Counts:
        """Votes (N, K).

        Raises:
            CertifyError: A label was no class.
        """
        self._check()
        return self._counts.reshape(-1, self.num_classes).cpu().numpy()

    def _check(self) -> None:
        low, high = self._extremes.tolist()
        if low == NO_TOP:
            raise CertifyError(
                "the classifier returned NaN scores, or infinite ones for several classes (-inf for all): they name "
                "no class, check the model and its dtype"
            )
        check_range(low, high, self.num_classes)


def hard_labels(answers: Any, count: int, num_classes: int) -> torch.Tensor:
    """Hard labels (count,) from scores or labels; NO_TOP for a row with a NaN or an infinite top score that is tied.

    Raises:
        CertifyError: ``answers`` is no array, has another shape, or labels that are no integers.
    """
    answers = as_tensor(answers, count, num_classes)
    if answers.shape == (count, num_classes):
        top, labels = answers.max(1)
        if not answers.is_floating_point():
            return labels
        tied = top.isinf() & ((answers == top[:, None]).sum(1) > 1)
        return torch.where(tied | answers.isnan().any(1), torch.full_like(labels, NO_TOP), labels)
    if answers.shape != (count,):
        got, either = tuple(answers.shape), f"({count}, {num_classes}) scores or ({count},) labels"
        raise CertifyError(
            f"the classifier must return {either}, got shape {got}: check num_classes={num_classes}"
        )
    if answers.is_floating_point() or answers.is_complex() or answers.dtype == torch.bool:
        raise CertifyError(
            f"labels must be integers, got {answers.dtype}: cast them, or return scores of 2 axes"
        )
    return answers.to(torch.int64)


def as_tensor(answers: Any, count: int | None = None, num_classes: int | None = None) -> torch.Tensor:
    """A classifier's answers as a tensor: of an output with several parts the one that is meant.

    That is a part named ``logits`` or as in ``NAMES``, an attribute or a key, else the only one with the shape of scores.

    Args:
        answers: An array, a dictionary, a data class, a named tuple, a tuple or a list of arrays.
        count: Images that were asked about; a list of as many rows is one array.
        num_classes: Columns of scores.

    Raises:
        CertifyError: They are neither numbers nor such an output, or several parts may be meant.
    """
    parts = _parts(answers, count)
    chosen = answers
    if parts is not None:
        name = next((each for each in NAMES if each in parts), None)
        chosen = parts[name] if name is not None else _only(parts, (count, num_classes), answers)
    try:
        return _stacked(chosen)
    except (TypeError, ValueError, RuntimeError):
        raise _no_array(answers, parts) from None


def _parts(answers: Any, count: int | None) -> dict[Any, Any] | None:
    """The parts of an output by name or place; None of what is one array."""
    if isinstance(answers, Mapping):
        return dict(answers)
    if is_dataclass(answers) and not isinstance(answers, type):
        return {each.name: getattr(answers, each.name) for each in fields(answers)}
    if hasattr(answers, "logits"):
        return {"logits": answers.logits}
    if isinstance(answers, tuple) and hasattr(answers, "_fields"):
        return dict(zip(answers._fields, answers, strict=True))
    if not isinstance(answers, tuple | list):
        return None
    shaped = [bool(_shape(part)) for part in answers]
    # A tuple may have a loss, a dictionary or nothing beside its scores.
    if not (any(shaped) if isinstance(answers, tuple) else shaped and all(shaped)):
        return None
    rows = (
        isinstance(answers, list)
        and len(answers) == count
        and all(len(_shape(part)) == 1 for part in answers)
    )
    return None if rows else dict(enumerate(answers))


def _only(parts: dict[Any, Any], wanted: tuple[int | None, int | None], answers: Any) -> Any:
    """The only part with the shape of scores; where there is none, the only part."""
    fitting = [
        part
        for part in parts.values()
        if len(shape := _shape(part)) == 2
        and all(side in (None, own) for side, own in zip(wanted, shape, strict=True))
    ]
    found = fitting or list(parts.values())
    if len(found) != 1:
        raise _no_array(answers, parts)
    return found[0]


def _stacked(values: Any) -> torch.Tensor:
    """An array, or a list of rows, as a dense tensor of numbers that have an order."""
    if isinstance(values, list) and values and all(isinstance(row, torch.Tensor) for row in values):
        values = torch.stack(values)
    values = torch.as_tensor(values)
    if values.is_complex():
        raise TypeError("complex numbers have no order")
    if values.is_quantized:
        return values.dequantize()
    return values if values.layout == torch.strided else values.to_dense()


def _shape(part: Any) -> tuple[int, ...]:
    return tuple(part.shape) if hasattr(part, "shape") else ()


def _no_array(answers: Any, parts: dict[Any, Any] | None) -> CertifyError:
    named = [f"{name} {_shape(part) or type(part).__name__}" for name, part in (parts or {}).items()]
    kind = type(answers).__name__ + (f" with {', '.join(named[:8])}" if named else "")
    return CertifyError(
        f"the classifier returned a {kind}, expected an array of scores or labels: pick that part of its output"
    )
