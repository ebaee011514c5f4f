"""Self-supervised reversal: does the loss tell attacked images from clean ones, and what is won back?

    python benchmarks/reversal.py [--preset fashion-mnist] [--data-root FOLDER]

Two small CNNs, one trained against PGD-5 at eps 0.1 (robust), one as usual (plain), each with heads for all tasks on its
own features; one small NIM denoises for all. The noise of the denoising task was chosen on training images; there, earlier
layers and other views left the three published tasks below an AUC of 0.62 on the robust base.

Residual networks (`--bases residual residual-robust`) are nearer to the original, which reads 640 pooled features of a wide one:
their heads read pooled features (96; of digits 128) and are trained on 2,000 images (797 digits) for 200 epochs, with views redrawn
in each. `--preset digits` takes the denoiser of the job and eps 0.2.

- AUC: self-supervised loss of attacked (PGD-20 on the classifier alone, eps 0.1) against clean test images; mean over the
  attack's seeds, 95% bootstrap interval over images.
- blind: accuracy on the same attacked images after the reversal, and the gain over no defence on the same images.
- aware: the attacker knows all, the start too, so there is nothing random to average over and EOT is one pass. BPDA takes
  the reversal for the identity backwards; the joint attack raises the classifier's loss while it keeps the
  self-supervised loss low, for several weights. The proxies are not attacks on the reversal: APGD by two losses on the
  classifier behind the denoiser, under the noise of the task. Denoised images are what the reversal is pulled towards, and that map
  has the gradient that the reversal has not. What is left is right under every one, per image.

Every row is kept in the job and in MLflow, the second time nothing is done again. About 20 minutes of one core the first time, and
as long for the residual networks.
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
from certdef.attacks import apgd
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
from certdef.purifiers.reversal import Proxy
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import features

FASHION, DIGITS = "fashion-mnist", "digits"
EPS = {FASHION: 0.1, DIGITS: 0.2}
BASES: dict[str, dict[str, dict]] = {
    FASHION: {
        "robust": {"images": 12_000, "epochs": 6, "steps": 5},
        "plain": {"images": 12_000, "epochs": 4},
        "residual": {"images": 12_000, "epochs": 6, "model": "test_resnet"},  # timm's smallest
        "residual-robust": {"images": 8_000, "epochs": 6, "steps": 4, "model": "test_resnet"},
    },
    DIGITS: {
        "plain": {"images": 600, "epochs": 30},
        "residual": {"images": 600, "epochs": 30, "model": "resnet"},
    },
}
DENOISER = {"images": 8_000, "epochs": 6, "batch_size": 64, "base_learning_rate": 6e-3}
HEADS = {"images": 10_000, "epochs": 8, "batch_size": 128, "learning_rate": 3e-3}
RESIDUAL_HEADS = {"images": 2_000, "epochs": 200, "batch_size": 256, "learning_rate": 3e-3}
NOISE = 40 / 255  # of the denoising task
START = 1.0  # of the reversal
SYSTEMS = {task: (task,) for task in TASKS} | {"first three": TASKS[:3], "all four": TASKS}
JOINT = (0.1, 0.5, 2.0)  # weights of the self-supervised loss in the joint attack
PROXY_STEPS = 40


def trained_base(job: stages.Job, name: str) -> tuple[nn.Module, Stage]:
    """A CNN on the owner's images; the robust one sees attacked images alone (Madry et al., ICLR 2018)."""
    preset, seeds = job.config.preset, itertools.count()
    how, eps = BASES[preset][name], EPS[preset]

    def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return attacks.pgd(model, images, labels, eps=eps, steps=how["steps"], seed=next(seeds)).to(
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
            perturb=perturb if "steps" in how else None,
        )
        return []

    build = partial(build_classifier, how.get("model", "cnn"), job.data.image_shape, len(job.data.classes))
    return trained(job, f"reversal-base-{name}", [how, eps], build, train)


