"""Targets that are Python objects: a plain callable, or a torch module in this process."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from surrogates.targets.base import Target
from surrogates.targets.declared import Declared


class CallableTarget(Target):
    """A function of images (N, C, H, W) float32 that returns scores (N, K), labels (N,), or an output that holds them.

    It may well call a paid service, so a query whose answer was lost counts as charged.

    Raises:
        ClassesUnknown: num_classes was not declared.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], declared: Declared) -> None:
        super().__init__(
            declared.identity or qualified_name(function),
            declared.classes_of(type(function).__name__),
            declared.kind("probabilities"),
            charged_when_sent=True,
            batch_size=declared.batch_size,
            **declared.handed,
        )
        self._function = function

    def answer(self, pixels: np.ndarray) -> Any:
        return self._function(pixels)


class TorchTarget(Target):
    """A torch module in eval mode; it dies with this process, so that a lost answer costs nothing.

    It gets images of its own number type, that of its parameters.

    Args:
        device: Where it runs; unset, where its parameters are.

    Raises:
        ClassesUnknown: num_classes was not declared, and the module has no such attribute.
    """

    def __init__(
        self, module: torch.nn.Module, declared: Declared, device: str | torch.device | None = None
    ) -> None:
        if declared.num_classes is None:
            declared = declared.agreed(num_classes=getattr(module, "num_classes", None))
        super().__init__(
            declared.identity or f"{qualified_name(type(module))}:{weights_digest(module)}",
            declared.classes_of(type(module).__name__),
            declared.kind("logits"),
            charged_when_sent=False,
            batch_size=declared.batch_size,
            **declared.handed,
        )
        parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
        self._dtype = parameters[0].dtype if parameters else None
        self._device = torch.device(device or (parameters[0].device if parameters else "cpu"))
        self._module = module.to(self._device)

    def answer(self, pixels: np.ndarray) -> Any:
        images = torch.from_numpy(pixels)
        if images.is_floating_point():
            images = images.to(self._dtype or images.dtype)
        self._module.eval()
        with torch.inference_mode():
            return self._module(images.to(self._device))


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
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
