"""How a student is trained: its recipe, its examples, the loss of a step and early stopping."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from surrogates.distillation.augmentation import Noise, denoised, perturbed, shifted
from surrogates.distillation.inference import device_of, predict
from surrogates.distillation.losses import consistency, distance
from surrogates.distillation.training import EpochOrder, Order, Training, Workers, fit
from surrogates.distillation.views import denoised_views, drawn_views
from surrogates.errors import SurrogateError, check_positive_integers

CONSISTENT_VIEWS = 2  # of an image in a step (m of Jeong & Shin, NeurIPS 2020)
TRIED = {"consistency": 5, "entropy": 0.5}


@dataclass(frozen=True)
class Recipe:
    """How a student is trained: AdamW, a cosine schedule, augmentation, averaged weights, images without an answer.

    A student that will be smoothed is trained as it is certified: under the noise of the vote, behind its denoiser, and
    with consistency. Its goal is always the target's answer to the clean image.

    Args:
        epochs: Passes over the answered images.
        batch_size: Images a step.
        learning_rate: Of AdamW at first; a cosine leads down to 0.
        weight_decay: Weight decay of AdamW.
        noise: Added to each image (not clipped), drawn anew in each step.
        shift: Each image is shifted by up to so many pixels.
        ema: Decay of averaged weights, which then are the result.
        patience: Epochs without a better held-out agreement that end the training; the best epoch is the result.
        precision: float32, bfloat16, or on CUDA float16.
        unlabeled_weight: Weight of the distance on images without an answer, whose goals a committee gives.
        unlabeled_ratio: How many of those there are in a step for each answered image.
        denoiser: Stands between the noise and the student, frozen and in eval mode. Views are denoised once, before the
            first step, as many an image as fit in views.VIEW_BYTES; each step draws among them.
        consistency: Weight of the divergence between two noisy views of an image (losses.consistency); 0 is off.
        entropy: Weight of the entropy of their mean prediction, where consistency is on.

    Raises:
        SurrogateError: A value out of its range, or consistency without noise.
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
    unlabeled_weight: float = 1.0
    unlabeled_ratio: int = 4
    # Not in the repr, which names the checkpoints of recipes without them.
    denoiser: nn.Module | None = field(default=None, repr=False)
    consistency: float = field(default=0.0, repr=False)
    entropy: float = field(default=0.5, repr=False)
    unlabelled_weight: InitVar[float | None] = None  # the former spelling
    unlabelled_ratio: InitVar[int | None] = None

    def __post_init__(self, unlabelled_weight: float | None, unlabelled_ratio: int | None) -> None:
        if unlabelled_weight is not None:
            object.__setattr__(self, "unlabeled_weight", unlabelled_weight)
        if unlabelled_ratio is not None:
            object.__setattr__(self, "unlabeled_ratio", unlabelled_ratio)
        _ = self.training
        check_positive_integers(unlabeled_ratio=self.unlabeled_ratio)
        if self.patience is not None:
            check_positive_integers(patience=self.patience)
        if not 0 <= self.unlabeled_weight < math.inf:
            raise SurrogateError(f"unlabeled_weight must be 0 or more, got {self.unlabeled_weight!r}")
        for name in ("consistency", "entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SurrogateError(
                    f"{name} must be a weight of 0 or more, got {getattr(self, name)!r}: try {TRIED[name]:g}"
                )
        if self.consistency and self.noise is None:
            raise SurrogateError(
                f"consistency is {self.consistency:g} and compares noisy views, but there is no noise: set noise, or 0"
            )

    @property
    def views(self) -> int:
        """Noisy views of an image in a step."""
        return CONSISTENT_VIEWS if self.consistency else 1

    @property
    def training(self) -> Training:
        """What the training loop has to know of it."""
        return _StudentTraining(
            self.epochs,
            self.batch_size,
            self.learning_rate,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.999),
            ema=self.ema,
            precision=self.precision,
        )

    def augmented(self, images: torch.Tensor, generator: torch.Generator, views: int = 1) -> torch.Tensor:
        """Return views (views * N, C, H, W) of images: each image shifted, each view with noise of its own, and denoised."""
        images = shifted(images, self.shift, generator)
        if views > 1:
            images = images.repeat(views, 1, 1, 1)
        if self.noise is not None:
            images = perturbed(images, self.noise, generator)
        return images if self.denoiser is None else denoised(self.denoiser, images)


