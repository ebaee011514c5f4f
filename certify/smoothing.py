"""Randomized smoothing: predict and certify by majority vote under noise (Cohen, Rosenfeld and Kolter 2019).

The smoothed classifier answers the class that the base classifier most likely answers under the noise. If
that class has probability at least p at an image, it still wins everywhere within ``noise.radius(p)``; p is
bounded from below by votes, with an error probability of at most alpha over the draws.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.bounds.binomial import binomial_lower_bound, smallest_n
from certify.bounds.sequential import UNIT, Outcome, Plan, make_plan
from certify.bounds.two_sided import check_two_sided, rival_groups, two_sided_radius
from certify.certificate import ABSTAIN, Certificate
from certify.errors import CertifyError, check_alpha, check_count
from certify.guided.certify import Guide, GuidedImage, decide
from certify.noise.base import NoiseLaw
from certify.voting.engine import (
    ESTIMATION,
    PREDICTION,
    SELECTION,
    check_images,
    check_indices,
    count_votes,
    resolve_device,
)

METHODS = ("fixed", "two_sided", "sequential", "group_sequential")


def _certificate(
    selection: NDArray,
    counts: NDArray,
    noise: NoiseLaw,
    alpha: float,
    method: str,
    subject: str,
    plan: Plan | None = None,
    claimed: int = 0,
) -> Certificate:
    """CERTIFY of Cohen et al. 2019 from the votes (K,) of two disjoint sets of draws, or a plan's claim."""
    top = int(np.argmax(selection))  # the class is chosen by draws that the bound does not see
    n = int(counts.sum())
    if plan is not None:
        p_lower = plan.p_lower(claimed, int(counts[top]), n)
        certified = claimed > 0 or p_lower > 0.5
        radius = max(noise.radius(p_lower), plan.levels[claimed - 1].radius if claimed else 0.0)
    elif method == "two_sided":
        p_lower, radius = two_sided_radius(counts, top, noise, alpha, rival_groups(selection, top))
        certified = radius > 0
    else:
        p_lower = binomial_lower_bound(int(counts[top]), n, alpha)
        certified = p_lower > 0.5
        radius = noise.radius(p_lower)
    return Certificate(
        prediction=top if certified else ABSTAIN,
        radius=radius if certified else 0.0,
        norm=noise.norm,
        p_lower=p_lower,
        counts=tuple(int(count) for count in counts),
        n0=int(selection.sum()),
        n=n,
        alpha=alpha,
        method=method,
        noise=noise.describe(),
        subject=subject,
        sound=noise.sound,
        selected=top,
    )


def certify_votes(
    draw: Callable[[Any], ArrayLike],
    noise: NoiseLaw,
    num_classes: int,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    method: str = "fixed",
    radii: Sequence[float] | None = None,
    subject: str = "callable",
    guide: Guide | None = None,
) -> Certificate:
    """Certify one image from votes alone.

    ``draw(count)`` returns an integer array (count,) of hard labels in [0, num_classes), each under a fresh,
    independent draw of ``noise``; it is called once for the selection (n0), then for the estimation: once (n)
    by "fixed" and "two_sided" (Gaussian, Laplace: bounds the runner-up too), and by "sequential" and
    "group_sequential" look after look until every one of ``radii`` (default: 0, 0.25, 0.5, ...) is claimed,
    given up or out of reach of n draws.

    With a ``guide``, a surrogate whose answers are free, ``draw(inputs)`` labels the inputs that it is given,
    out of those that the guide proposed; the guide names the class (no n0) and picks one of ``radii`` to
    test, by at most n paid votes; ``method`` is "guided" and stays at its default. Raises CertifyError for
    bad arguments before the first draw, and for bad labels.
    """
    if guide is not None:
        check_count("num_classes", num_classes, 2)
        if method != "fixed":
            raise CertifyError(f"method is not used with a guide, got {method!r}: leave it out")
        settings = {"radii": radii, "n": n, "alpha": check_alpha(alpha), "subject": subject}
        return decide(GuidedImage(draw, guide, noise, num_classes, **settings))
    alpha, plan = _check_plan(num_classes, noise, n0, n, alpha, method, radii)
    selection = _count_drawn(draw, n0, num_classes)
    if plan is None:
        counts = _count_drawn(draw, n, num_classes)
        return _certificate(selection, counts, noise, alpha, method, subject)

    def more(_: NDArray, first: int, last: int) -> NDArray[np.int64]:
        return _count_drawn(draw, last - first, num_classes)[None]

    votes = plan.run(np.argmax(selection)[None], more, num_classes)
    counts, claimed = votes.counts[0], int(votes.claimed[0])
    return _certificate(selection, counts, noise, alpha, method, subject, plan, claimed)


