"""Agreement of a surrogate with its target, clean and under the noise that it will be smoothed with."""

from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING
from typing import TYPE_CHECKING

import numpy as np
import torch

from surrogates.distillation.augmentation import Noise, denoised, perturbed
from surrogates.distillation.inference import device_of
from surrogates.distillation.surrogate import Surrogate, predict_labels
from surrogates.errors import SurrogateError, check_positive_integers
from surrogates.frames import Framed, rounded
from surrogates.intervals import clopper_pearson
from surrogates.targets import Target, check_images

if TYPE_CHECKING:
    import pandas

REFERENCES = ("same", "clean")


@dataclass(frozen=True)
class Fidelity(Framed):
    """Agreement (fidelity): the share of images with the same label.

    Args:
        agreement: The share.
        lower: Of the two-sided Clopper-Pearson interval.
        upper: Of the same.
        disagreement_upper: One-sided upper bound of the share with different labels, hence usable alone.
        n: Number of images.
        noisy: Whether the surrogate saw noisy images.

    Examples:
        >>> Fidelity(0.925, 0.89997, 0.94601, disagreement_upper=0.1, n=400, noisy=False)  # bounds are rounded to the safe side
        Fidelity(agreement=0.9250 [0.8999, 0.9461], n=400, clean images)
    """

    agreement: float
    lower: float
    upper: float
    disagreement_upper: float
    n: int
    noisy: bool

    def __repr__(self) -> str:
        interval = f"{rounded(self.lower)}, {rounded(self.upper, ROUND_CEILING)}"
        images = "noisy" if self.noisy else "clean"
        return f"Fidelity(agreement={self.agreement:.4f} [{interval}], n={self.n}, {images} images)"

    def to_frame(self) -> "pandas.DataFrame":
        """A row, with the names of the fields."""
        import pandas

        return pandas.DataFrame([asdict(self)])


def fidelity(
    surrogate: Surrogate | torch.nn.Module,
    target: Target,
    images: torch.Tensor | np.ndarray,
    noise: Noise | None = None,
    *,
    denoiser: torch.nn.Module | None = None,
    reference: str = "same",
    seed: int = 0,
    batch_size: int = 256,
    confidence: float = 0.95,
) -> Fidelity:
    """Compare the labels of surrogate and target.

    Args:
        images: (N, C, H, W) in [0, 1].
        noise: With noise the surrogate gets noisy images, which are not clipped.
        denoiser: Stands between the noise and both models; it is given a copy.
        reference: What the target answers: "same", the surrogate's input, or "clean", the image without noise and
            denoiser, whose answer a vote of the surrogate stands for.
        seed: Of the noise.
        batch_size: Images a query.
        confidence: Of the bounds (Clopper & Pearson, 1934).

    Raises:
        SurrogateError: A value out of its range, or whatever the target raises.
    """
    if not 0 < confidence < 1:
        raise SurrogateError(f"confidence must be in (0, 1), got {confidence!r}: try 0.95")
    if reference not in REFERENCES:
        raise SurrogateError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
    check_positive_integers(batch_size=batch_size)
    pixels = torch.from_numpy(check_images(images))
    generator = torch.Generator().manual_seed(seed)
    agreed = 0
    for clean in pixels.split(batch_size):
        batch = clean
        if noise is not None:
            batch = perturbed(clean, noise, generator)
        if denoiser is not None:
            batch = denoised(denoiser, batch.to(device_of(denoiser))).cpu()
        asked = batch if reference == "same" else clean
        bounded = asked is clean or denoiser is not None
        labels = target.query(asked, bounded=bounded).labels
        agreed += int((predict_labels(surrogate, batch, batch_size) == labels).sum())
    n = len(pixels)
    lower, upper = clopper_pearson(agreed, n, (1 - confidence) / 2)
    disagreement_upper = 1 - clopper_pearson(agreed, n, 1 - confidence)[0]
    return Fidelity(agreed / n, lower, upper, disagreement_upper, n, noise is not None)
