"""From a classifier's answers to counts of votes."""

from typing import Any

import torch

from certify.certificate import Counts
from certify.errors import CertifyError
from certify.voting.checks import check_range

NAN_SCORE = -(2**63)  # stands for the label of a row of scores with a NaN


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
        if low == NAN_SCORE:
            raise CertifyError(
                "the classifier returned NaN scores: its votes mean nothing, check the model and its dtype"
            )
        check_range(low, high, self.num_classes)


def hard_labels(answers: Any, count: int, num_classes: int) -> torch.Tensor:
    """Hard labels (count,) from scores or labels; a row with a NaN gets NAN_SCORE.

    Raises:
        CertifyError: ``answers`` has another shape, or labels that are no integers.
    """
    answers = torch.as_tensor(answers)
    if answers.shape == (count, num_classes):
        labels = answers.argmax(1)
        if not answers.is_floating_point():
            return labels
        return torch.where(answers.isnan().any(1), torch.full_like(labels, NAN_SCORE), labels)
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
