"""Gaussian smoothing and NCIS against L-infinity PGD: what they recover, and what it costs on clean images.

    python benchmarks/ncis.py --data-root FOLDER

Aerial scenes and the CIFAR-10 part at 4/255 and 8/255, the targets of their presets; then smoothing alone on Fashion-MNIST
at 8/255 and 0.1. One blind-spot network, trained on natural photographs in color, serves both. Which smoothing and how
many iterations is chosen on attacked pool images, by the target's own labels; test images are only reported.

- blind: PGD on the target alone, several seeds, through each purifier. The gain of NCIS is its accuracy minus that of the
  best smoothing at the same clean accuracy (the upper envelope of the smoothing's grid, joined by straight lines, which is
  more than any one smoothing gives), with a 95% bootstrap interval over images.
- aware: PGD on target and purifier together, by BPDA and by the full gradient. Both purifiers are without noise, so that the
  expectation over their draws (EOT) is one pass.

About 25 minutes of one core the first time, most of it the two targets and the network; a minute after that, seconds if
nothing changed. Figures, tables and plots are kept in MLflow, in the job of each data set.
"""

import argparse
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from kept import Figures, kept, trained
from torch import nn

import certdef
from certdef import pipeline, stages
from certdef.attacks import gradient as attacks
from certdef.data.named import data_root
from certdef.data.natural import natural_crops
from certdef.models import storage
from certdef.purifiers.gs import GaussianSmoothing
from certdef.purifiers.ncis import NCIS
from certdef.purifiers.networks.blind_spot import BlindSpotNetwork, BlindSpotShape, train_blind_spot
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from surrogates.distillation.training import Training

EPS_255 = {"aerial": (4, 8), "cifar10": (4, 8), "fashion-mnist": (8, 25.5)}
SIGMAS = (0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)  # pixels
# The network learns to undo this smoothing, on crops of photographs that are shrunk like the images of data sets are; the
# rest of its recipe is the configuration's. Sigma 1 gave it room for a gain at little clean cost on pool images.
TRAINED = {"sigma": 1.0, "size": 32, "scales": [1, 2, 3]}
BATCH = 25
INFERENCE = ((1.0, 1), (1.0, 2), (1.0, 3), (0.85, 1), (0.85, 2))  # sigma, iterations


def smoothing(sigma: float) -> GaussianSmoothing:
    return GaussianSmoothing(2 * int(np.ceil(3 * sigma)) + 1, sigma)


def open_job(preset: str, arguments: argparse.Namespace) -> AbstractContextManager[stages.Job]:
    work_dir = str(arguments.work_dir / preset)
    return pipeline.open_job(
        certdef.load_config(preset=preset, data__root=arguments.data_root, work_dir=work_dir, threads=1)
    )


def color_network(arguments: argparse.Namespace) -> nn.Module:
    """The blind-spot network for color images, trained once, in the job of the aerial scenes."""
    with open_job("aerial", arguments) as job:
        config, size = job.config.blind_spot, TRAINED["size"]

        def train(network: nn.Module, stage: Stage) -> list[float]:
            crops = natural_crops(
                data_root(job.config.data), 3, size, config.crops, job.config.seed, scales=TRAINED["scales"]
            )
            training = Training(config.epochs, config.batch_size, config.learning_rate)
            return train_blind_spot(
                network,
                crops,
                training,
                smoothing=smoothing(TRAINED["sigma"]),
                seed=job.config.seed,
                device=job.device,
                checkpoint=stage.path / "checkpoint.pt",
                progress=job.progress,
            )

        shape = BlindSpotShape((3, size, size), config.filters, config.blocks)
        recipe = TRAINED | asdict(replace(config, images="natural", iterations=1))
        return trained(job, "ncis-network", [recipe], lambda: BlindSpotNetwork(shape), train)[0]


@dataclass
class Shown:
    """Images (N, C, H, W), labels (N,), and the images as attacked on the target alone: eps_255 -> one a seed."""

    images: torch.Tensor
    labels: torch.Tensor
    blind: dict[float, list[torch.Tensor]]

    @classmethod
    def attacked(cls, target, images, labels, eps_255, steps, seeds, progress) -> "Shown":
        return cls(
            images,
            labels,
            {
                eps: [
                    attacks.pgd(
                        target,
                        images,
                        labels,
                        eps=eps / 255,
                        steps=steps,
                        seed=seed,
                        batch_size=BATCH,
                        progress=progress,
                    )
                    for seed in range(seeds)
                ]
                for eps in eps_255
            },
        )

    def right(self, target: nn.Module, purifier: nn.Module, device: torch.device) -> dict[str, np.ndarray]:
        """Which images are right, (seeds, N): clean and at each eps."""
        batches = {"clean": [self.images]} | {f"{eps:g}": each for eps, each in self.blind.items()}
        return {
            name: np.stack(
                [judged(nn.Sequential(purifier, target), images, self.labels, device) for images in each]
            )
            for name, each in batches.items()
        }


