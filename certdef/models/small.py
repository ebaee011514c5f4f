"""Three small classifiers of our own, which train on a processor. Inputs are normalized images, outputs logits (N, K)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(inputs: int, num_classes: int, hidden: int = 256) -> nn.Module:
    """Two hidden layers on flattened images."""
    first = [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    second = [nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *first, *second, nn.Linear(hidden, num_classes))


def cnn(channels: int, size: int, num_classes: int, width: int = 32) -> nn.Module:
    """Two convolutions, the first with a stride on images of more than 16 pixels, and a hidden layer."""
    layers: list[nn.Module] = []
    inputs, outputs = channels, width
    for stage in range(2):
        stride = 2 if stage or size > 16 else 1
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs, outputs = outputs, 2 * outputs
    pooled = 4
    head = [nn.Linear(inputs * pooled * pooled, 128), nn.ReLU(), nn.Linear(128, num_classes)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), *head)


def resnet(channels: int, size: int, num_classes: int, width: int = 32) -> nn.Module:
    """Three levels of one residual block each, down to a mean over the image."""
    stride = 2 if size > 32 else 1
    stem = [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    levels = [Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes)]
    return nn.Sequential(*stem, *levels, *head)


class Residual(nn.Module):
    """Two convolutions around a shortcut (He et al., CVPR 2016); a stride halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        first = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        second = [nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*first, *second)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))
