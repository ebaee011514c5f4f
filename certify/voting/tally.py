"""From a classifier's answers to counts of votes."""

from collections.abc import Mapping
from typing import Any

import torch

from certify.certificate import Counts
from certify.errors import CertifyError
from certify.voting.checks import check_range

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
    answers = as_tensor(answers)
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


def as_tensor(answers: Any) -> torch.Tensor:
    """A classifier's answers as a tensor: of an output with ``logits``, an attribute or a key, these.

    Raises:
        CertifyError: They are neither numbers nor such an output.
    """
    keys = list(answers) if isinstance(answers, Mapping) else []
    logits = answers["logits"] if "logits" in keys else getattr(answers, "logits", answers)
    try:
        return torch.as_tensor(logits)
    except (TypeError, ValueError, RuntimeError):
        kind = type(answers).__name__ + (f" with {', '.join(map(str, keys))}" if keys else "")
        raise CertifyError(
            f"the classifier returned a {kind}, expected an array of scores or labels: pick that part of its output"
        ) from None
