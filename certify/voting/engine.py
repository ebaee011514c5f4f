"""The vote engine: how often a classifier answers each class when one image is seen under many noise draws."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from certify.certificate import Counts
from certify.errors import CertifyError, check_count
from certify.noise.base import ADDITIVE, NoiseLaw
from certify.voting.base_classifier import check_alone, eval_mode, holds_target, input_dtype
from certify.voting.checks import check_images, check_indices, resolve_device
from certify.voting.chunks import Chunk, chunks, packed
from certify.voting.grid import add_on_grid, check_grid
from certify.voting.tally import Tally, as_tensor

BATCH_BYTES = 2**28  # of noisy images held at once
GROUP = 32  # rows of a batch in lower precision are a multiple of it
LOWER = (torch.bfloat16, torch.float16)  # what autocast computes in

Batch = tuple[
    torch.Tensor, torch.Tensor
]  # noisy images (B, C, H, W), positions (B,) of the images under them


@dataclass(frozen=True)
class VoteEngine:
    """How votes are drawn and computed. Same ``seed`` and ``chunk_size``, same votes.

    Attributes:
        batch_size: Most noisy images in one call of the classifier; cut to 256 MiB of them. With
            ``batch_size <= chunk_size`` each call holds draws of one chunk of one image only.
        chunk_size: Draws from one generator.
        device: To draw on; default: the module's own, else the CPU.
        seed: Of the noise, together with the index of the image.
        autocast: The dtype in which a model may compute, or its name; the noise stays float32. This, ``channels_last`` and
            ``compile`` make a slightly different base classifier, whose rounding may depend on the batch.
        channels_last: The memory format of the classifier's input.
        compile: ``SmoothedClassifier`` runs a torch module through torch.compile.
        prefetch: Draw the next batch while a black box answers, which holds two batches.
        grid: The images hold whole multiples of 1 / grid (255 for 8 bits), and noise is added to them exactly.
        recheck: Noisy images that are answered in two batchings before the first vote, 3 or 4 answers each beside n0
            and n: a classifier whose answers follow the batch is refused. Not where it asks an opened target of
            ``surrogates``, which may be paid; 0: never.
    """

    batch_size: int = 1024
    chunk_size: int = 256
    device: torch.device | str | None = None
    seed: int = 0
    autocast: torch.dtype | str | None = None
    channels_last: bool = False
    compile: bool = False
    prefetch: bool = False
    grid: int | None = None
    recheck: int = 16

    def __post_init__(self) -> None:
        check_count("recheck", self.recheck, 0)
        check_count("batch_size", self.batch_size)
        check_count("chunk_size", self.chunk_size)
        check_count("seed", self.seed, 0)
        object.__setattr__(self, "autocast", _dtype(self.autocast))

    @property
    def arithmetic(self) -> dict[str, Any]:
        """The fields that decide how a model rounds, JSON-able: ``replace(engine, **arithmetic)`` takes them over."""
        name = None if self.autocast is None else str(self.autocast).removeprefix("torch.")
        layout, compiled = self.channels_last, self.compile
        return {"autocast": name, "channels_last": layout, "compile": compiled, "batch_size": self.batch_size}

    def count(
        self,
        classify: Callable[[torch.Tensor], Any],
        images: Any,
        noise: NoiseLaw,
        num_classes: int,
        n: int,
        *,
        indices: Sequence[int],
        stage: int,
        first: int = 0,
        progress: Any = None,
    ) -> Counts:
        """Count the votes of ``n`` noise draws for each image.

        Args:
            classify: (B, C, H, W) float32 -> scores (B, num_classes) or integer labels (B,), tensor or array, or an
                output with ``logits``. A module, or one that a function holds, runs in eval mode; a module gets
                its input in its own dtype.
            images: (N, C, H, W) floats in [0, 1].
            noise: Added to the images, or the law that transforms them (``NoiseLaw.perturb``).
            num_classes: K.
            n: Draws of each image.
            indices: N distinct names of the images, which seed their noise.
            stage: One of 16 separate streams of draws.
            first: Draws to skip, a multiple of ``chunk_size``, so that a count can be continued.
            progress: Anything with ``update(draws)``, such as a tqdm bar.

        Returns:
            Counts (N, num_classes), rows that sum to n.

        Raises:
            CertifyError: Labels outside [0, num_classes), scores that name no class, or bad arguments.
        """
        check_count("num_classes", num_classes, 2)
        check_count("n", n)
        if check_count("first", first, 0) % self.chunk_size:
            size = self.chunk_size
            raise CertifyError(f"first must be a multiple of chunk_size={size}, got {first}: round it")
        images = check_images(images)
        indices = check_indices(indices, len(images))
        device = resolve_device(classify, self.device)
        images = images.to(device)
        if self.grid is not None:
            if noise.threat != ADDITIVE:
                raise CertifyError(
                    f"grid={self.grid} is for noise that is added, got {noise!r}: leave it out"
                )
            check_grid(images, self.grid)
        parts = chunks(indices, first, n, stage=stage, seed=self.seed, chunk_size=self.chunk_size)
        tally, dtype = Tally(len(images), num_classes, device), input_dtype(classify)
        with self._voting(classify, device):
            for noisy, owner in self._batches(images, noise, parts):
                # More than one part only if a chunk is larger than a batch.
                for part, part_owner in zip(
                    noisy.split(self.batch_size), owner.split(self.batch_size), strict=True
                ):
                    tally.add(self._ask(classify, part.to(dtype), num_classes), part_owner)
                    if progress is not None:
                        progress.update(len(part))
                del noisy, part  # before the next batch is drawn
        return tally.counts()

    def count_batch(
        self, classify: Callable[[torch.Tensor], Any], batch: torch.Tensor, num_classes: int
    ) -> Counts:
        """Votes (num_classes,) of one batch as it is, without noise; errors as ``count``."""
        tally = Tally(1, num_classes, batch.device)
        with self._voting(classify, batch.device):
            answers = classify(self._own(classify, batch))
            tally.add(answers, torch.zeros(len(batch), dtype=torch.int64, device=batch.device))
        return tally.counts()[0]

    def check_alone(
        self,
        classify: Callable[[torch.Tensor], Any],
        draw: Callable[[int], torch.Tensor],
        num_classes: int | None = None,
    ) -> None:
        """Ask ``recheck`` noisy images in two ways; see ``foreign.check_alone``.

        Args:
            classify: As in ``count``.
            draw: draw(rows) gives noisy images (rows, C, H, W), where ``classify`` takes them.
            num_classes: As in ``count``.

        Raises:
            CertifyError: The labels follow the batch.
        """
        rows = min(self.recheck, self.batch_size) // 4 * 4
        if not rows or holds_target(classify):
            return

        def answer(batch: torch.Tensor) -> torch.Tensor:
            return as_tensor(classify(self._own(classify, batch)), len(batch), num_classes)

        noisy = draw(rows)
        with self._voting(classify, noisy.device):
            check_alone(answer, noisy)

    def _own(self, classify: Any, batch: torch.Tensor) -> torch.Tensor:
        """A copy of a batch, as the classifier takes it."""
        return batch.to(input_dtype(classify), memory_format=self.layout, copy=True)

    def _ask(self, classify: Any, batch: torch.Tensor, num_classes: int) -> Any:
        if self.autocast is None:
            return classify(batch)
        filled = filled_up(batch)
        return as_tensor(classify(filled), len(filled), num_classes)[: len(batch)]

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Where a model computes in ``autocast``."""
        dtype = _dtype(self.autocast)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of the classifier's input."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextmanager
    def _voting(self, classify: Any, device: torch.device) -> Iterator[None]:
        # no_grad rather than inference_mode: a purifier may take gradients of its own
        with torch.no_grad(), eval_mode(classify), self.precision(device):
            yield

    def _batches(self, images: torch.Tensor, noise: NoiseLaw, parts: Iterator[Chunk]) -> Iterator[Batch]:
        fitting = max(self.chunk_size, BATCH_BYTES // (4 * images[0].numel()))
        groups = packed(parts, min(self.batch_size, fitting), self.chunk_size)
        batches = (self._noisy(images, group, noise) for group in groups)
        return _prefetched(batches) if self.prefetch else batches

    def _noisy(self, images: torch.Tensor, group: list[Chunk], noise: NoiseLaw) -> Batch:
        """The noisy images of a group of chunks, all drawn on the images' device without waiting for it."""
        total = sum(chunk.size for chunk in group)
        noisy = images.new_empty((total, *images.shape[1:])).contiguous(memory_format=self.layout)
        owner = torch.empty(total, dtype=torch.int64, device=images.device)
        start = 0
        for chunk in group:
            part = slice(start, start := start + chunk.size)
            generator = torch.Generator(images.device).manual_seed(chunk.seed)
            shape = (chunk.size, *images.shape[1:])
            if self.grid is None:
                noise.perturb(images[chunk.position].expand(shape), generator, out=noisy[part])
            else:
                noisy[part] = add_on_grid(images[chunk.position], noise.sample(shape, generator), self.grid)
            owner[part].fill_(chunk.position)
        return noisy, owner


def _prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each drawn in a thread while its predecessor is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def filled_up(batch: torch.Tensor) -> torch.Tensor:
    """A batch (B, C, H, W), filled up by its first images to whole groups of GROUP rows.

    Kernels of lower precision round otherwise in an odd rest, which then decides a near tie: counts followed the batch.
    """
    missing = -len(batch) % GROUP
    if not missing:
        return batch
    again = torch.arange(len(batch) + missing, device=batch.device) % len(batch)
    layouts = (torch.channels_last, torch.contiguous_format)
    layout = next(each for each in layouts if batch.is_contiguous(memory_format=each))
    return batch[again].contiguous(memory_format=layout)


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if name is not None and dtype not in LOWER:
        known = ", ".join(str(each).removeprefix("torch.") for each in LOWER)
        raise CertifyError(f"autocast must be one of {known} or None, got {name!r}: try autocast='bfloat16'")
    return dtype