@dataclass(frozen=True, eq=False)
class Examples:
    """What a student is trained on.

    Args:
        images: Answered images (N, C, H, W).
        goals: What the student shall answer to them, (N,) or (N, K).
        loss: Name of the distance from the goals.
        held_out: Images held out with the target's labels.
        unlabeled: The whole pool, the indices (M,) of its images without an answer, and the committee's goals (M, K).
    """

    images: torch.Tensor
    goals: torch.Tensor
    loss: str
    held_out: tuple[torch.Tensor, np.ndarray] | None = None
    unlabeled: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def train_student(
    student: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
) -> list[float]:
    """Train in place on the student's device and return the mean loss of each epoch; see `training.fit`."""
    device = device_of(student)
    shown = examples.images.to(device)
    if recipe.denoiser is not None:
        shown = denoised_views(recipe.augmented, shown, recipe.views, recipe.epochs, seed)

    def loss(
        model: nn.Module, images: torch.Tensor, goals: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        return step_loss(model, examples, images, goals, recipe, generator)

    stopping = None
    if recipe.patience and examples.held_out is not None:
        stopping = BestAgreement(*examples.held_out, recipe.patience, recipe.batch_size)
    return fit(
        student,
        (shown, examples.goals.to(device)),
        loss,
        recipe.training,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        stopping=stopping,
        progress=progress,
    )


def step_loss(
    student: nn.Module,
    examples: Examples,
    images: torch.Tensor,
    goals: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> torch.Tensor:
    """Distance from the answers, plus what the recipe adds: consistency of views, the committee on images without an answer.

    Args:
        images: (N, C, H, W), or denoised views of them (N, V, C, H, W).
        goals: (N,) or (N, K).
    """
    if images.ndim == 5:
        augmented = drawn_views(images, recipe.views, generator)
    else:
        augmented = recipe.augmented(images, generator, recipe.views)
    if examples.unlabeled is None:
        return _answered(student(augmented).float(), goals, examples.loss, recipe)
    pool, rest, committee_goals = examples.unlabeled
    count = recipe.unlabeled_ratio * len(images)
    drawn = torch.randint(len(rest), (count,), generator=generator, device=images.device).cpu()
    others = recipe.augmented(pool[rest[drawn]].to(images.device), generator)
    logits = student(torch.cat([augmented, others])).float()  # one pass: one set of batch statistics
    loss = "l1" if examples.loss == "l1" else "soft_cross_entropy"
    answered = _answered(logits[: len(augmented)], goals, examples.loss, recipe)
    return answered + recipe.unlabeled_weight * distance(
        loss, logits[len(augmented) :], committee_goals[drawn].to(images.device)
    )


def _answered(logits: torch.Tensor, goals: torch.Tensor, loss: str, recipe: Recipe) -> torch.Tensor:
    """Mean distance of the logits (V * N, K) of all views from the goals, and their consistency where it is on."""
    if not recipe.consistency:
        return distance(loss, logits, goals)
    views = logits.unflatten(0, (recipe.views, -1))
    apart = consistency(views, recipe.consistency, recipe.entropy)
    return distance(loss, logits, torch.cat([goals] * recipe.views)) + apart


@dataclass
class BestAgreement:
    """Early stopping: the weights of the epoch with the highest held-out agreement; of equals, the first.

    Args:
        images: (N, C, H, W).
        labels: The target's, (N,).
        patience: Epochs without a better agreement that end the training.
        batch_size: Images a forward pass.
    """

    images: torch.Tensor
    labels: np.ndarray
    patience: int
    batch_size: int
    agreement: float = -1.0
    epoch: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def observe(self, model: nn.Module, epoch: int) -> None:
        """Measure the agreement after an epoch."""
        agreement = float(
            (predict(model, self.images, self.batch_size).argmax(dim=1).numpy() == self.labels).mean()
        )
        if agreement > self.agreement:
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.agreement, self.epoch, self.weights = agreement, epoch, weights

    def ends_before(self, epoch: int) -> bool:
        """Whether the best epoch is more than `patience` epochs ago."""
        return epoch - self.epoch > self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"agreement": self.agreement, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agreement, self.epoch, self.weights = state["agreement"], state["epoch"], state["weights"]


class _StudentTraining(Training):
    """AdamW under a cosine from the first step on, all random numbers from one generator on the student's device."""

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, T_max=steps)

    def order(self, seed: int, device: torch.device) -> Order:
        return _OneGenerator(torch.Generator(device).manual_seed(seed))


class _OneGenerator(Order):
    """The loss draws from the generator of the order: processes whose losses draw differently would lose step."""

    parallel = False

    def epoch(self, epoch: int, rows: int, batches: int, workers: Workers) -> EpochOrder:
        device = self.generator.device
        seed = int(torch.randint(2**31 - 1, (), generator=self.generator, device=device))
        order = torch.randperm(rows, generator=self.generator, device=device)
        return EpochOrder(seed, self.generator, order.tensor_split(batches))
