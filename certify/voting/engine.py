"""The vote engine: how often a classifier answers each class when one image is seen under many noise draws.

Seeds. The noise of an image is made in chunks of ``chunk_size`` draws, each from its own generator. torch's
CPU generator keeps 32 bits of its seed, so the chunks of an image are numbered inside 32 bits:

    (hash32(seed, image index) + stage * 2^28 + chunk) mod 2^32,    stage in 0..15, chunk < 2^28.

Within an image no two chunks share a seed, which is what a certificate needs; two images share a stretch of
seeds only by a collision of hashes, which leaves the votes of each of them independent. So the counts depend
on seed, image index, stage, n and chunk_size (and the kind of device, whose generators differ), and on
nothing else: not on the batch size, on the other images, or on where a run was resumed.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from certify.errors import CertifyError, check_count
from certify.noise.base import NoiseLaw

SELECTION, ESTIMATION, PREDICTION = 0, 1, 2  # stages: each has its own draws

CHUNKS_PER_STAGE = 2**28
FINE = 2**10  # parts of a grey level to which the noise is rounded on a grid
LARGEST = 2**13 * FINE - 2**9 * FINE  # noise beyond this many parts would not add exactly in float32
BATCH_BYTES = 2**28  # of noisy images held at once

Batch = tuple[
    torch.Tensor, torch.Tensor
]  # noisy images (B, C, H, W), positions (B,) of the images under them


@dataclass(frozen=True)
class _Chunk:
    """``size`` draws of the image at ``position``; ``seed`` is the generator's."""

    position: int
    seed: int
    size: int


