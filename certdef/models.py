"""Classifiers by name: two small ones of our own and every timm model. Inputs are (N, C, H, W) in [0, 1].

Normalisation is inside the model, so that attacks, noise and certificates all live in pixel units.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from certdef.config import ConfigError, RunConfig


class Classifier(nn.Module):
    """A network behind a fixed normalisation: (N, C, H, W) in [0, 1] -> logits (N, K)."""

    def __init__(self, network: nn.Module, mean: float = 0.5, std: float = 0.5):
        super().__init__()
        self.mean, self.std, self.network = mean, std, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def build_classifier(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build an untrained classifier: `cnn`, `mlp`, `nim_p4_w64_d3_h4` (patch, width, depth, heads), or any timm model name.

    Raises:
        ConfigError: The name is neither ours nor timm's, or the model does not take images of this size.
    """
    channels, height, width = image_shape
    if name == "mlp":
        return Classifier(_mlp(channels * height * width, num_classes))
    if name == "cnn":
        return Classifier(_cnn(channels, min(height, width), num_classes))
    if sizes := re.fullmatch(r"nim_p(\d+)_w(\d+)_d(\d+)_h(\d+)", name):
        from certdef.purifiers.nim import NIM, NIMClassifier, NIMShape

        return NIMClassifier(NIM(NIMShape(image_shape, *map(int, sizes.groups()))), num_classes)
    import timm

    if not timm.is_model(name):
        raise ConfigError(
            f"unknown model {name!r}: use cnn, mlp or a timm model name, e.g. {', '.join(timm.list_models(name[:4] + '*')[:3]) or 'resnet18'}"
        )
    try:
        sized = {"img_size": (height, width)} if "vit" in name else {}
        network = timm.create_model(
            name, pretrained=False, in_chans=channels, num_classes=num_classes, **sized
        )
        network.eval()(torch.zeros(1, *image_shape))
    except Exception as error:  # timm raises whatever the architecture trips over
        raise ConfigError(
            f"model {name!r} does not take images of shape {image_shape} ({error}): choose another"
        ) from error
    return Classifier(network)


def surrogate_model(config: RunConfig) -> str:
    """Name of the surrogate's architecture for build_classifier: `nim` stands for the configured encoder's sizes."""
    nim = config.nim
    sizes = f"nim_p{nim.patch_size}_w{nim.width}_d{nim.depth}_h{nim.heads}"
    return sizes if config.surrogate.model == "nim" else config.surrogate.model


def _mlp(inputs: int, num_classes: int, hidden: int = 256) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


def _cnn(channels: int, size: int, num_classes: int, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    inputs, outputs = channels, width
    for stage in range(2):
        stride = 2 if stage or size > 16 else 1
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        inputs, outputs = outputs, 2 * outputs
    pooled = 4
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten(),
        nn.Linear(inputs * pooled * pooled, 128), nn.ReLU(), nn.Linear(128, num_classes),
    )  # fmt: skip


def train_svc(images: np.ndarray, labels: np.ndarray, seed: int):
    """The digits target: an RBF support vector machine with calibrated probabilities, on flattened images."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    machine = CalibratedClassifierCV(SVC(C=10.0, gamma="scale", random_state=seed), ensemble=False, cv=5)
    return machine.fit(images.reshape(len(images), -1), labels)


def train_classifier(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int, device: torch.device,
    batch_size: int = 128, learning_rate: float = 2e-3, progress: Callable | None = None, desc: str = "train target",
) -> nn.Module:  # fmt: skip
    """Train a classifier on labelled images: what the owner of a cnn target does before anyone queries it."""
    generator = torch.Generator().manual_seed(seed)
    data, truth = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    model.to(device).train()
    steps = -(-len(data) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for _ in progress(range(epochs), desc=desc) if progress else range(epochs):
        for batch in torch.randperm(len(data), generator=generator).to(device).split(batch_size):
            loss = nn.functional.cross_entropy(model(data[batch]), truth[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
