"""Distillation: train a white-box student on the answers of a black box, and on nothing else."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surrogates.distillation.augmentation import Noise, denoised
from surrogates.distillation.inference import device_of, evaluating, predict
from surrogates.distillation.losses import LOSSES, check_loss, goals_of, pseudo_goals
from surrogates.distillation.selection import Selection, select_random
from surrogates.distillation.student import Examples, Recipe, train_student
from surrogates.distillation.surrogate import Surrogate, predict_labels
from surrogates.distillation.training import check_precision
from surrogates.errors import SurrogateError, check_positive_integers
from surrogates.targets import Answers, Target, check_images

BATCH_SIZE = 256  # images a forward pass, outside training


@dataclass(frozen=True, eq=False)
class Querying:
    """How a target is queried, and how its answers are used.

    Args:
        query_batch: Images a query.
        selection: A Selection, or the name of its strategy; all images of a round are chosen before its first query.
        committee: Further students, untrained and unlike each other, that learn from the same answers. Their mean is the
            goal of the student on images without an answer (self-training; ensembles, arXiv 1612.01474).
        loss: l1, soft_cross_entropy, kl, cross_entropy or partial; "auto" takes what suits the answers.
        validation: Share of answers, drawn at random, held out to measure agreement.

    Raises:
        SurrogateError: A value out of its range.
    """

    query_batch: int = 64
    selection: Selection | str = "random"
    committee: Sequence[nn.Module] = ()
    loss: str = "auto"
    validation: float | None = None

    def __post_init__(self) -> None:
        check_positive_integers(query_batch=self.query_batch)
        _ = self.strategy

    @property
    def strategy(self) -> Selection:
        """The selection, by name or as given."""
        return Selection(self.selection) if isinstance(self.selection, str) else self.selection


def distill(
    target: Target,
    pool: Tensor | np.ndarray,
    student: nn.Module,
    *,
    budget: int,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
    **options: Any,
) -> Surrogate:
    """Query a target for min(budget, N) images of an unlabeled pool and train a student on the answers.

    Args:
        target: An opened target, usually one that pays from a ledger.
        pool: (N, C, H, W) float32 in [0, 1].
        student: Maps images to logits (N, K); it is trained in place.
        budget: Number of queries.
        recipe: How the student is trained.
        seed: One seed gives the same bits on a CPU.
        device: Where to train; unset, where the student is.
        checkpoint: File (each round and member has one beside it) from which an interrupted call resumes to the same
            bits; it repeats the queries, whose answers a ledger recalls.
        progress: A factory like tqdm.
        options: Fields of `Querying`, e.g. selection="margin", committee=[...], validation=0.1, and of `Recipe`, which
            win over `recipe`: epochs=20, noise=law, ema=0.99.

    Raises:
        SurrogateError: Something does not fit, before any query; or whatever the target raises.
    """
    names = {each.name for each in fields(Querying)}
    querying = Querying(**{name: options.pop(name) for name in names & options.keys()})
    images = _checked_pool(pool)
    plan = _planned(budget, images, querying, replace(recipe or Recipe(), **options))
    if not (target.kind.is_assumed and querying.loss in ("auto", *LOSSES)):  # else the first answer tells
        loss_of(plan.querying, plan.recipe, target.output_kind)
    device = torch.device(device or device_of(student))
    check_precision(plan.recipe.precision, device)
    for model in (student, *querying.committee):
        check_student(model.to(device), check_images(images[:1]), target.num_classes, device)
    if plan.recipe.denoiser is not None:
        check_denoiser(plan.recipe.denoiser.to(device), check_images(images[:1]), device)
    run = _Run(target, images, plan, seed, checkpoint, progress)
    run.query_rounds(student)
    history = run.train_with_committee(student)
    examples, agreement = run.examples(), None
    if examples.held_out is not None:
        labels = predict_labels(student, examples.held_out[0], BATCH_SIZE)
        agreement = float((labels == examples.held_out[1]).mean())
    return Surrogate(
        student.eval(),
        plan.count,
        tuple(run.chosen.tolist()),
        tuple(history),
        run.loss,
        agreement,
        plan.selection.strategy,
        tuple(plan.sizes),
    )


def loss_of(querying: Querying, recipe: Recipe, output_kind: str) -> str:
    """Return the loss that suits answers and recipe: with consistency, logits are learned as probabilities.

    Consistency compares probabilities. Beside an L1 distance of logits, whose gradient is smaller by the number of classes,
    it wins: the student answers all images alike.

    Raises:
        SurrogateError: A loss that does not fit the answers, or l1 with consistency.
    """
    loss = check_loss(querying.loss, output_kind)
    if not recipe.consistency or loss != "l1":
        return loss
    if querying.loss == "auto":
        return "soft_cross_entropy"
    raise SurrogateError(
        f"loss is 'l1' and consistency is {recipe.consistency:g}, beside which l1 learns nothing: leave loss on 'auto', or "
        "set consistency to 0"
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is decided before the first query: number of queries, of each round and of held-out answers."""

    count: int
    sizes: list[int]
    held_out: int
    querying: Querying
    recipe: Recipe
    selection: Selection


