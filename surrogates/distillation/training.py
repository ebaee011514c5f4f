"""The one training loop of every network: AdamW, a schedule, averaged weights, mixed precision, a resumable checkpoint.

What differs from one training to the next are small objects: `Training` says how the optimizer is
set and scheduled, its `Order` where the random numbers come from, `EarlyStopping` when to stop and which weights to keep.

One process trains on the device that it is given. Under `accelerate launch` or `torchrun` the same call trains on all
processes: each takes its share of every batch, and the weights are those of one process, to rounding, as far as the
loss draws nothing.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from surrogates.distillation.checkpoint import TrainingCheckpoint
from surrogates.errors import SurrogateError, check_positive_integers

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKPOINTS = 20  # a training, at most, besides the last


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: Passes over the data.
        batch_size: Images a step, of all processes together.
        learning_rate: Peak rate of AdamW; a linear warm-up leads up to it, a cosine down to 0.
        warmup: Share of the steps with a rising rate.
        weight_decay: Weight decay of AdamW.
        betas: Decay rates of AdamW's moments.
        ema: Decay of averaged weights, which then are the result, e.g. 0.999; None for none.
        precision: float32; bfloat16, or on CUDA float16 with scaled gradients: autocast, the weights stay float32.

    Raises:
        SurrogateError: A value out of its range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    ema: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_positive_integers(epochs=self.epochs, batch_size=self.batch_size)
        if not 0 < self.learning_rate < math.inf:
            raise SurrogateError(f"learning_rate must be positive, got {self.learning_rate!r}: try 1e-3")
        if not 0 <= self.warmup < 1:
            raise SurrogateError(f"warmup is a share of the steps in [0, 1), got {self.warmup!r}: try 0.05")
        if not 0 <= self.weight_decay < math.inf:
            raise SurrogateError(f"weight_decay must be 0 or more, got {self.weight_decay!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise SurrogateError(f"ema must be a decay in (0, 1), got {self.ema!r}: try 0.999")
        if self.precision not in PRECISIONS:
            raise SurrogateError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step of so many."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler of the learning rate, which is advanced after each of so many steps."""
        return LambdaLR(optimizer, lambda step: self.rate(step, steps))

    def order(self, seed: int, device: torch.device) -> Order:
        """Return the source of the training's random numbers."""
        return Order(torch.Generator().manual_seed(seed))


class Order:
    """The random numbers of a training: the order of the rows, and a generator for whatever the loss draws.

    The state of `generator` after an epoch is all that a checkpoint keeps. Where `parallel`, several processes draw
    the same order and each loss draws numbers of its own.
    """

    parallel = True

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def epoch(self, epoch: int, rows: int, batches: int, workers: Workers) -> EpochOrder:
        """Draw the order of an epoch."""
        # An epoch's draws hang on one number of the shared generator: nothing else has to be kept to resume.
        seed = int(torch.randint(2**31, (), generator=self.generator)) + workers.index
        # Even parts: batch norm cannot train on a last single image.
        parts = torch.randperm(rows, generator=self.generator).tensor_split(batches)
        return EpochOrder(seed, torch.Generator(workers.device).manual_seed(seed), parts)


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One epoch: the seed of layers that take no generator (dropout), the loss's generator, the rows of each batch."""

    seed: int
    draws: torch.Generator
    batches: Sequence[Tensor]


