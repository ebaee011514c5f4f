"""Checkpoints of a training loop, from which an interrupted training resumes to the same bits."""

import os
from pathlib import Path
from typing import Any

import torch

from surrogates.errors import SurrogateError
from surrogates.files import replacing


class TrainingCheckpoint:
    """Everything that the next epoch depends on, in one file: model, optimizer, scheduler, generator, epoch.

    Draws that do not use `generator` (dropout) are the loop's own care: seed them per epoch.

    Args:
        path: The file; its directory must exist.
        fingerprint: Name of the run; a checkpoint of another run is refused.
        others: Further parts with state_dict and load_state_dict.

    Attributes:
        history: Numbers that the loop may append to and that travel along.

    Raises:
        SurrogateError: No such directory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        *,
        fingerprint: str = "",
        **others: Any,
    ) -> None:
        self.path = Path(path)
        self.history: list[float] = []
        self._fingerprint = fingerprint
        self._generator = generator
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, **others}
        if scheduler is not None:
            self._parts["scheduler"] = scheduler
        if not self.path.parent.is_dir():
            raise SurrogateError(f"checkpoint {self.path} has no directory: create {self.path.parent}")

    def load(self) -> int:
        """Restore the last saved state and return the next epoch, 0 when nothing was saved.

        Raises:
            SurrogateError: The file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return 0
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint = saved["fingerprint"]
            states = {name: saved[name] for name in self._parts}
            random, history, epoch = saved["generator"], saved["history"], saved["epoch"]
        except Exception as error:  # damage shows in many ways
            raise SurrogateError(
                f"checkpoint {self.path} cannot be read ({type(error).__name__}): delete it to start again"
            ) from error
        if fingerprint != self._fingerprint:
            raise SurrogateError(
                f"checkpoint {self.path} belongs to a run with other settings: delete it or give another path"
            )
        try:
            for name, part in self._parts.items():
                part.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise SurrogateError(
                f"checkpoint {self.path} is of another model: delete it or give another path"
            ) from error
        self._generator.set_state(random)
        self.history[:] = history
        return epoch + 1

    def save(self, epoch: int) -> None:
        """Save the state after `epoch`; a crash leaves the old file or the new one, never a part."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {
            "generator": self._generator.get_state(),
            "history": list(self.history),
            "epoch": epoch,
            "fingerprint": self._fingerprint,
        }
        with replacing(self.path) as file:
            torch.save(state, file)

    def delete(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)
