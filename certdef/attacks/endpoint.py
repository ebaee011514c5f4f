"""A defended classifier as an outside attacker meets it: images in, labels and scores out, every query counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surrogates
from surrogates.distillation.inference import images_at_once

SMALLEST = 1e-12  # of a probability before its logarithm is taken


class Endpoint:
    """Purifier and classifier in one, reached by queries alone: (N, C, H, W) in [0, 1] to labels (N,), log-scores (N, K).

    `queries` counts what was queried. Scores are None where the target answers labels alone.

    Args:
        classifier: A module that returns logits, or an opened target, which pays if it is attached to a ledger.
        purifier: Purifies every query first, on our side; unset, none.
        repeats: Queries of an image. A purifier that draws noise answers differently each time: scores are averaged and
            labels go by majority, so that no single draw misleads the attacker.
        device: Where the purifier and a module run.
        batch_size: Images at once, at most; fewer of large ones.
        bounded: Whether images must lie in [0, 1]; a transformation may leave it.
    """

    def __init__(
        self,
        classifier: nn.Module | surrogates.Target,
        purifier: nn.Module | None = None,
        *,
        repeats: int = 1,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        bounded: bool = True,
    ):
        self.classifier, self.purifier, self.repeats = classifier, purifier, repeats
        self.device, self.batch_size, self.queries = torch.device(device), batch_size, 0
        self.bounded = bounded

    @property
    def scored(self) -> bool:
        """Whether queries are answered by scores too."""
        return isinstance(self.classifier, nn.Module) or self.classifier.output_kind != "labels"

    def query(self, images: Tensor, repeats: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Labels (N,) and log-scores (N, K), fresh tensors, of images that are queried `repeats` times each."""
        repeats = repeats or self.repeats
        copies = images.repeat_interleave(repeats, 0)
        answers = [
            self._query(batch) for batch in copies.split(images_at_once(images.shape[1:], self.batch_size))
        ]
        labels = torch.cat([label for label, _ in answers]).reshape(-1, repeats)  # (N, repeats)
        parts = [score for _, score in answers if score is not None]
        if not parts:
            return labels.mode(dim=1).values, None
        scores = torch.cat(parts).reshape(len(images), repeats, -1)  # (N, repeats, K)
        if repeats == 1:
            return labels[:, 0], scores[:, 0]
        mean = scores.exp().mean(dim=1).clamp_min(SMALLEST).log()
        return mean.argmax(1), mean

    @torch.no_grad()
    def _query(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.queries += len(images)
        images = images.to(self.device)
        if self.purifier is not None:
            images = self.purifier(images)
        if isinstance(self.classifier, nn.Module):
            scores = self.classifier(images).log_softmax(1).cpu()
            return scores.argmax(1), scores
        answers = self.classifier.query(images.cpu(), bounded=self.bounded)
        labels = torch.from_numpy(answers.labels.copy())
        if answers.scores is None:
            return labels, None
        scores = torch.from_numpy(answers.scores.copy())
        if self.classifier.output_kind == "logits":
            return labels, scores.log_softmax(1)
        unnamed = scores.isnan()  # top-k: the classes that were not named share the rest
        rest = (1 - scores.nansum(1, keepdim=True)).clamp_min(0) / unnamed.sum(1, keepdim=True).clamp_min(1)
        return labels, torch.where(unnamed, rest, scores).clamp_min(SMALLEST).log()
