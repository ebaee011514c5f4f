"""What a certificate says."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from certify.noise.base import ADDITIVE, PIXELS, NoiseLaw

ABSTAIN = -1

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Certificate:
    """``prediction`` holds within ``radius`` of the image, with probability >= 1 - ``alpha`` over the draws.

    Attributes:
        prediction: Class of the smoothed ``subject``, or ABSTAIN with radius 0.
        radius: In ``norm`` and ``unit``; 0 where abstained.
        norm: "l1", "l2" or "linf"; of a transformation its name.
        p_lower: Lower bound on the probability of the selected class.
        counts: Votes of the ``n`` estimation draws, one entry a class.
        n0: Other draws, which selected the class; 0 where it was known.
        n: Draws of the estimation.
        alpha: Probability of a wrong certificate.
        method: How the votes were drawn and bounded.
        noise: ``describe()`` of the noise law.
        subject: Whose class it is: a certificate of a surrogate says nothing of its target.
        sound: Whether the radius is proven rather than approximate.
        selected: The class that was bounded, also where the prediction is ABSTAIN.
        known_class: The class was named before any vote, so that no selection can be wrong. The claim is "this class
            wins"; an abstention says that it was not proven, also where another class would have been.
        uniform: The draw of a randomized bound (Stevens 1950), made before the votes; None for Clopper and Pearson's.
        threat: What may be done to the image: "additive", or a transformation by name; see ``noise``.
        unit: Of the radius.
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
    known_class: bool = False
    uniform: float | None = None
    threat: str = ADDITIVE
    unit: str = PIXELS

    @property
    def abstained(self) -> bool:
        """Whether no class was certified."""
        return self.prediction == ABSTAIN

    @classmethod
    def of(
        cls,
        selected: int,
        radius: float | None,
        p_lower: float,
        counts0: Counts,
        counts: Counts,
        noise: NoiseLaw,
        *,
        alpha: float,
        method: str,
        subject: str,
        known_class: bool = False,
        uniform: float | None = None,
    ) -> Self:
        """The certificate of class ``selected`` within ``radius``, or an abstention where that is None.

        ``counts0`` (K,) are the votes that selected the class, ``counts`` (K,) those that bound its probability.
        """
        return cls(
            prediction=ABSTAIN if radius is None else selected,
            radius=radius or 0.0,
            norm=noise.norm,
            p_lower=p_lower,
            counts=tuple(int(count) for count in counts),
            n0=int(counts0.sum()),
            n=int(counts.sum()),
            alpha=alpha,
            method=method,
            noise=noise.describe(),
            subject=subject,
            sound=noise.sound,
            selected=selected,
            known_class=known_class,
            uniform=uniform,
            threat=noise.threat,
            unit=noise.unit,
        )


def class_to_bound(counts0: Counts, known_class: int | None = None) -> int:
    """The class of most selection votes (K,), of equals the lowest; or the one that is known without them."""
    return int(np.argmax(counts0)) if known_class is None else known_class
