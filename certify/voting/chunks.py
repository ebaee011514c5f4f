"""Which draws an image gets: seeded chunks of noise, and batches of them.

Seeds. The noise of an image is drawn in chunks of ``chunk_size`` draws, each from its own generator. torch's
CPU generator keeps 32 bits of its seed, so the chunks of an image are numbered inside 32 bits:

    (hash32(seed, image index) + stage * 2^28 + chunk) mod 2^32,    stage in 0..15, chunk < 2^28.

Within an image no two chunks share a seed, which is what a certificate needs; two images share a stretch of
seeds only by a collision of hashes, which leaves the votes of each of them independent. So the counts depend
on seed, image index, stage, n and chunk_size (and the kind of device, whose generators differ), and on
nothing else: not on the batch size, on the other images, or on where a run was resumed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from certify.errors import CertifyError

SELECTION, ESTIMATION, PREDICTION = 0, 1, 2  # stages: each has its own draws
BOUND = 15  # the stage of the uniform draw of a randomized bound; strata of sigma have those between
STAGES = 16
CHUNKS_PER_STAGE = 2**28


@dataclass(frozen=True)
class Chunk:
    """``size`` draws of the image at ``position``; ``seed`` is the generator's."""

    position: int
    seed: int
    size: int


def hash32(name: str) -> int:
    """32 bits of a name's SHA-256: a seed for what it names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def chunks(
    indices: Sequence[int], first: int, n: int, *, stage: int, seed: int, chunk_size: int
) -> Iterator[Chunk]:
    """The chunks of draws first..first+n-1 of every image, in order.

    Raises:
        CertifyError: There are more than 2^28 of them an image, or no such stage.
    """
    total = -(-(first + n) // chunk_size)
    if total > CHUNKS_PER_STAGE or not 0 <= stage < STAGES:
        raise CertifyError(
            f"n={n} in chunks of {chunk_size} is more than 2^28 chunks: use a larger chunk_size"
        )
    for position, index in enumerate(indices):
        for chunk in range(first // chunk_size, total):
            size = min(chunk_size, first + n - chunk * chunk_size)
            yield Chunk(position, seed_of(seed, index, stage, chunk), size)


def seed_of(seed: int, index: int, stage: int, chunk: int = 0) -> int:
    """The generator's seed of a chunk of an image's draws."""
    return (hash32(f"{int(seed)}:{index}") + stage * CHUNKS_PER_STAGE + chunk) % 2**32


def packed(chunks: Iterator[Chunk], batch_size: int, chunk_size: int) -> Iterator[list[Chunk]]:
    """Group chunks, in order, into batches of at most ``batch_size`` draws, or singly if two do not fit."""
    group: list[Chunk] = []
    for chunk in chunks:
        full = sum(other.size for other in group) + chunk.size > batch_size or batch_size <= chunk_size
        if group and full:
            yield group
            group = []
        group.append(chunk)
    yield group
