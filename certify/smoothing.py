"""Randomized smoothing: draw, count the votes, and let the theorem (core.py) say what they prove.

The other methods stand beside the theorem: ``bounds.two_sided`` bounds the rivals too, ``bounds.sequential`` stops
drawing as soon as the answer is known.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

import certify.core as core
from certify.bounds.sequential import UNIT, Outcome, Plan
from certify.bounds.sequential_two_sided import PairPlan
from certify.certificate import Certificate, Certificates, Counts, class_to_bound
from certify.errors import CertifyError, check_alpha, check_count, with_options
from certify.noise.base import NoiseLaw
from certify.sampling import Sampling, Votes, certificate_of
from certify.voting.checks import (
    check_images,
    check_indices,
    check_known,
    check_labels,
    resolve_device,
)
from certify.voting.chunks import BOUND, ESTIMATION, PREDICTION, SELECTION, hash32, seed_of
from certify.voting.engine import VoteEngine
from certify.voting.tuning import fastest_engine


def certify_votes(
    draw: Callable[[int], ArrayLike],
    noise: NoiseLaw,
    num_classes: int,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    method: str = "fixed",
    radii: Sequence[float] | None = None,
    bound: str = "clopper_pearson",
    generator: torch.Generator | None = None,
    known_class: int | None = None,
    subject: str = "callable",
) -> Certificate:
    """Certify one image from votes alone.

    Args:
        draw: ``draw(count)`` returns an integer array (count,) of hard labels, each under a fresh, independent
            draw of ``noise``. Called once for the selection (n0), then for the estimation: once (n) by "fixed"
            and "two_sided", analysis after analysis by the methods that stop early.
        noise: The law that the labels are drawn under.
        num_classes: Labels are in [0, num_classes).
        n0, n, alpha, method, radii, bound: See ``Sampling``.
        generator: Gives the uniform draw of the randomized bound, before the first vote. Another one than of the noise,
            and a fresh one for each certificate: a draw that is repeated until it is lucky proves nothing.
        known_class: See ``SmoothedClassifier.certify``; of one image.
        subject: Whose votes they are.

    Raises:
        CertifyError: Bad arguments (before the first draw), or bad labels.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> def draw(count):  # labels under fresh noise: class 1 in 2% of the draws
        ...     return (rng.random(count) < 0.02).astype(int)
        >>> certificate = certify_votes(draw, Gaussian(0.25), num_classes=2, n=1000)
        >>> certificate
        Certificate(prediction=0, radius=0.433, norm='l2', noise='gaussian sigma=0.25', n=1000, alpha=0.001, subject='callable')
        >>> certificate.counts
        (977, 23)
    """
    check_count("num_classes", num_classes, 2)
    sampling = Sampling(n0, n, alpha, method, radii, bound)
    plan = sampling.plan(noise)
    known = None if known_class is None else int(check_known([known_class], 1, num_classes)[0])
    if sampling.randomized != (generator is not None):
        remedy = "pass torch.Generator().manual_seed(...)" if sampling.randomized else "leave it out"
        raise CertifyError(f"generator is for bound='randomized', got {generator!r} for {bound!r}: {remedy}")
    uniform = None if generator is None else _uniform(generator)

    def count(draws: int) -> Counts:
        return np.bincount(check_labels(draw(draws), draws, num_classes), minlength=num_classes)

    counts0 = count(n0) if known is None else np.zeros(num_classes, dtype=np.int64)
    if plan is None:
        counts, claimed = count(n), 0
    else:
        top = np.array([class_to_bound(counts0, known)])
        outcome = plan.run(top, lambda _, first, last: count(last - first)[None], num_classes)
        counts, claimed = outcome.counts[0], int(outcome.claimed[0])
    votes = Votes(counts0, counts, claimed, known, uniform)
    return certificate_of(votes, noise, sampling, plan, subject)


class SmoothedClassifier:
    """The majority vote of a base classifier under noise.

    The same seed gives the same votes, whatever the batch size or order of the images.

    Args:
        base: (B, C, H, W) float32 noisy images -> scores (B, num_classes) or labels (B,), of each image by itself. The
            noise is added in [0, 1] pixel units, so normalizing and resizing are the base's own business. Modules
            run in eval mode, also those that a function holds.
        noise: Added to the images, or the law of a transformation's parameter (``certify.Brightness``).
        num_classes: K.
        subject: What is certified: a certificate of a surrogate says nothing of its target.
        engine: How votes are drawn and computed; "auto" measures for a second or two, before the first vote, which
            arithmetic is fastest for a torch module (``fastest_engine``), and keeps to it: see ``settle``.
        options: Fields of ``VoteEngine`` (``batch_size``, ``device``, ``seed``, ...) that replace the engine's.

    Raises:
        CertifyError: Bad arguments, or an unknown option.

    Examples:
        >>> def is_bright(images):
        ...     return (images.mean((1, 2, 3)) > 0.5).long()
        >>> smoothed = SmoothedClassifier(is_bright, Gaussian(0.25), num_classes=2)
        >>> images = torch.stack([torch.full((1, 8, 8), gray) for gray in (0.2, 0.5, 0.9)])
        >>> [each.prediction for each in smoothed.certify(images, n=1000)]  # -1: the votes are divided
        [0, -1, 1]
    """

    def __init__(
        self,
        base: Callable[[torch.Tensor], Any],
        noise: NoiseLaw,
        num_classes: int,
        *,
        subject: str = "model",
        engine: VoteEngine | Literal["auto"] | None = None,
        **options: Any,
    ) -> None:
        if not callable(base):
            raise CertifyError(
                f"base must be callable, got {type(base).__name__}: pass a module or a function"
            )
        if not isinstance(noise, NoiseLaw):
            raise CertifyError(f"noise must be a noise law, got {noise!r}: try certify.Gaussian(0.25)")
        self._auto = engine == "auto"
        given = VoteEngine() if engine is None or isinstance(engine, str) else engine
        if isinstance(engine, str) and not self._auto:
            raise CertifyError(f"engine must be a VoteEngine or 'auto', got {engine!r}: try engine='auto'")
        given = with_options(given, options)
        for name, asked in (("compile", given.compile), ("engine='auto'", self._auto)):
            if asked and not isinstance(base, torch.nn.Module):
                raise CertifyError(f"{name} needs a torch module, got {type(base).__name__}: leave it out")
        self._plain, self._checked = base, False
        self._use(replace(given, device=resolve_device(base, given.device)))
        self.noise = noise
        self.num_classes = check_count("num_classes", num_classes, 2)
        self.subject = subject

    def settle(self, images: Any) -> VoteEngine:
        """Fix the engine, before the first vote: of ``engine="auto"`` the fastest, measured once; else the given one.

        Its ``arithmetic`` is a part of the certified model. Write it into the header of the records, and give it back
        when they are resumed: ``SmoothedClassifier(..., **arithmetic)``.

        Args:
            images: (N, C, H, W) in [0, 1]; a few are enough.
        """
        if self._auto:
            assert isinstance(self._plain, torch.nn.Module)
            self._use(fastest_engine(self._plain, images, self.noise, engine=self.engine).engine)
            self._auto = False
        return self.engine

    def certify(
        self,
        images: Any,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        method: str = "fixed",
        radii: Sequence[float] | None = None,
        bound: str = "clopper_pearson",
        known_class: ArrayLike | None = None,
        indices: Sequence[int] | None = None,
        on_certificate: Callable[[int, Certificate, float], None] | None = None,
        progress: Any = None,
    ) -> Certificates:
        """One certificate for each image, in order, every one at level ``alpha``.

        Args:
            images: (N, C, H, W) in [0, 1].
            n0, n, alpha, method, radii, bound: See ``Sampling``; the methods that stop early draw more only for the
                images that are still undecided.
            known_class: (N,), the class of each image that is to be certified, such as its label: for certified accuracy.
                The n0 votes that select a class are left out. A class that is named before any vote needs no selection
                that could be wrong: all of alpha is for the claim that this class wins. If another class wins, the
                certificate abstains, where without labels it might have certified the wrong class: both count as
                wrong.
            indices: Names of the images (default 0, 1, ...), which seed their noise.
            on_certificate: Called as ``on_certificate(index, certificate, seconds)``, in order, as soon as an
                image (or the small group that shares its batches) is done.
            progress: Anything with ``update(draws)``; there are at most N * (n0 + n) draws.

        Raises:
            CertifyError: Bad arguments, before the first vote, or a base whose answers follow the batch.
        """
        sampling = Sampling(n0, n, alpha, method, radii, bound)
        plan = sampling.plan(self.noise, self._unit)
        images = check_images(images)
        indices = check_indices(indices, len(images))
        known = None if known_class is None else check_known(known_class, len(images), self.num_classes)
        self.settle(images)
        self.check_alone(images)
        certificates = Certificates()
        # Few selection draws fill a batch only together; estimation in smaller groups finishes images early.
        first_draws = n if known is not None else n0
        for group in _spans(
            len(images), self._images_per_batch(first_draws if plan is None else min(first_draws, self._unit))
        ):
            start = time.perf_counter()
            selection = self._select(images[group], indices[group], n0, known, progress)
            seconds = (time.perf_counter() - start) / len(selection)
            together = self._images_per_batch(n) if plan is None else len(selection)
            for part in _spans(len(selection), together):
                start = time.perf_counter()
                names, counts0 = indices[group][part], selection[part]
                tops = counts0.argmax(axis=1) if known is None else known[group][part]
                outcome = self._estimate(images[group][part], names, tops, n, plan, progress)
                total = seconds + (time.perf_counter() - start) / len(names)
                for row, index in enumerate(names):
                    votes = Votes(
                        counts0[row],
                        outcome.counts[row],
                        int(outcome.claimed[row]),
                        None if known is None else int(tops[row]),
                        self._uniform(index) if sampling.randomized else None,
                    )
                    certificates.append(
                        self._on_grid(certificate_of(votes, self.noise, sampling, plan, self.subject))
                    )
                    if on_certificate is not None:
                        on_certificate(index, certificates[-1], total)
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
        """Labels (N,) of the smoothed classifier, or ABSTAIN; each is wrong with probability at most ``alpha``.

        Args:
            images, indices, progress: As in ``certify``.
            n: Draws of each image.
            alpha: In (0, 0.5).

        Raises:
            CertifyError: Bad arguments, before the first vote, or a base whose answers follow the batch.
        """
        alpha = check_alpha(alpha)
        check_count("n", n)
        images = check_images(images)
        indices = check_indices(indices, len(images))
        self.settle(images)
        self.check_alone(images)
        votes = self._votes(images, indices, PREDICTION, n, progress)
        return np.array([core.predict(counts, alpha) for counts in votes], dtype=np.int64)

    def check_alone(self, images: torch.Tensor) -> None:
        """Refuse, once, before the first vote, a base whose answers follow the batch: see ``VoteEngine.recheck``.

        Raises:
            CertifyError: They do.
        """
        if self._checked:
            return
        device = torch.device(self.engine.device or "cpu")
        generator = torch.Generator(device).manual_seed(hash32(f"{self.engine.seed}:recheck"))

        def draw(rows: int) -> torch.Tensor:
            chosen = images[torch.arange(rows) % len(images)].to(device)
            return self.noise.perturb(chosen, generator)

        self.engine.check_alone(self._plain, draw, self.num_classes)
        self._checked = True

    def _use(self, engine: VoteEngine) -> None:
        self.engine = engine
        self.base = torch.compile(self._plain) if engine.compile else self._plain

    @property
    def _unit(self) -> int:
        """Sample sizes of interim analyses are multiples of it: a chunk, so that counts can be continued."""
        return min(UNIT, self.engine.chunk_size)

    def _images_per_batch(self, draws: int) -> int:
        packs = self.engine.batch_size > self.engine.chunk_size
        return max(1, self.engine.batch_size // draws) if packs else 1

    def _select(
        self, images: torch.Tensor, indices: list[int], n0: int, known: Counts | None, progress: Any
    ) -> Counts:
        """The selection votes (N, K); none where the classes are known."""
        if known is not None:
            return np.zeros((len(images), self.num_classes), dtype=np.int64)
        return self._votes(images, indices, SELECTION, n0, progress)

    def _uniform(self, index: int) -> float:
        """The uniform draw of an image: by its own seed, so that no vote and no other draw changes it."""
        return _uniform(torch.Generator().manual_seed(seed_of(self.engine.seed, index, BOUND)))

    def _estimate(
        self,
        images: torch.Tensor,
        indices: list[int],
        tops: Counts,
        n: int,
        plan: Plan | PairPlan | None,
        progress: Any,
    ) -> Outcome:
        """The estimation votes: n an image, or as many as the plan needs."""
        if plan is None:
            votes = self._votes(images, indices, ESTIMATION, n, progress)
            return Outcome(votes, np.zeros(len(votes), dtype=np.int64))
        engine = replace(self.engine, chunk_size=self._unit)

        def more(which: Counts, first: int, last: int) -> Counts:
            names = [indices[position] for position in which]
            return self._votes(images[which], names, ESTIMATION, last - first, progress, engine, first)

        return plan.run(tops, more, self.num_classes)

    def _votes(
        self,
        images: torch.Tensor,
        indices: list[int],
        stage: int,
        n: int,
        progress: Any,
        engine: VoteEngine | None = None,
        first: int = 0,
    ) -> Counts:
        where = {"indices": indices, "stage": stage, "first": first, "progress": progress}
        return (engine or self.engine).count(self.base, images, self.noise, self.num_classes, n, **where)

    def _on_grid(self, certificate: Certificate) -> Certificate:
        if self.engine.grid is None:
            return certificate
        return replace(certificate, noise={**certificate.noise, "grid": self.engine.grid})


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))


def _spans(count: int, size: int) -> Iterator[slice]:
    for low in range(0, count, size):
        yield slice(low, min(low + size, count))
