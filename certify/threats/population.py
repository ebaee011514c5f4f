"""The bare target, average case: how often its answer to an image changes under a declared law of perturbations.

For each image P(the answer changes) <= q is proven by labels under fresh draws of the law, wrong with probability at
most alpha (``bounds.change``). No model is smoothed and no surrogate is needed: what is proven is about the deployed
classifier itself. It is an average over the law and nothing else: it says nothing of the worst perturbation that the
law can draw, nor of an adversary, and must never stand beside a radius without the words "average case".

Three statements for a set of images, each by itself wrong with probability at most alpha over the draws, where the
images are fixed and their draws independent:

an image     p_i <= q, of the images that are called proven; with N images all of them together hold but with
             probability N alpha (Bonferroni), or 1 - (1 - alpha)^N;
the count    at least ``least_proven`` of the N images have p_i <= q (``most_wrong_claims``);
the mean     mean(p_i) <= ``mean_upper`` (``pooled_upper_bound``), from the first labels of every image, whose
             number is fixed before any of them: labels that a stopping rule has let through would not do.

Several laws are several statements: for all of them together divide alpha by their number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound
from certify.bounds.change import (
    OPEN,
    PROVEN,
    REFUTED,
    ChangePlan,
    change_plan,
    most_wrong_claims,
    pooled_upper_bound,
)
from certify.certificate import Counts, Framed
from certify.errors import CertifyError, check_count
from certify.threats.corruptions import (
    CORRUPTIONS,
    JPEG,
    BrightnessChange,
    ContrastChange,
    EightBit,
    Gamma,
    GaussianBlurring,
    GaussianNoise,
    MotionBlur,
    Rotation,
    Shift,
    corruption,
)
from certify.threats.perturbations import Perturbation, compose, perturbation
from certify.voting.checks import check_images, check_indices
from certify.voting.chunks import ESTIMATION, seed_of

if TYPE_CHECKING:
    import pandas

__all__ = [
    "AVERAGE_CASE",
    "CORRUPTIONS",
    "JPEG",
    "OPEN",
    "PROVEN",
    "REFUTED",
    "BrightnessChange",
    "ContrastChange",
    "EightBit",
    "Gamma",
    "GaussianBlurring",
    "GaussianNoise",
    "ImageChange",
    "MotionBlur",
    "Perturbation",
    "PopulationBound",
    "Rotation",
    "Shift",
    "certify_population",
    "compose",
    "corruption",
    "perturbation",
    "perturbed_draws",
]

AVERAGE_CASE = "average case"
THREAT = "population"
CHUNK = 16  # draws of an image that share a generator

Classify = Callable[[torch.Tensor], Any]


@dataclass(frozen=True)
class ImageChange:
    """What the labels of one image say.

    Attributes:
        index: Of the image.
        answer: To the unchanged image.
        changes: Labels under the law that differ from it.
        labels: How many there were.
        first_changes: Changes among the first labels, as many of every image.
        verdict: "proven": P(change) <= q; "refuted": P(change) > q; "open": neither was shown.
        lower, upper: Bounds on P(change), each wrong with probability <= alpha; where a test stops early, those alone that
            its verdict proves, else 0 and 1.
    """

    index: int
    answer: int
    changes: int
    labels: int
    first_changes: int
    verdict: str
    lower: float
    upper: float

    @property
    def proven(self) -> bool:
        """Whether P(change) <= q is proven."""
        return self.verdict == PROVEN


@dataclass(frozen=True)
class PopulationBound(Framed):
    """An average-case statement about a classifier under one law; see the module for what it claims.

    Attributes:
        name, in_words, law: Of the perturbation; ``law`` identifies it.
        q: The share of draws that may change.
        alpha: Probability that a statement is wrong.
        method: "fixed" or "sequential".
        n: Labels of an image, at most.
        first: Labels of every image that the mean's bound is of.
        seed: Of the draws.
        images: One entry an image.
        assumes_deterministic: Whether one label stands for all, because every draw is the same image: true where the
            classifier answers an image alike every time.
        subject: Whose answers they are.
    """

    name: str
    in_words: str
    law: dict[str, Any]
    q: float
    alpha: float
    method: str
    n: int
    first: int
    seed: int
    images: tuple[ImageChange, ...]
    assumes_deterministic: bool = False
    subject: str = "target"
    threat: str = THREAT
    claim: str = AVERAGE_CASE

    def __repr__(self) -> str:
        return (
            f"PopulationBound({self.claim}, {self.name}: P(change) <= {self.q:g} proven of {self.proven} of "
            f"{len(self.images)} images, alpha={self.alpha:g}, {self.labels:,} labels, subject={self.subject!r})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row an image, with the names of ``ImageChange``: an average case."""
        import pandas

        return pandas.DataFrame([asdict(each) for each in self.images])

    @property
    def proven(self) -> int:
        """Images of which P(change) <= q is proven, each wrong with probability <= alpha."""
        return sum(each.proven for each in self.images)

    @property
    def share_proven(self) -> float:
        """Their share of all."""
        return self.proven / len(self.images)

    @property
    def least_proven(self) -> int:
        """At least so many of the images have P(change) <= q: all together wrong with probability <= alpha."""
        if self.assumes_deterministic:
            return self.proven
        return max(0, self.proven - most_wrong_claims(len(self.images), self.alpha))

    @property
    def mean(self) -> float:
        """Share of the first labels that changed: the estimate of the mean change probability of the images."""
        return sum(each.first_changes for each in self.images) / (self.first * len(self.images))

    @property
    def mean_upper(self) -> float:
        """Upper bound on it, wrong with probability <= alpha."""
        if self.assumes_deterministic:
            return self.mean
        changes = [each.first_changes for each in self.images]
        return pooled_upper_bound(changes, self.first * len(changes), self.alpha)

    @property
    def labels(self) -> int:
        """Labels under the law, of all images."""
        return sum(each.labels for each in self.images)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the statements that follow from the counts."""
        return asdict(self) | {
            "proven": self.proven,
            "least_proven": self.least_proven,
            "mean": self.mean,
            "mean_upper": self.mean_upper,
            "labels": self.labels,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The bound whose plain form was kept; what follows from the counts is computed again."""
        names = cls.__dataclass_fields__
        fields = {name: value for name, value in plain.items() if name in names}
        return cls(**fields | {"images": tuple(ImageChange(**each) for each in plain["images"])})