class EarlyStopping(Protocol):
    """Watches a training, may end it, and may keep other weights than the last as the result."""

    weights: dict[str, Tensor]

    def observe(self, model: nn.Module, epoch: int) -> None:
        """Measure the model after an epoch, with averaged weights where there are any."""

    def ends_before(self, epoch: int) -> bool:
        """Whether the training ends before this epoch."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FitOptions(TypedDict, total=False):
    """Options of `fit` that functions with a loss of their own hand on to it."""

    seed: int
    device: torch.device | str
    checkpoint: str | os.PathLike[str] | None
    progress: Callable[..., Iterable[int]] | None


def fit(
    model: nn.Module,
    data: Tensor | Sequence[Tensor],
    loss: Callable[..., Tensor],
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    stopping: EarlyStopping | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
) -> list[float]:
    """Train in place and return the mean loss of each epoch; the model is left on the device, in eval mode.

    Args:
        data: One tensor or several of the same length; the rows of a batch are moved to the device.
        loss: loss(model, *batch, generator=generator) -> the batch's mean, a scalar. What it draws comes from the
            generator, which lives on the device; each process has its own.
        seed: Of the order, of the loss's draws and of dropout. The same seed gives the same weights.
        device: Where to train; of several processes each takes its own GPU, unless this is cpu.
        checkpoint: File from which an interrupted training goes on to the same weights.
        fingerprint: Name of the run in the checkpoint; unset, its settings and the shapes of the data.
        stopping: Ends the training early and chooses among its weights.
        progress: Wraps the epochs, like tqdm.

    Raises:
        SurrogateError: Tensors of different lengths, fewer images a step than processes, float16 without CUDA, a loss
            that is no longer a number, or a checkpoint that is damaged or of another training.
    """
    data = (data,) if isinstance(data, Tensor) else tuple(data)
    run = _Run(model, data, loss, training, seed, torch.device(device))
    first, history, saved = 0, [], None
    if checkpoint is not None:
        name = fingerprint or f"{training}, seed {seed}, {[tuple(part.shape) for part in data]}"
        saved = run.checkpoint(checkpoint, name, {} if stopping is None else {"best": stopping})
        first, history = saved.load(), saved.history
    remaining: Iterable[int] = range(first, training.epochs)
    bar = progress(remaining) if progress and run.workers.main else remaining
    for epoch in bar:
        if stopping and stopping.ends_before(epoch):
            break
        history.append(run.epoch(epoch))
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{history[-1]:.4g}")
        if stopping:
            stopping.observe(run.result, epoch)
        if saved and run.workers.main and run.is_due(epoch):
            saved.save(epoch)
    if stopping and stopping.weights:
        model.load_state_dict(stopping.weights)
    elif run.result is not model:
        model.load_state_dict(run.result.state_dict())
    model.eval()
    return list(history)


class _Run:
    """A training under way: everything that a step changes."""

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, ...],
        loss: Callable[..., Tensor],
        training: Training,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.data, self.training = model, data, training
        self.order = training.order(seed, device)
        self.workers = Workers(device, several=self.order.parallel)
        self.batches = _checked_batches(data, training, self.workers)
        model.to(self.workers.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,  # small networks: the steps of single tensors are a sixth of the time
        )
        self.schedule = training.schedule(self.optimizer, training.epochs * self.batches)
        self.scaler = torch.amp.GradScaler(self.workers.device.type, enabled=training.precision == "float16")
        self.average = None if training.ema is None else Average(model, training.ema)
        self.objective = self.workers.wrap(_Objective(model, loss))

    @property
    def result(self) -> nn.Module:
        """The model with averaged weights, where there are any."""
        return self.model if self.average is None else self.average.model

    def checkpoint(
        self, path: str | os.PathLike[str], fingerprint: str, others: dict[str, Any]
    ) -> TrainingCheckpoint:
        """Return the file that keeps everything the next epoch depends on."""
        average = {} if self.average is None else {"average": self.average}
        return TrainingCheckpoint(
            path,
            self.model,
            self.optimizer,
            self.order.generator,
            self.schedule,
            fingerprint=fingerprint,
            scaler=self.scaler,
            **average,
            **others,
        )

    def is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is saved after this epoch."""
        done, epochs = epoch + 1, self.training.epochs
        return done == epochs or done % max(1, epochs // CHECKPOINTS) == 0

    def epoch(self, epoch: int) -> float:
        """Train for one epoch and return the mean loss of its rows."""
        self.model.train()
        device, count = self.workers.device, len(self.data[0])
        total = torch.zeros((), dtype=torch.float64, device=device)
        order = self.order.epoch(epoch, count, self.batches, self.workers)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(order.seed)
            for step, batch in enumerate(order.batches):
                rows = batch[self.workers.index :: self.workers.count]
                value = self._step(rows, len(batch), order.draws)
                if self.average is not None:
                    self.average.update(self.model, epoch * self.batches + step)
                total += value.double() * len(rows)
        mean = self.workers.sum(total).item() / count
        if not math.isfinite(mean):
            raise SurrogateError(
                f"the loss is {mean} after epoch {epoch}: lower learning_rate, now {self.training.learning_rate}"
            )
        return mean

    def _step(self, rows: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
        device, precision = self.workers.device, self.training.precision
        images = [part[rows.to(part.device)].to(device) for part in self.data]
        with torch.autocast(device.type, PRECISIONS[precision], precision != "float32"):
            value = self.objective(*images, generator=draws)
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over the processes: the weight makes that the mean over the batch.
        self.scaler.scale(value * (len(rows) * self.workers.count / batch_size)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return value.detach()


def _checked_batches(data: tuple[Tensor, ...], training: Training, workers: Workers) -> int:
    """Number of batches an epoch, once data and training fit each other and the processes."""
    count = len(data[0]) if data else 0
    if not count or any(len(part) != count for part in data):
        raise SurrogateError(
            f"data has lengths {[len(part) for part in data]}: give tensors with a row an image"
        )
    batches = math.ceil(count / training.batch_size)
    if count // batches < workers.count:
        raise SurrogateError(
            f"batch_size {training.batch_size} on {count} images leaves less than one to each of {workers.count} "
            "processes: raise it, or start fewer"
        )
    check_precision(training.precision, workers.device)
    return batches


def check_precision(precision: str, device: torch.device) -> None:
    """Raise SurrogateError where a device has no gradients of this precision."""
    if precision == "float16" and device.type != "cuda":
        raise SurrogateError(f"precision float16 needs a CUDA device, got {device.type}: use bfloat16")


class _Objective(nn.Module):
    """Model and loss as one module, so that a parallel wrapper sees the backward pass of whatever the loss calls."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor, generator: torch.Generator) -> Tensor:
        return self.loss(self.model, *batch, generator=generator)


class Average:
    """Exponential moving average (EMA) of a model's weights and buffers, as a second model in eval mode."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after a step, faster in the first ones, whose weights are soon worth nothing."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if own.dtype.is_floating_point:
                own.lerp_(new, 1 - decay)
            else:
                own.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = state.get("weights")  # where older checkpoints of a purifier's network keep them
        self.model.load_state_dict(weights if isinstance(weights, dict) else state)


class Workers:
    """The processes that train together, by accelerate where it or torchrun has started several; else this one."""

    def __init__(self, device: torch.device, several: bool) -> None:
        self.device, self.index, self.count, self._accelerator = device, 0, 1, None
        if several and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import Accelerator, DistributedDataParallelKwargs

            # A loss may leave some weights out, e.g. the decoder's.
            unused = DistributedDataParallelKwargs(find_unused_parameters=True)
            self._accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[unused])
            self.device = self._accelerator.device
            self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process is the one that saves and reports."""
        return self.index == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over the processes."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a value over the processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "sum")
