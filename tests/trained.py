"""Small classifiers of the digits, trained once a session, for tests that attack something real."""

from functools import cache

import torch
from torch import Tensor, nn

from certdef.config.job import DataConfig
from certdef.data.sets import load_data
from certdef.models.classifiers import build_classifier, train_classifier


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
