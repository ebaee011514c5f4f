"""The one training loop of every purifier's network: AdamW, linear warm-up and cosine, averaged weights, mixed precision.

One process trains on the device that it is given. Under `accelerate launch` or `torchrun` the same call trains on all
processes: each takes its share of every batch, and the weights are those of one process, to rounding, as far as the
loss draws nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surrogates import TrainingCheckpoint

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKPOINTS = 20  # a training, at most


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
        ValueError: A value out of its range.
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
        for name in ("epochs", "batch_size"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive whole number, got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}: try 1e-3")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup!r}: try 0.05")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be a decay in (0, 1), got {self.ema!r}: try 0.999")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step of so many."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit(
    model: nn.Module,
    data: Tensor | tuple[Tensor, ...],
    loss: Callable[..., Tensor],
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[..., Any] | None = None,
) -> list[float]:
    """Train in place and return the mean loss of each epoch; the model is left on the device, in eval mode.

    Args:
        data: One tensor or several of the same length; the rows of a batch are moved to the device.
        loss: loss(model, *batch, generator=generator) -> the batch's mean, a scalar. What it draws comes from the
            generator, which lives on the device; each process has its own.
        seed: Of the order, of the loss's draws and of dropout. The same seed gives the same weights.
        device: Where to train; of several processes each takes its own GPU, unless this is cpu.
        checkpoint: File from which an interrupted training goes on to the same weights.
        progress: Wraps the epochs, like tqdm.

    Raises:
        ValueError: Tensors of different lengths, fewer images a step than processes, float16 without CUDA, or a loss
            that is no longer a number.
        surrogates.SurrogateError: The checkpoint is damaged or of another training.
    """
    data = (data,) if isinstance(data, Tensor) else tuple(data)
    count = len(data[0])
    if any(len(part) != count for part in data) or not count:
        raise ValueError(f"data has lengths {[len(part) for part in data]}: give tensors with a row an image")
    workers = _Workers(device)
    batches = math.ceil(count / training.batch_size)
    if count // batches < workers.count:
        raise ValueError(
            f"batch_size {training.batch_size} on {count} images leaves less than one to each of {workers.count} processes: "
            "raise it, or start fewer"
        )
    if training.precision == "float16" and workers.device.type != "cuda":
        raise ValueError(f"precision float16 needs CUDA, the device is {workers.device}: use bfloat16")

    model.to(workers.device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
    )
    steps = training.epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: training.rate(step, steps))
    scaler = torch.amp.GradScaler(workers.device.type, enabled=training.precision == "float16")
    average = _Average(model, training.ema)
    saved, first, history = None, 0, []
    if checkpoint is not None:
        fingerprint = f"{training}, seed {seed}, {[tuple(part.shape) for part in data]}"
        saved = TrainingCheckpoint(
            checkpoint, model, optimizer, order, schedule, fingerprint=fingerprint, scaler=scaler, average=average,
        )  # fmt: skip
        first, history = saved.load(), saved.history
    objective = workers.wrap(_Objective(model, loss))

    bar = range(first, training.epochs)
    bar = progress(bar) if progress and workers.main else bar
    for epoch in bar:
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=workers.device)
        # An epoch's draws hang on one number of the shared generator: nothing else has to be kept to resume.
        start = int(torch.randint(2**31, (), generator=order)) + workers.index
        draws = torch.Generator(workers.device).manual_seed(start)
        with torch.random.fork_rng(devices=[workers.device] if workers.device.type == "cuda" else []):
            torch.manual_seed(start)  # dropout takes no generator
            # Even parts: batch norm cannot train on a last single image.
            for batch in torch.randperm(count, generator=order).tensor_split(batches):
                rows = batch[workers.index :: workers.count]
                images = [part[rows.to(part.device)].to(workers.device) for part in data]
                with torch.autocast(
                    workers.device.type, PRECISIONS[training.precision], training.precision != "float32"
                ):
                    value = objective(*images, generator=draws)
                optimizer.zero_grad(set_to_none=True)
                # Gradients are averaged over the processes: the weight makes that the mean over the batch.
                scaler.scale(value * (len(rows) * workers.count / len(batch))).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                average.update(model)
                total += value.detach().double() * len(rows)
        history.append(workers.sum(total).item() / count)
        if not math.isfinite(history[-1]):
            raise ValueError(
                f"the loss is {history[-1]} after epoch {epoch}: lower learning_rate, now {training.learning_rate}"
            )
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{history[-1]:.4g}")
        if saved and workers.main and (epoch + 1) % max(1, training.epochs // CHECKPOINTS) == 0:
            saved.save(epoch)
    if training.ema is not None:
        model.load_state_dict(average.weights)
    model.eval()
    return list(history)


class _Objective(nn.Module):
    """Model and loss as one module, so that a parallel wrapper sees the backward pass of whatever the loss calls."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor, generator: torch.Generator) -> Tensor:
        return self.loss(self.model, *batch, generator=generator)


class _Average:
    """Exponential moving average of a model's weights and buffers; without a decay, nothing."""

    def __init__(self, model: nn.Module, decay: float | None):
        self.decay, self.step = decay, 0
        self.weights = {} if decay is None else {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model, faster in the first steps, whose weights are soon worth nothing."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])


class _Workers:
    """The processes that train together, by accelerate where it or torchrun has started several; else this one."""

    def __init__(self, device: torch.device | str):
        self.device, self.index, self.count, self.accelerator = torch.device(device), 0, 1, None
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import Accelerator, DistributedDataParallelKwargs

            # A loss may leave some weights out, e.g. the decoder's.
            unused = DistributedDataParallelKwargs(find_unused_parameters=True)
            self.accelerator = Accelerator(cpu=self.device.type == "cpu", kwargs_handlers=[unused])
            self.device = self.accelerator.device
            self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes

    @property
    def main(self) -> bool:
        return self.index == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module) if self.accelerator else module

    def sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self.accelerator else value
