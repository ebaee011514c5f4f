"""What a certificate says."""

from dataclasses import dataclass
from typing import Any

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """``prediction`` holds within ``radius`` of the image, with probability >= 1 - ``alpha`` over the draws.

    ``prediction`` is the smoothed ``subject``'s class, or ABSTAIN with radius 0. ``radius`` is in ``norm``
    and [0, 1] pixel units. ``p_lower`` bounds the top class's probability from ``counts``, the votes of the
    ``n`` estimation draws (``n0`` others selected the class). ``noise`` is the law's ``describe()``;
    ``sound`` says that the radius is proven rather than approximate. ``selected`` is the class that was
    bounded, also where the prediction is ABSTAIN.
    """

    prediction: int
    radius: float
    norm: str
    p_lower: float
    counts: tuple[int, ...]
    n0: int
    n: int
    alpha: float
    method: str
    noise: dict[str, Any]
    subject: str
    sound: bool
    selected: int = ABSTAIN

    @property
    def abstained(self) -> bool:
        """Whether no class was certified."""
        return self.prediction == ABSTAIN
