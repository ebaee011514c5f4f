"""Distillation: train a white-box student on what a black box answers, and on nothing else.

Soft cross-entropy on probabilities; L1 on logits (DUCD, Li et al., arXiv 2408.10647); cross-entropy on hard
labels.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from surrogates.errors import SurrogateError
from surrogates.selection import select_random
from surrogates.targets import Answers, Target, check_images
from surrogates.checkpoint import TrainingCheckpoint

LOSSES = ("l1", "soft_cross_entropy", "cross_entropy")
_LOSS_OF_KIND = {"logits": "l1", "probabilities": "soft_cross_entropy", "labels": "cross_entropy"}


class Noise(Protocol):
    """Anything that draws additive noise of a shape, in [0, 1] pixel units."""

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, device: Any = None
    ) -> torch.Tensor:
        """Return float32 noise of the shape."""
        ...


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A distilled stand-in: model in eval mode, number of queries asked, which images, loss by epoch.

    held_out_agreement is the share of held-out answers on which model and target agree, None without any.
    """

    model: nn.Module
    queries: int
    pool_indices: tuple[int, ...]
    history: tuple[float, ...]
    loss: str
    held_out_agreement: float | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K) of images (N, C, H, W); gradients flow."""
        return self.model(images)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and record as safetensors."""
        from safetensors.torch import save_model

        record = {
            "queries": self.queries,
            "pool_indices": self.pool_indices,
            "history": self.history,
            "loss": self.loss,
            "held_out_agreement": self.held_out_agreement,
        }
        save_model(self.model, os.fspath(path), metadata={"surrogate": json.dumps(record)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> "Surrogate":
        """Fill a model of the same architecture with saved weights; SurrogateError if they do not fit."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_model

        if not Path(path).is_file():
            raise SurrogateError(f"surrogate {os.fspath(path)} does not exist: give a file that save() wrote")
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                record = json.loads((file.metadata() or {})["surrogate"])
            load_model(model, os.fspath(path))
        except (SafetensorError, RuntimeError, KeyError, OSError) as error:
            raise SurrogateError(
                f"surrogate {os.fspath(path)} does not fit {type(model).__name__} "
                f"({str(error).splitlines()[0]}): give a file that save() wrote for this architecture"
            ) from error
        for name in ("pool_indices", "history"):
            record[name] = tuple(record[name])
        return cls(model=model.eval(), **record)


def distill(
    target: Target,
    pool: torch.Tensor | np.ndarray,
    student: nn.Module,
    *,
    budget: int,
    query_batch: int = 64,
    epochs: int = 50,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    noise: Noise | None = None,
    shift: int = 0,
    loss: str = "auto",
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
) -> Surrogate:
    """Ask a target for min(budget, N) images of an unlabelled pool and train a student on the answers.

    pool is (N, C, H, W) float32 in [0, 1]. The student maps images to logits (N, K) and is trained in place,
    with AdamW and a cosine schedule; noise (not clipped) and random shifts by up to `shift` pixels augment
    its images. validation is the share of answers held out to measure agreement. progress is a factory like
    tqdm. checkpoint is a file from which an interrupted call resumes to the same bits; one seed gives the
    same bits on a CPU. Raises SurrogateError before anything is asked, or what the target raises.
    """
    images = _check_pool(pool)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 1:
        raise SurrogateError(f"budget must be a positive number of queries, got {budget!r}")
    for name, value in {"query_batch": query_batch, "epochs": epochs, "batch_size": batch_size}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SurrogateError(f"{name} must be a positive integer, got {value!r}")
    count = min(int(budget), len(images))
    if count < min(query_batch, len(images)):
        raise SurrogateError(
            f"budget is {budget} queries, less than the first batch of {query_batch}: "
            f"raise the budget or set query_batch to at most {budget}"
        )
    if not learning_rate > 0 or not math.isfinite(learning_rate):
        raise SurrogateError(f"learning_rate must be positive, got {learning_rate!r}: try 1e-3")
    if not 0 <= shift < min(images.shape[2:]):
        raise SurrogateError(f"shift must be in [0, {min(images.shape[2:])}) pixels, got {shift}")
    loss = _check_loss(loss, target.output_kind)
    held_out = _held_out_count(validation, count)

    device = torch.device(device or next((p.device for p in student.parameters()), "cpu"))
    student.to(device)
    chosen = select_random(len(images), count, torch.Generator().manual_seed(seed)).tolist()
    queried = check_images(images[chosen])
    _check_student(student, queried[:1], target.num_classes, device)

    answers = Answers.concatenate(
        [target.query(queried[start : start + query_batch]) for start in range(0, count, query_batch)]
    )
    goals = _goals(answers, loss, target.output_kind)
    data = torch.from_numpy(queried)
    settings = (epochs, batch_size, learning_rate, weight_decay, _probe(noise), shift, loss, seed, held_out)
    history = _train(
        student,
        data[held_out:],
        goals[held_out:],
        loss=loss,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        noise=noise,
        shift=shift,
        seed=seed,
        checkpoint=checkpoint,
        fingerprint=_fingerprint(settings, queried, goals.numpy(), student) if checkpoint else "",
        progress=progress,
    )
    agreement = None
    if held_out:
        labels = predict_labels(student, data[:held_out], batch_size)
        agreement = float((labels == answers.labels[:held_out]).mean())
    return Surrogate(student.eval(), count, tuple(chosen), tuple(history), loss, agreement)


def predict_labels(model: Surrogate | nn.Module, images: torch.Tensor, batch_size: int) -> np.ndarray:
    """Return the labels (N,) int64 of images (N, C, H, W) by a model in eval mode, on the model's device."""
    module = model.model if isinstance(model, Surrogate) else model
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    training = module.training
    module.eval()
    with torch.inference_mode():
        labels = [module(part.to(device)).argmax(dim=1).cpu() for part in images.split(batch_size)]
    module.train(training)
    return torch.cat(labels).numpy()


def _train(
    student: nn.Module,
    images: torch.Tensor,
    goals: torch.Tensor,
    *,
    loss: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    noise: Noise | None,
    shift: int,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
    fingerprint: str,
    progress: Callable[..., Iterable[int]] | None,
) -> list[float]:
    """Run the epochs that the checkpoint does not hold yet and return the mean loss of each."""
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    images, goals = images.to(device), goals.to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=weight_decay)
    batches = math.ceil(len(images) / batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * batches)
    history: list[float] = []
    first, saved = 0, None
    if checkpoint is not None:
        saved = TrainingCheckpoint(
            checkpoint, student, optimizer, generator, scheduler, fingerprint=fingerprint
        )
        first, history = saved.load(), saved.history
    remaining = range(first, epochs)
    forked = [device] if device.type == "cuda" else []
    for epoch in remaining if progress is None else progress(remaining, desc="distil"):
        student.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        with torch.random.fork_rng(devices=forked):
            # Dropout takes no generator: seed the forked global one from ours.
            torch.manual_seed(int(torch.randint(2**31 - 1, (), generator=generator, device=device)))
            order = torch.randperm(len(images), generator=generator, device=device)
            for rows in order.tensor_split(
                batches
            ):  # even parts: batch norm cannot train on a last single image
                batch = _shifted(images[rows], shift, generator)
                if noise is not None:
                    batch = batch + noise.sample(tuple(batch.shape), generator=generator, device=device)
                value = _loss(loss, student(batch), goals[rows])
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                scheduler.step()
                total += value.detach().double() * len(rows)
        history.append(total.item() / len(images))
        if not math.isfinite(history[-1]):
            raise SurrogateError(
                f"training diverged in epoch {epoch}: lower learning_rate, now {learning_rate}"
            )
        if saved is not None:
            saved.save(epoch)
    return history


def _loss(kind: str, logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(logits, goals) if kind == "l1" else F.cross_entropy(logits, goals)


def _goals(answers: Answers, loss: str, output_kind: str) -> torch.Tensor:
    """Return labels (N,) int64, logits (N, K), or probabilities (N, K) that sum to 1."""
    if loss == "cross_entropy":
        return torch.from_numpy(answers.labels)
    scores = torch.from_numpy(answers.scores)
    if loss == "l1":
        return scores
    if output_kind == "logits":
        return scores.softmax(dim=1)
    scores = scores.clamp_min(0)  # published probabilities are rounded
    return scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _shifted(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image by its own random offset of up to `shift` pixels; the border is repeated."""
    if shift == 0:
        return images
    count, channels, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift), mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _check_pool(pool: torch.Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(pool, torch.Tensor | np.ndarray) or pool.ndim != 4 or 0 in pool.shape:
        found = tuple(pool.shape) if hasattr(pool, "shape") else type(pool).__name__
        raise SurrogateError(f"pool must be a non-empty array of shape (N, C, H, W), got {found}")
    check_images(pool[:1])  # the type, before the chosen images are looked at in full
    return pool.detach().cpu().numpy() if isinstance(pool, torch.Tensor) else pool


def _check_loss(loss: str, output_kind: str) -> str:
    allowed = {
        "labels": ("cross_entropy",),
        "probabilities": ("soft_cross_entropy", "cross_entropy"),
        "logits": LOSSES,
    }[output_kind]
    if loss != "auto" and loss not in allowed:
        raise SurrogateError(
            f"loss must be 'auto' or one of {', '.join(allowed)} for a target that answers {output_kind}, "
            f"got {loss!r}"
        )
    return _LOSS_OF_KIND[output_kind] if loss == "auto" else loss


def _held_out_count(validation: float | None, count: int) -> int:
    if validation is None:
        return 0
    if not 0 < validation < 1 or not 1 <= round(validation * count) < count:
        raise SurrogateError(
            f"validation must be the share of {count} answers to hold out, in (0, 1), "
            f"got {validation!r}: try 0.1"
        )
    return round(validation * count)


def _check_student(student: nn.Module, image: np.ndarray, num_classes: int, device: torch.device) -> None:
    """Run the student once on one image, so that a misfit is found before anything is paid."""
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            logits = student(torch.from_numpy(image).to(device))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SurrogateError(f"student cannot take images of shape {image.shape[1:]}: {reason}") from error
    finally:
        student.train(training)
    shape = getattr(logits, "shape", type(logits).__name__)
    if tuple(shape) != (1, num_classes):
        raise SurrogateError(
            f"student returns {shape} for one image, expected (1, {num_classes}): "
            f"give it {num_classes} outputs"
        )


def _probe(noise: Noise | None) -> bytes:
    """Tell noises apart by a few seeded draws: their repr may hide parameters or print memory addresses."""
    if noise is None:
        return b""
    return (
        noise.sample((4, 1, 2, 2), generator=torch.Generator().manual_seed(0), device="cpu").numpy().tobytes()
    )


def _fingerprint(
    settings: tuple[object, ...], images: np.ndarray, goals: np.ndarray, student: nn.Module
) -> str:
    digest = hashlib.sha256(repr((settings, str(student))).encode())
    digest.update(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(goals))
    return digest.hexdigest()