def trained_denoiser(job: stages.Job) -> tuple[nn.Module, Stage]:
    if job.config.preset == DIGITS:
        return stages.pretrain_denoiser(job, job.config.certify.laws[0])

    def train(model: nn.Module, stage: Stage) -> list[float]:
        training = nim_training(**{key: value for key, value in DENOISER.items() if key != "images"})
        images = torch.from_numpy(job.data.pool[: DENOISER["images"]])
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return pretrain_nim(model, images, certify.nim_noise(), training, **where)

    shape = NIMShape(job.data.image_shape, depth=2)
    return trained(job, "reversal-denoiser", [DENOISER, vars(shape)], lambda: NIM(shape), train)


def trained_heads(job, name, base, denoiser, depends_on) -> tuple[nn.Module, Stage]:
    size = RESIDUAL_HEADS if "model" in BASES[job.config.preset][name] else HEADS
    how = {key: value for key, value in size.items() if key != "images"}
    images = torch.from_numpy(job.data.pool[: size["images"]])
    with torch.no_grad():
        width = features(base, images[:1].to(job.device)).shape[1]
    bank = min(TaskShape.bank, len(images) // 2)
    shape = TaskShape(job.data.image_shape, width, TASKS, bank=bank, sigma=NOISE)

    def train(network: nn.Module, stage: Stage) -> list[float]:
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return train_tasks(network, base, images, Training(**how), denoiser=denoiser, **where)

    key = [vars(shape), size, *depends_on]
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
    eps = reversal.limit / 2
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    found = attacks.within(images + eps * (2 * start - 1), images, eps)
    for _ in range(steps):
        shown = found.requires_grad_()
        gain = functional.cross_entropy(reversal.classifier(shown), labels, reduction="sum")
        (slope,) = torch.autograd.grad(gain - weight * reversal.self_supervised_loss(shown).sum(), shown)
        found = attacks.within(shown.detach() + 2.5 * eps / steps * slope.sign(), images, eps)
    return found


def proxies(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, device: torch.device
) -> dict[str, Tensor]:
    """Images that APGD finds on a model by each of two losses, (N, C, H, W)."""
    truth, originals = labels.to(device), images.to(device)
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(device)
    found = {}
    for name in ("cross-entropy", "margin"):
        moved = apgd.apgd(
            model,
            originals,
            truth,
            apgd.LOSSES[name],
            start=originals + eps * (2 * start - 1),
            eps=eps,
            steps=PROXY_STEPS,
        )
        found[f"proxy {name}"] = attacks.within(moved.cpu(), images, eps)
    return found


def aware(
    reversal: Reversal,
    proxy: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """What is left, [share, lower, upper], against BPDA, the joint attacks, the proxies, and all of them."""
    defended = nn.Sequential(reversal, reversal.classifier)
    straight = nn.Sequential(attacks.StraightThrough(reversal), reversal.classifier)
    eps = reversal.limit / 2
    hits = {
        "BPDA": right(
            defended, attacks.pgd(straight, images, labels, eps=eps, steps=steps, seed=0), labels, device
        )
    }
    for weight in JOINT:
        moved = joint(reversal, images.to(device), labels.to(device), weight, 2 * steps).cpu()
        hits[f"joint {weight:g}"] = right(defended, moved, labels, device)
    for name, moved in proxies(proxy, images, labels, eps, device).items():
        hits[name] = right(defended, moved, labels, device)
    hits["both proxies"] = np.logical_and(*[hit for name, hit in hits.items() if name.startswith("proxy")])
    hits["left"] = np.logical_and.reduce(list(hits.values()))
    return {name: Share.of(int(each.sum()), len(each)) for name, each in hits.items()}


def measure(job: stages.Job, reversal: Reversal, denoiser: nn.Module, settings: dict, knowing: bool) -> dict:
    """One row: a base and its tasks."""
    device, base = job.device, reversal.classifier
    arrays = job.data.heldout_images[: settings["images"]], job.data.heldout_labels[: settings["images"]]
    images, labels = map(torch.from_numpy, arrays)
    attacked = [
        attacks.pgd(base, images, labels, eps=settings["eps"], steps=settings["steps"], seed=seed)
        for seed in range(settings["seeds"])
    ]
    clean_loss, loss = (
        losses(reversal, images, device),
        np.stack([losses(reversal, each, device) for each in attacked]),
    )
    defended, several = nn.Sequential(reversal, base), settings["reversed_images"]
    hits = {
        f"{front} {name}": right(model, shown[:several], labels[:several], device)
        for front, model in (("bare", base), ("defended", defended))
        for name, shown in (("clean", images), ("blind", attacked[0]))
    }
    result: dict = {name: Share.of(int(each.sum()), len(each)) for name, each in hits.items()}
    for name in ("clean", "blind"):
        gain = hits[f"defended {name}"].astype(float) - hits[f"bare {name}"]
        result[f"gain {name}"] = bootstrapped(np.mean, gain)
    result["auc"] = bootstrapped(area, clean_loss, loss)
    few = settings["aware_images"]
    proxy = nn.Sequential(Proxy(reversal.network, denoiser), base)
    known = (images[:few], labels[:few], settings["aware_steps"], device)
    result["aware"] = aware(reversal, proxy, *known) if knowing else {}
    return result


def measured(
    job: stages.Job,
    reversal: Reversal,
    denoiser: nn.Module,
    settings: dict,
    knowing: bool,
    prefix: str,
    stage: Stage,
) -> Figures:
    """One row, as a stage keeps it."""
    row = measure(job, reversal, denoiser, settings, knowing)
    metrics = {f"{prefix}/{key}": row[key][0] for key in row if key != "aware"}
    metrics |= {f"{prefix}/aware/{key}": share[0] for key, share in row["aware"].items()}
    return Figures(figures=row, params={"tasks": list(reversal.tasks)}, metrics=metrics)


def cell(share: list[float], signed: bool = False) -> str:
    return f"{100 * share[0]:{'+' if signed else ''}.0f} [{100 * share[1]:.0f}, {100 * share[2]:.0f}]"


def show(base: str, rows: dict[str, dict], settings: dict) -> None:
    first = next(iter(rows.values()))
    print(
        f"\n### {base} base, {settings['images']} test images, {settings['reversed_images']} of them reversed, "
        f"PGD-{settings['steps']} at eps {settings['eps']:g}, in % with 95% intervals\n"
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
    parser.add_argument("--preset", default=FASHION, choices=list(BASES), help="The images.")
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the job.")
    parser.add_argument(
        "--bases", nargs="+", default=["robust", "plain"], choices=list(BASES[FASHION]), help="Classifiers."
    )
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
    parser.add_argument("--reversed-images", type=int, default=300, help="Of them through the reversal.")
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
        key: getattr(arguments, key)
        for key in ("images", "reversed_images", "aware_images", "seeds", "steps", "aware_steps")
    }
    preset = arguments.preset
    settings["eps"] = EPS[preset]
    config = certdef.load_config(
        preset=preset,
        data__root=arguments.data_root,
        work_dir=str(arguments.work_dir / ("reversal" if preset == FASHION else f"reversal-{preset}")),
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
                reversal = Reversal(
                    base, network, SYSTEMS[system], EPS[preset], start=START, denoiser=denoiser
                ).to(job.device)
                knowing = system in arguments.aware
                compute = partial(
                    measured, job, reversal, denoiser, settings, knowing, f"reversal/{name}/{system}"
                )
                key = [settings, knowing, JOINT, PROXY_STEPS, heads_stage.fingerprint]
                stage_name = f"reversal-{name}-{system.replace(' ', '-')}"
                rows[system] = kept(job, stage_name, key, compute).result.figures
            show(name, rows, settings)


if __name__ == "__main__":
    main()
