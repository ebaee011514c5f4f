"""An old version's answers on the seeded draws of the vote engine: recorded once, or asked again where they were not kept.

Records keep counts. Who certifies the next version from this one needs the answer to each draw. The engine's draws
follow from seed, image index and chunk size, so they need not be stored: the same call draws them again, and the old
version's answers come from the model itself, or from a ledger that kept what was paid for.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from certify.errors import CertifyError, check_count
from certify.noise.base import NoiseLaw
from certify.noise.description import same_draws
from certify.records.table import Records
from certify.voting.base_classifier import eval_mode, input_dtype
from certify.voting.checks import check_images, check_indices, check_labels, resolve_device
from certify.voting.chunks import ESTIMATION, Chunk, chunks
from certify.voting.engine import BATCH_BYTES
from certify.voting.tally import hard_labels

FIXED = ("fixed", "two_sided")  # methods whose number of draws no answer decides


@dataclass(frozen=True)
class OldAnswers:
    """Answers of an old version on N draws of each of M images.

    Attributes:
        labels: (M, N), class of each draw.
        num_classes: K.
        indices: Names of the images, which seed their draws.
        noise: ``describe()`` of the law.
        seed, chunk_size, device: Which draws: as in ``VoteEngine``; the kind of device, whose generators differ.
    """

    labels: NDArray[np.integer[Any]]
    num_classes: int
    indices: tuple[int, ...]
    noise: dict[str, Any]
    seed: int = 0
    chunk_size: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 2 or 0 in labels.shape:
            raise CertifyError(
                f"labels must be (images, draws), got shape {labels.shape}: see record_answers"
            )
        check_labels(labels.ravel(), labels.size, check_count("num_classes", self.num_classes, 2))
        object.__setattr__(self, "labels", labels.astype(np.min_scalar_type(self.num_classes - 1)))
        object.__setattr__(self, "indices", tuple(check_indices(self.indices, len(labels))))
        check_count("seed", self.seed, 0)
        check_count("chunk_size", self.chunk_size)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Votes (M, K): those of the old version's certificate."""
        return np.stack([np.bincount(row, minlength=self.num_classes) for row in self.labels])

    def chunks(self, position: int) -> list[Chunk]:
        """Which generator draws what, of the image at ``position``."""
        where = {"stage": ESTIMATION, "seed": self.seed, "chunk_size": self.chunk_size}
        return list(chunks([self.indices[position]], 0, self.labels.shape[1], **where))

    def save(self, path: str | Path) -> None:
        """Write everything to an .npz file."""
        about = {
            name: getattr(self, name) for name in ("num_classes", "noise", "seed", "chunk_size", "device")
        }
        with open(path, "wb") as file:
            np.savez_compressed(
                file, labels=self.labels, indices=np.array(self.indices), about=json.dumps(about)
            )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote, or raise CertifyError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                return cls(labels=file["labels"], indices=tuple(file["indices"].tolist()), **about)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CertifyError(
                f"{path} holds no answers of an old version ({error}): see record_answers"
            ) from None


