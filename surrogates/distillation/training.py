"""The training loop of a student: AdamW and a cosine schedule, augmentation, averaged weights, un-queried images."""

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from surrogates.distillation.augmentation import Noise, shifted
from surrogates.distillation.checkpoint import TrainingCheckpoint
from surrogates.distillation.inference import device_of, predict
from surrogates.distillation.losses import distance
from surrogates.errors import SurrogateError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    epochs passes with batch_size images a step; AdamW with learning_rate, cosine to 0, and weight_decay.
    noise (not clipped) and shifts by up to `shift` pixels augment images. ema is the decay of averaged weights,
    which then are the result; patience stops the training after so many epochs without a better held-out
    agreement, and the best epoch is the result. precision is float32, bfloat16 or float16 (CUDA).

    Where a committee teaches images that were not asked about, every step adds unlabelled_ratio times as many
    of them, and their distance counts unlabelled_weight times. Raises SurrogateError.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    noise: Noise | None = None
    shift: int = 0
    ema: float | None = None
    patience: int | None = None
    precision: str = "float32"
    unlabelled_weight: float = 1.0
    unlabelled_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "unlabelled_ratio", "patience"):
            value = getattr(self, name)
            if name == "patience" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SurrogateError(f"{name} must be a positive integer, got {value!r}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise SurrogateError(f"learning_rate must be positive, got {self.learning_rate!r}: try 1e-3")
        for name in ("weight_decay", "unlabelled_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SurrogateError(f"{name} must be 0 or more, got {getattr(self, name)!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise SurrogateError(f"ema must be a decay in (0, 1), got {self.ema!r}: try 0.99")
        if self.precision not in PRECISIONS:
            raise SurrogateError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def augmented(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Shifted and noisy images, each by its own draw."""
        images = shifted(images, self.shift, generator)
        if self.noise is None:
            return images
        return images + self.noise.sample(tuple(images.shape), generator=generator, device=images.device)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned: images (N, C, H, W) with goals; images held out with the target's labels; the others.

    unlabelled is the whole pool, the indices (M,) of its images that were not asked about, and what a committee
    says of those (M, K).
    """

    images: torch.Tensor
    goals: torch.Tensor
    loss: str
    held_out: tuple[torch.Tensor, np.ndarray] | None = None
    unlabelled: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def train(
    student: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
    fingerprint: str = "",
    progress: Callable[..., Iterable[int]] | None = None,
    title: str = "distil",
) -> list[float]:
    """Train in place, running the epochs that the checkpoint does not hold yet; return the mean loss of each."""
    device = device_of(student)
    images, goals = lesson.images.to(device), lesson.goals.to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    batches = math.ceil(len(images) / recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs * batches)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    average = _Average(student, recipe.ema)
    best = _Best()
    parts = {"scaler": scaler, "average": average, "best": best}
    history: list[float] = []
    first, saved = 0, None
    if checkpoint is not None:
        saved = TrainingCheckpoint(
            checkpoint, student, optimizer, generator, scheduler, fingerprint=fingerprint, **parts
        )
        first, history = saved.load(), saved.history
    remaining = range(first, recipe.epochs)
    forked = [device] if device.type == "cuda" else []
    for epoch in remaining if progress is None else progress(remaining, desc=title):
        if recipe.patience and epoch - best.epoch > recipe.patience:
            break
        student.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        with torch.random.fork_rng(devices=forked):
            # Dropout takes no generator: seed the forked global one from ours.
            torch.manual_seed(int(torch.randint(2**31 - 1, (), generator=generator, device=device)))
            order = torch.randperm(len(images), generator=generator, device=device)
            # Even parts: batch norm cannot train on a last single image.
            for step, rows in enumerate(order.tensor_split(batches)):
                with torch.autocast(device.type, PRECISIONS[recipe.precision], recipe.precision != "float32"):
                    value = _step_loss(student, lesson, images[rows], goals[rows], recipe, generator)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(value).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                average.update(student, epoch * batches + step)
                total += value.detach().double() * len(rows)
        history.append(total.item() / len(images))
        if not math.isfinite(history[-1]):
            raise SurrogateError(
                f"training diverged in epoch {epoch}: lower learning_rate, now {recipe.learning_rate}"
            )
        if recipe.patience and lesson.held_out is not None:
            best.consider(average.model or student, lesson.held_out, epoch, recipe.batch_size)
        if saved is not None:
            saved.save(epoch)
    if best.weights:
        student.load_state_dict(best.weights)
    elif average.model is not None:
        student.load_state_dict(average.model.state_dict())
    return history


def _step_loss(
    student: nn.Module,
    lesson: Lesson,
    images: torch.Tensor,
    goals: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> torch.Tensor:
    """Distance from the answers, plus the weighted distance from the committee on images without one."""
    seen = recipe.augmented(images, generator)
    if lesson.unlabelled is None:
        return distance(lesson.loss, student(seen).float(), goals)
    pool, rest, said = lesson.unlabelled
    many = recipe.unlabelled_ratio * len(images)
    drawn = torch.randint(len(rest), (many,), generator=generator, device=images.device).cpu()
    others = recipe.augmented(pool[rest[drawn]].to(images.device), generator)
    logits = student(torch.cat([seen, others])).float()  # one pass: one set of batch statistics
    loss = "l1" if lesson.loss == "l1" else "soft_cross_entropy"
    return distance(lesson.loss, logits[: len(images)], goals) + recipe.unlabelled_weight * distance(
        loss, logits[len(images) :], said[drawn].to(images.device)
    )


class _Average:
    """Exponential moving average of a model's weights and buffers; `model` is None without a decay."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.model = None if decay is None else copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model, faster in the first steps, whose weights are soon worth nothing."""
        if self.model is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.model is None else self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.model is not None:
            self.model.load_state_dict(state)


class _Best:
    """The weights of the epoch with the highest held-out agreement; of equals, the first."""

    def __init__(self) -> None:
        self.agreement, self.epoch, self.weights = -1.0, 0, {}

    def consider(
        self, model: nn.Module, held_out: tuple[torch.Tensor, np.ndarray], epoch: int, batch_size: int
    ) -> None:
        images, labels = held_out
        agreement = float((predict(model, images, batch_size).argmax(dim=1).numpy() == labels).mean())
        if agreement > self.agreement:
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.agreement, self.epoch, self.weights = agreement, epoch, weights

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
