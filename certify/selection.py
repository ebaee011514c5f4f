"""Choose one noise law for all images, on held-out images.

Noise that depends on the image has no certificate, and the best of several certificates of one image is not
one at the same alpha. So the law is chosen globally, on images that are not certified afterwards; those then
have the whole alpha. What the choice cost is part of its result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.bounds.binomial import binomial_lower_bound
from certify.errors import CertifyError
from certify.noise.base import NoiseLaw
from certify.smoothing import SmoothedClassifier


@dataclass(frozen=True)
class NoiseChoice:
    """The chosen ``noise``, with the held-out certified accuracy (laws, radii) of every candidate.

    ``draws``: votes spent on the choice; ``held_out``: indices of its images, which must not be certified.
    """

    noise: NoiseLaw
    candidates: tuple[NoiseLaw, ...]
    radii: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    draws: int
    held_out: tuple[int, ...]

    def check_fresh(self, indices: Sequence[int]) -> None:
        """Raise CertifyError if an image of the choice is about to be certified."""
        reused = sorted(set(self.held_out) & {int(index) for index in indices})
        if reused:
            raise CertifyError(
                f"image {reused[0]} helped to choose the noise: certify images outside held_out"
            )

    def report(self) -> str:
        """A Markdown table of the candidates and the cost."""
        lines = ["| noise | " + " | ".join(f"r = {r:g}" for r in self.radii) + " | chosen |"]
        lines.append("| --- |" + " ---: |" * len(self.radii) + " --- |")
        for law, row in zip(self.candidates, self.accuracy, strict=True):
            settings = {**law.describe(), "": "" if law.sound else "approximate"}
            name = " ".join(str(value) for value in settings.values() if value not in ("", None))
            cells = " | ".join(f"{100 * value:.1f}" for value in row)
            lines.append(f"| {name} | {cells} | {'yes' if law == self.noise else ''} |")
        lines.append(f"\n{self.draws} votes on {len(self.held_out)} held-out images.")
        return "\n".join(lines) + "\n"


def choose_noise(
    candidates: Sequence[NoiseLaw],
    base: Callable[[Any], Any],
    images: Any,
    labels: ArrayLike,
    num_classes: int,
    radii: Sequence[float],
    *,
    indices: Sequence[int] | None = None,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    method: str = "group_sequential",
    seed: int = 0,
    **options: Any,
) -> NoiseChoice:
    """The candidate with the highest certified accuracy on held-out images, averaged over ``radii``.

    ``images`` (N, C, H, W) in [0, 1], ``labels`` (N,); ``indices`` name the images as in the later
    certification (default 0, 1, ...). ``options`` go to SmoothedClassifier. The first of equals is chosen, so
    list the laws by preference. Raises CertifyError for no candidates or candidates of different norms.
    """
    candidates, radii = tuple(candidates), np.atleast_1d(np.asarray(radii, dtype=np.float64))
    if len({law.norm for law in candidates}) != 1:
        norms = sorted({law.norm for law in candidates})
        raise CertifyError(f"candidates must share a norm, got {norms}: compare laws of one threat model")
    names = list(range(len(images))) if indices is None else [int(index) for index in indices]
    labels = np.asarray(labels)
    if labels.shape != (len(names),):
        raise CertifyError(f"labels must be ({len(names)},), got shape {labels.shape}: one an image")
    grid = {"radii": radii.tolist()} if "sequential" in method else {}
    accuracy, draws = np.zeros((len(candidates), len(radii))), 0
    for row, law in enumerate(candidates):
        if law.p_required(radii.min()) > binomial_lower_bound(n, n, alpha / 2):
            continue  # out of reach of n unbroken successes: no vote is spent on it
        smoothed = SmoothedClassifier(base, law, num_classes, seed=seed, **options)
        found = smoothed.certify(images, n0=n0, n=n, alpha=alpha, method=method, indices=names, **grid)
        correct = np.array([c.prediction for c in found]) == labels
        radius = np.array([c.radius for c in found])
        accuracy[row] = [np.mean(correct & (radius >= r)) for r in radii]
        draws += sum(c.n0 + c.n for c in found)
    best = int(np.argmax(accuracy.mean(axis=1)))
    return NoiseChoice(candidates[best], candidates, radii, accuracy, draws, tuple(names))
