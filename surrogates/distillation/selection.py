"""Which images of a pool to query, and in how many rounds (active learning).

A strategy is a chain of steps: each but the last keeps WIDER times as many as needed, the last as many as needed. It
depends on the pool, on the images that were queried, and on a student that was trained on their answers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from surrogates.distillation.inference import device_of, evaluating, predict_with_features
from surrogates.errors import SurrogateError

WIDER = 3
# DeepFool takes several gradients an image, so it is run on the images that are nearest to a tie.
DEEPFOOL_CANDIDATES = 4
DEEPFOOL_STEPS = 3
DEEPFOOL_RIVALS = 3


def select_random(pool_size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` distinct indices (count,) int64 drawn uniformly from range(pool_size).

    Args:
        generator: On the CPU.

    Raises:
        SurrogateError: More than there are.
    """
    if not 1 <= count <= pool_size:
        raise SurrogateError(f"count must be in [1, {pool_size}], the size of the pool, got {count}")
    return torch.randperm(pool_size, generator=generator)[:count]


@dataclass(frozen=True)
class Selection:
    """How the images to query are chosen.

    Args:
        strategy: random, kcenter (greedy 2-approximation, Sener & Savarese 2018), margin, entropy, dfal (distance to the
            decision boundary by DeepFool, Ducoffe & Precioso 2018), kcenter_margin (k-center keeps three times as many,
            those with the smallest margins are queried), margin_kcenter or dfal_kcenter (the other way round, as in
            ActiveThief, Pal et al. 2020).
        rounds: The first is random, the others are equal.
        start: Share of the budget that the first round takes.
        round_epochs: Epochs of the student between rounds; unset, as many as at the end.
        continued: Train it from where it was, and not anew.
        features: features(images) -> (N, D), between which k-center measures distances; unset, the inputs of the
            student's last linear layer.

    Raises:
        SurrogateError: A value out of its range.
    """

    strategy: str = "random"
    rounds: int = 5
    start: float = 0.2
    round_epochs: int | None = None
    continued: bool = False
    features: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise SurrogateError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 2:
            raise SurrogateError(f"rounds must be at least 2, a random one and another, got {self.rounds!r}")
        if not 0 < self.start < 1:
            raise SurrogateError(
                f"start must be a share of the budget in (0, 1), got {self.start!r}: try 0.2"
            )
        if self.round_epochs is not None and self.round_epochs < 1:
            raise SurrogateError(f"round_epochs must be a positive integer, got {self.round_epochs!r}")

    def sizes(self, count: int) -> list[int]:
        """Return the number of images of each round, of `count` in all; one round where all are random."""
        first = max(1, round(self.start * count))
        if self.strategy == "random" or count - first < self.rounds - 1:
            return [count]
        each, rest = divmod(count - first, self.rounds - 1)
        return [first, *(each + (number < rest) for number in range(self.rounds - 1))]

    def select(
        self,
        pool: torch.Tensor,
        answered: torch.Tensor,
        student: nn.Module,
        count: int,
        *,
        batch_size: int = 256,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return `count` indices (count,) int64 of images that have no answer yet; nothing is queried.

        Args:
            pool: (N, C, H, W).
            answered: Indices (M,) of the images with an answer.
            student: Trained on those answers.
            batch_size: Images a forward pass.
            generator: On the CPU; one state gives the same indices.

        Raises:
            SurrogateError: More images than are free.
        """
        free = torch.ones(len(pool), dtype=torch.bool)
        free[answered] = False
        candidates = free.nonzero().squeeze(1)
        if not 1 <= count <= len(candidates):
            raise SurrogateError(
                f"count must be in [1, {len(candidates)}], the images without an answer, got {count}"
            )
        view = _View(pool, answered, student, self.features, batch_size, generator)
        steps = STRATEGIES[self.strategy]
        for later, narrow in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
            candidates = narrow(view, candidates, min(count * WIDER**later, len(candidates)))
        return candidates


@dataclass(frozen=True, eq=False)
class _View:
    """What a strategy depends on; the student's outputs are computed at most once."""

    pool: torch.Tensor
    answered: torch.Tensor
    student: nn.Module
    own_features: Callable[[torch.Tensor], torch.Tensor] | None
    batch_size: int
    generator: torch.Generator

    @cached_property
    def _outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return predict_with_features(self.student, self.pool, self.batch_size)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        return self._outputs[0].float().softmax(dim=1)

    @cached_property
    def margins(self) -> torch.Tensor:
        top = self.probabilities.topk(2, dim=1).values
        return top[:, 0] - top[:, 1]

    @cached_property
    def features(self) -> torch.Tensor:
        if self.own_features is None:
            return self._outputs[1].float()
        with torch.inference_mode():
            parts = [self.own_features(part.clone()).cpu() for part in self.pool.split(self.batch_size)]
        features = torch.cat(parts).float()
        if features.ndim != 2 or len(features) != len(self.pool):
            raise SurrogateError(
                f"features gave shape {tuple(features.shape)}, expected ({len(self.pool)}, D)"
            )
        return features


def _random(view: _View, candidates: torch.Tensor, count: int) -> torch.Tensor:
    return candidates[select_random(len(candidates), count, view.generator)]


def _margin(view: _View, candidates: torch.Tensor, count: int) -> torch.Tensor:
    return _smallest(candidates, view.margins[candidates], count)


def _entropy(view: _View, candidates: torch.Tensor, count: int) -> torch.Tensor:
    return _smallest(candidates, -torch.special.entr(view.probabilities[candidates]).sum(dim=1), count)


def _dfal(view: _View, candidates: torch.Tensor, count: int) -> torch.Tensor:
    near = _margin(view, candidates, min(DEEPFOOL_CANDIDATES * count, len(candidates)))
    distances = torch.cat(
        [boundary_distance(view.student, view.pool[rows]) for rows in near.split(view.batch_size)]
    )
    return _smallest(near, distances, count)


def _kcenter(view: _View, candidates: torch.Tensor, count: int) -> torch.Tensor:
    return candidates[farthest_first(view.features[candidates], view.features[view.answered], count)]


STRATEGIES: dict[str, tuple[Callable[[_View, torch.Tensor, int], torch.Tensor], ...]] = {
    "random": (_random,),
    "kcenter": (_kcenter,),
    "margin": (_margin,),
    "entropy": (_entropy,),
    "dfal": (_dfal,),
    "kcenter_margin": (_kcenter, _margin),
    "margin_kcenter": (_margin, _kcenter),
    "dfal_kcenter": (_dfal, _kcenter),
}


def farthest_first(points: torch.Tensor, centers: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices (count,) of points (N, D), each the farthest from centers (M, D) and those before it.

    Without centers the mean of the points serves as one. Gonzalez (1985).
    """
    squared = points.square().sum(dim=1)
    nearest = torch.full((len(points),), math.inf)
    for part in (centers if len(centers) else points.mean(dim=0, keepdim=True)).split(1024):
        distances = squared[:, None] + part.square().sum(dim=1) - 2 * points @ part.T  # (N, at most 1024)
        nearest = torch.minimum(nearest, distances.amin(dim=1))
    chosen = torch.empty(count, dtype=torch.int64)
    for number in range(count):
        index = int(nearest.argmax())
        chosen[number] = index
        nearest = torch.minimum(nearest, squared + squared[index] - 2 * (points @ points[index]))
        nearest[index] = -math.inf
    return chosen


def boundary_distance(
    student: nn.Module, images: torch.Tensor, steps: int = DEEPFOOL_STEPS, rivals: int = DEEPFOOL_RIVALS
) -> torch.Tensor:
    """Return the L2 length (N,) of the way that DeepFool finds from images (N, C, H, W) to another label.

    Each step goes to the nearest linearized boundary with one of the `rivals` next classes (Moosavi-Dezfooli
    et al., CVPR 2016, algorithm 2); an image whose label has changed stays where it is.
    """
    device = device_of(student)
    start = images.to(device)
    here = start.clone()
    with evaluating(student), torch.enable_grad():
        for step in range(steps):
            here.requires_grad_(True)
            logits = student(here.clone())
            if step == 0:
                order = logits.detach().argsort(dim=1, descending=True, stable=True)
                label, others = order[:, :1], order[:, 1 : 1 + rivals]
            same = logits.detach().argmax(dim=1) == label[:, 0]
            gaps = logits.gather(1, others) - logits.gather(1, label)  # (N, rivals), negative while same
            moves = []
            for rival in range(others.shape[1]):
                slope = torch.autograd.grad(gaps[:, rival].sum(), here, retain_graph=True)[0].flatten(1)
                length = slope.norm(dim=1).clamp_min(1e-8)
                moves.append((gaps[:, rival].detach().abs() / length, slope / length[:, None]))
            distances = torch.stack([distance for distance, _ in moves])  # (rivals, N)
            nearest = distances.argmin(dim=0)
            directions = torch.stack([direction for _, direction in moves])
            image = torch.arange(len(images), device=device)
            way = directions[nearest, image] * (1.02 * distances[nearest, image] + 1e-6)[:, None]
            here = (here + torch.where(same[:, None], way, 0.0).view_as(here)).detach()
    return (here - start).flatten(1).norm(dim=1).cpu()


def _smallest(candidates: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """The candidates with the smallest scores; equal scores in the order of the pool."""
    return candidates[torch.from_numpy(np.argsort(scores.numpy(), kind="stable")[:count].copy())]
