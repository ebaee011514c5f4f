"""UAD-RS: DiffPure with adaptive noise level selection, ANLS (Yu, Xu & Ghamisi, "Universal Adversarial Defense in Remote
Sensing Based on Pre-trained Denoising Diffusion Models", arXiv 2307.16865): which step t suits a classifier and an attack.

No label is used. It is a choice for a data set, a classifier and an attack, on a set of attacked images, so what it
chose is fixed before any single image is defended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from certdef.attacks import gradient as attacks
from certdef.config.job import RunConfig
from certdef.purifiers.base import About, Parts, PurifierSpec, TrainingRun, Tuned, Tuning
from certdef.purifiers.diffpure import DiffPure, build_diffpure, chain_settings
from certdef.purifiers.gs import THREAT
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork
from certdef.purifiers.one_step import ONE_STEP
from surrogates.distillation.inference import features

BATCH = 128


@dataclass(frozen=True)
class Choice:
    """The step t that was chosen, and the Frechet distance to clean features at each step tried."""

    t: int
    distances: dict[int, float]


def anls(
    network: DiffusionNetwork,
    classifier: nn.Module,
    clean: Tensor,
    adversarial: Tensor,
    grid: Iterable[int],
    *,
    steps: int | None = None,
    shrinkage: float = 0.1,
    seed: int = 0,
    seen: Callable[[int, Tensor], None] | None = None,
    progress: Callable | None = None,
) -> Choice:
    """Purify at each t of a grid and choose the one whose features are nearest to clean ones.

    The distance is Frechet's, between the classifier's pooled features of clean training images and of the purified set.

    Args:
        network: A trained diffusion network.
        classifier: The classifier whose features are compared.
        clean: Clean training images (M, C, H, W) in [0, 1].
        adversarial: Attacked images (N, C, H, W) in [0, 1]; some 500 in the paper, other images than the clean ones.
        grid: Steps t to try; every tenth in the paper.
        steps: Reverse steps of each purification; unset, all of them.
        shrinkage: Of the covariances, for fewer images than the paper's (see `frechet`).
        seed: Of the purification; every t gets the same draws, so that differences are of t.
        seen: seen(t, purified) is called with the attacked images as each t purifies them.
        progress: Wraps the grid, e.g. tqdm.

    Raises:
        ValueError: An empty grid, or fewer than two images.
    """
    grid = sorted(set(grid))
    if not grid:
        raise ValueError("grid has no step t: give some, e.g. range(10, 101, 10)")
    reference = _features(classifier, clean)
    distances = {}
    for t in progress(grid) if progress else grid:
        generator = torch.Generator(adversarial.device).manual_seed(seed)
        purified = purify(DiffPure(network, t, steps, generator), adversarial)
        distances[t] = frechet(_features(classifier, purified), reference, shrinkage)
        if seen:
            seen(t, purified)
    return Choice(min(distances, key=distances.__getitem__), distances)


@torch.inference_mode()
def purify(purifier: nn.Module, images: Tensor) -> Tensor:
    """Purify images (N, C, H, W) in batches, without gradients."""
    return torch.cat([purifier(batch.clone()) for batch in images.split(BATCH)])


def frechet(first: Tensor, second: Tensor, shrinkage: float = 0.1) -> float:
    """Squared Frechet distance of two sets of features (N, D) and (M, D), each modeled as a Gaussian; in float64.

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))      (Dowson & Landau, 1982)

    With fewer images than features a covariance S is singular: it is shrunk to (1 - shrinkage) S + shrinkage tr(S)/D I.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}: expected (N, D), (M, D)"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} images have no covariance: give 2 or more of each")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be between 0 and 1, got {shrinkage}")
    (m1, s1), (m2, s2) = (_gaussian(part.double(), shrinkage) for part in (first, second))
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # S1 S2 and S1^(1/2) S2 S1^(1/2) have the same eigenvalues, and the second is symmetric.
    shared = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(0).sqrt().sum()
    return float((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * shared)


def _gaussian(samples: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Mean (D,) and shrunk covariance (D, D)."""
    covariance = torch.atleast_2d(samples.T.cov())
    level = covariance.trace() / len(covariance)
    identity = torch.eye(len(covariance)).to(covariance)
    return samples.mean(0), (1 - shrinkage) * covariance + shrinkage * level * identity


@torch.inference_mode()
def _features(classifier: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([features(classifier, batch) for batch in images.split(BATCH)])


def _depends_on(config: RunConfig) -> list[Any]:
    chosen, attack = config.diffusion, config.attack
    return [list(chosen.grid), chosen.steps, chosen.choice_images, max(attack.eps), attack.steps]


def _choose(parts: Parts, run: TrainingRun) -> Tuned:
    """The t at which purified attacked images of the pool look most like clean ones to the classifier; no labels."""
    config, classifier = run.config, parts.networks["classifier"]
    eps = max(config.attack.eps)
    images = run.pool[: config.diffusion.choice_images]
    attacked = attacks.pgd(
        classifier,
        images,
        run.labels(images),
        eps=eps,
        steps=config.attack.steps,
        seed=config.seed,
        progress=run.progress,
    )
    choice = anls(
        parts.network("diffusion", DiffusionNetwork),
        classifier,
        run.pool.to(run.device),
        attacked.to(run.device),
        config.diffusion.grid,
        steps=config.diffusion.steps,
        seed=config.seed,
        progress=run.progress,
    )
    return Tuned({"t": choice.t}, {"eps": eps}, {"distance": sorted(choice.distances.items())})


PURIFIER = PurifierSpec(
    "uad-rs",
    About(
        "UAD-RS: DiffPure at the step that brings purified features nearest to clean ones",
        "Yu et al. 2023, arXiv 2307.16865",
        THREAT,
        papers=("uad-rs", "diffpure", "ddpm"),
    ),
    build_diffpure,
    chain_settings,  # but for t, which is tuned
    networks=lambda config: (DIFFUSION,),
    denoiser=ONE_STEP,
    differentiable=True,
    sees_classifier=True,
    tuning=Tuning("uad-step", _depends_on, _choose),
)
