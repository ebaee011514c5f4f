"""Self-supervised reversal on Fashion-MNIST: does the loss tell attacked images from clean ones, and what is won back?

    python benchmarks/reversal.py --data-root FOLDER

Two small CNNs, one trained against PGD-5 at eps 0.1 (robust), one as usual (plain), each with heads for all tasks on its
own features; one small NIM denoises for both. The noise of the denoising task was chosen on training images; there, earlier
layers and other views left the three published tasks below an AUC of 0.62 on the robust base.

- AUC: self-supervised loss of attacked (PGD-20 on the classifier alone, eps 0.1) against clean test images; mean over the
  attack's seeds, 95% bootstrap interval over images.
- blind: accuracy on the same attacked images after the reversal, and the gain over no defence on the same images.
- aware: the attacker knows all, the start too, so there is nothing random to average over and EOT is one pass. BPDA takes
  the reversal for the identity backwards; the joint attack raises the classifier's loss while it keeps the
  self-supervised loss low, for several weights, the worst of them per image. What is left is right under every one.

Every row is kept in the job and in MLflow, the second time nothing is done again. About 20 minutes of one core the first time.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kept import Figures, kept, trained
from torch import Tensor, nn
from torch.nn import functional

import certdef
import certify
from certdef import pipeline, stages
from certdef.attacks import gradient as attacks
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers import (
    NIM,
    NIMShape,
    Reversal,
    TaskNetwork,
    TaskShape,
    Training,
    pretrain_nim,
    train_tasks,
)
from certdef.purifiers.networks.nim import nim_training
from certdef.purifiers.networks.tasks import TASKS
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import features

EPS = 0.1
BASES = {"robust": {"images": 12_000, "epochs": 6, "steps": 5}, "plain": {"images": 12_000, "epochs": 4}}
DENOISER = {"images": 8_000, "epochs": 6, "batch_size": 64, "base_learning_rate": 6e-3}
HEADS = {"images": 10_000, "epochs": 8, "batch_size": 128, "learning_rate": 3e-3}
NOISE = 40 / 255  # of the denoising task
START = 1.0  # of the reversal
SYSTEMS = {task: (task,) for task in TASKS} | {"first three": TASKS[:3], "all four": TASKS}
JOINT = (0.1, 0.5, 2.0)  # weights of the self-supervised loss in the joint attack


def trained_base(job: stages.Job, name: str) -> tuple[nn.Module, Stage]:
    """A CNN on the owner's images; the robust one sees attacked images alone (Madry et al., ICLR 2018)."""
    how, seeds = BASES[name], itertools.count()

    def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return attacks.pgd(model, images, labels, eps=EPS, steps=how["steps"], seed=next(seeds)).to(
            images.device
        )

    def train(model: nn.Module, stage: Stage) -> list[float]:
        images, labels = job.data.target_images[: how["images"]], job.data.target_labels[: how["images"]]
        train_classifier(
            model,
            images,
            labels,
            epochs=how["epochs"],
            seed=0,
            device=job.device,
            progress=partial(job.progress, desc=f"train the {name} base"),
            perturb=perturb if name == "robust" else None,
        )
        return []

    build = partial(build_classifier, "cnn", job.data.image_shape, len(job.data.classes))
    return trained(job, f"reversal-base-{name}", [how, EPS], build, train)


def trained_denoiser(job: stages.Job) -> tuple[nn.Module, Stage]:
    def train(model: nn.Module, stage: Stage) -> list[float]:
        training = nim_training(**{key: value for key, value in DENOISER.items() if key != "images"})
        images = torch.from_numpy(job.data.pool[: DENOISER["images"]])
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return pretrain_nim(model, images, certify.nim_noise(), training, **where)

    shape = NIMShape(job.data.image_shape, depth=2)
    return trained(job, "reversal-denoiser", [DENOISER, vars(shape)], lambda: NIM(shape), train)


