"""The black box: images in, labels and perhaps scores out."""

from abc import ABC, abstractmethod
from math import prod
from typing import Any

import numpy as np
import torch

from surrogates.errors import SurrogateError, TargetError
from surrogates.targets.answers import Answers, parsed
from surrogates.targets.formats import PixelFormat, check_input_shape
from surrogates.targets.kinds import OutputKind
from surrogates.targets.reading import Reading
from surrogates.targets.records import Expected, unpack


class Target(ABC):
    """A classifier that can only be queried; a subclass implements `answer`.

    Args:
        identity: Name of the target for ever; a ledger belongs to one identity.
        num_classes: Number of classes, at least 2.
        output_kind: What it answers with: "labels", "top_k" (probabilities of the best classes), "probabilities" or
            "logits"; or an OutputKind that the first answer tells.
        charged_when_sent: Whether a query whose answer was lost may have been charged all the same.
        input_shape: (C, H, W), None when unknown.
        num_features: Values an image, None when unknown.
        batch_size: Splits large queries.
        pixels: In what form images go in.
        reading: Which part of its output is the answer, and the names of its classes.

    Raises:
        TargetError: A value out of its range.
    """

    def __init__(
        self,
        identity: str,
        num_classes: int,
        output_kind: str | OutputKind,
        *,
        charged_when_sent: bool,
        input_shape: tuple[int, int, int] | None = None,
        num_features: int | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
        reading: Reading | None = None,
    ) -> None:
        if not isinstance(num_classes, int | np.integer) or isinstance(num_classes, bool) or num_classes < 2:
            raise TargetError(f"num_classes must be an integer of at least 2, got {num_classes!r}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise TargetError(f"batch_size must be a positive integer, got {batch_size!r}")
        if input_shape is not None:
            check_input_shape(input_shape)
        self.identity = str(identity)
        self.num_classes = int(num_classes)
        self.kind = output_kind if isinstance(output_kind, OutputKind) else OutputKind(output_kind)
        self.charged_when_sent = charged_when_sent
        self.input_shape = (
            input_shape if input_shape is None else (input_shape[0], input_shape[1], input_shape[2])
        )
        self.num_features = num_features
        self.batch_size = batch_size
        self.pixels = pixels or PixelFormat()
        self.reading = reading or Reading()
        self._column_order: list[
            tuple[Any, ...] | None
        ] = []  # as answers had it, where that is the classes' order
        if self.input_shape is not None:
            self.check_shape(self.input_shape)

    @property
    def output_kind(self) -> str:
        """What it answers with; where `kind.is_assumed`, the first answer may still tell another kind."""
        return self.kind.name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, None where nobody gave them."""
        return self.reading.class_names

    @property
    def preprocessing(self) -> str:
        """What this target does to pixels before the model sees them; empty for nothing."""
        return self.pixels.name

    @property
    def subject(self) -> tuple[str, str, str]:
        """What an answer depends on besides the images: identity, output kind and preprocessing.

        It is final once the kind is: after the first answer, where that tells it.
        """
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
    def answer(self, pixels: np.ndarray) -> Any:
        """Answer images in the target's own pixel format, by default (N, C, H, W) float32.

        Returns:
            Labels (N,), scores (N, K), one score (N,) or (N, 1) for two classes, an output that holds one of these
            (`reading`), or Answers, which are taken as checked. For "top_k", scores have NaN for the
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
        return self.parse_values(self.unpacked(raw, count), count)

    def parse_values(self, values: object, count: int) -> Answers:
        """Return labels, scores or a pair of both, to `count` images, as Answers.

        Raises:
            TargetError: It names what was expected and what came.
        """
        return parsed(values, count, self.num_classes, self.kind)

    def unpacked(self, raw: object, count: int) -> Any:
        """Return the part of an output that is the answer, with labels as indices.

        Raises:
            TargetError: None of its parts is, or several can be.
        """
        kind = self.kind.name if self.kind.is_declared else None
        expected = Expected(count, self.num_classes, kind, self.reading.output, self._column_order)
        return unpack(raw, self.reading.names, expected)


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
