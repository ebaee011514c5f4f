"""Small classifiers of the digits, trained once a session, for tests that attack something real."""

from functools import cache

import torch
from torch import Tensor, nn

from certdef.attacks.gradient import pgd
from certdef.config.job import DataConfig
from certdef.data.sets import load_data
from certdef.models.classifiers import build_classifier, train_classifier


@cache
def adversarial_mlp(eps: float) -> nn.Module:
    """A classifier of the digits trained against PGD within eps (Madry et al., ICLR 2018)."""
    data = load_data(DataConfig(), 0)

    def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return pgd(model, images, labels, eps=eps, steps=5, seed=0)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_classifier("mlp", data.image_shape, 10)
    return train_classifier(
        model,
        data.target_images,
        data.target_labels,
        epochs=30,
        seed=0,
        device=torch.device("cpu"),
        perturb=perturb,
    )


@cache
def digits_mlp(noise: float = 0.0) -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier trained on images under Gaussian noise of this sigma, held-out images (400, 1, 8, 8) and labels."""
    data = load_data(DataConfig(), 0)
    images = torch.from_numpy(data.target_images)
    labels = data.target_labels
    if noise:
        generator = torch.Generator().manual_seed(0)
        images = torch.cat(
            [images + noise * torch.randn(images.shape, generator=generator) for _ in range(8)]
        )
        labels = torch.from_numpy(labels).repeat(8).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier("mlp", data.image_shape, 10)
    epochs = 5 if noise else 15
    train_classifier(model, images.numpy(), labels, epochs=epochs, seed=0, device=torch.device("cpu"))
    return model, torch.from_numpy(data.heldout_images), torch.from_numpy(data.heldout_labels)