def trained_heads(job, name, base, denoiser, depends_on) -> tuple[nn.Module, Stage]:
    how = {key: value for key, value in HEADS.items() if key != "images"}
    images = torch.from_numpy(job.data.pool[: HEADS["images"]])
    with torch.no_grad():
        width = features(base, images[:1].to(job.device)).shape[1]
    shape = TaskShape(job.data.image_shape, width, TASKS, sigma=NOISE)

    def train(network: nn.Module, stage: Stage) -> list[float]:
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return train_tasks(network, base, images, Training(**how), denoiser=denoiser, **where)

    key = [vars(shape), HEADS, *depends_on]
    return trained(job, f"reversal-tasks-{name}", key, lambda: TaskNetwork(shape), train)


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> np.ndarray:
    """Which images are classified right, (N,)."""
    guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(100)])
    return (guesses == labels).numpy()


@torch.no_grad()
def losses(reversal: Reversal, images: Tensor, device: torch.device) -> np.ndarray:
    found = [reversal.self_supervised_loss(batch.to(device)).cpu() for batch in images.split(100)]
    return torch.cat(found).numpy()


def area(clean: np.ndarray, attacked: np.ndarray) -> float:
    """The share of pairs (seeds, N) in which the attacked image has the greater loss: the area under the ROC curve."""
    return float(np.mean([(each[:, None] > clean).mean() for each in attacked]))


def bootstrapped(statistic, *samples: np.ndarray, draws: int = 500) -> list[float]:
    """A statistic of samples (..., N) of the same images, with its 95% interval over images."""
    random, count = np.random.default_rng(0), samples[0].shape[-1]
    rows = [random.integers(count, size=count) for _ in range(draws)]
    found = [statistic(*(sample[..., row] for sample in samples)) for row in rows]
    return [float(statistic(*samples)), *np.quantile(found, [0.025, 0.975]).tolist()]


def joint(reversal: Reversal, images: Tensor, labels: Tensor, weight: float, steps: int) -> Tensor:
    """PGD on cross-entropy minus weight times self-supervised loss: images that need no correction, (N, C, H, W)."""
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    found = attacks.within(images + EPS * (2 * start - 1), images, EPS)
    for _ in range(steps):
        shown = found.requires_grad_()
        gain = functional.cross_entropy(reversal.classifier(shown), labels, reduction="sum")
        (slope,) = torch.autograd.grad(gain - weight * reversal.self_supervised_loss(shown).sum(), shown)
        found = attacks.within(shown.detach() + 2.5 * EPS / steps * slope.sign(), images, EPS)
    return found


def aware(
    reversal: Reversal, images: Tensor, labels: Tensor, steps: int, device: torch.device
) -> dict[str, list[float]]:
    """What is left, [share, lower, upper], against BPDA, the joint attacks, and all of them."""
    defended = nn.Sequential(reversal, reversal.classifier)
    straight = nn.Sequential(attacks.StraightThrough(reversal), reversal.classifier)
    hits = {
        "BPDA": right(
            defended, attacks.pgd(straight, images, labels, eps=EPS, steps=steps, seed=0), labels, device
        )
    }
    for weight in JOINT:
        moved = joint(reversal, images.to(device), labels.to(device), weight, 2 * steps).cpu()
        hits[f"joint {weight:g}"] = right(defended, moved, labels, device)
    hits["left"] = np.logical_and.reduce(list(hits.values()))
    return {name: Share.of(int(each.sum()), len(each)) for name, each in hits.items()}


def measure(job: stages.Job, reversal: Reversal, settings: dict, knowing: bool) -> dict:
    """One row: a base and its tasks."""
    device, base = job.device, reversal.classifier
    arrays = job.data.heldout_images[: settings["images"]], job.data.heldout_labels[: settings["images"]]
    images, labels = map(torch.from_numpy, arrays)
    attacked = [
        attacks.pgd(base, images, labels, eps=EPS, steps=settings["steps"], seed=seed)
        for seed in range(settings["seeds"])
    ]
    clean_loss, loss = (
        losses(reversal, images, device),
        np.stack([losses(reversal, each, device) for each in attacked]),
    )
    defended = nn.Sequential(reversal, base)
    hits = {
        f"{front} {name}": right(model, shown, labels, device)
        for front, model in (("bare", base), ("defended", defended))
        for name, shown in (("clean", images), ("blind", attacked[0]))
    }
    result: dict = {name: Share.of(int(each.sum()), len(each)) for name, each in hits.items()}
    for name in ("clean", "blind"):
        gain = hits[f"defended {name}"].astype(float) - hits[f"bare {name}"]
        result[f"gain {name}"] = bootstrapped(np.mean, gain)
    result["auc"] = bootstrapped(area, clean_loss, loss)
    few = settings["aware_images"]
    result["aware"] = (
        aware(reversal, images[:few], labels[:few], settings["aware_steps"], device) if knowing else {}
    )
    return result


