"""Choose one noise law for all images, on held-out images.

Noise that depends on the image has no certificate, and the best of several certificates of one image is not
one at the same alpha. So the law is chosen globally, on images that are not certified afterwards; those then
have the whole alpha. What the choice cost is part of its result.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from certify.bounds.binomial import binomial_lower_bound
from certify.certificate import Framed, law_in_words
from certify.errors import CertifyError, with_options
from certify.noise.base import NoiseLaw
from certify.smoothing import Sampling, SmoothedClassifier

if TYPE_CHECKING:
    import pandas

# Of the parameters of a Beta law that is fitted to few images: unanimous votes alone would make one of them 0.
WEIGHTS = (0.02, 1_000.0)


@dataclass(frozen=True)
class NoiseChoice(Framed):
    """The chosen law, with the held-out certified accuracy of every candidate.

    Attributes:
        noise: The chosen law.
        candidates: The laws that were compared.
        radii: (R,).
        accuracy: (laws, R).
        draws: Votes spent on the choice.
        held_out: Indices of its images, which must not be certified.
    """

    noise: NoiseLaw
    candidates: tuple[NoiseLaw, ...]
    radii: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    draws: int
    held_out: tuple[int, ...]

    def __repr__(self) -> str:
        return (
            f"NoiseChoice({law_in_words(self.noise.describe())!r}, of {len(self.candidates)} candidates, "
            f"{self.draws:,} votes on {len(self.held_out)} held-out images)"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row a candidate and radius: held-out certified accuracy as a share, and whether the law was chosen."""
        import pandas

        rows = [
            (law_in_words(law.describe()), float(radius), float(share), law == self.noise)
            for law, shares in zip(self.candidates, self.accuracy, strict=True)
            for radius, share in zip(self.radii, shares, strict=True)
        ]
        return pandas.DataFrame(rows, columns=["noise", "radius", "accuracy", "chosen"])

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
    **options: Any,
) -> NoiseChoice:
    """The candidate with the highest certified accuracy on held-out images, averaged over ``radii``.

    Args:
        candidates: Laws of one norm. The first of equals is chosen, so list them by preference.
        base: (B, C, H, W) float32 -> scores (B, num_classes) or labels (B,).
        images: (N, C, H, W) in [0, 1].
        labels: (N,), the true ones.
        num_classes: K.
        radii: (R,).
        indices: Names of the images as in the later certification (default 0, 1, ...).
        options: ``n0``, ``n`` (default 10,000), ``alpha`` and ``method`` (default "group_sequential") as in
            ``Sampling``; all others as in ``SmoothedClassifier``.

    Raises:
        CertifyError: No candidates, or candidates of different norms.
    """
    candidates, tested = tuple(candidates), np.atleast_1d(np.asarray(radii, dtype=np.float64))
    if len({law.norm for law in candidates}) != 1:
        norms = sorted({law.norm for law in candidates})
        raise CertifyError(f"candidates must share a norm, got {norms}: compare laws of one threat model")
    names = list(range(len(images))) if indices is None else [int(index) for index in indices]
    labels = np.asarray(labels)
    if labels.shape != (len(names),):
        raise CertifyError(f"labels must be ({len(names)},), got shape {labels.shape}: one an image")
    given = {field.name: options.pop(field.name) for field in fields(Sampling) if field.name in options}
    sampling = with_options(Sampling(n=10_000, method="group_sequential"), given)
    if "sequential" in sampling.method:
        sampling = with_options(sampling, {"radii": tested.tolist()})
    accuracy, draws = np.zeros((len(candidates), len(tested))), 0
    for row, law in enumerate(candidates):
        if law.p_required(tested.min()) > binomial_lower_bound(sampling.n, sampling.n, sampling.alpha / 2):
            continue  # out of reach of n unbroken successes: no vote is spent on it
        smoothed = SmoothedClassifier(base, law, num_classes, **options)
        certificates = smoothed.certify(images, indices=names, **asdict(sampling))
        correct = np.array([each.prediction for each in certificates]) == labels
        radius = np.array([each.radius for each in certificates])
        accuracy[row] = [np.mean(correct & (radius >= r)) for r in tested]
        draws += sum(each.n0 + each.n for each in certificates)
    best = int(np.argmax(accuracy.mean(axis=1)))
    return NoiseChoice(candidates[best], candidates, tested, accuracy, draws, tuple(names))


def expected_accuracy(
    successes: ArrayLike,
    trials: int,
    noise: NoiseLaw,
    radii: Sequence[float],
    *,
    n: int,
    alpha: float = 0.001,
) -> NDArray[np.float64]:
    """The certified accuracy that n votes an image are expected to prove, from a few votes of each: an estimate, no certificate.

    The probability of the true class differs from image to image: by a Beta law, the one that makes these votes likeliest
    (empirical Bayes). With k votes of m for the class, an image's own is Beta(a + k, b + m - k), and the number for it among
    n fresh votes is beta-binomial. The image counts at r with the probability that this number is one whose lower bound at
    level alpha proves r. So images that a few votes cannot tell count in part, where a certificate from these few would
    deny all large radii to a small sigma.

    Args:
        successes: (N,) votes for the true class.
        trials: Votes of each image.
        noise: The law of the votes.
        radii: (R,).
        n: Votes that bound the probability in the certificate.
        alpha: Its level.

    Returns:
        (R,), in [0, 1].

    Raises:
        CertifyError: Counts that are not between 0 and the trials.
    """
    votes = np.asarray(successes)
    if votes.ndim != 1 or not len(votes) or votes.min() < 0 or votes.max() > trials:
        raise CertifyError(f"successes must be (N,) counts from 0 to trials={trials}, got {votes!r}")
    a, b = likeliest_beta(votes, trials)
    share = np.zeros(len(radii))
    for at, required in enumerate(noise.p_required(np.asarray(radii, dtype=np.float64))):
        if required >= 1:
            continue
        # the fewest successes k of n with P(K >= k) <= alpha at this p, which is where the lower bound reaches it
        fewest = int(scipy.stats.binom.isf(alpha, n, required)) + 1
        if fewest <= n:
            share[at] = scipy.stats.betabinom.sf(fewest - 1, n, votes + a, trials - votes + b).mean()
    return share


def likeliest_beta(votes: NDArray[np.int64], trials: int) -> tuple[float, float]:
    """The Beta law of the images' probabilities under which these votes are likeliest, within WEIGHTS."""

    def surprise(logarithms: NDArray[np.float64]) -> float:
        a, b = np.exp(logarithms)
        return float(np.sum(betaln(a, b) - betaln(votes + a, trials - votes + b)))

    bounds = [tuple(np.log(WEIGHTS))] * 2
    a, b = np.exp(scipy.optimize.minimize(surprise, np.log([0.5, 0.5]), bounds=bounds).x)
    return float(a), float(b)
