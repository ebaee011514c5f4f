"""A surrogate: the distilled stand-in of a target, with the record of what it was trained on."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from surrogates.distillation.inference import predict
from surrogates.errors import SurrogateError
from surrogates.files import replacing


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A distilled stand-in.

    Args:
        model: The student, in eval mode.
        queries: Queries that it was trained with and measured on.
        pool_indices: Which images of the pool were queried, in their order.
        history: Mean loss of each epoch of the last training.
        loss: Name of the distance from the answers.
        held_out_agreement: Share of held-out answers on which model and target agree, None without any; it flatters
            where it also chose the best epoch (patience).
        strategy: How the images were chosen.
        rounds: Number of images that were queried in each round.
    """

    model: nn.Module
    queries: int
    pool_indices: tuple[int, ...]
    history: tuple[float, ...]
    loss: str
    held_out_agreement: float | None = None
    strategy: str = "random"
    rounds: tuple[int, ...] = ()

    def __repr__(self) -> str:
        held_out = (
            "" if self.held_out_agreement is None else f", held_out_agreement={self.held_out_agreement:.4f}"
        )
        return (
            f"Surrogate({type(self.model).__name__}, queries={self.queries}, strategy={self.strategy!r}, "
            f"loss={self.loss!r}, epochs={len(self.history)}{held_out})"
        )

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
            "strategy": self.strategy,
            "rounds": self.rounds,
        }
        with replacing(path) as file:
            save_model(self.model, file.name, metadata={"surrogate": json.dumps(record)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> "Surrogate":
        """Fill a model of the same architecture with saved weights.

        Raises:
            SurrogateError: There is no such file, or it does not fit the model.
        """
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
        for name in ("pool_indices", "history", "rounds"):
            record[name] = tuple(record.get(name, ()))
        return cls(model=model.eval(), **record)


def predict_labels(model: Surrogate | nn.Module, images: torch.Tensor, batch_size: int) -> np.ndarray:
    """Return the labels (N,) int64 of images (N, C, H, W) by a model in eval mode, on the model's device."""
    module = model.model if isinstance(model, Surrogate) else model
    return predict(module, images, batch_size).argmax(dim=1).numpy()