def _planned(budget: int, images: np.ndarray, querying: Querying, recipe: Recipe) -> _Plan:
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 1:
        raise SurrogateError(f"budget must be a positive number of queries, got {budget!r}")
    count = min(int(budget), len(images))
    if count < min(querying.query_batch, len(images)):
        raise SurrogateError(
            f"budget is {budget} queries, less than the first batch of {querying.query_batch}: "
            f"raise the budget or set query_batch to at most {budget}"
        )
    if not 0 <= recipe.shift < min(images.shape[2:]):
        raise SurrogateError(f"shift must be in [0, {min(images.shape[2:])}) pixels, got {recipe.shift}")
    selection = querying.strategy
    sizes = selection.sizes(count)
    held_out = _held_out_count(querying.validation, count, sizes[0])
    if recipe.patience and not held_out:
        raise SurrogateError("patience needs held-out answers: set validation, e.g. 0.1")
    return _Plan(count, sizes, held_out, querying, recipe, selection)


@dataclass(eq=False)
class _Run:
    """A distillation under way: what was queried, what it was answered, and the trainings on it."""

    target: Target
    images: np.ndarray
    plan: _Plan
    seed: int
    checkpoint: str | os.PathLike[str] | None
    progress: Callable[..., Iterable[int]] | None
    chosen: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    queried: list[np.ndarray] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)

    @property
    def loss(self) -> str:
        """The loss, which suits the answers."""
        return loss_of(self.plan.querying, self.plan.recipe, self.target.output_kind)

    @cached_property
    def pool(self) -> Tensor:
        """A copy of the whole pool; only several rounds and a committee need images that were not queried."""
        return torch.from_numpy(check_images(self.images))

    def query_rounds(self, student: nn.Module) -> None:
        """Query round by round; between rounds the student is trained, anew or from where it was."""
        plan, untrained = self.plan, copy.deepcopy(student.state_dict())
        generator = torch.Generator().manual_seed(self.seed)
        for number, size in enumerate(plan.sizes):
            if number == 0:
                new = select_random(len(self.images), size, generator)
            else:
                new = plan.selection.select(
                    self.pool,
                    self.chosen,
                    student,
                    size,
                    batch_size=plan.recipe.batch_size,
                    generator=generator,
                )
            self._query(new)
            if not plan.selection.continued:
                student.load_state_dict(untrained)
            if number < len(plan.sizes) - 1:
                shorter = replace(plan.recipe, epochs=plan.selection.round_epochs or plan.recipe.epochs)
                self._train(student, self.examples(), shorter, self.seed + number + 1, f"round {number + 1}")

    def train_with_committee(self, student: nn.Module) -> list[float]:
        """Train the committee, if there is one, and then the student on all answers; return its losses."""
        examples, recipe = self.examples(), self.plan.recipe
        committee = self.plan.querying.committee
        # Members answer clean images in the target's place.
        plain = replace(recipe, denoiser=None, consistency=0.0)
        for number, member in enumerate(committee, start=1):
            self._train(member, examples, plain, self.seed + number, f"member {number}")
        if committee:
            examples = replace(examples, unlabeled=self._committee_goals())
        return self._train(student, examples, recipe, self.seed)

    def examples(self) -> Examples:
        """The first answers are held out; the first round is random, hence so are these."""
        answers, held_out = Answers.concatenate(self.answers), self.plan.held_out
        images = torch.from_numpy(np.concatenate(self.queried))
        goals = goals_of(answers, self.loss, self.target.output_kind)
        measured = (images[:held_out], answers.labels[:held_out]) if held_out else None
        return Examples(images[held_out:], goals[held_out:], self.loss, measured)

    def _query(self, indices: Tensor) -> None:
        images, size = check_images(self.images[indices.numpy()]), self.plan.querying.query_batch
        self.chosen = torch.cat([self.chosen, indices])
        self.queried.append(images)
        for start in range(0, len(images), size):
            self.answers.append(self.target.query(images[start : start + size]))
            _ = self.loss  # whose answers' kind the first answer may have told

    def _committee_goals(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The pool, the indices of its images without an answer, and the committee's goals for them."""
        free = torch.ones(len(self.pool), dtype=torch.bool)
        free[self.chosen] = False
        rest = free.nonzero().squeeze(1)
        if not len(rest):
            return None
        logits = [predict(member, self.pool[rest], BATCH_SIZE) for member in self.plan.querying.committee]
        return self.pool, rest, pseudo_goals(self.loss, logits)

    def _train(
        self, model: nn.Module, examples: Examples, recipe: Recipe, seed: int, part: str = ""
    ) -> list[float]:
        """Train a model; each part has its checkpoint beside the given one, e.g. student.round-1.pt."""
        title = f"distill, {part}" if part else "distill"
        path = None if self.checkpoint is None else Path(self.checkpoint)
        if path is not None and part:
            path = path.with_name(f"{path.stem}.{part.replace(' ', '-')}{path.suffix}")
        return train_student(
            model,
            examples,
            recipe,
            seed=seed,
            checkpoint=path,
            fingerprint=None if path is None else _fingerprint(recipe, seed, examples, model),
            progress=self.progress and partial(self.progress, desc=title),
        )


def _checked_pool(pool: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(pool, Tensor | np.ndarray) or pool.ndim != 4 or 0 in pool.shape:
        given = tuple(pool.shape) if hasattr(pool, "shape") else type(pool).__name__
        raise SurrogateError(f"pool must be a non-empty array of shape (N, C, H, W), got {given}")
    check_images(pool[:1])  # the type, before the chosen images are checked in full
    return pool.detach().cpu().numpy() if isinstance(pool, Tensor) else pool


def _held_out_count(validation: float | None, count: int, first: int) -> int:
    if validation is None:
        return 0
    if not 0 < validation < 1 or not 1 <= round(validation * count) < count:
        raise SurrogateError(
            f"validation must be the share of {count} answers to hold out, in (0, 1), "
            f"got {validation!r}: try 0.1"
        )
    if round(validation * count) >= first:
        raise SurrogateError(
            f"validation holds out {round(validation * count)} answers of a first round of {first}: "
            "lower it, or raise the start of the selection"
        )
    return round(validation * count)


def check_student(student: nn.Module, image: np.ndarray, num_classes: int, device: torch.device) -> None:
    """Run a student once on one image (1, C, H, W), so that a misfit is noticed before anything is paid.

    Raises:
        SurrogateError: It fails, or its answer is not (1, num_classes).
    """
    try:
        with evaluating(student), torch.no_grad():
            logits = student(torch.from_numpy(image).to(device))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SurrogateError(f"student cannot take images of shape {image.shape[1:]}: {reason}") from error
    shape = getattr(logits, "shape", type(logits).__name__)
    if tuple(shape) != (1, num_classes):
        raise SurrogateError(
            f"student returns {shape} for one image, expected (1, {num_classes}): "
            f"give it {num_classes} outputs"
        )


def check_denoiser(denoiser: nn.Module, image: np.ndarray, device: torch.device) -> None:
    """Run a denoiser once on one image (1, C, H, W), so that a misfit is noticed before anything is paid.

    Raises:
        SurrogateError: It fails, or its answer is of another shape.
    """
    try:
        shape = tuple(denoised(denoiser, torch.from_numpy(image).to(device)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SurrogateError(f"denoiser cannot take images of shape {image.shape[1:]}: {reason}") from error
    if shape != image.shape:
        raise SurrogateError(
            f"denoiser returns {shape} for images {image.shape}: give one that keeps the shape"
        )


def _probe(noise: Noise | None) -> bytes:
    """Tell noises apart by a few seeded draws: their repr may hide parameters or print memory addresses."""
    if noise is None:
        return b""
    return (
        noise.sample((4, 1, 2, 2), generator=torch.Generator().manual_seed(0), device="cpu").numpy().tobytes()
    )


def _fingerprint(recipe: Recipe, seed: int, examples: Examples, student: nn.Module) -> str:
    plain = replace(recipe, noise=None, consistency=0.0)
    settings = (plain, _probe(recipe.noise), seed, examples.loss, str(student))
    # The spelling of the checkpoints that exist.
    digest = hashlib.sha256(repr(settings).replace("unlabeled_", "unlabelled_").encode())
    if recipe.consistency:
        digest.update(repr((recipe.consistency, recipe.entropy)).encode())
    if recipe.denoiser is not None:
        for name, value in recipe.denoiser.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    arrays = [examples.images, examples.goals]
    arrays += [] if examples.held_out is None else [examples.held_out[0]]
    arrays += [] if examples.unlabeled is None else list(examples.unlabeled)
    for array in arrays:
        digest.update(np.ascontiguousarray(array.numpy()).data)
    return digest.hexdigest()
