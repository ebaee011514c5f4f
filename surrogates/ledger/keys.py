"""The key of a query: the hash of all that decides its answer.

For training and evaluation an image is a key, so that it is paid once. For purposes that need fresh answers a batch is
a key, together with its experiment and how many equal batches came before it: an experiment that is run again from its
start finds its receipts, and no other experiment does.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surrogates.targets.base import Target

# These need fresh answers: nothing that was answered for another purpose or experiment reaches them.
FRESH_PURPOSES = ("certification", "attack", "canary")


@dataclass(frozen=True)
class Keyed:
    """The keys of a query.

    Args:
        order: The key of each answer, in the order of the images.
        rows: The images of each distinct key.
        former: The keys under which older versions may have kept the same answers, for each key.
        repeats: How many batches of equal bytes there are.
    """

    order: list[bytes]
    rows: dict[bytes, range]
    former: dict[bytes, list[bytes]]
    repeats: Counter[bytes]


class Keys:
    """Gives each query of one target, purpose and experiment its keys.

    Args:
        target: The target that is paid.
        output_kind: What the answers are kept as.
        purpose: One of `bill.PURPOSES`.
        experiment: A fingerprint of what determines the queries; only where answers must be fresh.
        formerly: Experiments under which older versions kept the same receipts.
    """

    def __init__(
        self,
        target: Target,
        output_kind: str,
        purpose: str,
        experiment: str | None,
        formerly: Sequence[str] = (),
    ) -> None:
        self._subject = (target.identity, output_kind, target.preprocessing)
        self._batch_size = target.batch_size
        self._purpose = purpose
        self._experiments = (experiment, *formerly)
        self._turns: Counter[bytes] = Counter()

    def of(self, pixels: np.ndarray) -> Keyed:
        """Return the keys of images (N, C, H, W)."""
        return self._of_batches(pixels) if self._purpose in FRESH_PURPOSES else self._of_images(pixels)

    def count(self, keyed: Keyed) -> None:
        """Note that a query was answered: a failed one is repeated under its own keys."""
        self._turns += keyed.repeats

    def _of_images(self, pixels: np.ndarray) -> Keyed:
        start = self._begun("image", pixels[0])
        order: list[bytes] = []
        for image in pixels:
            key = start.copy()
            key.update(image.data)
            order.append(key.digest())
        rows: dict[bytes, range] = {}
        for row, image_key in enumerate(order):
            rows.setdefault(image_key, range(row, row + 1))
        return Keyed(order, rows, {}, Counter())

    def _of_batches(self, pixels: np.ndarray) -> Keyed:
        rows: dict[bytes, range] = {}
        former: dict[bytes, list[bytes]] = {}
        repeats: Counter[bytes] = Counter()
        size = self._batch_size or len(pixels)
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            digests = [self._of_batch(batch, experiment) for experiment in self._experiments]
            turn = self._turns[digests[0]] + repeats[digests[0]]
            repeats[digests[0]] += 1
            key, *others = (hashlib.sha256(digest + turn.to_bytes(8)).digest() for digest in digests)
            rows[key] = range(start, start + len(batch))
            former[key] = others
        return Keyed(list(rows), rows, former, repeats)

    def _of_batch(self, batch: np.ndarray, experiment: str | None) -> bytes:
        key = self._begun("batch", batch, self._purpose, experiment)
        key.update(batch.data)
        return key.digest()

    def _begun(self, *parts: object) -> "hashlib._Hash":
        """Return sha256 begun with everything but the pixels that determines an answer."""
        parts = tuple(
            (part.dtype.str, part.shape) if isinstance(part, np.ndarray) else part for part in parts
        )
        return hashlib.sha256(hashlib.sha256(repr((self._subject, parts)).encode()).digest())
