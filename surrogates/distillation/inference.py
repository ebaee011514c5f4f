"""A network's outputs on many images: batch by batch, in eval mode, without gradients.

A network gets copies of the images: one that writes into its input must not change what others see.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surrogates.errors import SurrogateError

PASS_BYTES = 20 * 2**20  # of the images of one pass, as float32


def images_at_once(image_shape: Sequence[int], most: int) -> int:
    """Return how many images (C, H, W) go through a network at once: `most`, or fewer where they take more than 20 MiB.

    What a network keeps of its images takes some twenty times as much. It is a multiple of 8 then, and at least 8.
    """
    count = PASS_BYTES // (4 * math.prod(image_shape))
    return most if count >= most else max(8, count // 8 * 8)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter; the CPU for a module without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every part of it back in its own mode: frozen batch norm stays frozen."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return logits (N, K), on the CPU, of images (N, C, H, W); large images in smaller batches."""
    device = device_of(model)
    batch_size = images_at_once(images.shape[1:], batch_size)
    with evaluating(model), torch.inference_mode():
        return torch.cat([model(part.to(device, copy=True)).cpu() for part in images.split(batch_size)])


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the input (N, D) of the last linear layer, differentiable in the images (N, C, H, W).

    Raises:
        SurrogateError: The model has no linear layer.
    """
    return logits_and_features(model, images)[1]


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and features (N, D) of one forward pass.

    Raises:
        SurrogateError: The model has no linear layer.
    """
    layer = last_linear(model)
    if layer is None:
        raise SurrogateError(
            f"{type(model).__name__} has no linear layer to take features from: use another model"
        )
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        logits = model(images.clone())
    finally:
        handle.remove()
    return logits, inputs[-1].flatten(1)


def last_linear(model: nn.Module) -> nn.Linear | None:
    """Return the last linear layer in the order of registration, if there is one."""
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    return layers[-1] if layers else None


def predict_with_features(model: nn.Module, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and features (N, D), on the CPU; for a model without a linear layer the logits twice."""
    if last_linear(model) is None:
        logits = predict(model, images, batch_size)
        return logits, logits
    device = device_of(model)
    batch_size = images_at_once(images.shape[1:], batch_size)
    with evaluating(model), torch.inference_mode():
        pairs = [logits_and_features(model, part.to(device)) for part in images.split(batch_size)]
    return torch.cat([pair[0].cpu() for pair in pairs]), torch.cat([pair[1].cpu() for pair in pairs])
