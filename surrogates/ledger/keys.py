"""The key of a query: the hash of all that decides its answer, and of nothing else.

An image is a key of its own, however a query is split into calls and batches, and images that the target sees alike are
one image. For training, evaluation and preflight it is paid once. For purposes that need fresh answers its key also takes in the
experiment and how many equal images came before it: an experiment that is run again from its start finds its receipts,
and no other experiment does.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from surrogates.targets.base import Target

# These need fresh answers: nothing that was answered for another purpose or experiment reaches them.
FRESH_PURPOSES = ("certification", "attack", "canary")
KEPT_TOGETHER = ("training", "evaluation", "preflight")  # an answer for one of them serves the others


@dataclass(frozen=True)
class Keyed:
    """The keys of a query.

    Args:
        order: The key of each image.
        rows: The first image of each distinct key.
        former: Keys under which older versions, or former experiments, may have kept an answer to these images.
        repeats: How often each image, and each batch of an older version, occurs.
    """

    order: list[bytes]
    rows: dict[bytes, int]
    former: list[tuple[bytes, range]]
    repeats: Counter[bytes]


class Keys:
    """Gives each query of one target, purpose and experiment its keys.

    Args:
        target: The target that is paid.
        output_kind: What the answers are kept as.
        purpose: One of `bill.PURPOSES`.
        experiment: A fingerprint of what determines the queries; only where answers must be fresh.
        formerly: Experiments under which older versions kept the same receipts.
        older: Whether the ledger holds answers for this purpose already, perhaps under former keys.
        batch_sizes: Of the batches that version 0.1 kept under one key.
    """

    def __init__(
        self,
        target: Target,
        output_kind: str,
        purpose: str,
        experiment: str | None,
        formerly: Sequence[str] = (),
        *,
        older: bool = False,
        batch_sizes: Collection[int] = (),
    ) -> None:
        self._subject = (target.identity, output_kind, target.preprocessing)
        self._pixels = target.pixels
        self._batch_sizes = batch_sizes
        self._purpose = purpose
        self._experiment, self._formerly = experiment, tuple(formerly)
        self._older = older
        self._turns: Counter[bytes] = Counter()

    def of(self, pixels: np.ndarray, draws: np.ndarray | None = None) -> Keyed:
        """Return the keys of images (N, C, H, W).

        Args:
            draws: (N, ...) what the images were made of, and are known by in their place; only where answers must be
                fresh.
        """
        if self._purpose not in FRESH_PURPOSES:
            return self._of_images(pixels)
        return self._of_draws(pixels, self._pixels.canonical(pixels) if draws is None else draws)

    def count(self, keyed: Keyed) -> None:
        """Note that a query was answered: a failed one is repeated under its own keys."""
        self._turns.update(keyed.repeats)  # in place: += copies every turn so far

    def _of_images(self, pixels: np.ndarray) -> Keyed:
        canonical = self._pixels.canonical(pixels)
        order = self._digests(canonical, "image")
        former: list[tuple[bytes, range]] = []
        if self._older and not _same_bytes(canonical, pixels):
            exact = self._digests(pixels, "image")  # as version 0.1 took them
            former = [(key, _row(at)) for at, key in enumerate(exact) if key != order[at]]
        return Keyed(order, _first(order), former, Counter())

    def _of_draws(self, pixels: np.ndarray, draws: np.ndarray) -> Keyed:
        repeats: Counter[bytes] = Counter()
        digests = self._digests(draws, "draw", self._purpose, self._experiment)
        turns = [self._turn(digest, repeats) for digest in digests]
        order = [_numbered(*each) for each in zip(digests, turns, strict=True)]
        former: list[tuple[bytes, range]] = []
        if self._older:
            for size in self._batch_sizes:
                former += self._batches(pixels, size, repeats)
            for experiment in self._formerly:
                others = self._digests(draws, "draw", self._purpose, experiment)
                former += [(_numbered(key, turns[at]), _row(at)) for at, key in enumerate(others)]
        return Keyed(order, _first(order), former, repeats)

    def _batches(self, pixels: np.ndarray, size: int, repeats: Counter[bytes]) -> list[tuple[bytes, range]]:
        """Return the keys of version 0.1, where a batch had one: frozen, as ledgers hold them."""
        former = []
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            digests = []
            for experiment in (self._experiment, *self._formerly):
                key = self._begun("batch", (batch.dtype.str, batch.shape), self._purpose, experiment)
                key.update(batch.data)
                digests.append(key.digest())
            turn = self._turn(digests[0], repeats)
            rows = range(start, start + len(batch))
            former += [(_numbered(digest, turn), rows) for digest in digests]
        return former

    def _turn(self, digest: bytes, repeats: Counter[bytes]) -> int:
        """Return how many equal ones came before, and count this one."""
        turn = self._turns[digest] + repeats[digest]
        repeats[digest] += 1
        return turn

    def _digests(self, images: np.ndarray, name: str, *parts: object) -> list[bytes]:
        start = self._begun(name, (images.dtype.str, images.shape[1:]), *parts)
        digests = []
        for image in images:
            key = start.copy()
            key.update(image.data)
            digests.append(key.digest())
        return digests

    def _begun(self, *parts: object) -> "hashlib._Hash":
        """Return sha256 begun with everything but the pixels that determines an answer."""
        return hashlib.sha256(hashlib.sha256(repr((self._subject, parts)).encode()).digest())


def _same_bytes(images: np.ndarray, others: np.ndarray) -> bool:
    same_type = images.dtype == others.dtype == np.float32
    return same_type and np.array_equal(images.view(np.uint32), others.view(np.uint32))


def _numbered(digest: bytes, turn: int) -> bytes:
    return hashlib.sha256(digest + turn.to_bytes(8)).digest()


def _first(order: list[bytes]) -> dict[bytes, int]:
    """Return the first row of each key."""
    rows: dict[bytes, int] = {}
    for row, key in enumerate(order):
        rows.setdefault(key, row)
    return rows


def _row(row: int) -> range:
    return range(row, row + 1)
