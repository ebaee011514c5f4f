"""De^3 on Fashion-MNIST: what it recovers of a blind attack, its dial, its training noise, and what is left by EOT.

    python benchmarks/de3.py --data-root FOLDER

The target is the CNN of the preset `fashion-mnist`; the attack is L-infinity PGD within 0.1. Networks are pre-trained on the
preset's pool without labels: NIM-MAE under Gamma(25, 3)/255 noise and under constant 75/255, and the masked baseline; then
NIM-MAE under uniform noise, U(0, 150)/255, NIM-SimMIM, and NIM-MAE under gamma noise again with other training seeds.

- blind: PGD on the target alone; every row at noise level 75/255, or with three quarters of the patches hidden. Each seed has
  an attack and noise of its own.
- the dial: accuracy against the noise level (against the share of hidden patches for the masked baseline), seed 0.
- aware: PGD on target and De^3 together, by the gradient of one draw (as published) and by the mean over draws (EOT).

About 45 minutes of one core the first time, most of it the six networks (7 minutes each); seconds after that. Figures, table
and plot are kept in MLflow.
"""

import argparse
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pictures
import torch
from kept import Figures, kept, trained
from torch import Tensor, nn

import certdef
import certify
from certdef import pipeline, stages
from certdef.attacks import gradient as attacks
from certdef.config.job import SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.models import storage
from certdef.purifiers.base import Plan
from certdef.purifiers.de3 import DeCubed, FillIn, Vote
from certdef.purifiers.networks.denoisers import MASKED, NIM_MAE
from certdef.purifiers.networks.nim import NIM, nim_training, pretrain_nim
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage

EPS, SIGMA_255, VOTES = 0.1, 75, 15
SIGMAS_255 = (0, 15, 30, 45, 60, 75, 90, 105, 120, 140)
RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
UNDEFENDED, HEADLINE, CONSTANT = "nothing", "De³, gamma noise", "De³, constant noise"


def pretrained(job: stages.Job, name: str, noise: certify.NoiseLaw, seed: int) -> tuple[NIM, Stage]:
    """A NIM-MAE under a noise and a training seed of its own."""
    config = job.config.nim

    def build() -> nn.Module:
        torch.manual_seed(seed)  # the job forks the generator around it
        return NIM_MAE.build(Plan(job.config, job.data.image_shape))

    def train(model: NIM, stage: Stage) -> list[float]:
        training = nim_training(
            config.epochs, config.batch_size, config.base_learning_rate, warmup=config.warmup
        )
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return pretrain_nim(model, torch.from_numpy(job.data.pool), noise, training, seed=seed, **where)

    return trained(job, name, [noise.describe(), seed, vars(config)], build, train)


def networks(job: stages.Job) -> tuple[dict[str, NIM], list[Stage]]:
    """Every network of the comparison by name, trained only once."""
    law, constant = job.config.certify.laws[0], certify.Gaussian(SIGMA_255 / 255)
    masked = stages.train_network(job, MASKED)
    pairs = {
        HEADLINE: stages.pretrain_denoiser(job, law),
        CONSTANT: pretrained(job, "nim-constant", constant, job.config.seed),
        "masked baseline": (masked.network, masked.stage),
    }
    return {name: network for name, (network, _) in pairs.items()}, [stage for _, stage in pairs.values()]