class SmoothedClassifier:
    """The majority vote of ``base`` under ``noise``.

    ``base``: (B, C, H, W) float32 noisy images -> scores (B, num_classes) or labels (B,), see
    ``count_votes``; the noise is added in [0, 1] pixel units, so normalising and resizing are the base's own
    business. ``subject`` names what is certified: a certificate of a surrogate says nothing of its target.
    Same ``seed``, same votes, whatever the batch size or order of the images. ``autocast``, ``channels_last``,
    ``prefetch`` and ``grid`` as in ``count_votes``; ``compile`` runs the model through torch.compile.
    """

    def __init__(
        self,
        base: Callable[[torch.Tensor], Any],
        noise: NoiseLaw,
        num_classes: int,
        *,
        subject: str = "model",
        batch_size: int = 1024,
        chunk_size: int = 256,
        device: torch.device | str | None = None,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
        prefetch: bool = False,
        grid: int | None = None,
    ) -> None:
        if not callable(base):
            raise CertifyError(
                f"base must be callable, got {type(base).__name__}: pass a module or a function"
            )
        if not isinstance(noise, NoiseLaw):
            raise CertifyError(f"noise must be a noise law, got {noise!r}: try certify.Gaussian(0.25)")
        if compile and not isinstance(base, torch.nn.Module):
            raise CertifyError(f"compile needs a torch module, got {type(base).__name__}: leave it out")
        self.base = torch.compile(base) if compile else base
        self.noise = noise
        self.num_classes = check_count("num_classes", num_classes, 2)
        self.subject = subject
        self.batch_size = check_count("batch_size", batch_size)
        self.chunk_size = check_count("chunk_size", chunk_size)
        self.device = resolve_device(base, device)
        self.seed = check_count("seed", seed, 0)
        self._engine = {
            "autocast": autocast,
            "channels_last": channels_last,
            "prefetch": prefetch,
            "grid": grid,
        }

    def certify(
        self,
        images: Any,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        method: str = "fixed",
        radii: Sequence[float] | None = None,
        indices: Sequence[int] | None = None,
        on_certificate: Callable[[int, Certificate, float], None] | None = None,
        progress: Any = None,
    ) -> list[Certificate]:
        """Certify (N, C, H, W) images in [0, 1], in order: one Certificate each, every one at level
        ``alpha``.

        ``method`` and ``radii`` as in ``certify_votes``: the methods that stop early draw more only for the
        images that are still undecided. ``indices`` name the images (default 0, 1, ...) and seed their noise.
        ``on_certificate(index, certificate, seconds)`` is called, in order, as soon as an image (or the small
        group that shares its batches) is done. ``progress``: anything with ``update(draws)``; there are at
        most N * (n0 + n) draws. Raises CertifyError for bad arguments before the first vote.
        """
        unit = min(UNIT, self.chunk_size)
        alpha, plan = _check_plan(self.num_classes, self.noise, n0, n, alpha, method, radii, unit)
        images = check_images(images)
        indices = check_indices(indices, len(images))
        certificates: list[Certificate] = []
        # Few selection draws fill a batch only together; estimation in smaller groups finishes images early.
        for group in _spans(0, len(images), self._images_per_batch(n0 if plan is None else min(n0, unit))):
            start = time.perf_counter()
            selection = self._votes(images[group], indices[group], SELECTION, n0, progress)
            seconds = (time.perf_counter() - start) / len(selection)
            for part in _spans(
                0, len(selection), self._images_per_batch(n) if plan is None else len(selection)
            ):
                start = time.perf_counter()
                names = indices[group][part]
                outcome = self._estimate(images[group][part], names, selection[part], n, plan, unit, progress)
                total = seconds + (time.perf_counter() - start) / len(names)
                for index, chosen, counts, claimed in zip(
                    names, selection[part], outcome.counts, outcome.claimed, strict=True
                ):
                    certificate = _certificate(
                        chosen, counts, self.noise, alpha, method, self.subject, plan, int(claimed)
                    )
                    if self._engine["grid"] is not None:
                        law = {**certificate.noise, "grid": self._engine["grid"]}
                        certificate = replace(certificate, noise=law)
                    certificates.append(certificate)
                    if on_certificate is not None:
                        on_certificate(index, certificate, total)
        return certificates

    def predict(
        self,
        images: Any,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        indices: Sequence[int] | None = None,
        progress: Any = None,
    ) -> NDArray[np.int64]:
        """Labels (N,) of the smoothed classifier, or ABSTAIN; each is wrong with probability at most
        ``alpha``.

        PREDICT of Cohen et al. 2019: the two most frequent classes are compared by a two-sided binomial test.
        Raises CertifyError for bad arguments before the first vote.
        """
        from scipy.stats import binomtest

        alpha = check_alpha(alpha)
        check_count("n", n)
        images = check_images(images)
        indices = check_indices(indices, len(images))
        votes = self._votes(images, indices, PREDICTION, n, progress)
        labels = np.argmax(votes, axis=1)
        second, first = np.sort(votes, axis=1)[:, -2:].T
        unsure = [
            binomtest(int(a), int(a + b), 0.5).pvalue > alpha for a, b in zip(first, second, strict=True)
        ]
        return np.where(unsure, ABSTAIN, labels).astype(np.int64)

    def _images_per_batch(self, draws: int) -> int:
        packs = self.batch_size > self.chunk_size
        return max(1, self.batch_size // draws) if packs else 1

    def _estimate(
        self,
        images: torch.Tensor,
        indices: list[int],
        selection: NDArray[np.int64],
        n: int,
        plan: Plan | None,
        unit: int,
        progress: Any,
    ) -> Outcome:
        """The estimation votes: n an image, or as many as the plan asks for."""
        if plan is None:
            votes = self._votes(images, indices, ESTIMATION, n, progress)
            return Outcome(votes, np.zeros(len(votes), dtype=np.int64))
        batch_size = self.batch_size if self.batch_size > self.chunk_size else unit

        def more(which: NDArray[np.int64], first: int, last: int) -> NDArray[np.int64]:
            names = [indices[position] for position in which]
            sizes = {"chunk_size": unit, "batch_size": batch_size, "first": first}
            return self._votes(images[which], names, ESTIMATION, last - first, progress, **sizes)

        return plan.run(np.argmax(selection, axis=1), more, self.num_classes)

    def _votes(
        self, images: torch.Tensor, indices: list[int], stage: int, n: int, progress: Any, **changes: Any
    ) -> NDArray[np.int64]:
        """Votes of one stage; ``changes`` to the settings of the engine."""
        settings = {
            "noise": self.noise,
            "batch_size": self.batch_size,
            "chunk_size": self.chunk_size,
            "seed": self.seed,
            "device": self.device,
            **self._engine,
            **changes,
        }
        noise = settings.pop("noise")
        options = {"indices": indices, "stage": stage, "progress": progress, **settings}
        return count_votes(self.base, images, noise, self.num_classes, n, **options)


def _check_plan(
    num_classes: int,
    noise: NoiseLaw,
    n0: int,
    n: int,
    alpha: float,
    method: str,
    radii: Sequence[float] | None,
    unit: int = UNIT,
) -> tuple[float, Plan | None]:
    """Refuse, before any draw, a plan that is malformed or could certify nothing."""
    check_count("num_classes", num_classes, 2)
    check_count("n0", n0)
    check_count("n", n)
    alpha = check_alpha(alpha)
    if method not in METHODS:
        raise CertifyError(f"method must be one of {', '.join(METHODS)}, got {method!r}: try method='fixed'")
    if method in ("sequential", "group_sequential"):
        return alpha, make_plan(noise, radii, n, alpha, method, unit)
    if radii is not None:
        raise CertifyError(f"radii is not used by method={method!r}, got {radii!r}: leave it out")
    if method == "two_sided":
        check_two_sided(noise)
    enough = smallest_n(np.nextafter(0.5, 1), alpha)
    if n < enough:
        raise CertifyError(f"n={n} is too small to certify anything at alpha={alpha:g}: use n >= {enough}")
    return alpha, None


def _count_drawn(draw: Callable[[int], ArrayLike], count: int, num_classes: int) -> NDArray[np.int64]:
    labels = np.asarray(draw(count))
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise CertifyError(
            f"draw({count}) must return an integer array ({count},), got {got}: one label a draw"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise CertifyError(
            f"labels must be in [0, {num_classes}), got {wrong}: check num_classes={num_classes}"
        )
    return np.bincount(labels, minlength=num_classes)


def _spans(start: int, stop: int, size: int) -> list[slice]:
    return [slice(low, min(low + size, stop)) for low in range(start, stop, size)]
