"""Self-supervised tasks on the features of a frozen classifier (Mao et al., "Adversarial Attacks are Reversible with
Natural Supervision", ICCV 2021; Lawhon, Mao, Yang, "Using Multiple Self-Supervised Tasks Improves Model Robustness",
2022, arXiv 2204.03714).

Each task puts a small head on the features and is trained on clean, unlabeled images; an attacked image then does
it worse. The tasks: tell an image's own views from other images (contrastive), which quarter turn (rotation), which
order of the pieces (jigsaw), and restore the image from noise with a denoiser that is given (denoising; ours).

Three departures. The negatives come from a fixed bank of clean embeddings, not from the other images of the batch;
views, permutations and noise are drawn once and are the same for all images; each loss is standardized by its mean
and standard deviation on clean images, so that they can be summed. An image's loss thus depends on nothing but itself.
The sources' list of tasks, their augmentations and the width of the heads are unread: chosen here. HEADS describes a job's.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from certdef.config.job import RunConfig
from certdef.config.names import TASKS
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.networks.denoisers import NIM_MAE
from surrogates.distillation.inference import features
from surrogates.distillation.training import FitOptions, Training, fit

HELD_OUT = 1000  # images, at most, that standardize the losses and train no head
PUZZLES = 24  # permutations to tell apart: all of 2x2, as many far apart of 3x3


@dataclass(frozen=True)
class TaskShape:
    """Everything needed to build a TaskNetwork again from its weights.

    Args:
        image_shape: (C, H, W).
        features: Width of the classifier's features, see surrogates.distillation.inference.features.
        tasks: Some of TASKS.
        hidden: Width of the heads' hidden layer.
        embedding: Width of the contrastive embedding; 16 in the paper.
        temperature: Of InfoNCE; 0.2 in the paper.
        views: Fixed views, puzzles and noise draws an image; 4 views in the paper.
        bank: Clean embeddings that are the negatives.
        grid: Pieces of the jigsaw on a side, 2 or 3.
        sigma: Noise of the denoising task, in [0,1] pixel units.
        seed: Of the fixed views, puzzles and noise.
    """

    image_shape: tuple[int, int, int]
    features: int
    tasks: tuple[str, ...] = ("contrastive", "rotation", "jigsaw")
    hidden: int = 128
    embedding: int = 16
    temperature: float = 0.2
    views: int = 4
    bank: int = 512
    grid: int = 2
    sigma: float = 75 / 255
    seed: int = 0


class TaskNetwork(nn.Module):
    """The heads, and everything fixed: bank, views, puzzles, noise, and each loss's clean mean and sd.

    Raises:
        ValueError: An unknown task, or a shape of image on which a task can't be set.
    """

    placement: Tensor
    gain: Tensor
    puzzles: Tensor
    noise: Tensor
    bank: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, shape: TaskShape):
        super().__init__()
        _check(shape)
        self.shape, self.tasks = shape, tuple(shape.tasks)
        generator = torch.Generator().manual_seed(shape.seed)
        puzzles = permutations(shape.grid, generator)
        classes = {"contrastive": shape.embedding, "rotation": 4, "jigsaw": len(puzzles)}
        with_head = [task for task in self.tasks if task in classes]
        self.heads = nn.ModuleDict({task: _head(shape, classes[task]) for task in with_head})
        placement, gain = draw_views(shape.views, generator)
        self.register_buffer("placement", placement)  # (V, 2, 3)
        self.register_buffer("gain", gain)  # (V,)
        self.register_buffer("puzzles", puzzles)  # (P, grid^2); only the first V are set at test
        self.register_buffer("noise", torch.randn(shape.views, *shape.image_shape, generator=generator))
        self.register_buffer("bank", torch.zeros(shape.bank, shape.embedding))
        self.register_buffer("mean", torch.zeros(len(self.tasks)))
        self.register_buffer("sd", torch.ones(len(self.tasks)))

    def forward(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features (M, D) by task -> embeddings of length 1 (M, 16), logits (M, 4), logits (M, P)."""
        answers = {task: self.heads[task](values) for task, values in latents.items()}
        if "contrastive" in answers:
            answers["contrastive"] = functional.normalize(answers["contrastive"], dim=1)
        return answers

    def losses(
        self, classifier: nn.Module, images: Tensor, tasks: tuple[str, ...], denoiser: nn.Module | None = None
    ) -> Tensor:
        """Each task's standardized loss (N, T), images (N, C, H, W) in [0, 1]; 0 is the clean mean. Differentiable."""
        losses = torch.stack([self._loss(task, classifier, images, denoiser) for task in tasks], dim=1)
        which = [self.tasks.index(task) for task in tasks]
        return (losses - self.mean[which]) / self.sd[which]

    def _loss(self, task: str, classifier: nn.Module, images: Tensor, denoiser: nn.Module | None) -> Tensor:
        """One task's loss (N,), the mean over its fixed views."""
        views, count = self.shape.views, len(images)
        if task == "denoising":
            assert denoiser is not None
            noisy = images + self.shape.sigma * self.noise[:, None]  # (V, N, C, H, W)
            restored = denoiser(noisy.flatten(0, 1)).unflatten(0, (views, count))
            return (restored - images).square().mean(dim=(0, 2, 3, 4))
        repeated = images.repeat(views, 1, 1, 1)  # (V N, C, H, W), view by view
        number = torch.arange(views, device=images.device)[:, None].expand(views, count).flatten()
        if task == "contrastive":
            variants = view(repeated, self.placement[number], self.gain[number])
        elif task == "rotation":
            number = number % 4
            variants = rotate(repeated, number)
        else:
            number = number % len(self.puzzles)
            variants = shuffle(repeated, self.puzzles[number], self.shape.grid)
        answers = self({task: features(classifier, variants)})[task]
        if task == "contrastive":
            return self._info_nce(answers.unflatten(0, (views, count)))
        return functional.cross_entropy(answers, number, reduction="none").view(views, count).mean(dim=0)

    def _info_nce(self, embeddings: Tensor) -> Tensor:
        """InfoNCE (N,) of the views of each image (V, N, E), all pairs, against the bank."""
        own = torch.einsum("vne,wne->vwn", embeddings, embeddings) / self.shape.temperature
        others = (embeddings @ self.bank.T / self.shape.temperature).logsumexp(dim=2)  # (V, N)
        loss = torch.logaddexp(own, others[:, None]) - own  # (V, V, N)
        pairs = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        return loss[pairs].mean(dim=0)


