"""A network's outputs on many images: batch by batch, in eval mode, without gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from surrogates.errors import SurrogateError


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter; the CPU for a module without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module in eval mode and give it back in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def predict(model: nn.Module, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return logits (N, K), on the CPU, of images (N, C, H, W)."""
    device = device_of(model)
    with evaluating(model), torch.inference_mode():
        return torch.cat([model(part.to(device)).cpu() for part in images.split(batch_size)])


def predict_with_features(
    model: nn.Module, images: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, K) and features (N, D): what the last linear layer is given; without one, the logits."""
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    if last is None:
        logits = predict(model, images, batch_size)
        return logits, logits
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).cpu()))
    try:
        return predict(model, images, batch_size), torch.cat(seen)
    finally:
        hook.remove()


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a classifier's last linear layer, (N, D), differentiable in the images (N, C, H, W).

    Raises:
        SurrogateError: The model has no linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise SurrogateError(f"{type(model).__name__} has no linear layer to take features from: use another")
    inputs: list[torch.Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        model(images)
    finally:
        hook.remove()
    return inputs[-1].flatten(1)
