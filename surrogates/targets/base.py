"""The black box: images in, labels and perhaps scores out."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from surrogates.errors import SurrogateError, TargetError
from surrogates.targets.formats import PixelFormat, check_input_shape
from surrogates.targets.records import numbers

OUTPUT_KINDS = ("labels", "top_k", "probabilities", "logits")

# Published probabilities are often rounded, so a value may pass 0 or 1 by this much ...
PROBABILITY_SLACK = 1e-3
# ... and a row's sum may miss 1 by as much as two decimals lose in each class, within these ends.
SUM_SLACK = (0.02, 0.5)
# Rows that sum to 1 as closely as this under "logits" are probabilities.
SUM_OF_PROBABILITIES = 1e-3


@dataclass(frozen=True, eq=False)
class Answers:
    """What a target answers to N images.

    Args:
        labels: (N,) int64.
        scores: (N, K) float32, or None where the target keeps its scores to itself; NaN for the classes that a target
            which answers its top k alone did not name.
        lost: Queries of attempts that got no answer, may have been charged all the same, and were repeated.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None
    lost: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def copy(self) -> "Answers":
        """Return answers that share no memory with these."""
        scores = None if self.scores is None else self.scores.copy()
        return replace(self, labels=self.labels.copy(), scores=scores)

    @staticmethod
    def concatenate(parts: "list[Answers]") -> "Answers":
        """Join answers in order; scores are kept when every part has them."""
        scores = [part.scores for part in parts if part.scores is not None]
        return Answers(
            np.concatenate([part.labels for part in parts]),
            np.concatenate(scores) if len(scores) == len(parts) else None,
            sum(part.lost for part in parts),
        )


