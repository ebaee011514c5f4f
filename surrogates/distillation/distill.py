"""Distillation: train a white-box student on what a black box answers, and on nothing else."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from surrogates.distillation.augmentation import Noise
from surrogates.distillation.inference import device_of, evaluating, predict
from surrogates.distillation.losses import check_loss, goals_of, pseudo_goals
from surrogates.distillation.selection import Selection, select_random
from surrogates.distillation.student import Examples, Recipe, train_student
from surrogates.distillation.training import check_precision
from surrogates.errors import SurrogateError
from surrogates.targets import Answers, Target, check_images


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A distilled stand-in: model in eval mode, number of queries asked, which images, loss by epoch.

    held_out_agreement is the share of held-out answers on which model and target agree, None without any;
    it flatters where it also chose the best epoch (patience). rounds are the images asked about in each.
    """

    model: nn.Module
    queries: int
    pool_indices: tuple[int, ...]
    history: tuple[float, ...]
    loss: str
    held_out_agreement: float | None = None
    strategy: str = "random"
    rounds: tuple[int, ...] = ()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K) of images (N, C, H, W); gradients flow."""
        return self.model(images)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and record as safetensors."""
        from safetensors.torch import save_model

        record = {
            "queries": self.queries,
            "pool_indices": self.pool_indices,
            "history": self.history,
            "loss": self.loss,
            "held_out_agreement": self.held_out_agreement,
            "strategy": self.strategy,
            "rounds": self.rounds,
        }
        save_model(self.model, os.fspath(path), metadata={"surrogate": json.dumps(record)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> "Surrogate":
        """Fill a model of the same architecture with saved weights; SurrogateError if they do not fit."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_model

        if not Path(path).is_file():
            raise SurrogateError(f"surrogate {os.fspath(path)} does not exist: give a file that save() wrote")
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                record = json.loads((file.metadata() or {})["surrogate"])
            load_model(model, os.fspath(path))
        except (SafetensorError, RuntimeError, KeyError, OSError) as error:
            raise SurrogateError(
                f"surrogate {os.fspath(path)} does not fit {type(model).__name__} "
                f"({str(error).splitlines()[0]}): give a file that save() wrote for this architecture"
            ) from error
        for name in ("pool_indices", "history", "rounds"):
            record[name] = tuple(record.get(name, ()))
        return cls(model=model.eval(), **record)


def distill(
    target: Target,
    pool: torch.Tensor | np.ndarray,
    student: nn.Module,
    *,
    budget: int,
    query_batch: int = 64,
    selection: Selection | str = "random",
    committee: Sequence[nn.Module] = (),
    recipe: Recipe | None = None,
    loss: str = "auto",
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
    **options: Any,
) -> Surrogate:
    """Ask a target for min(budget, N) images of an unlabelled pool and train a student on the answers.

    pool is (N, C, H, W) float32 in [0, 1]. The student maps images to logits (N, K) and is trained in place by
    the recipe; options are fields of Recipe and win over it: epochs=20, noise=law, ema=0.99. selection is a
    Selection, or the name of its strategy; all images of a round are chosen before the first is asked.
    A committee of further students, untrained and unlike each other, learns from the same answers, and its mean
    then teaches the student the images that were not asked about (self-training; ensembles, arXiv 1612.01474).
    loss is l1, soft_cross_entropy, kl, cross_entropy or partial; "auto" takes what suits the answers.
    validation is the share of answers, drawn at random, held out to measure agreement. progress is a factory
    like tqdm. checkpoint is a file (each round and member has one beside it) from which an interrupted call
    resumes to the same bits, asking again for what a ledger then recalls; one seed gives the same bits on a
    CPU. Raises SurrogateError before anything is asked, or what the target raises.
    """
    images = _check_pool(pool)
    recipe = replace(recipe or Recipe(), **options)
    selection = Selection(selection) if isinstance(selection, str) else selection
    for name, value in {"budget": budget, "query_batch": query_batch}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            unit = " number of queries" if name == "budget" else " integer"
            raise SurrogateError(f"{name} must be a positive{unit}, got {value!r}")
    count = min(int(budget), len(images))
    if count < min(query_batch, len(images)):
        raise SurrogateError(
            f"budget is {budget} queries, less than the first batch of {query_batch}: "
            f"raise the budget or set query_batch to at most {budget}"
        )
    if not 0 <= recipe.shift < min(images.shape[2:]):
        raise SurrogateError(f"shift must be in [0, {min(images.shape[2:])}) pixels, got {recipe.shift}")
    loss = check_loss(loss, target.output_kind)
    sizes = selection.sizes(count)
    held_out = _held_out_count(validation, count, sizes[0])
    if recipe.patience and not held_out:
        raise SurrogateError("patience needs held-out answers: set validation, e.g. 0.1")

    device = torch.device(device or device_of(student))
    check_precision(recipe.precision, device)
    for model in (student, *committee):
        _check_student(model.to(device), check_images(images[:1]), target.num_classes, device)

    untrained = copy.deepcopy(student.state_dict())
    train = partial(_train, checkpoint=checkpoint, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    # Only these look at images that are not asked about, which may be too many to keep a copy of.
    looks = len(sizes) > 1 or committee
    whole = torch.from_numpy(check_images(images)) if looks else None
    chosen = torch.empty(0, dtype=torch.int64)
    asked: list[np.ndarray] = []
    answers: list[Answers] = []
    for number, size in enumerate(sizes):
        if number == 0:
            more = select_random(len(images), size, generator)
        else:
            more = selection.select(
                whole, chosen, student, size, batch_size=recipe.batch_size, generator=generator
            )
        chosen = torch.cat([chosen, more])
        asked.append(check_images(images[more.numpy()]))
        answers += [
            target.query(asked[-1][start : start + query_batch]) for start in range(0, size, query_batch)
        ]
        examples = _examples(
            np.concatenate(asked), Answers.concatenate(answers), loss, target.output_kind, held_out
        )
        if not selection.continued:
            student.load_state_dict(untrained)
        if number < len(sizes) - 1:
            shorter = replace(recipe, epochs=selection.round_epochs or recipe.epochs)
            train(student, examples, shorter, seed + number + 1, f"round {number + 1}")
    for number, member in enumerate(committee, start=1):
        train(member, examples, recipe, seed + number, f"member {number}")
    if committee:
        examples = replace(examples, unlabeled=_committee_goals(committee, whole, chosen, loss))
    history = train(student, examples, recipe, seed)
    agreement = None
    if examples.held_out is not None:
        agreement = float((predict_labels(student, examples.held_out[0], 256) == examples.held_out[1]).mean())
    return Surrogate(
        student.eval(),
        count,
        tuple(chosen.tolist()),
        tuple(history),
        loss,
        agreement,
        selection.strategy,
        tuple(sizes),
    )


def predict_labels(model: Surrogate | nn.Module, images: torch.Tensor, batch_size: int) -> np.ndarray:
    """Return the labels (N,) int64 of images (N, C, H, W) by a model in eval mode, on the model's device."""
    module = model.model if isinstance(model, Surrogate) else model
    return predict(module, images, batch_size).argmax(dim=1).numpy()


def _train(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    part: str = "",
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: Callable[..., Iterable[int]] | None,
) -> list[float]:
    """Train a model; each part has its checkpoint beside the given one, e.g. student.round-1.pt."""
    title = f"distil, {part}" if part else "distil"
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and part:
        path = path.with_name(f"{path.stem}.{part.replace(' ', '-')}{path.suffix}")
    return train_student(
        model,
        examples,
        recipe,
        seed=seed,
        checkpoint=path,
        fingerprint=_fingerprint(recipe, seed, examples, model) if path else None,
        progress=progress and partial(progress, desc=title),
    )


def _examples(images: np.ndarray, answers: Answers, loss: str, output_kind: str, held_out: int) -> Examples:
    """The first `held_out` answers measure, the others teach; the first round is random, hence so are these."""
    shown, goals = torch.from_numpy(images), goals_of(answers, loss, output_kind)
    measured = (shown[:held_out], answers.labels[:held_out]) if held_out else None
    return Examples(shown[held_out:], goals[held_out:], loss, measured)


def _committee_goals(
    committee: Sequence[nn.Module], pool: torch.Tensor, chosen: torch.Tensor, loss: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The pool, the indices of its images that were not asked about, and the committee's goals for them."""
    free = torch.ones(len(pool), dtype=torch.bool)
    free[chosen] = False
    rest = free.nonzero().squeeze(1)
    if not len(rest):
        return None
    return pool, rest, pseudo_goals(loss, [predict(member, pool[rest], 256) for member in committee])


def _check_pool(pool: torch.Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(pool, torch.Tensor | np.ndarray) or pool.ndim != 4 or 0 in pool.shape:
        found = tuple(pool.shape) if hasattr(pool, "shape") else type(pool).__name__
        raise SurrogateError(f"pool must be a non-empty array of shape (N, C, H, W), got {found}")
    check_images(pool[:1])  # the type, before the chosen images are looked at in full
    return pool.detach().cpu().numpy() if isinstance(pool, torch.Tensor) else pool


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


def _check_student(student: nn.Module, image: np.ndarray, num_classes: int, device: torch.device) -> None:
    """Run the student once on one image, so that a misfit is found before anything is paid."""
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


def _probe(noise: Noise | None) -> bytes:
    """Tell noises apart by a few seeded draws: their repr may hide parameters or print memory addresses."""
    if noise is None:
        return b""
    return (
        noise.sample((4, 1, 2, 2), generator=torch.Generator().manual_seed(0), device="cpu").numpy().tobytes()
    )


def _fingerprint(recipe: Recipe, seed: int, examples: Examples, student: nn.Module) -> str:
    settings = (replace(recipe, noise=None), _probe(recipe.noise), seed, examples.loss, str(student))
    digest = hashlib.sha256(repr(settings).encode())
    arrays = [examples.images, examples.goals]
    arrays += [] if examples.held_out is None else [examples.held_out[0]]
    arrays += [] if examples.unlabeled is None else list(examples.unlabeled)
    for array in arrays:
        digest.update(np.ascontiguousarray(array.numpy()))
    return digest.hexdigest()
