"""Diffusion purification of aerial scenes: the step that ANLS chooses against the best one, and AGDM against plain diffusion.

    python benchmarks/anls.py --data-root FOLDER

Acceptance of UAD-RS: seven attacks on the task network, blind to the purifier, are purified by DiffPure at each step t of a
grid. ANLS chooses a t for each attack by the Frechet distance of the task network's features, without labels; labels then
say which t was most accurate and what the choice cost (the regret, on the same images). AGDM is DiffPure at the chosen t with
as many steps, guided by an adversarially trained network; its scale and distance are chosen on attacked pool images, by the
target's own labels.

Both networks are trained on the training scenes: the diffusion model on all of them without labels, the robust one from the
target's weights on the target's scenes. About 25 minutes of one core the first time, seconds after that. Figures, table and
plot are kept in MLflow, in the job of the preset.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pictures
import torch
from kept import Figures, kept, trained
from scene_attacks import ATTACKS, scene_attack
from torch import nn

import certdef
from certdef import pipeline, stages
from certdef.attacks import gradient as attacks
from certdef.models import storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers.agdm import AGDM, DISTANCES
from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape, train_diffusion
from certdef.purifiers.uad_rs import anls, purify
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage
from surrogates.distillation.training import Training

GRID = tuple(range(10, 101, 10))
STEPS = 4  # reverse steps, of every purifier here
DIFFUSION = {"channels": (32, 64), "longest": 200}
RECIPE = {"epochs": 30, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.998, "precision": "bfloat16"}
ROBUST = {"epochs": 8, "eps_255": 4, "steps": 3, "learning_rate": 1e-3}
EPS = 4 / 255
SCALES = (100.0, 1_000.0, 10_000.0)
SEARCH = ("i-fgsm", "mixcut")  # attacks that the guidance is chosen on


def trained_networks(job: stages.Job) -> tuple[dict[str, nn.Module], list[Stage]]:
    """The target, the diffusion model and AGDM's adversarially trained network."""
    data, seed = job.data, job.config.seed
    _, target_stage = stages.open_target(job)
    target = storage.load_model(target_stage.path / "model", job.device)
    scenes = torch.from_numpy(np.concatenate([data.target_images, data.pool]))

    def train(network: DiffusionNetwork, stage: Stage) -> list[float]:
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        longest = DIFFUSION["longest"]
        return train_diffusion(network, scenes, Training(**RECIPE), longest=longest, seed=seed, **where)

    def perturb(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        eps, steps = ROBUST["eps_255"] / 255, ROBUST["steps"]
        return attacks.pgd(model, images, labels, eps=eps, steps=steps, seed=seed).to(images.device)

    def harden(model: nn.Module, stage: Stage) -> list[float]:
        model.load_state_dict(target.state_dict())
        train_classifier(
            model,
            data.target_images,
            data.target_labels,
            epochs=ROBUST["epochs"],
            seed=seed,
            device=job.device,
            learning_rate=ROBUST["learning_rate"],
            augment=True,
            perturb=perturb,
            progress=partial(job.progress, desc="robust"),
        )
        return []

    shape = DiffusionShape(data.image_shape, DIFFUSION["channels"])
    diffusion, first = trained(
        job, "scene-diffusion", [DIFFUSION, RECIPE], lambda: DiffusionNetwork(shape), train
    )
    untrained = partial(build_classifier, job.config.target.kind, data.image_shape, len(data.classes))
    robust, second = trained(job, "scene-robust", [ROBUST, target_stage.fingerprint], untrained, harden)
    return {"target": target, "diffusion": diffusion, "robust": robust}, [target_stage, first, second]


def attacked(
    job: stages.Job, target: nn.Module, images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """The images under each attack on the target alone; what mixup and mixcut mix is one training scene of each class."""
    data = job.data
    firsts = np.unique(data.target_labels, return_index=True)[1]
    others = torch.from_numpy(data.target_images[firsts])
    return {
        name: scene_attack(name, target, images, labels, eps=EPS, seed=job.config.seed, others=others)
        for name in names
    }


@torch.inference_mode()
def judged(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Which images are classified right, (N,)."""
    device = next(model.parameters()).device
    guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(128)])
    return (guesses == labels).numpy()


def choose_step(job: stages.Job, name: str, networks, labels, attack, depends_on) -> dict:
    """Accuracy at each t, ANLS's distances, both choices and the regret; `hits` are the images right at ANLS's t."""
    data, target = job.data, networks["target"]

    def compute(stage: Stage) -> Figures:
        clean = torch.from_numpy(np.concatenate([data.target_images, data.pool]))
        hits: dict[int, np.ndarray] = {}
        choice = anls(
            networks["diffusion"],
            target,
            clean.to(job.device),
            attack.to(job.device),
            GRID,
            steps=STEPS,
            seed=job.config.seed,
            seen=lambda t, purified: hits.update({t: judged(target, purified, labels)}),
            progress=lambda grid: job.progress(grid, desc=f"ANLS {name}"),
        )
        best = max(GRID, key=lambda t: hits[t].mean())
        regret = difference(hits[best], hits[choice.t])
        figures = {
            "t": choice.t,
            "best": best,
            "regret": regret,
            "hits": hits[choice.t].tolist(),
            "undefended": share(judged(target, attack, labels)),
            "accuracy": {str(t): share(right) for t, right in hits.items()},
            "distances": {str(t): distance for t, distance in choice.distances.items()},
        }
        metrics = {"t": choice.t, "best_t": best, "regret": regret[0]}
        return Figures(
            figures=figures, metrics={f"anls/{name}/{key}": value for key, value in metrics.items()}
        )

    return kept(job, f"anls-{name}", depends_on, compute).result.figures


def guided(job: stages.Job, networks: dict[str, nn.Module], images, labels, t: int, **guidance) -> np.ndarray:
    """Hits of AGDM, with the noise that ANLS's purification had."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    purifier = AGDM(
        networks["diffusion"], networks["robust"], t, **guidance, steps=STEPS, generator=generator
    )
    return judged(networks["target"], purify(purifier, images.to(job.device)), labels)


def choose_guidance(job: stages.Job, networks, steps: dict[str, int], count: int, depends_on) -> dict:
    """Accuracy of each distance and scale on attacked pool images, each at its attack's t; the target's labels are the truth."""

    def compute(stage: Stage) -> Figures:
        images = torch.from_numpy(job.data.pool[:count])
        with torch.no_grad():
            labels = networks["target"](images.to(job.device)).argmax(1).cpu()
        adversarial = attacked(job, networks["target"], images, labels, SEARCH)
        accuracy = {}
        settings = [("cosine", 0.0), *((distance, scale) for distance in DISTANCES for scale in SCALES)]
        for distance, scale in job.progress(settings, desc="guidance"):
            hits = [
                guided(job, networks, attack, labels, steps[name], scale=scale, distance=distance)
                for name, attack in adversarial.items()
            ]
            accuracy[f"{distance} {scale:g}"] = float(np.mean(hits))
        chosen = max((name for name in accuracy if not name.endswith(" 0")), key=accuracy.__getitem__)
        return Figures(figures={"accuracy": accuracy, "chosen": chosen}, params={"guidance": chosen})

    return kept(job, "agdm-choice", [steps, count, list(SCALES), *depends_on], compute).result.figures


def compare(job: stages.Job, name: str, networks, attack, labels, row: dict, chosen: str, depends_on) -> dict:
    """AGDM at ANLS's t, and what it gains on plain diffusion over the same images."""

    def compute(stage: Stage) -> Figures:
        distance, scale = chosen.split()
        right = guided(job, networks, attack, labels, row["t"], scale=float(scale), distance=distance)
        gain = difference(right, np.array(row["hits"]))
        return Figures(figures={"agdm": share(right), "gain": gain}, metrics={f"agdm/{name}/gain": gain[0]})

    return kept(job, f"agdm-{name}", [row["t"], chosen, *depends_on], compute).result.figures


def share(hits: np.ndarray) -> list[float]:
    return list(Share.of(int(hits.sum()), len(hits)))


def difference(first: np.ndarray, second: np.ndarray, draws: int = 2000) -> list[float]:
    """Mean of first - second over the same images, with its 95% bootstrap interval."""
    random, apart = np.random.default_rng(0), first.astype(float) - second
    means = apart[random.integers(len(apart), size=(draws, len(apart)))].mean(1)
    return [float(apart.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def cell(share: list[float]) -> str:
    return f"{100 * share[0]:.1f} [{100 * share[1]:.1f}, {100 * share[2]:.1f}]"


def show(rows: dict[str, dict], guidance: dict, robust: list[float], count: int) -> None:
    print(
        f"\n{count} test scenes, L∞ {255 * EPS:g}/255, {STEPS} reverse steps; accuracy in % with 95% intervals\n"
    )
    columns = ("attack", "undefended", "t of ANLS", "accuracy", "most accurate t", "accuracy")
    columns += ("regret, points", "AGDM", "AGDM - plain")
    print(f"| {' | '.join(columns)} |\n| --- |" + " ---: |" * (len(columns) - 1))
    for name, row in rows.items():
        at = row["accuracy"]
        cells = [name, cell(row["undefended"])]
        for step in (str(row["t"]), str(row["best"])):
            cells += [step, cell(at[step])]
        cells += [cell(row[key]) for key in ("regret", "agdm", "gain")]
        print(f"| {' | '.join(cells)} |")
    print("\naccuracy in % (and Frechet distance) at each t\n")
    print("| attack | " + " | ".join(map(str, GRID)) + " |\n| --- |" + " ---: |" * len(GRID))
    for name, row in rows.items():
        cells = (f"{100 * row['accuracy'][str(t)][0]:.1f} ({row['distances'][str(t)]:.3g})" for t in GRID)
        print(f"| {name} | " + " | ".join(cells) + " |")
    near = sum(abs(rows[name]["t"] - rows[name]["best"]) <= GRID[1] - GRID[0] for name in ATTACKS)
    print(f"\nANLS within one grid step of the most accurate t: {near} of {len(ATTACKS)} attacks")
    accuracies = ", ".join(f"{name} {100 * value:.1f}" for name, value in guidance["accuracy"].items())
    print(f"AGDM on attacked pool images, accuracy in %: {accuracies}; chosen: {guidance['chosen']}")
    print(f"the robust network itself, clean: {cell(robust)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--images", type=int, default=200, help="Test scenes.")
    parser.add_argument("--choice-images", type=int, default=60, help="Pool scenes that AGDM is chosen on.")
    arguments = parser.parse_args()
    work_dir = str(arguments.work_dir / "aerial")
    config = certdef.load_config("aerial", data__root=arguments.data_root, work_dir=work_dir, threads=1)
    with pipeline.open_job(config) as job:
        networks, parts = trained_networks(job)
        depends_on = [arguments.images, STEPS, EPS, list(GRID), *(stage.fingerprint for stage in parts)]
        images = torch.from_numpy(job.data.heldout_images[: arguments.images])
        labels = torch.from_numpy(job.data.heldout_labels[: arguments.images])
        adversarial = attacked(job, networks["target"], images, labels, ATTACKS) | {"clean": images}
        rows = {
            name: choose_step(job, name, networks, labels, attack, depends_on)
            for name, attack in adversarial.items()
        }
        chosen_on = {name: rows[name]["t"] for name in SEARCH}
        guidance = choose_guidance(job, networks, chosen_on, arguments.choice_images, depends_on)
        for name, attack in adversarial.items():
            rows[name] |= compare(
                job, name, networks, attack, labels, rows[name], guidance["chosen"], depends_on
            )

        def compute(stage: Stage) -> Figures:
            (stage.path / "anls.png").write_bytes(pictures.noise_level_plot(rows))
            params = {"images": arguments.images, "steps": STEPS, "eps": EPS, "guidance": guidance["chosen"]}
            robust = share(judged(networks["robust"], images, labels))
            return Figures(figures={"robust": robust}, params=params | RECIPE, artifacts=("anls.png",))

        key = [chosen_on, arguments.choice_images, list(SCALES), *depends_on]
        figures = kept(job, "anls", key, compute).result.figures
        show(rows, guidance, figures["robust"], arguments.images)


if __name__ == "__main__":
    main()