class Measured:
    """Images (N, C, H, W) with labels, attacked on the target alone with one start a seed, and how to judge a defence."""

    def __init__(self, job: stages.Job, target: nn.Module, count: int, seeds: int, steps: int):
        self.job, self.target, self.steps = job, target, steps
        self.images = torch.from_numpy(job.data.heldout_images[:count])
        self.labels = torch.from_numpy(job.data.heldout_labels[:count])
        self.seeds = seeds

    @cached_property
    def blind(self) -> list[Tensor]:
        """The images as attacked, one tensor a seed."""
        return [self.attack(self.target, seed, len(self.images)) for seed in range(self.seeds)]

    def attack(self, model: nn.Module, seed: int, count: int, eot: int = 1) -> Tensor:
        return attacks.pgd(
            model,
            self.images[:count],
            self.labels[:count],
            eps=EPS,
            steps=self.steps,
            eot=eot,
            seed=seed,
            progress=self.job.progress,
        )

    def noise(self, seed: int) -> torch.Generator:
        return torch.Generator(self.job.device).manual_seed(10_000 + seed)

    @torch.inference_mode()
    def right(self, model: nn.Module, images: Tensor) -> np.ndarray:
        """Which images are classified right, (n,) bool."""
        guesses = [model(batch.to(self.job.device)).argmax(1).cpu() for batch in images.split(125)]
        return (torch.cat(guesses) == self.labels[: len(images)]).numpy()

    def both(self, defended, seeds: int) -> dict[str, np.ndarray]:
        """Right on clean and on attacked images, (seeds, N) each; defended(generator) -> images to scores."""
        return {
            name: np.stack([self.right(defended(self.noise(seed)), images[seed]) for seed in range(seeds)])
            for name, images in (("clean", [self.images] * seeds), ("attacked", self.blind[:seeds]))
        }

    def dial(self, network: nn.Module) -> dict[float, dict[str, np.ndarray]]:
        """Right at each noise level, seed 0."""
        return {sigma: self.both(self.behind(network, sigma), 1) for sigma in SIGMAS_255}

    def behind(self, network: nn.Module, sigma_255: float = SIGMA_255):
        return lambda noise: nn.Sequential(DeCubed(network, sigma_255 / 255, noise), self.target)

    def filled_in(self, network: nn.Module, ratio: float):
        return lambda noise: nn.Sequential(FillIn(network, ratio, noise), self.target)


def share(hits: np.ndarray) -> list[float]:
    """Accuracy, its 95% interval, and the lowest and highest seed; hits are (seeds, N).

    Seeds of one image are not independent: the interval is that of the images.
    """
    count = hits.shape[1]
    _, low, high = Share.of(round(float(hits.mean() * count)), count)
    by_seed = hits.mean(axis=1)
    return [float(hits.mean()), low, high, float(by_seed.min()), float(by_seed.max())]


