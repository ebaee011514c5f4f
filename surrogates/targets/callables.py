"""Targets that are Python objects: a plain callable, or a torch module in this process."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from surrogates.targets.base import Answers, Target
from surrogates.targets.formats import PixelFormat


class CallableTarget(Target):
    """A function of images (N, C, H, W) float32 that returns scores (N, K) or labels (N,).

    It may well call a paid service, so a query whose answer was lost counts as charged.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        num_classes: int,
        output_kind: str = "probabilities",
        *,
        identity: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        super().__init__(
            identity or qualified_name(function),
            num_classes,
            output_kind,
            charged_when_sent=True,
            input_shape=input_shape,
            batch_size=batch_size,
            pixels=pixels,
        )
        self._function = function

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        return self._function(pixels)


class TorchTarget(Target):
    """A torch module asked in eval mode; it dies with this process, so that a lost answer costs nothing."""

    def __init__(
        self,
        module: torch.nn.Module,
        num_classes: int,
        output_kind: str = "logits",
        *,
        identity: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        super().__init__(
            identity or f"{qualified_name(type(module))}:{weights_digest(module)}",
            num_classes,
            output_kind,
            charged_when_sent=False,
            input_shape=input_shape,
            batch_size=batch_size,
            pixels=pixels,
        )
        parameter = next(module.parameters(), None)
        self._device = torch.device(device or ("cpu" if parameter is None else parameter.device))
        self._module = module.to(self._device)

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        self._module.eval()
        with torch.inference_mode():
            return self._module(torch.from_numpy(pixels).to(self._device)).cpu()


def qualified_name(thing: object) -> str:
    """Return module.qualname of a function or class, or of the class of any other callable."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def weights_digest(module: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits of sha256 over the names, types, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:".encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(value.tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