def count_votes(
    classify: Callable[[torch.Tensor], Any],
    images: Any,
    noise: NoiseLaw,
    num_classes: int,
    n: int,
    *,
    indices: Sequence[int],
    stage: int,
    seed: int,
    batch_size: int = 1024,
    chunk_size: int = 256,
    device: torch.device | str | None = None,
    progress: Any = None,
    first: int = 0,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    prefetch: bool = False,
    grid: int | None = None,
) -> NDArray[np.int64]:
    """Count the votes of ``n`` noise draws for each image: int64 (N, num_classes), rows that sum to n.

    ``first`` skips that many draws, a multiple of ``chunk_size``, so that a count can be continued.

    ``images``: (N, C, H, W) floats in [0, 1]; ``indices``: their N distinct names, which seed their noise.
    ``classify``: (B, C, H, W) float32 -> scores (B, num_classes) or integer labels (B,), tensor or array; a
    module runs in eval mode. Chunks of several images share a batch; with ``batch_size <= chunk_size`` each
    call holds draws of one chunk of one image only. Larger batches are cut to 256 MiB of noisy images.
    ``autocast``: the dtype in which a model may compute (the noise stays float32); ``channels_last``: the
    memory format of its input. Either makes a slightly different base classifier, whose rounding may depend
    on the batch. ``prefetch``: make the next batch while a black box answers, which holds two batches.
    ``grid``: the images hold whole multiples of 1 / grid (255 for 8 bits) and noise is added to them exactly,
    see ``_on_grid``.
    ``progress``: anything with ``update(draws)``, such as a
    tqdm bar. Raises CertifyError for labels outside [0, num_classes), NaN scores, or bad arguments.
    """
    check_count("num_classes", num_classes, 2)
    check_count("n", n)
    check_count("batch_size", batch_size)
    check_count("chunk_size", chunk_size)
    if check_count("first", first, 0) % chunk_size:
        raise CertifyError(f"first must be a multiple of chunk_size={chunk_size}, got {first}: round it")
    images = check_images(images)
    indices = check_indices(indices, len(images))
    device = resolve_device(classify, device)
    images = images.to(device)
    if grid is not None:
        _check_grid(images, grid)
    counts = torch.zeros(len(images) * num_classes, dtype=torch.int64, device=device)
    seen = torch.tensor([0, 0], device=device)  # smallest and largest label
    layout = torch.channels_last if channels_last else torch.contiguous_format
    chunks = _chunks(indices, first, n, stage, seed, chunk_size)
    largest = min(batch_size, max(chunk_size, BATCH_BYTES // (4 * images[0].numel())))
    batches: Iterator[Batch] = (
        _noisy(images, group, noise, layout, grid) for group in _packed(chunks, largest, chunk_size)
    )
    # no_grad rather than inference_mode: a purifier may take gradients of its own
    with torch.no_grad(), _eval_mode(classify), _precision(device, autocast):
        for noisy, owner in _made_ahead(batches) if prefetch else batches:
            # More than one part only if a chunk is larger than a batch.
            for part, part_owner in zip(noisy.split(batch_size), owner.split(batch_size), strict=True):
                labels = _labels(classify(part), len(part), num_classes).to(device)
                seen = torch.stack(
                    [torch.minimum(seen[0], labels.min()), torch.maximum(seen[1], labels.max())]
                )
                if device.type == "cpu":  # elsewhere once at the end: looking would wait for every batch
                    _check_labels(seen, num_classes)
                slot = part_owner * num_classes + labels.clamp(0, num_classes - 1)
                counts.index_add_(0, slot, torch.ones_like(slot))  # bincount would wait for the device
                if progress is not None:
                    progress.update(len(part))
            del noisy, part  # before the next batch is made
    _check_labels(seen, num_classes)
    return counts.reshape(len(images), num_classes).cpu().numpy()


def tally_labels(classify: Callable[[torch.Tensor], Any], batch: torch.Tensor, num_classes: int) -> NDArray:
    """Votes int64 (num_classes,) of one batch as it is; a module runs in eval mode. Raises as count_votes."""
    with torch.no_grad(), _eval_mode(classify):
        labels = _labels(classify(batch), len(batch), num_classes)
    _check_labels(torch.stack([labels.min(), labels.max()]), num_classes)
    return np.bincount(labels.cpu().numpy(), minlength=num_classes)


def check_images(images: Any) -> torch.Tensor:
    """Return images as a float32 tensor (N, C, H, W), or raise CertifyError unless non-empty, finite and in
    [0, 1].
    """
    if not isinstance(images, torch.Tensor):
        images = torch.as_tensor(np.ascontiguousarray(images))
    shape = tuple(images.shape)
    if images.ndim != 4 or 0 in shape:
        raise CertifyError(
            f"images must be a non-empty (N, C, H, W) array, got shape {shape}: add or fill the axes"
        )
    if not images.is_floating_point():
        raise CertifyError(f"images must be floats in [0, 1], got {images.dtype}: divide 8-bit pixels by 255")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise CertifyError(
            f"images must be in [0, 1], got values from {low:g} to {high:g}: rescale, do not normalise"
        )
    return images.detach().to(torch.float32)


def check_indices(indices: Sequence[int] | None, count: int) -> list[int]:
    """Return ``count`` distinct non-negative indices (0, 1, ... if None), or raise CertifyError."""
    if indices is None:
        return list(range(count))
    names = [int(index) for index in indices]
    if len(names) != count or len(set(names)) != count or min(names, default=0) < 0:
        got = f"{len(set(names))} distinct in {len(names)}"
        raise CertifyError(
            f"indices must be {count} distinct integers >= 0, one an image, got {got}: name each once"
        )
    return names


def resolve_device(classify: Any, device: torch.device | str | None) -> torch.device:
    """The device to draw on: the module's own, else ``device``, else the CPU; CertifyError if they differ."""
    asked = None if device is None else torch.device(device)
    if not isinstance(classify, torch.nn.Module):
        return asked or torch.device("cpu")
    own = next((tensor.device for tensor in (*classify.parameters(), *classify.buffers())), None)
    if own is None or asked is None:
        return own or asked or torch.device("cpu")
    if own.type != asked.type or asked.index not in (None, own.index):
        raise CertifyError(
            f"device is {asked} but the model is on {own}: move the model first, or drop device="
        )
    return own


def _chunks(
    indices: Sequence[int], first: int, n: int, stage: int, seed: int, chunk_size: int
) -> Iterator[_Chunk]:
    total = -(-(first + n) // chunk_size)
    if total > CHUNKS_PER_STAGE or not 0 <= stage < 16:
        raise CertifyError(
            f"n={n} in chunks of {chunk_size} is more than 2^28 chunks: use a larger chunk_size"
        )
    for position, index in enumerate(indices):
        base = int.from_bytes(hashlib.sha256(f"{int(seed)}:{index}".encode()).digest()[:4], "big")
        for chunk in range(first // chunk_size, total):
            generator_seed = (base + stage * CHUNKS_PER_STAGE + chunk) % 2**32
            yield _Chunk(position, generator_seed, min(chunk_size, first + n - chunk * chunk_size))


def _packed(chunks: Iterator[_Chunk], batch_size: int, chunk_size: int) -> Iterator[list[_Chunk]]:
    """Group chunks, in order, into batches of at most ``batch_size`` draws, or singly if two do not fit."""
    group: list[_Chunk] = []
    for chunk in chunks:
        full = sum(other.size for other in group) + chunk.size > batch_size or batch_size <= chunk_size
        if group and full:
            yield group
            group = []
        group.append(chunk)
    yield group


def _noisy(
    images: torch.Tensor, group: list[_Chunk], noise: NoiseLaw, layout: torch.memory_format, grid: int | None
) -> Batch:
    """The noisy images of a group of chunks, all made on the images' device without waiting for it."""
    total = sum(chunk.size for chunk in group)
    noisy = images.new_empty((total, *images.shape[1:])).contiguous(memory_format=layout)
    owner = torch.empty(total, dtype=torch.int64, device=images.device)
    start = 0
    for chunk in group:
        part = slice(start, start := start + chunk.size)
        generator = torch.Generator(images.device).manual_seed(chunk.seed)
        draws = noise.sample((chunk.size, *images.shape[1:]), generator)
        if grid is None:
            torch.add(images[chunk.position], draws, out=noisy[part])
        else:
            noisy[part] = _on_grid(images[chunk.position], draws, grid)
        owner[part].fill_(chunk.position)
    return noisy, owner


def _on_grid(image: torch.Tensor, draws: torch.Tensor, grid: int) -> torch.Tensor:
    """Image plus noise rounded to 1 / FINE of a grey level, a sum without rounding error (Voracek, Hein 2023).

    Whole grey levels X and noise N = round(FINE * grid * z) / FINE have at most 23 bits together, so X + N is
    exact, and equals the rounded X + grid * z: a function of image plus noise alone, as the proof needs. Noise
    beyond 30 in [0, 1] units is clamped, which sigma <= 3 makes rarer than 1e-20.
    """
    levels = (image.double() * grid).round().float()
    noise = (draws.double() * (grid * FINE)).round().clamp(-LARGEST, LARGEST).div(FINE).float()
    return (levels + noise) / grid


def _check_grid(images: torch.Tensor, grid: int) -> None:
    check_count("grid", grid)
    if grid > 255 or (images.double() * grid - (images.double() * grid).round()).abs().max() > 1e-3:
        raise CertifyError(f"images must hold whole multiples of 1/{grid}, grid <= 255: round them first")


def _made_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each made in a thread while its predecessor is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


@contextmanager
def _precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield


NAN_SCORE = -(2**63)  # stands for the label of a row of scores with a NaN


def _labels(output: Any, count: int, num_classes: int) -> torch.Tensor:
    """Hard labels (count,) from scores or labels; a row with a NaN gets NAN_SCORE."""
    output = torch.as_tensor(output)
    if output.shape == (count, num_classes):
        labels = output.argmax(1)
        if not output.is_floating_point():
            return labels
        return torch.where(output.isnan().any(1), torch.full_like(labels, NAN_SCORE), labels)
    if output.shape != (count,):
        got, either = tuple(output.shape), f"({count}, {num_classes}) scores or ({count},) labels"
        raise CertifyError(
            f"the classifier must return {either}, got shape {got}: check num_classes={num_classes}"
        )
    if output.is_floating_point() or output.is_complex() or output.dtype == torch.bool:
        raise CertifyError(
            f"labels must be integers, got {output.dtype}: cast them, or return scores of 2 axes"
        )
    return output.to(torch.int64)


def _check_labels(seen: torch.Tensor, num_classes: int) -> None:
    low, high = seen.tolist()
    if low == NAN_SCORE:
        raise CertifyError(
            "the classifier returned NaN scores: its votes mean nothing, check the model and its dtype"
        )
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise CertifyError(
            f"labels must be in [0, {num_classes}), got {wrong}: check num_classes={num_classes}"
        )


@contextmanager
def _eval_mode(classify: Any) -> Iterator[None]:
    """Put a module in eval mode, and each of its parts back as it was."""
    modules = list(classify.modules()) if isinstance(classify, torch.nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
