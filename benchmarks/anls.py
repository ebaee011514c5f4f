"""The step that ANLS chooses (UAD-RS), judged on other images than it was chosen on, and why it errs.

    python benchmarks/anls.py --preset aerial --data-root FOLDER
    python benchmarks/anls.py --preset digits

Seven attacks on the task network, blind to the purifier (scene_attacks.py), are purified by DiffPure at each step t of a grid.
ANLS chooses the t whose features lie nearest to those of clean training images, by Frechet's distance and without labels.
Each of three seeds draws the attacks, the purification and a split: t is chosen on one half of the test images and judged on the
other, then the halves change places. The regret is the accuracy of the best t on the judging half less that of the chosen t.
Since that best t is read off the judging half itself, even the labels of the choosing half leave some regret: the row `labels`.

Why it errs is tested: a distance between two clouds of features stays as it is where two classes change places. If that
is the reason, then distances class by class must help. Compared, on the same grid, images and halves:

    marginal      ANLS as published
    predicted     class by class, the network's own predictions on both sides: no label
    across        the same, but the classes of purified images are what the network says of a second purification of the same
                  attacked images, with other noise: no label, and an image that changes its class by chance is seen
    true          class by class, the labels of the attacked images: a diagnosis, for these labels nobody has

and two that are no distances: `labels`, the most accurate t of the choosing half, and `any`, the mean over the grid.

The networks are trained once and kept, as are figures, tables and plot, in MLflow, in the job of the preset.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from kept import Figures, kept, trained
from scene_attacks import ATTACKS, scene_attack
from torch import Tensor, nn

import certdef
from certdef import pipeline, stages
from certdef.models import storage
from certdef.purifiers.diffpure import DiffPure
from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape, train_diffusion
from certdef.purifiers.uad_rs import frechet, purify
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import predict, predict_with_features
from surrogates.distillation.training import Training

SEEDS = (0, 1, 2)
DISTANCES = ("marginal", "predicted", "across", "true")
CHOICES = (*DISTANCES, "labels", "any")
SHRINKAGE = 0.1  # of every covariance, for fewer images than the paper's
SIZE = 128  # images of a forward pass


@dataclass(frozen=True)
class Setting:
    """What a preset is measured with.

    Attributes:
        eps_255: Peaks of the attacks, in 8-bit levels; 57 is published.
        grid: Steps t of 1,000.
        steps: Reverse steps.
        images: Test images at most.
        longest: Largest t that the diffusion network is trained on.
        recipe: How it is trained.
        options: Of the job, beside the preset.
    """

    eps_255: tuple[int, ...]
    grid: tuple[int, ...]
    steps: int
    images: int
    longest: int
    recipe: dict[str, Any]
    options: dict[str, Any]


SETTINGS = {
    "aerial": Setting(
        (57, 4),
        tuple(range(20, 201, 20)),
        4,
        160,
        200,
        {"epochs": 20, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.998, "precision": "bfloat16"},
        {},
    ),
    "digits": Setting(
        (57, 16),
        tuple(range(20, 241, 20)),
        5,
        384,
        320,
        {"epochs": 60, "batch_size": 64, "learning_rate": 3e-3, "ema": 0.995},
        {"target__kind": "cnn", "target__epochs": 20},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Purified images as the task network sees them.

    Attributes:
        features: Input of its last layer, (N, D).
        classes: Its predictions, (N,).
        others: Its predictions after a second purification, with other noise, (N,).
    """

    features: Tensor
    classes: Tensor
    others: Tensor

    def __getitem__(self, rows: np.ndarray) -> Outcome:
        return Outcome(self.features[rows], self.classes[rows], self.others[rows])


def trained_networks(job: stages.Job, setting: Setting) -> tuple[nn.Module, DiffusionNetwork, list[Stage]]:
    """The task network, and a diffusion model of all training images without their labels."""
    data = job.data
    _, target_stage = stages.open_target(job)
    images = torch.from_numpy(np.concatenate([data.target_images, data.pool]))

    def train(network: DiffusionNetwork, stage: Stage) -> list[float]:
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        training = Training(**setting.recipe)
        return train_diffusion(
            network, images, training, longest=setting.longest, seed=job.config.seed, **where
        )

    shape = DiffusionShape(data.image_shape, (32, 64))
    key = [asdict(shape), setting.longest, setting.recipe]
    diffusion, stage = trained(job, "anls-diffusion", key, lambda: DiffusionNetwork(shape), train)
    return storage.load_model(target_stage.path / "model", job.device), diffusion, [target_stage, stage]


def seen(network: nn.Module, images: Tensor, again: Tensor | None = None) -> Outcome:
    """Features and predictions of images, purified once and, unless they are not purified, `again`."""
    logits, features = predict_with_features(network, images, SIZE)
    classes = logits.argmax(1)
    others = classes if again is None else predict(network, again, SIZE).argmax(1)
    return Outcome(features, classes, others)