class Redrawn:
    """Draws of old answers, drawn again; the chunks of late use are kept.

    Args:
        answers: Which draws.
        noise: Their law.
    """

    def __init__(self, answers: OldAnswers, noise: NoiseLaw) -> None:
        self._answers, self._noise = answers, noise
        self._kept: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    def __call__(self, position: int, which: NDArray[np.int64], image: torch.Tensor) -> torch.Tensor:
        """The noisy copies (B, C, H, W) of the image (C, H, W) at ``position``, at draws ``which`` (B,)."""
        noisy, size = image.new_empty((len(which), *image.shape)), self._answers.chunk_size
        parts = self._answers.chunks(position)
        for chunk in np.unique(which // size):
            rows = np.flatnonzero(which // size == chunk)
            drawn = self._chunk(position, parts[chunk], image)
            noisy[torch.as_tensor(rows)] = drawn[torch.as_tensor(which[rows] % size)]
        return noisy

    def _chunk(self, position: int, chunk: Chunk, image: torch.Tensor) -> torch.Tensor:
        key = (position, chunk.seed)
        if key not in self._kept:
            self._kept[key] = noisy_chunk(image, self._noise, chunk)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and len(self._kept) * self._kept[key].nbytes > BATCH_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


def record_answers(
    old: Callable[[torch.Tensor], Any],
    images: Any,
    noise: NoiseLaw,
    num_classes: int,
    *,
    n: int = 10_000,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    chunk_size: int = 256,
    device: torch.device | str | None = None,
    records: Records | None = None,
    progress: Any = None,
) -> OldAnswers:
    """Ask an old version on n draws of each image, those that ``SmoothedClassifier`` estimates with.

    Args:
        old: As ``base`` of ``SmoothedClassifier``. Each image costs n of its queries: nothing where it runs here, nor
            where a ledger kept the answers of its certificate and gives them back.
        images: (M, C, H, W) in [0, 1].
        noise: Added to the images.
        num_classes: K.
        n, seed, indices, chunk_size: Of the draws. n is a fixed number: one that follows the answers proves nothing.
        device: To draw on.
        records: Of the old version's certificates, with header (a ``.jsonl``): n, seed and chunk size are taken
            from it, and the answers must give its counts.
        progress: Anything with ``update(draws)``.

    Raises:
        CertifyError: Bad arguments, or records of another model, law or method.
    """
    images = check_images(images)
    names = check_indices(indices, len(images))
    if records is not None:
        n, seed, chunk_size = _recorded_draws(records, noise)
    check_count("n", n)
    where = resolve_device(old, device)
    kept = OldAnswers(
        np.zeros((len(images), n), dtype=np.int64),
        num_classes,
        tuple(names),
        noise.describe(),
        seed,
        chunk_size,
        where.type,
    )
    with torch.no_grad(), eval_mode(old):
        for position, image in enumerate(images.to(where)):
            row = [
                asked(old, noisy_chunk(image, noise, chunk), num_classes) for chunk in kept.chunks(position)
            ]
            kept.labels[position] = np.concatenate(row)
            if progress is not None:
                progress.update(n)
    if records is not None:
        _check_counts(kept, records)
    return kept


def noisy_chunk(image: torch.Tensor, noise: NoiseLaw, chunk: Chunk) -> torch.Tensor:
    """The noisy copies (size, C, H, W) of an image that the vote engine draws in this chunk."""
    generator = torch.Generator(image.device).manual_seed(chunk.seed)
    return noise.perturb(image.expand(chunk.size, *image.shape), generator)


def asked(
    classify: Callable[[torch.Tensor], Any], noisy: torch.Tensor, num_classes: int
) -> NDArray[np.int64]:
    """Labels (B,) of noisy images (B, C, H, W) by a classifier that gives scores or labels; errors as ``hard_labels``."""
    answers = hard_labels(classify(noisy.to(input_dtype(classify))), len(noisy), num_classes)
    return check_labels(answers.cpu().numpy(), len(noisy), num_classes)


def _recorded_draws(records: Records, noise: NoiseLaw) -> tuple[int, int, int]:
    """n, seed and chunk size of the records, or CertifyError where they do not tell which draws they are of."""
    config = records.config or {}
    if records.counts is None or not isinstance(config.get("seed"), int):
        raise CertifyError(
            "these records do not say which draws they are of: read the .jsonl, with n, seed and chunk_size"
        )
    if records.method not in FIXED:
        raise CertifyError(
            f"the number of votes of method {records.method!r} follows the answers: certify the old version by "
            "method='fixed', or record its answers without records="
        )
    if records.noise is not None and not same_draws(records.noise, noise):
        raise CertifyError(f"these records were drawn under {records.noise}, got {noise!r}: give that law")
    sizes = np.unique(records.counts.sum(axis=1))
    if len(sizes) != 1:
        raise CertifyError(
            f"these records have {sizes[0]} to {sizes[-1]} votes an image: give records of one n"
        )
    return int(sizes[0]), config["seed"], int(config.get("chunk_size", OldAnswers.chunk_size))


def _check_counts(kept: OldAnswers, records: Records) -> None:
    """Raise CertifyError unless the answers give the counts of the records."""
    assert records.counts is not None  # checked
    rows = {int(index): row for row, index in enumerate(records.idx)}
    for name, counts in zip(kept.indices, kept.counts, strict=True):
        if name not in rows:
            raise CertifyError(f"image {name} is not in these records: leave it out, or give others")
        told = records.counts[rows[name]]
        if not np.array_equal(counts, told):
            raise CertifyError(
                f"image {name} has votes {counts.tolist()}, but {told.tolist()} in the records: this is not the "
                "model that was certified, or not the same images, device or chunk_size"
            )