def train_tasks(
    network: TaskNetwork,
    classifier: nn.Module,
    images: Tensor,
    training: Training,
    *,
    denoiser: nn.Module | None = None,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Train the heads in place on clean, unlabeled images (N, C, H, W) in [0, 1]; returns each epoch's mean loss.

    A step takes two random views of every image (negatives: the rest of the batch), one random turn and one random
    puzzle. Then the bank is filled, and a tenth of the images, which trained nothing, give each loss its mean and sd.

    Args:
        network: Left in eval mode on the device.
        classifier: Frozen; the heads read its features.
        images: Clean images.
        training: Epochs, batch, rate.
        denoiser: For the denoising task.
        options: Seed, device, checkpoint and progress, as for fit.

    Raises:
        ValueError: Too few images, or the denoising task without a denoiser.
    """
    held = min(HELD_OUT, len(images) // 10)
    if len(images) - held < network.shape.bank or held < 2:
        raise ValueError(
            f"{len(images)} images do not fill a bank of {network.shape.bank}: give more, or a smaller bank"
        )
    check_denoiser(network.tasks, denoiser)
    device, seed = options.get("device", "cpu"), options.get("seed", 0)
    classifier.to(device).eval()
    history: list[float] = []
    if network.heads:
        loss = partial(_training_loss, classifier=classifier)
        history = fit(network, images[held:], loss, training, **options)
    network.to(device).eval()
    with torch.no_grad():
        if "contrastive" in network.tasks:
            negatives = images[held : held + network.shape.bank].to(device)
            views = view(negatives, *draw_views(len(negatives), torch.Generator(device).manual_seed(seed)))
            network.bank.copy_(network({"contrastive": features(classifier, views)})["contrastive"])
        network.mean.zero_()
        network.sd.fill_(1)
        batches = images[:held].split(100)
        losses = [network.losses(classifier, batch.to(device), network.tasks, denoiser) for batch in batches]
        clean = torch.cat(losses)
        network.mean.copy_(clean.mean(dim=0))
        network.sd.copy_(clean.std(dim=0).clamp(min=1e-12))
    return history


def _training_loss(
    model: TaskNetwork, images: Tensor, *, generator: torch.Generator, classifier: nn.Module
) -> Tensor:
    """The sum of the heads' losses on one batch."""
    tasks, count = model.tasks, len(images)
    turn, puzzle = (
        torch.randint(classes, (count,), generator=generator, device=images.device)
        for classes in (4, len(model.puzzles))
    )
    variants = {}
    if "contrastive" in tasks:
        variants["contrastive"] = view(images.repeat(2, 1, 1, 1), *draw_views(2 * count, generator))
    if "rotation" in tasks:
        variants["rotation"] = rotate(images, turn)
    if "jigsaw" in tasks:
        variants["jigsaw"] = shuffle(images, model.puzzles[puzzle], model.shape.grid)
    with torch.no_grad():
        latents = {task: features(classifier, pictures) for task, pictures in variants.items()}
    answers, total = model(latents), torch.zeros((), device=images.device)
    if "contrastive" in tasks:
        similar = answers["contrastive"] @ answers["contrastive"].T / model.shape.temperature
        itself = torch.eye(2 * count, dtype=torch.bool, device=similar.device)
        similar = similar.masked_fill(itself, -torch.inf)
        own = torch.arange(2 * count, device=similar.device).roll(count)  # the other view of each
        total = total + functional.cross_entropy(similar, own)
    if "rotation" in tasks:
        total = total + functional.cross_entropy(answers["rotation"], turn)
    if "jigsaw" in tasks:
        total = total + functional.cross_entropy(answers["jigsaw"], puzzle)
    return total


def draw_views(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random views: the placement of each (count, 2, 3), as affine_grid takes it, and its gain (count,).

    A view is a crop of 60 to 100% of the side, half of them mirrored, brightness times 0.6 to 1.4.
    """
    draw = torch.rand(count, 5, generator=generator, device=generator.device)
    side = 0.6 + 0.4 * draw[:, 0]
    mirrored = 1 - 2 * (draw[:, 1] < 0.5).float()
    across, down = ((1 - side) * (2 * draw[:, k] - 1) for k in (2, 3))
    zero = torch.zeros_like(side)
    placement = torch.stack([side * mirrored, zero, across, zero, side, down], dim=1).view(count, 2, 3)
    return placement, 0.6 + 0.8 * draw[:, 4]


def view(images: Tensor, placement: Tensor, gain: Tensor) -> Tensor:
    """Each image (M, C, H, W) in its view: placement (M, 2, 3), gain (M,)."""
    grid = functional.affine_grid(placement, list(images.shape), align_corners=False)
    return gain[:, None, None, None] * functional.grid_sample(images, grid, align_corners=False)


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Each square image (M, C, H, H) turned by its number of quarter turns (M,)."""
    every = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])  # (4, M, C, H, H)
    return every[turns, torch.arange(len(images), device=images.device)]