def class_distance(
    first: Tensor, first_classes: Tensor, second: Tensor, second_classes: Tensor, shrinkage: float = SHRINKAGE
) -> float:
    """Frechet's distance class by class, of features (N, D) and (M, D) with their classes, weighted as in the first set.

    Few images a class have no covariance of their own: within each set all classes share one. So it is the mean of
    |m_c - n_c|^2, less what that is in expectation where the true means are equal, and Frechet's distance of the covariances
    within classes. A class that the second set lacks is left out.
    """
    first, second = first.double(), second.double()
    known = [c for c in first_classes.unique() if (second_classes == c).any()]
    pairs = [(first[first_classes == c], second[second_classes == c]) for c in known]
    within, others = (torch.cat([part - part.mean(0) for part in side]) for side in zip(*pairs, strict=True))
    spread, other_spread = (
        float(side.square().sum()) / max(len(side) - len(known), 1) for side in (within, others)
    )
    apart = 0.0
    for own, other in pairs:
        squared = float((own.mean(0) - other.mean(0)).square().sum())
        apart += len(own) * (squared - spread / len(own) - other_spread / len(other))
    return apart / len(within) + frechet(within, others, shrinkage)


def distances(purified: Outcome, labels: Tensor, clean: Outcome, clean_labels: Tensor) -> dict[str, float]:
    """Each of DISTANCES between purified attacked images and clean ones."""
    features = (purified.features, clean.features)
    return {
        "marginal": frechet(*features, SHRINKAGE),
        "across": class_distance(features[0], purified.others, features[1], clean.classes),
        "predicted": class_distance(features[0], purified.classes, features[1], clean.classes),
        "true": class_distance(features[0], labels, features[1], clean_labels),
    }


