"""How often a surrogate says what its target says, clean and under the noise it will be smoothed with."""

from dataclasses import dataclass

import numpy as np
import torch

from surrogates.distillation.distill import Noise, Surrogate, predict_labels
from surrogates.errors import SurrogateError
from surrogates.intervals import clopper_pearson
from surrogates.targets import Target, check_images


@dataclass(frozen=True)
class Fidelity:
    """Share of images with the same label, with bounds at the confidence asked for.

    lower and upper are two-sided Clopper-Pearson; disagreement_upper is one-sided, hence usable alone.
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
    """Compare the labels of surrogate and target on images (N, C, H, W) in [0, 1].

    With noise both see the same noisy images, which are not clipped. Clopper & Pearson (1934).
    Raises SurrogateError, or what the target raises.
    """
    if not 0 < confidence < 1:
        raise SurrogateError(f"confidence must be in (0, 1), got {confidence!r}: try 0.95")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SurrogateError(f"batch_size must be a positive integer, got {batch_size!r}")
    pixels = torch.from_numpy(check_images(images))
    generator = torch.Generator().manual_seed(seed)
    agreed = 0
    for batch in pixels.split(batch_size):
        if noise is not None:
            batch = batch + noise.sample(tuple(batch.shape), generator=generator, device="cpu")
        theirs = target.query(batch, bounded=noise is None).labels
        agreed += int((predict_labels(surrogate, batch, batch_size) == theirs).sum())
    n = len(pixels)
    lower, upper = clopper_pearson(agreed, n, (1 - confidence) / 2)
    disagreement_upper = 1 - clopper_pearson(agreed, n, 1 - confidence)[0]
    return Fidelity(agreed / n, lower, upper, disagreement_upper, n, noise is not None)