class Target(ABC):
    """A classifier that can only be queried; a subclass implements `answer`.

    Args:
        identity: Name of the target for ever; a ledger belongs to one identity.
        num_classes: Number of classes, at least 2.
        output_kind: What it answers with: "labels", "top_k" (probabilities of the best classes), "probabilities" or
            "logits".
        charged_when_sent: Whether a query whose answer was lost may have been charged all the same.
        input_shape: (C, H, W), None when unknown.
        num_features: Values an image, None when unknown.
        batch_size: Splits large queries.
        pixels: In what form images go in.

    Raises:
        TargetError: A value out of its range.
    """

    def __init__(
        self,
        identity: str,
        num_classes: int,
        output_kind: str,
        *,
        charged_when_sent: bool,
        input_shape: tuple[int, int, int] | None = None,
        num_features: int | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        if not isinstance(num_classes, int | np.integer) or isinstance(num_classes, bool) or num_classes < 2:
            raise TargetError(f"num_classes must be an integer of at least 2, got {num_classes!r}")
        if output_kind not in OUTPUT_KINDS:
            raise TargetError(f"output_kind must be one of {', '.join(OUTPUT_KINDS)}, got {output_kind!r}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise TargetError(f"batch_size must be a positive integer, got {batch_size!r}")
        if input_shape is not None:
            check_input_shape(input_shape)
        self.identity = str(identity)
        self.num_classes = int(num_classes)
        self.output_kind = output_kind
        self.charged_when_sent = charged_when_sent
        self.input_shape = (
            input_shape if input_shape is None else (input_shape[0], input_shape[1], input_shape[2])
        )
        self.num_features = num_features
        self.batch_size = batch_size
        self.pixels = pixels or PixelFormat()
        if self.input_shape is not None:
            self.check_shape(self.input_shape)
        self.kind_is_assumed = False
        self._logits_seen = False

    @property
    def preprocessing(self) -> str:
        """What this target does to pixels before the model sees them; empty for nothing."""
        return self.pixels.name

    @property
    def subject(self) -> tuple[str, str, str]:
        """What an answer depends on besides the images: identity, output kind and preprocessing."""
        return self.identity, self.output_kind, self.preprocessing

    def query(self, images: torch.Tensor | np.ndarray, *, bounded: bool = True) -> Answers:
        """Return the answers to images, in memory of the caller's own.

        Args:
            images: (N, C, H, W), float32 or float64 in [0, 1].
            bounded: False drops the range check alone, for images under additive noise that is not clipped.

        Raises:
            TargetError: Bad images, before the target gets them; a bad answer or a failing target, after.
        """
        pixels = check_images(images, bounded=bounded, copy=False)  # what leaves is encoded into a copy
        self.check_shape(pixels.shape[1:])
        size = self.batch_size or len(pixels)
        chunks = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        return Answers.concatenate([self.checked_answer(chunk) for chunk in chunks]).copy()

    @abstractmethod
    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        """Answer images in the target's own pixel format, by default (N, C, H, W) float32.

        Returns:
            Labels (N,), scores (N, K), or Answers, which are taken as checked. For "top_k", scores have NaN for the
            classes that are not named, or come as a pair: labels (N, k) and scores (N, k).
        """

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Check the shape of an image.

        Raises:
            TargetError: The target takes others.
        """
        if self.input_shape is not None and shape != self.input_shape:
            raise TargetError(
                f"target {self.identity} takes images of shape {self.input_shape}, got {tuple(shape)}: "
                "resize them or open the target with another input_shape"
            )
        self.pixels.check(shape)
        values = prod(self.pixels.model_shape(shape))
        if self.num_features is not None and values != self.num_features:
            raise TargetError(
                f"target {self.identity} takes {self.num_features} values per image, "
                f"got {values} from shape {tuple(shape)}: resize the images, or open the target with resize or color"
            )

    def checked_answer(self, pixels: np.ndarray) -> Answers:
        """Answer one batch (N, C, H, W) and check the answer.

        Raises:
            TargetError: The target failed, or its answer makes no sense.
        """
        count = len(pixels)
        try:
            # The target gets its own array: one that writes into its input must not change ours.
            raw = self.answer(self.pixels.encode(pixels))
        except SurrogateError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            raise TargetError(
                f"target {self.identity} failed on a batch of {count}: {type(error).__name__}: {reason[0]}"
            ) from error
        return raw if isinstance(raw, Answers) else self.parse_answer(raw, count)

    def parse_answer(self, raw: object, count: int) -> Answers:
        """Return a raw answer to `count` images as Answers.

        Raises:
            TargetError: It names what was expected and what came.
        """
        values = self._numbers(raw)
        expected = (count,) if self.output_kind == "labels" else (count, self.num_classes)
        if values.shape == (count, 1):
            values = self._widened(values)
        if values.ndim != len(expected):
            kind = "labels" if values.ndim == 1 else "probabilities' or 'logits"
            raise TargetError(
                f"target answered shape {values.shape}, expected {expected}: "
                f"open it with output_kind='{kind}' if that is what it gives"
            )
        if len(values) != count:
            raise TargetError(f"target answered {len(values)} rows, expected {count}: one for each image")
        if values.shape != expected:
            raise TargetError(f"target answered {values.shape[1]} classes, expected {self.num_classes}")
        unnamed = np.isnan(values) if self.output_kind == "top_k" else np.zeros(values.shape, bool)
        bad = ~np.isfinite(values) & ~unnamed
        if bad.any():
            raise TargetError(f"target answered {values[bad][0]}, expected finite {self.output_kind}")
        if self.output_kind == "labels":
            return Answers(self._labels(values))
        if unnamed.all(axis=1).any():
            raise TargetError("target named no class for an image, expected at least 1")
        self._check_meaning(values)
        with np.errstate(over="ignore"):
            scores = values.astype(np.float32)
        if not (np.isfinite(scores) | unnamed).all():
            raise TargetError(f"target answered {np.nanmax(abs(values)):.4g}, too large for float32 scores")
        return Answers(np.nanargmax(scores, axis=1).astype(np.int64), scores)

    def _widened(self, values: np.ndarray) -> np.ndarray:
        """Return an answer of one column as labels, or as scores of two classes: that of class 1, and what it leaves to 0."""
        if self.output_kind == "labels":
            return values[:, 0]
        if self.num_classes != 2 or self.output_kind == "top_k":
            return values
        rest = 1 - values if self.output_kind == "probabilities" else np.zeros_like(values)
        return np.concatenate([rest, values], axis=1)

    def _check_meaning(self, values: np.ndarray) -> None:
        """Check that scores (N, K) can be of their kind.

        Raises:
            TargetError: They can't.
        """
        low, high, total = np.nanmin(values), np.nanmax(values), np.nansum(values, axis=1)
        if self.output_kind == "logits":
            self._check_logits(values, total)
            return
        if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
            raise TargetError(
                f"target answered {high if high > 1 else low:.4g}, expected probabilities in [0, 1]: "
                "open it with output_kind='logits'"
            )
        slack = float(np.clip(self.num_classes * 0.005, *SUM_SLACK))
        part = self.output_kind == "top_k"  # what it does not name is missing in the sum
        wrong = (total > 1 + slack) | ((total <= 0) if part else (total < 1 - slack))
        if wrong.any():
            raise TargetError(
                f"target answered a row that sums to {total[wrong][0]:.4g}, expected probabilities that sum to 1: "
                "open it with output_kind='logits' if these are scores of another kind"
            )

    def _check_logits(self, values: np.ndarray, total: np.ndarray) -> None:
        """Check once that logits (N, K) are no probabilities; zeros and ones alone do not tell.

        Raises:
            TargetError: They are, and nobody said that they are logits; else a warning.
        """
        if self._logits_seen or np.isin(values, (0, 1)).all():
            return
        self._logits_seen = True
        if values.min() < 0 or values.max() > 1 or (abs(total - 1) > SUM_OF_PROBABILITIES).any():
            return
        message = (
            "target answered rows in [0, 1] that sum to 1 as logits: open it with output_kind='probabilities'"
        )
        if self.kind_is_assumed:
            self._logits_seen = False
            raise TargetError(message)
        warnings.warn(f"{message} unless they are logits indeed", stacklevel=2)

    def _numbers(self, raw: object) -> np.ndarray:
        """Return a raw answer as float64; a pair of labels (N, k) and scores (N, k) as scores (N, K)."""
        if self.output_kind == "top_k" and isinstance(raw, tuple):
            labels, best = (self._array(part) for part in raw)
            if labels.ndim != 2 or labels.shape != best.shape:
                raise TargetError(
                    f"target answered labels {labels.shape} and scores {best.shape}, expected both (N, k)"
                )
            scores = np.full((len(labels), self.num_classes), np.nan)
            np.put_along_axis(scores, self._labels(labels), best, axis=1)
            return scores
        return self._array(raw)

    def _array(self, raw: object) -> np.ndarray:
        array = numbers(raw)
        if array.dtype.kind == "b" and (self.output_kind != "labels" or self.num_classes != 2):
            raise TargetError(f"target answered truth values, expected {self.output_kind} as numbers")
        return array.astype(np.float64)

    def _labels(self, values: np.ndarray) -> np.ndarray:
        wrong = (values != np.floor(values)) | (values < 0) | (values >= self.num_classes)
        if wrong.any():
            raise TargetError(
                f"target answered label {values[wrong][0]:g}, expected an integer in [0, {self.num_classes})"
            )
        return values.astype(np.int64)


def check_images(images: torch.Tensor | np.ndarray, *, bounded: bool = True, copy: bool = True) -> np.ndarray:
    """Return images (N, C, H, W) as a float32 array of its own.

    Args:
        bounded: Whether they must lie in [0, 1].
        copy: False shares the memory of images that are float32 and contiguous already.

    Raises:
        TargetError: It names what is wrong.
    """
    if not isinstance(images, torch.Tensor | np.ndarray):
        raise TargetError(f"images must be a torch tensor or a numpy array, got {type(images).__name__}")
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        remedy = (
            "divide 8-bit pixels by 255" if "int" in dtype or dtype == "bool" else "convert them to float32"
        )
        raise TargetError(f"images must be float32 in [0, 1], got {dtype}: {remedy}")
    if images.ndim != 4:
        raise TargetError(
            f"images must have shape (N, C, H, W), got {tuple(images.shape)}: add the missing dimension"
        )
    if 0 in images.shape:
        raise TargetError(f"images must not be empty, got shape {tuple(images.shape)}")
    source = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    with np.errstate(over="ignore"):
        pixels = np.array(source, dtype=np.float32, order="C", copy=copy or None)
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = low if not np.isfinite(low) else high
        raise TargetError(f"images must be finite, got {bad}: look for a division by zero before the target")
    if bounded and high > 1:
        raise TargetError(f"images must lie in [0, 1], got max {high}: divide 8-bit pixels by 255")
    if bounded and low < 0:
        raise TargetError(f"images must lie in [0, 1], got min {low}: undo the normalization first")
    return pixels
