"""Agreement of a surrogate with its target, clean and under the noise that it will be smoothed with."""

from dataclasses import dataclass

import numpy as np
import torch

from surrogates.distillation.augmentation import Noise
from surrogates.distillation.surrogate import Surrogate, predict_labels
from surrogates.errors import SurrogateError, check_positive_integers
from surrogates.intervals import clopper_pearson
from surrogates.targets import Target, check_images


@dataclass(frozen=True)
class Fidelity:
    """Agreement (fidelity): the share of images with the same label.

    Args:
        agreement: The share.
        lower: Of the two-sided Clopper-Pearson interval.
        upper: Of the same.
        disagreement_upper: One-sided upper bound of the share with different labels, hence usable alone.
        n: Number of images.
        noisy: Whether both saw noisy images.
    """

    agreement: float
    lower: float
    upper: float
    disagreement_upper: float
    n: int
    noisy: bool


def fidelity(
    surrogate: Surrogate | torch.nn.Module,
    target: Target,
    images: torch.Tensor | np.ndarray,
    noise: Noise | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    confidence: float = 0.95,
) -> Fidelity:
    """Compare the labels of surrogate and target.

    Args:
        images: (N, C, H, W) in [0, 1].
        noise: With noise both get the same noisy images, which are not clipped.
        seed: Of the noise.
        batch_size: Images a query.
        confidence: Of the bounds (Clopper & Pearson, 1934).

    Raises:
        SurrogateError: A value out of its range, or whatever the target raises.
    """
    if not 0 < confidence < 1:
        raise SurrogateError(f"confidence must be in (0, 1), got {confidence!r}: try 0.95")
    check_positive_integers(batch_size=batch_size)
    pixels = torch.from_numpy(check_images(images))
    generator = torch.Generator().manual_seed(seed)
    agreed = 0
    for batch in pixels.split(batch_size):
        if noise is not None:
            batch = batch + noise.sample(tuple(batch.shape), generator=generator, device="cpu")
        labels = target.query(batch, bounded=noise is None).labels
        agreed += int((predict_labels(surrogate, batch, batch_size) == labels).sum())
    n = len(pixels)
    lower, upper = clopper_pearson(agreed, n, (1 - confidence) / 2)
    disagreement_upper = 1 - clopper_pearson(agreed, n, 1 - confidence)[0]
    return Fidelity(agreed / n, lower, upper, disagreement_upper, n, noise is not None)