def shuffle(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """Each image (M, C, H, W) cut in grid x grid pieces, put down in its order (M, grid^2)."""
    count, channels, height, width = images.shape
    pieces = images.view(count, channels, grid, height // grid, grid, width // grid)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (M, grid^2, C, h, w)
    pieces = pieces[torch.arange(count, device=images.device)[:, None], order]
    pieces = pieces.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
    return pieces.reshape(images.shape)


def permutations(grid: int, generator: torch.Generator) -> Tensor:
    """The fixed list of puzzles (24, grid^2): all orders of 2x2; of 3x3, each as far as can be from those before it."""
    if grid == 2:
        every = torch.tensor(list(itertools.permutations(range(4))))
        return every[torch.randperm(len(every), generator=generator)]
    candidates = torch.stack([torch.randperm(9, generator=generator) for _ in range(1000)])
    chosen = candidates[:1]
    while len(chosen) < PUZZLES:
        moved = (candidates[:, None] != chosen).sum(dim=2).amin(dim=1)  # Hamming distance to the nearest
        chosen = torch.cat([chosen, candidates[moved.argmax()][None]])
    return chosen


def check_denoiser(tasks: tuple[str, ...], denoiser: nn.Module | None) -> None:
    """Raise ValueError for the denoising task without a denoiser."""
    if "denoising" in tasks and denoiser is None:
        raise ValueError(
            "the task denoising needs a denoiser, e.g. a trained NIM: give one, or leave the task out"
        )


def _check(shape: TaskShape) -> None:
    _, height, width = shape.image_shape
    unknown = [task for task in shape.tasks if task not in TASKS]
    if unknown or not shape.tasks:
        raise ValueError(f"tasks {tuple(shape.tasks)}: name one or more of {', '.join(TASKS)}")
    if "rotation" in shape.tasks and height != width:
        raise ValueError(f"quarter turns need square images, got {height}x{width}: leave rotation out")
    if shape.grid not in (2, 3):
        raise ValueError(f"grid is {shape.grid}: the jigsaw has 2 or 3 pieces on a side")
    if "jigsaw" in shape.tasks and (height % shape.grid or width % shape.grid):
        raise ValueError(
            f"{shape.grid} pieces on a side do not divide the image {height}x{width}: choose another grid, "
            "or leave jigsaw out"
        )
    if shape.views < 2:
        raise ValueError(f"views is {shape.views}: the contrastive task compares 2 or more")


def _head(shape: TaskShape, outputs: int) -> nn.Module:
    hidden = nn.Linear(shape.features, shape.hidden)
    return nn.Sequential(hidden, nn.BatchNorm1d(shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, outputs))


def _build(plan: Plan) -> TaskNetwork:
    config, classifier = plan.config, plan.classifier
    assert classifier is not None
    device = next(classifier.parameters()).device
    with torch.inference_mode():
        width = features(classifier, torch.zeros(1, *plan.image_shape, device=device)).shape[1]
    bank = min(TaskShape.bank, config.data.pool_images // 2)
    return TaskNetwork(TaskShape(plan.image_shape, width, config.reversal.tasks, bank=bank, seed=config.seed))


def _train(network: TaskNetwork, run: TrainingRun) -> list[float]:
    classifier, denoiser = run.plan.classifier, run.plan.networks.get("denoiser")
    assert classifier is not None
    return train_tasks(network, classifier, run.pool, _training(run.config), denoiser=denoiser, **run.options)


def _training(config: RunConfig) -> Training:
    chosen = config.reversal
    return Training(chosen.epochs, chosen.batch_size, chosen.learning_rate)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What decides the weights: not the correction of the purifier."""
    used_later = ("eps", "steps", "step_255")
    return {key: value for key, value in asdict(config.reversal).items() if key not in used_later}


def _check_training(config: RunConfig) -> None:
    _training(config)


NIM_OF_FIRST_LAW = replace(NIM_MAE, role="denoiser", laws="first")


def required_denoiser(config: RunConfig) -> tuple[NetworkSpec, ...]:
    """The denoiser of the denoising task, where it is one of the configured tasks."""
    return (NIM_OF_FIRST_LAW,) if "denoising" in config.reversal.tasks else ()


HEADS = NetworkSpec(
    "tasks",
    "tasks",
    _build,
    _train,
    _settings,
    needs=required_denoiser,
    sees_classifier=True,
    check=_check_training,
)