def measured(
    job: stages.Job, reversal: Reversal, settings: dict, knowing: bool, prefix: str, stage: Stage
) -> Figures:
    """One row, as a stage keeps it."""
    row = measure(job, reversal, settings, knowing)
    metrics = {f"{prefix}/{key}": row[key][0] for key in row if key != "aware"}
    metrics |= {f"{prefix}/aware/{key}": share[0] for key, share in row["aware"].items()}
    return Figures(figures=row, params={"tasks": list(reversal.tasks)}, metrics=metrics)


def cell(share: list[float], signed: bool = False) -> str:
    return f"{100 * share[0]:{'+' if signed else ''}.0f} [{100 * share[1]:.0f}, {100 * share[2]:.0f}]"


def show(base: str, rows: dict[str, dict], settings: dict) -> None:
    first = next(iter(rows.values()))
    print(
        f"\n### {base} base, {settings['images']} test images, PGD-{settings['steps']} at eps {EPS:g}, in % with 95% intervals\n"
    )
    print("| tasks | AUC | clean | blind | gain clean | gain blind |\n| --- | --- | --- | --- | --- | --- |")
    print(f"| no defence | – | {cell(first['bare clean'])} | {cell(first['bare blind'])} | – | – |")
    for name, row in rows.items():
        area = "{:.2f} [{:.2f}, {:.2f}]".format(*row["auc"])
        print(
            f"| {name} | {area} | {cell(row['defended clean'])} | {cell(row['defended blind'])} | "
            f"{cell(row['gain clean'], True)} | {cell(row['gain blind'], True)} |"
        )
    for name, row in rows.items():
        if row["aware"]:
            found = "; ".join(f"{attack} {cell(share)}" for attack, share in row["aware"].items())
            print(f"\naware attack on {name}, {settings['aware_images']} images: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the job.")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES), help="Classifiers.")
    parser.add_argument(
        "--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), help="Sets of tasks."
    )
    parser.add_argument(
        "--aware",
        nargs="*",
        default=["denoising"],
        choices=list(SYSTEMS),
        help="Those that the aware attack is tried on.",
    )
    parser.add_argument("--images", type=int, default=300, help="Test images.")
    parser.add_argument("--aware-images", type=int, default=30, help="Of them under the aware attack.")
    parser.add_argument(
        "--seeds", type=int, default=3, help="Attacks with a random start of their own, for the AUC."
    )
    parser.add_argument("--steps", type=int, default=20, help="PGD steps of the blind attack.")
    parser.add_argument(
        "--aware-steps", type=int, default=10, help="PGD steps of BPDA; the joint attack has twice as many."
    )
    arguments = parser.parse_args()
    settings = {
        key: getattr(arguments, key) for key in ("images", "aware_images", "seeds", "steps", "aware_steps")
    }
    config = certdef.load_config(
        preset="fashion-mnist",
        data__root=arguments.data_root,
        work_dir=str(arguments.work_dir / "reversal"),
        threads=1,
    )
    with pipeline.open_job(config) as job:
        denoiser, denoiser_stage = trained_denoiser(job)
        for name in arguments.bases:
            base, base_stage = trained_base(job, name)
            trained_on = [base_stage.fingerprint, denoiser_stage.fingerprint]
            network, heads_stage = trained_heads(job, name, base, denoiser, trained_on)
            rows = {}
            for system in arguments.systems:
                reversal = Reversal(base, network, SYSTEMS[system], EPS, start=START, denoiser=denoiser).to(
                    job.device
                )
                knowing = system in arguments.aware
                compute = partial(measured, job, reversal, settings, knowing, f"reversal/{name}/{system}")
                key = [settings, knowing, JOINT, heads_stage.fingerprint]
                stage_name = f"reversal-{name}-{system.replace(' ', '-')}"
                rows[system] = kept(job, stage_name, key, compute).result.figures
            show(name, rows, settings)


if __name__ == "__main__":
    main()