def table(rows: dict[float, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    return {str(at): {kind: share(hits) for kind, hits in row.items()} for at, row in rows.items()}


def paired(one: np.ndarray, other: np.ndarray, draws: int = 2000) -> list[float]:
    """Accuracy of one minus that of the other on the same images (seeds, N), with a 95% bootstrap interval over images."""
    apart = (one.mean(axis=0) - other.mean(axis=0))[
        np.random.default_rng(0).integers(one.shape[1], size=(draws, one.shape[1]))
    ].mean(axis=1)
    return [float(one.mean() - other.mean()), *np.quantile(apart, [0.025, 0.975]).tolist()]


def measure(measured: Measured, nets: dict[str, NIM], arguments: argparse.Namespace) -> dict:
    """All figures, as plain values."""
    seeds, gamma, mim = measured.seeds, nets[HEADLINE], nets["masked baseline"]
    nim_rows = {name: measured.behind(network) for name, network in nets.items() if network is not mim}
    rows = {
        UNDEFENDED: lambda noise: measured.target,
        **nim_rows,
        f"{HEADLINE}, vote of {VOTES}": lambda noise: Vote(
            DeCubed(gamma, SIGMA_255 / 255, noise), measured.target, VOTES
        ),
        "masked baseline as denoiser": measured.behind(mim),
        "masked baseline, 75% hidden": measured.filled_in(mim, 0.75),
    }
    blind = {name: measured.both(defended, seeds) for name, defended in rows.items()}

    hits = {name: measured.dial(network) for name, network in nets.items()}
    hidden = {
        ratio: {kind: share(each) for kind, each in measured.both(measured.filled_in(mim, ratio), 1).items()}
        for ratio in RATIOS
    }
    apart = {
        sigma: {
            kind: paired(hits[HEADLINE][sigma][kind], hits[CONSTANT][sigma][kind])
            for kind in ("clean", "attacked")
        }
        for sigma in SIGMAS_255
    }

    count, defended = arguments.eot_images, measured.behind(gamma)
    few = [images[:count] for images in measured.blind]
    aware = {"blind": few}
    for name, eot in (("one draw", 1), (f"EOT {arguments.eot}", arguments.eot)):
        # Without a generator of its own De^3 draws from the one that the attack forks and seeds.
        aware[name] = [measured.attack(defended(None), 0, count, eot)] * seeds
    left = {
        name: share(
            np.stack([measured.right(defended(measured.noise(seed)), images[seed]) for seed in range(seeds)])
        )
        for name, images in aware.items()
    }
    voted = measured.right(
        Vote(DeCubed(gamma, SIGMA_255 / 255, measured.noise(0)), measured.target, VOTES),
        aware[f"EOT {arguments.eot}"][0],
    )
    left[f"EOT {arguments.eot}, vote of {VOTES}"] = share(voted[None])
    return {
        "blind": {name: {kind: share(each) for kind, each in found.items()} for name, found in blind.items()},
        "clean_cost": paired(blind[UNDEFENDED]["clean"], blind[HEADLINE]["clean"]),
        "dial": {name: table(rows) for name, rows in hits.items()},
        "hidden": {str(ratio): row for ratio, row in hidden.items()},
        "gamma_minus_constant": {str(sigma): row for sigma, row in apart.items()},
        "aware": left,
    }


def further(job: stages.Job, measured: Measured, seeds: int, depends_on: list) -> list[tuple[str, Stage]]:
    """Other networks, each trained and measured in stages of its own: blind and over the dial."""
    law, uniform = job.config.certify.laws[0], SigmaLaw("uniform", "uniform", (), 150.0)
    makers = {
        "De³, uniform noise": partial(pretrained, job, "nim-uniform", noise_law(uniform), job.config.seed),
        "De³, NIM-SimMIM": partial(stages.pretrain_denoiser, job, law, linear_head=True),
    } | {
        f"{HEADLINE}, training seed {seed}": partial(pretrained, job, f"nim-seed{seed}", noise_law(law), seed)
        for seed in range(1, seeds)
    }
    rows = []
    for name, make in makers.items():
        network, trained_stage = make()

        def compute(stage: Stage, network: nn.Module = network) -> Figures:
            network.requires_grad_(False)
            hits = measured.both(measured.behind(network), measured.seeds)
            row = {kind: share(each) for kind, each in hits.items()}
            metrics = {f"{stage.name}/{kind}": each[0] for kind, each in row.items()}
            return Figures(figures={"row": row, "dial": table(measured.dial(network))}, metrics=metrics)

        key = [trained_stage.fingerprint, SIGMAS_255, depends_on]
        rows.append((name, kept(job, f"de3-{trained_stage.name}", key, compute)))
    return rows


def kept_plot(job: stages.Job, result: dict, parts: list[Stage]) -> Path:
    """Where the plot of everything measured is kept."""

    def compute(stage: Stage) -> Figures:
        (stage.path / "de3.png").write_bytes(plot(result))
        return Figures(artifacts=("de3.png",))

    return kept(job, "de3-plot", [part.fingerprint for part in parts], compute).path / "de3.png"


def plot(result: dict) -> bytes:
    points = {
        name: [[float(sigma), row["clean"], row["attacked"]] for sigma, row in rows.items()]
        for name, rows in result["dial"].items()
    }
    hidden = [[float(ratio), row["clean"], row["attacked"]] for ratio, row in result["hidden"].items()]
    return pictures.dial_plot(
        {
            "noise level σ (8-bit levels)": points,
            "share of hidden patches": {"masked baseline, filled in": hidden},
        },
        f"blind PGD, L∞ {EPS:g}",
    )


def cell(found: list[float], seeds: bool = True) -> str:
    text = f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"
    return (
        text + f", seeds {100 * found[3]:.1f} to {100 * found[4]:.1f}" if seeds and len(found) > 3 else text
    )


def show(result: dict, arguments: argparse.Namespace) -> None:
    print(
        f"\n### Blind PGD-{arguments.steps}, L∞ {EPS:g}, {arguments.images} images, {arguments.seeds} seeds; "
        f"accuracy in % with 95% intervals; De³ at {SIGMA_255}/255\n"
    )
    print("| in front of the target | clean | attacked |\n| --- | ---: | ---: |")
    for name, row in result["blind"].items():
        print(f"| {name} | {cell(row['clean'])} | {cell(row['attacked'])} |")
    names = list(result["dial"])
    for kind in ("attacked", "clean"):
        print(f"\n### The dial: {kind} accuracy by noise level, seed 0\n")
        print("| sigma, /255 | " + " | ".join(names) + " | gamma minus constant, points |")
        print("| ---: |" + " ---: |" * (len(names) + 1))
        for sigma in result["dial"][HEADLINE]:
            cells = [cell(result["dial"][name][sigma][kind], False) for name in names]
            print(
                f"| {sigma} | "
                + " | ".join([*cells, cell(result["gamma_minus_constant"][sigma][kind])])
                + " |"
            )
    print("\n| patches hidden | clean | attacked |\n| ---: | ---: | ---: |")
    for ratio, row in result["hidden"].items():
        print(f"| {float(ratio):.0%} | {cell(row['clean'], False)} | {cell(row['attacked'], False)} |")
    print(f"\n### De³ at {SIGMA_255}/255, PGD-{arguments.steps} through it, {arguments.eot_images} images\n")
    print("| attack | accuracy |\n| --- | ---: |")
    for name, found in result["aware"].items():
        print(f"| {name} | {cell(found)} |")

    undefended, headline = (result["blind"][name]["attacked"][0] for name in (UNDEFENDED, HEADLINE))
    cost = result["clean_cost"]
    sweeps = {
        name: {float(sigma): row["attacked"][0] for sigma, row in rows.items()}
        for name, rows in result["dial"].items()
    }
    best = {name: max(sweep, key=sweep.__getitem__) for name, sweep in sweeps.items()}
    lower = result["aware"][f"EOT {arguments.eot}"][2] < result["aware"]["blind"][1]
    print()
    for claim, met in {
        f"undefended at most 5%: {100 * undefended:.1f}": undefended <= 0.05,
        f"De³ at least 50%: {100 * headline:.1f}": headline >= 0.5,
        f"at most 8 points of clean loss: {cell(cost)}": cost[0] <= 0.08,
        **{
            f"{name}: the best noise level is inside the sweep: {best[name]:g}/255": 0
            < best[name]
            < max(SIGMAS_255)
            for name in (HEADLINE, "De³, uniform noise")
        },
        "EOT leaves clearly less than the blind attack (intervals apart)": lower,
    }.items():
        print(f"{'met' if met else 'NOT met'}: {claim}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root",
        default=None,
        help="Folder of the data sets; default $CERTDEF_DATA_ROOT, else ../shared/data.",
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--epochs", type=int, default=6, help="Passes of pre-training over the pool.")
    parser.add_argument("--training-seeds", type=int, default=3, help="Networks of the first row.")
    parser.add_argument("--images", type=int, default=500, help="Test images.")
    parser.add_argument("--eot-images", type=int, default=200, help="Of them under the aware attack.")
    parser.add_argument("--seeds", type=int, default=3, help="Attacks and noise draws.")
    parser.add_argument("--steps", type=int, default=20, help="PGD steps.")
    parser.add_argument("--eot", type=int, default=10, help="Draws a gradient.")
    arguments = parser.parse_args()
    config = certdef.load_config(
        preset="fashion-mnist",
        data__root=arguments.data_root,
        work_dir=str(arguments.work_dir / "fashion-mnist"),
        threads=1,
        nim__epochs=arguments.epochs,
    )
    with pipeline.open_job(config) as job:
        _, target_stage = stages.open_target(job)
        target = storage.load_model(target_stage.path / "model", job.device)
        nets, parts = networks(job)
        settings = {key: getattr(arguments, key) for key in ("images", "eot_images", "seeds", "steps", "eot")}
        depends_on = [target_stage.fingerprint, EPS, SIGMA_255, settings]
        for network in (target, *nets.values()):
            network.requires_grad_(False)  # attacks ask for gradients in the images alone
        measured = Measured(job, target, arguments.images, arguments.seeds, arguments.steps)

        def compute(stage: Stage) -> Figures:
            result = measure(measured, nets, arguments)
            metrics = {
                f"de3/{kind}_{number}": row[kind][0]
                for number, row in enumerate(result["blind"].values())
                for kind in row
            }
            metrics |= {f"de3/aware_{number}": row[0] for number, row in enumerate(result["aware"].values())}
            dial = [(int(sigma), row["attacked"][0]) for sigma, row in result["dial"][HEADLINE].items()]
            return Figures(
                figures=result,
                params=settings,
                metrics=metrics,
                points={"de3/dial": tuple(dial)},
                artifacts=("result.json",),
            )

        key = [[each.fingerprint for each in parts], SIGMAS_255, RATIOS, VOTES, depends_on]
        stage = kept(job, "de3", key, compute)
        result = stage.result.figures
        others = further(job, measured, arguments.training_seeds, depends_on)
        for name, other in others:
            result["blind"][name] = other.result.figures["row"]
            if "seed" not in name:
                result["dial"][name] = other.result.figures["dial"]
        show(result, arguments)
        print(f"\nplot: {kept_plot(job, result, [stage, *(other for _, other in others)])}")


if __name__ == "__main__":
    main()
