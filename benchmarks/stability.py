"""A denoiser that learns what the target sees, from students' gradients: does the certified share of the target grow?

    python benchmarks/stability.py [--presets digits fashion-mnist] [--data-root FOLDER] [--weights 0 0.03 0.3]
        [--students 3] [--seeds 3] [--epochs 100] [--images 200] [--n 1000] [--sigma 75]

Stability training (Salman et al., NeurIPS 2020, Denoised Smoothing) trains a denoiser so that a classifier answers the
denoised image as the clean one. The target's gradients are out of reach, so students stand in for it: each is distilled from
the same answers with a seed of its own. The preset's NIM is trained further on the pool by

    mean squared error + weight * mean over students of CE(student(clean), student(denoised))

Weight 0 is the control: as many further epochs of the squared error alone. `before` is the NIM as it was. One pass: right
under one noise draw. All rows of a preset certify the same images under the same draws; finished rows are kept in its job.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kept import Figures, kept, surrogate_of, trained
from torch import Tensor, nn

import certdef
import certify
import surrogates
from certdef import stages
from certdef.config.job import SigmaLaw
from certdef.models import storage
from certdef.pipeline import open_job
from certdef.purifiers.networks.nim import nim_training, pretrain_nim
from certdef.stages import surrogate as distillation
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage

RADII = (0.25, 0.5, 0.75)
PASSES = 20  # noisy versions of each image, of the one-pass column


def student(job: stages.Job, target, seed: int) -> tuple[nn.Module, Stage]:
    """A surrogate from the job's training answers, frozen."""
    config = job.config.surrogate
    key = [config.model, config.epochs, target.subject, job.config.ledger.training, seed]

    def train(stage: Stage) -> Figures:
        pool = job.data.pool[: job.config.ledger.training]  # the same answers for all of them
        surrogate_of(job, target, stage, distillation.recipe_of(config), seed, pool)
        return Figures()

    stage = kept(job, f"student-{seed}", key, train)
    return storage.load_model(stage.path / "model", job.device).eval().requires_grad_(False), stage


def stable(students: list[nn.Module], weight: float):
    """The loss (denoised, clean) -> scalar of the line above."""

    def distance(denoised: Tensor, clean: Tensor) -> Tensor:
        loss = nn.functional.mse_loss(denoised, clean)
        if not weight:
            return loss
        seen = denoised.clamp(0, 1)
        apart = [
            nn.functional.cross_entropy(each(seen), each(clean).softmax(dim=1).detach()) for each in students
        ]
        return loss + weight * torch.stack(apart).mean()

    return distance


def further(
    job: stages.Job, nim: nn.Module, mark: list, students, noise, weight: float, epochs: int, seed: int
):
    """The NIM, trained further; (network, its stage)."""
    config = job.config.nim
    training = nim_training(epochs, config.batch_size, config.base_learning_rate / 2)
    networks, stages_of = [each for each, _ in students], [stage.fingerprint for _, stage in students]

    def train(network, stage: Stage) -> list[float]:
        return pretrain_nim(
            network,
            torch.from_numpy(job.data.pool),
            noise,
            training,
            distance=stable(networks, weight),
            seed=seed,
            device=job.device,
            checkpoint=stage.path / "checkpoint.pt",
        )

    key = [mark, noise.describe(), weight, epochs, seed, *(stages_of if weight else [])]
    return trained(job, f"stable-{weight:g}-{seed}", key, partial(copy.deepcopy, nim), train)


def certified(job: stages.Job, target, denoiser: nn.Module, noise, options, key: list) -> dict:
    """Shares certified at 0 and RADII, and right in one pass; the target is asked unpaid: this benchmark owns it."""

    def base(noisy: Tensor) -> np.ndarray:
        return target.query(denoiser(noisy)).labels

    def measure(stage: Stage) -> Figures:
        count = options.images
        images, labels = torch.from_numpy(job.data.heldout_images[:count]), job.data.heldout_labels[:count]
        engine = certify.VoteEngine(batch_size=1_024, seed=1)
        one = engine.count(base, images, noise, len(job.data.classes), PASSES, indices=range(count), stage=2)
        passed = float(one[np.arange(count), labels].sum() / one.sum())
        smoothed = certify.SmoothedClassifier(
            base, noise, len(job.data.classes), subject="target", batch_size=1_024
        )
        found = smoothed.certify(images, n0=100, n=options.n, alpha=0.001)
        right = np.array([each.prediction == label for each, label in zip(found, labels, strict=True)])
        radius = np.array([each.radius for each in found])
        shares = {f"{r:g}": list(Share.of(int((right & (radius >= r)).sum()), count)) for r in (0.0, *RADII)}
        return Figures(figures={"one pass": passed, "shares": shares})

    size = [options.images, options.n, noise.describe(), PASSES]
    return kept(job, "certified-stable", [*key, *size], measure).result.figures


def line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def percent(share) -> str:
    value, low, high = share
    return f"{100 * value:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def report(name: str, found: dict) -> str:
    shares = [percent(each) for each in found["shares"].values()]
    return line([name, f"{100 * found['one pass']:.2f}", *shares])


def measure(job: stages.Job, options: argparse.Namespace) -> None:
    """Print the rows of one preset as they are done."""
    target, target_stage = stages.open_target(job)
    noise = certify.Gaussian(options.sigma / 255)
    nim, nim_stage = stages.pretrain_denoiser(job, SigmaLaw())
    students = [student(job, target, seed) for seed in range(options.students)]
    for number, (each, _) in enumerate(students):
        agreed = surrogates.fidelity(each, target, job.data.heldout_images, noise, denoiser=nim)
        print(f"student {number} agrees with the target on {100 * agreed.agreement:.1f}%", flush=True)
    settle = partial(certified, job, target, noise=noise, options=options)
    mark = [nim_stage.fingerprint, target_stage.fingerprint]
    print(report("before", settle(nim, key=mark)), flush=True)
    for weight in options.weights:
        for seed in range(options.seeds):
            network, stage = further(job, nim, mark, students, noise, weight, options.epochs, seed)
            found = settle(network.eval(), key=[target_stage.fingerprint, stage.fingerprint])
            print(report(f"weight {weight:g}, seed {seed}", found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--presets", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--work-dir", default="runs/stability", help="The jobs' folders are below it.")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.03, 0.3])
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="Training seeds of each weight.")
    parser.add_argument("--epochs", type=int, default=100, help="Further epochs on the pool.")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--sigma", type=float, default=75.0, help="Of the votes, 8-bit levels.")
    options = parser.parse_args()
    for preset in options.presets:
        root = {} if options.data_root is None or preset == "digits" else {"data__root": options.data_root}
        config = certdef.load_config(
            preset, work_dir=str(Path(options.work_dir) / preset), tracking__system_metrics=False, **root
        )
        print(f"\n{preset}: {options.images} images, n = {options.n}, sigma = {options.sigma:g}/255\n")
        head = ["denoiser", "one pass", *(f"r = {r:g}" for r in (0.0, *RADII))]
        print(line(head), line(["---"] + ["---:"] * (len(head) - 1)), sep="\n", flush=True)
        with open_job(config, progress=False) as job:
            measure(job, options)


if __name__ == "__main__":
    main()