def certify_population(
    classify: Classify,
    images: Any,
    law: Perturbation,
    *,
    q: float = 0.1,
    n: int | None = None,
    alpha: float = 0.001,
    method: str = "sequential",
    answers: Any = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    batch_size: int = 256,
    deterministic: bool = False,
    subject: str = "target",
    on_labels: Callable[[int], None] | None = None,
) -> PopulationBound:
    """Bound how often the answer to each image changes under a law of perturbations: an average case.

    The draws of an image depend on its index, the seed and the law alone: not on the batch size, the other images or the
    number of labels.

    Args:
        classify: Labels for images: ``classify(images (B, C, H, W) float32 in [0, 1])`` returns integers (B,).
        images: (N, C, H, W) in [0, 1].
        law: What may happen to an image: ``corruption("jpeg=50")``, ``GaussianNoise(0.1) + JPEG(50)``, or one of your own.
        q: The share of draws whose answer may differ from the image's own.
        n, alpha, method: Of ``bounds.change.change_plan``.
        answers: To the unchanged images, (N,) integers; None: they are asked for.
        seed: Of the draws.
        indices: Distinct integers >= 0 that name the images; default 0, 1, ...
        batch_size: Most images in one call.
        deterministic: The classifier answers an image alike every time, so that one label decides under a law whose
            draws are all the same image.
        subject: Whose answers they are.
        on_labels: Called with the number of labels under the law, as they come.

    Raises:
        CertifyError: A value that can't be used (before anything is asked), or labels that are none.
    """
    plan = change_plan(q, n, alpha, method)
    check_count("batch_size", batch_size)
    if not isinstance(law, Perturbation):
        raise CertifyError(f"law must be a perturbation, got {law!r}: corruption('noise'), for example")
    images = check_images(images).cpu()
    names = check_indices(indices, len(images))
    law.sample(images[:1], torch.Generator().manual_seed(0))  # a law that fits no such image says so here
    voters = _Voters(classify, images, names, law, seed, batch_size, on_labels)
    clean = _labels(answers, len(images)) if answers is not None else voters.answers()
    once = law.fixed and deterministic
    found = _at_once(voters, clean) if once else _tested(voters, clean, plan)
    return PopulationBound(
        name=law.name,
        in_words=law.in_words,
        law=law.describe(),
        q=plan.q,
        alpha=plan.alpha,
        method=method,
        n=1 if once else plan.n,
        first=1 if once else int(plan.sizes[0]),
        seed=seed,
        images=tuple(found),
        assumes_deterministic=once,
        subject=subject,
    )