def halves(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Choosing and judging images, twice: the halves change places."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = order[: count // 2], order[count // 2 :]
    return [(first, second), (second, first)]


def judge(
    at: dict[int, Outcome],
    labels: Tensor,
    clean: Outcome,
    clean_labels: Tensor,
    choosing: np.ndarray,
    judging: np.ndarray,
) -> dict[str, Any]:
    """Regret of every choice, the chosen steps and the best one of the judging half."""
    hits = {t: (each.classes == labels).numpy() for t, each in at.items()}
    accuracy = {t: float(right[judging].mean()) for t, right in hits.items()}
    by_distance = {
        t: distances(each[choosing], labels[choosing], clean, clean_labels) for t, each in at.items()
    }
    chosen = {name: min(at, key=lambda t: by_distance[t][name]) for name in DISTANCES}
    chosen["labels"] = max(at, key=lambda t: hits[t][choosing].mean())
    best = max(accuracy.values())
    regret = {name: best - accuracy[t] for name, t in chosen.items()}
    regret["any"] = best - float(np.mean(list(accuracy.values())))
    steps = [t for t, value in accuracy.items() if value == best]
    return {"regret": regret, "chosen": chosen, "best": float(np.mean(steps)), "accuracy": best}


def measured(
    job: stages.Job,
    setting: Setting,
    networks: tuple[nn.Module, DiffusionNetwork],
    name: str,
    eps: float,
    seed: int,
    key: list[Any],
) -> dict[str, Any]:
    """One attack under one seed: accuracy and distances at each t on all images, and what each half's choice costs on the other."""
    data, (task, diffusion) = job.data, networks

    def compute(stage: Stage) -> Figures:
        images = torch.from_numpy(data.heldout_images[: setting.images])
        labels = torch.from_numpy(data.heldout_labels[: setting.images])
        clean = seen(task, torch.from_numpy(data.target_images))
        clean_labels = torch.from_numpy(data.target_labels)
        firsts = np.unique(data.target_labels, return_index=True)[1]  # a scene of each class to mix
        others = torch.from_numpy(data.target_images[firsts])
        attack = scene_attack(name, task, images, labels, eps=eps, seed=seed, others=others)
        at = {}
        for t in job.progress(setting.grid, desc=f"{name}, {255 * eps:g}/255, seed {seed}"):
            # Every t gets the same draws, so that differences are of t.
            draws = [torch.Generator(job.device).manual_seed(each) for each in (seed, seed + len(SEEDS))]
            once, again = (
                purify(DiffPure(diffusion, t, setting.steps, each), attack.to(job.device)) for each in draws
            )
            at[t] = seen(task, once, again)
        judged = [
            judge(at, labels, clean, clean_labels, choosing, judging)
            for choosing, judging in halves(len(images), seed)
        ]
        figures = {
            "undefended": share(seen(task, attack).classes == labels),
            "clean": share(seen(task, images).classes == labels),
            "accuracy": {str(t): share(each.classes == labels) for t, each in at.items()},
            "distances": {str(t): distances(each, labels, clean, clean_labels) for t, each in at.items()},
            "halves": judged,
        }
        return Figures(figures=figures)

    return kept(job, f"anls-{name}", [name, eps, seed, *key], compute).result.figures


def share(hits: Tensor) -> list[float]:
    return list(Share.of(int(hits.sum()), len(hits)))


def points(values: Iterable[float]) -> str:
    """Mean and range, in percentage points."""
    found = [100 * value for value in values]
    return f"{np.mean(found):.1f} [{min(found):.1f}, {max(found):.1f}]"


def show(rows: dict[str, list[dict[str, Any]]], setting: Setting, eps: float) -> dict[str, float]:
    """Print the tables of one peak; returns the mean regret of each choice."""
    clean = next(iter(rows.values()))[0]["clean"]
    print(
        f"\npeak {255 * eps:g}/255, {setting.images} test images, {setting.steps} reverse steps, {len(SEEDS)} seeds x 2 halves; "
        f"clean {100 * clean[0]:.1f}%; regret in points: mean [range of seeds and halves]\n"
    )
    columns = ("attack", "undefended", "best t", "accuracy there", "t of ANLS", *CHOICES)
    print(f"| {' | '.join(columns)} |\n| --- |" + " ---: |" * (len(columns) - 1))
    for name, seeds in rows.items():
        judged = [half for each in seeds for half in each["halves"]]
        best = f"{np.mean([half['best'] for half in judged]):.0f}"
        chosen = ", ".join(str(half["chosen"]["marginal"]) for half in judged)
        undefended = f"{100 * np.mean([each['undefended'][0] for each in seeds]):.1f}"
        accuracy = f"{100 * np.mean([half['accuracy'] for half in judged]):.1f}"
        regrets = [points(half["regret"][choice] for half in judged) for choice in CHOICES]
        print(f"| {' | '.join([name, undefended, best, accuracy, chosen, *regrets])} |")
    over = {
        choice: [
            float(
                np.mean([half["regret"][choice] for seeds in rows.values() for half in seeds[at]["halves"]])
            )
            for at in range(len(SEEDS))
        ]
        for choice in CHOICES
    }
    everything = [half for seeds in rows.values() for each in seeds for half in each["halves"]]
    print("\nmean over the attacks [range over the seeds], and how far the chosen t is from the best one")
    for choice in CHOICES:
        line = f"  {choice}: {points(over[choice])}"
        if choice != "any":
            line += f"; {np.mean([half['chosen'][choice] - half['best'] for half in everything]):+.0f} steps"
        print(line)
    return {choice: float(np.mean(values)) for choice, values in over.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=SETTINGS, default="digits", help="Which images.")
    parser.add_argument("--eps", type=int, nargs="*", help="Peaks of the attacks, in 8-bit levels.")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=ATTACKS, help="Which attacks.")
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    arguments = parser.parse_args()
    setting, work_dir = SETTINGS[arguments.preset], str(arguments.work_dir / arguments.preset)
    config = certdef.load_config(
        arguments.preset, data__root=arguments.data_root, work_dir=work_dir, threads=1, **setting.options
    )
    with pipeline.open_job(config) as job:
        task, diffusion, parts = trained_networks(job, setting)
        key = [asdict(setting), *(stage.fingerprint for stage in parts)]
        for level in arguments.eps or setting.eps_255:
            eps = level / 255
            one = partial(measured, job, setting, (task, diffusion))
            rows = {name: [one(name, eps, seed, key) for seed in SEEDS] for name in arguments.attacks}
            regrets = show(rows, setting, eps)
            keep(job, rows, eps, regrets, key)


def keep(
    job: stages.Job, rows: dict[str, list[dict]], eps: float, regrets: dict[str, float], key: list
) -> None:
    """The means in MLflow, with a plot of the first seed."""
    first = {
        name: {
            "accuracy": seeds[0]["accuracy"],
            "distances": {t: each["marginal"] for t, each in seeds[0]["distances"].items()},
            "t": seeds[0]["halves"][0]["chosen"]["marginal"],
            "best": seeds[0]["halves"][0]["best"],
        }
        for name, seeds in rows.items()
    }

    def compute(stage: Stage) -> Figures:
        (stage.path / "anls.png").write_bytes(pictures.noise_level_plot(first))
        metrics = {f"anls/regret_{choice}": value for choice, value in regrets.items()}
        return Figures(metrics=metrics, params={"eps": eps}, artifacts=("anls.png",))

    kept(job, "anls", [eps, regrets, *key], compute)


if __name__ == "__main__":
    main()