@torch.inference_mode()
def labelled(model: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(BATCH)])


def judged(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> np.ndarray:
    return (labelled(model, images, device) == labels).numpy()


def envelope(clean: np.ndarray, robust: np.ndarray, at: float) -> float:
    """The best robust accuracy that settings, or coins between two of them, have at a clean accuracy of `at` or more."""
    order = np.argsort(clean)
    clean, best = clean[order], np.maximum.accumulate(robust[order][::-1])[::-1]
    return float(np.interp(at, clean, best))


def gain(gs: list[dict], ncis: dict, eps: str, rows=slice(None)) -> float:
    """Accuracy of NCIS minus the best smoothing's at the same clean accuracy, on some of the images."""
    clean = np.array([each["clean"][:, rows].mean() for each in gs])
    robust = np.array([each[eps][:, rows].mean() for each in gs])
    return ncis[eps][:, rows].mean() - envelope(clean, robust, ncis["clean"][:, rows].mean())


def bootstrapped(gs: list[dict], ncis: dict, eps: str, draws: int = 1000) -> list[float]:
    """The gain with its 95% interval over images, each with all its seeds."""
    random, count = np.random.default_rng(0), ncis["clean"].shape[1]
    found = [gain(gs, ncis, eps, random.integers(count, size=count)) for _ in range(draws)]
    return [gain(gs, ncis, eps), *np.quantile(found, [0.025, 0.975]).tolist()]


def shares(right: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Accuracy with its 95% interval. Seeds of one image are not independent: the interval is that of the images."""
    table = {}
    for name, hits in right.items():
        _, low, high = Share.of(round(hits.mean() * hits.shape[1]), hits.shape[1])
        table[name] = [float(hits.mean()), low, high]
    return table


def recovered(undefended: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, float]:
    """Of the images that each attack took from the undefended target, the share that is right through the purifier."""
    table = {}
    for eps, hits in right.items():
        if eps != "clean":
            taken = undefended["clean"] & ~undefended[eps]  # (seeds, N)
            table[eps] = float(hits[taken].mean()) if taken.any() else float("nan")
    return table


def aware(target, purifier, shown: Shown, count: int, eps_255, steps: int, device) -> dict[str, list[float]]:
    """Accuracy against PGD on target and purifier together, the stronger of BPDA and full gradient beside both."""
    images, labels = shown.images[:count], shown.labels[:count]
    defended, found = nn.Sequential(purifier, target), {}
    for eps in eps_255:
        hits = []
        for front in (attacks.StraightThrough(purifier), purifier):
            moved = attacks.pgd(
                nn.Sequential(front, target),
                images,
                labels,
                eps=eps / 255,
                steps=steps,
                seed=0,
                batch_size=BATCH,
            )
            hits.append(judged(defended, moved, labels, device))
        for name, right in zip(("bpda", "full", "worse"), (*hits, hits[0] & hits[1]), strict=True):
            found[f"{name} {eps:g}"] = Share.of(int(right.sum()), count)
    return found


def measure(job: stages.Job, stage: Stage, target: nn.Module, network: nn.Module | None, arguments) -> dict:
    """Everything about one data set, as plain values."""
    data, device, eps_255 = job.data, job.device, EPS_255[job.config.preset]
    images, labels = (
        torch.from_numpy(array[: arguments.images]) for array in (data.heldout_images, data.heldout_labels)
    )
    test = Shown.attacked(target, images, labels, eps_255, arguments.steps, arguments.seeds, job.progress)
    gs = {"none": nn.Identity()} | {f"GS {sigma:g}": smoothing(sigma).to(device) for sigma in SIGMAS}
    right = {name: test.right(target, purifier, device) for name, purifier in gs.items()}
    result: dict = {"images": len(images), "chosen": None, "gains": {}, "aware": {}}
    if network is not None:
        pool = torch.from_numpy(data.pool[: arguments.images])
        own = labelled(target, pool, device)
        training = Shown.attacked(target, pool, own, eps_255, arguments.steps, 1, job.progress)
        grid = {f"NCIS {s:g} x{i}": NCIS(network, smoothing(s).to(device), i) for s, i in INFERENCE}
        base = [training.right(target, purifier, device) for purifier in gs.values()]
        found = {name: training.right(target, purifier, device) for name, purifier in grid.items()}
        result["choice"] = {
            name: [gain(base, each, f"{eps:g}") for eps in eps_255] for name, each in found.items()
        }
        chosen = max(result["choice"], key=lambda name: sum(result["choice"][name]))
        result["chosen"] = chosen
        right |= {name: test.right(target, purifier, device) for name, purifier in grid.items()}
        smoothed = [right[name] for name in gs]
        result["gains"] = {f"{eps:g}": bootstrapped(smoothed, right[chosen], f"{eps:g}") for eps in eps_255}
        # Beside it the smoothing of the most accuracy under the attack on pool images.
        best = max(
            zip(gs, base, strict=True), key=lambda each: sum(each[1][f"{eps:g}"].mean() for eps in eps_255)
        )[0]
        for name in (best, chosen):
            result["aware"][name] = aware(
                target, (gs | grid)[name], test, arguments.aware_images, eps_255, arguments.steps, device
            )
    result["accuracy"] = {name: shares(each) for name, each in right.items()}
    result["recovered"] = {name: recovered(right["none"], each) for name, each in right.items()}
    (stage.path / "ncis.png").write_bytes(plot(result, eps_255))
    return result


def plot(result: dict, eps_255) -> bytes:
    accuracy = result["accuracy"]
    lines = {
        "Gaussian smoothing": [row for name, row in accuracy.items() if not name.startswith("NCIS")],
        "NCIS": [row for name, row in accuracy.items() if name.startswith("NCIS")],
    }
    marked = {}
    for name, row in result["aware"].items():
        marked[name] = accuracy[name]
        knowing = {f"{eps:g}": row[f"worse {eps:g}"] for eps in eps_255}
        marked[f"{name}, attacker aware"] = {"clean": accuracy[name]["clean"]} | knowing
    panels = {f"PGD, L∞ {eps:g}/255": f"{eps:g}" for eps in eps_255}
    return pictures.trade_off_plot({name: rows for name, rows in lines.items() if rows}, marked, panels)


def cell(share: list[float]) -> str:
    return f"{100 * share[0]:.1f} [{100 * share[1]:.1f}, {100 * share[2]:.1f}]"


def show(preset: str, result: dict) -> None:
    accuracy = result["accuracy"]
    eps_255 = [name for name in accuracy["none"] if name != "clean"]
    print(f"\n### {preset}: {result['images']} test images, blind PGD, accuracy in % with 95% intervals\n")
    heads = ["purifier", "clean", "clean cost", *(f"{eps}/255" for eps in eps_255)]
    print("| " + " | ".join(heads + [f"recovered at {eps}" for eps in eps_255]) + " |")
    print("| --- |" + " ---: |" * (2 + 2 * len(eps_255)))
    for name, row in accuracy.items():
        cost = 100 * (accuracy["none"]["clean"][0] - row["clean"][0])
        cells = [name + " (chosen)" * (name == result["chosen"]), cell(row["clean"]), f"{cost:.1f}"]
        cells += [cell(row[eps]) for eps in eps_255]
        cells += [f"{100 * result['recovered'][name][eps]:.1f}" for eps in eps_255]
        print("| " + " | ".join(cells) + " |")
    for eps, points in result["gains"].items():
        print(
            f"\ngain of {result['chosen']} over smoothing at equal clean accuracy, {eps}/255: {cell(points)} points"
        )
    for name, row in result["aware"].items():
        print(
            f"\naware attack on {name}: "
            + "; ".join(f"{key}/255 {cell(share)}" for key, share in row.items())
        )


def add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_folders(parser)
    parser.add_argument(
        "--presets", nargs="+", default=list(EPS_255), choices=list(EPS_255), help="Jobs to measure."
    )
    parser.add_argument("--images", type=int, default=300, help="Test images, and pool images to choose on.")
    parser.add_argument("--aware-images", type=int, default=100, help="Of them under the aware attack.")
    parser.add_argument("--seeds", type=int, default=3, help="Attacks with a random start of their own.")
    parser.add_argument("--steps", type=int, default=10, help="PGD steps.")
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("images", "aware_images", "seeds", "steps")}
    color = [preset for preset in arguments.presets if preset != "fashion-mnist"]
    network = color_network(arguments) if color else None
    for preset in arguments.presets:
        with open_job(preset, arguments) as job:
            _, target_stage = stages.open_target(job)
            target = storage.load_model(target_stage.path / "model", job.device)
            front = network if preset in color else None
            key = [target_stage.fingerprint, settings, SIGMAS, EPS_255[preset]]
            key += [TRAINED, asdict(job.config.blind_spot), INFERENCE] if preset in color else []

            def compute(
                stage: Stage, job: stages.Job = job, target: nn.Module = target, front: Any = front
            ) -> Figures:
                result = measure(job, stage, target, front, arguments)
                metrics = {f"ncis/gain_{eps}": points[0] for eps, points in result["gains"].items()}
                for name, row in result["accuracy"].items():
                    metrics |= {f"ncis/{name}/{eps}": share[0] for eps, share in row.items()}
                params = settings | {"chosen": result["chosen"]} | TRAINED
                return Figures(figures=result, params=params, metrics=metrics, artifacts=("ncis.png",))

            show(preset, kept(job, "ncis", key, compute).result.figures)


if __name__ == "__main__":
    main()