def perturbed_draws(
    law: Perturbation, image: torch.Tensor, index: int, first: int, last: int, seed: int
) -> torch.Tensor:
    """Draws first..last-1 of an image (C, H, W) with this index: (last - first, C, H, W) in [0, 1].

    Whole chunks are drawn, each from a generator of its own, so that a draw is the same wherever a batch ends.
    """
    start, drawn = first // CHUNK, []
    for chunk in range(start, -(-last // CHUNK)):
        generator = torch.Generator().manual_seed(seed_of(seed, index, ESTIMATION, chunk))
        drawn.append(law.sample(image.expand(CHUNK, -1, -1, -1), generator))
    return torch.cat(drawn)[first - start * CHUNK : last - start * CHUNK]


@dataclass(frozen=True)
class _Voters:
    """Asks for the labels of images and of their draws, in batches that join draws of several images."""

    classify: Classify
    images: torch.Tensor
    names: list[int]
    law: Perturbation
    seed: int
    batch_size: int
    on_labels: Callable[[int], None] | None

    def answers(self) -> Counts:
        """To the unchanged images, (N,)."""
        return np.concatenate([self._ask(part) for part in self.images.split(self.batch_size)])

    def changes(self, positions: Counts, clean: Counts, first: int, last: int) -> Counts:
        """How many of the draws first..last-1 of the images at these positions are answered otherwise, (P,)."""
        changes = np.zeros(len(positions), dtype=np.int64)
        for places, draws in self._batches(positions, first, last):
            labels = self._ask(draws)
            np.add.at(changes, places, labels != clean[positions[places]])
            if self.on_labels is not None:
                self.on_labels(len(labels))
        return changes

    def _batches(self, positions: Counts, first: int, last: int) -> Iterator[tuple[Counts, torch.Tensor]]:
        """Draws with the places in ``positions`` that they belong to, at most batch_size together."""
        waiting: list[torch.Tensor] = []
        places: list[Counts] = []
        held = 0
        for place, position in enumerate(positions):
            draws = perturbed_draws(
                self.law, self.images[position], self.names[position], first, last, self.seed
            )
            for part in draws.split(self.batch_size):
                if held and held + len(part) > self.batch_size:
                    yield np.concatenate(places), torch.cat(waiting)
                    waiting, places, held = [], [], 0
                waiting.append(part)
                places.append(np.full(len(part), place))
                held += len(part)
        if held:
            yield np.concatenate(places), torch.cat(waiting)

    def _ask(self, images: torch.Tensor) -> Counts:
        return _labels(self.classify(images.clone()), len(images))


def _labels(answers: Any, count: int) -> Counts:
    """Integer labels (count,)."""
    found = np.asarray(answers)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise CertifyError(
            f"classify must return one integer label for each of {count} images, got {found.dtype} of shape {found.shape}"
        )
    return found.astype(np.int64)


def _tested(voters: _Voters, clean: Counts, plan: ChangePlan) -> list[ImageChange]:
    """Labels look by look, of the images that are not decided."""
    count = len(clean)
    changes, labels = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    first_changes, verdicts = np.zeros(count, dtype=np.int64), np.full(count, OPEN, dtype=object)
    undecided, drawn = np.arange(count), 0
    for look, size in enumerate(plan.sizes):
        changes[undecided] += voters.changes(undecided, clean, drawn, int(size))
        labels[undecided] = drawn = int(size)
        if look == 0:
            first_changes = changes.copy()
        found = [plan.verdict(look, int(each)) for each in changes[undecided]]
        verdicts[undecided] = [each or OPEN for each in found]
        undecided = undecided[[each is None for each in found]]
        if len(undecided) == 0:
            break
    return [
        ImageChange(
            voters.names[at],
            int(clean[at]),
            int(changes[at]),
            int(labels[at]),
            int(first_changes[at]),
            str(verdicts[at]),
            *_bounds(plan, str(verdicts[at]), int(changes[at]), int(labels[at])),
        )
        for at in range(count)
    ]


def _bounds(plan: ChangePlan, verdict: str, changes: int, labels: int) -> tuple[float, float]:
    """What is proven of P(change): by a single look all that the counts say, by several what the verdict does."""
    if plan.method == "fixed":
        lower = binomial_lower_bound(changes, labels, plan.alpha)
        return float(lower), float(binomial_upper_bound(changes, labels, plan.alpha))
    return (plan.q if verdict == REFUTED else 0.0), (plan.q if verdict == PROVEN else 1.0)


def _at_once(voters: _Voters, clean: Counts) -> list[ImageChange]:
    """One label an image, which stands for all: every draw is the same image, and the classifier deterministic."""
    changes = voters.changes(np.arange(len(clean)), clean, 0, 1)
    return [
        ImageChange(
            name, int(answer), int(each), 1, int(each), REFUTED if each else PROVEN, *([float(each)] * 2)
        )
        for name, answer, each in zip(voters.names, clean, changes, strict=True)
    ]
