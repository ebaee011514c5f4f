"""Classifiers by name: two small ones of our own and every timm model. Inputs are (N, C, H, W) in [0, 1].

Normalization is inside the model, so that attacks, noise and certificates all live in pixel units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from certdef.config.job import ConfigError, RunConfig
from certdef.config.names import NIM_SIZES, SMALL_MODELS, unknown_model
from certdef.config.objects import is_object, object_named
from certdef.models import small
from certdef.tracking.parts import read_part
from surrogates.distillation.augmentation import moved
from surrogates.distillation.inference import evaluating, features
from surrogates.distillation.training import EpochOrder, Order, Training, Workers, fit

__all__ = ["Classifier", "build_classifier", "features", "surrogate_model", "train_classifier", "train_svc"]

BATCH_SIZE = 128


class Classifier(nn.Module):
    """A network behind a fixed normalization: (N, C, H, W) in [0, 1] -> logits (N, K)."""

    built: dict[str, Any]

    def __init__(self, network: nn.Module, mean: float = 0.5, std: float = 0.5):
        super().__init__()
        self.mean, self.std, self.network = mean, std, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def build_classifier(model: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build an untrained classifier: `cnn`, `mlp`, `resnet`, `nim_p4_w64_d3_h4` (patch, width, depth, heads), or any timm model name.

    The name of a module that was given as an object (certdef/config/objects.py) gives a copy of it.

    Raises:
        ConfigError: The name is neither ours nor timm's, or the model does not take images of this size.
    """
    classifier = _build(model, image_shape, num_classes)
    # How to build it again, for whoever saves its weights.
    classifier.built = {"model": model, "image_shape": tuple(image_shape), "num_classes": num_classes}
    return classifier


def _build(name: str, image_shape: tuple[int, int, int], num_classes: int) -> Any:
    if is_object(name):
        return copy.deepcopy(object_named(name, "surrogate"))
    channels, height, width = image_shape
    if name == "mlp":
        return Classifier(small.mlp(channels * height * width, num_classes))
    if name == "cnn":
        return Classifier(small.cnn(channels, min(height, width), num_classes))
    if name == "resnet":
        return Classifier(small.resnet(channels, min(height, width), num_classes))
    if sizes := NIM_SIZES.fullmatch(name):
        from certdef.purifiers.networks.nim import NIM, NIMClassifier, NIMShape

        *numbers, token = sizes.groups()
        patch_size, width, depth, heads = map(int, numbers)
        encoder = NIMShape(
            image_shape, patch_size, width, depth, heads, decoder_depth=0, class_token=token is not None
        )
        return NIMClassifier(NIM(encoder), num_classes)
    check_known(name)
    return Classifier(_timm_network(name, image_shape, num_classes))


def check_known(name: str) -> None:
    """Refuse a name that is neither ours nor timm's.

    Raises:
        ConfigError: Names some that are like it.
    """
    if name in SMALL_MODELS or NIM_SIZES.fullmatch(name):
        return
    import timm

    if not timm.is_model(name):
        raise ConfigError(unknown_model(name))


def _timm_network(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network of timm, made for images of this size where the architecture takes one."""
    import timm

    channels, height, width = image_shape
    state = torch.get_rng_state()
    sizes: tuple[dict[str, Any], ...] = ({"img_size": (height, width)}, {})
    for sized in sizes:  # which of them an architecture takes is known by trying
        torch.set_rng_state(state)  # the weights do not depend on what was tried before
        try:
            network = timm.create_model(
                name, pretrained=False, in_chans=channels, num_classes=num_classes, **sized
            )
            network.eval()(torch.zeros(1, *image_shape))
            return network
        except Exception as error:  # timm raises whatever the architecture trips over
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(
        f"model {name!r} does not take images of shape {image_shape} ({reason}): choose another"
    )


def surrogate_model(config: RunConfig) -> str:
    """Name of the surrogate's architecture for build_classifier: `nim` stands for the configured encoder's sizes.

    Raises:
        ConfigError: It is that of another job, and holds no classifier.
    """
    if config.surrogate.weights is not None:
        said = read_part(config, config.surrogate.weights)["networks"].get("classifier", {})
        if "model" not in said:
            raise ConfigError(
                f"surrogate.weights is {config.surrogate.weights!r}, which holds no classifier: name one of certdef-surrogate"
            )
        return said["model"]
    if config.surrogate.model != "nim":
        return config.surrogate.model
    from certdef.purifiers.networks.denoisers import configured_sizes

    sizes = configured_sizes(config)
    token = "_c" if sizes.get("class_token") else ""
    return "nim_p{patch_size}_w{width}_d{depth}_h{heads}".format(**sizes) + token


def train_svc(images: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """The digits target: an RBF support vector machine with calibrated probabilities, on flattened images."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    classifier = CalibratedClassifierCV(SVC(C=10.0, gamma="scale", random_state=seed), ensemble=False, cv=5)
    return classifier.fit(images.reshape(len(images), -1), labels)


def train_classifier(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    learning_rate: float = 2e-3,
    augment: bool = False,
    perturb: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
) -> nn.Module:
    """Train a classifier on labeled images: what the owner of a cnn target does before anyone queries it.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        learning_rate: Peak rate of AdamW in one cycle (Smith & Topin, 2018).
        augment: Mirror half of the images and shift each by up to an eighth of its height; for natural images.
        perturb: perturb(model, images, labels) -> images, e.g. an attack: adversarial training (Madry et al., ICLR 2018).
        progress: Wraps the epochs, like tqdm.

    Returns:
        The same model, on the device, in eval mode.
    """

    def loss(model: nn.Module, images: Tensor, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        if augment:
            images = moved(images, generator)
        if perturb:
            with evaluating(model):
                images = perturb(model, images, labels)
        return nn.functional.cross_entropy(model(images), labels)

    data = [torch.from_numpy(part).to(device) for part in (images, labels)]
    training = _OneCycle(epochs, BATCH_SIZE, learning_rate, weight_decay=0.01, betas=(0.9, 0.999))
    fit(model, data, loss, training, seed=seed, device=device, progress=progress)
    return model


class _OneCycle(Training):
    """AdamW whose rate and momentum go through one cycle; the last batch of an epoch is what remains."""

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        return OneCycleLR(optimizer, self.learning_rate, total_steps=steps)

    def order(self, seed: int, device: torch.device) -> Order:
        return _FullBatches(seed, device, self.batch_size)


class _FullBatches(Order):
    """Order and augmentation come from generators of their own, which no checkpoint keeps."""

    parallel = False

    def __init__(self, seed: int, device: torch.device, batch_size: int) -> None:
        super().__init__(torch.Generator().manual_seed(seed))
        self.draws = torch.Generator(device).manual_seed(seed)
        self.batch_size = batch_size

    def epoch(self, epoch: int, rows: int, batches: int, workers: Workers) -> EpochOrder:
        order = torch.randperm(rows, generator=self.generator).to(workers.device)
        seed = self.generator.initial_seed() + epoch
        return EpochOrder(seed, self.draws, order.split(self.batch_size))
