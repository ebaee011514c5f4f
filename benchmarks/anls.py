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
from pathlib import Path

import numpy as np
import torch
from torch import nn

import certdef
from certdef import attacks, pictures, pipeline, stages, storage
from certdef.models import build_classifier, train_classifier
from certdef.purifiers.agdm import AGDM, DISTANCES
from certdef.purifiers.anls import anls, purify
from certdef.purifiers.diffusion import DiffusionNetwork, DiffusionShape, train_diffusion
from certdef.purifiers.training import Training
from certdef.scene_attacks import ATTACKS, scene_attack

GRID = tuple(range(10, 81, 10))
STEPS = 4  # reverse steps, of every purifier here
DIFFUSION = {"channels": (32, 64), "longest": 200}
RECIPE = {"epochs": 40, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.998, "precision": "bfloat16"}
ROBUST = {"epochs": 8, "eps_255": 4, "steps": 3, "learning_rate": 1e-3}
EPS = 8 / 255
SCALES = (100.0, 1_000.0, 10_000.0)
SEARCH = ("i-fgsm", "mixcut")  # attacks that the guidance is chosen on


def trained(job: stages.Job) -> tuple[dict[str, nn.Module], list[stages.Stage]]:
    """The target, the diffusion model and AGDM's adversarially trained network."""
    data, seed = job.data, job.config.seed
    _, target_stage = stages.open_black_box(job)
    target = storage.load_model(target_stage.path / "model", job.device)
    scenes = torch.from_numpy(np.concatenate([data.target_images, data.pool]))

    def train(network: DiffusionNetwork, stage: stages.Stage) -> list[float]:
        return train_diffusion(
            network, scenes, Training(**RECIPE), longest=DIFFUSION["longest"], seed=seed, device=job.device,
            checkpoint=stage.path / "checkpoint.pt", progress=job.progress,
        )  # fmt: skip

    def perturb(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        eps, steps = ROBUST["eps_255"] / 255, ROBUST["steps"]
        return attacks.pgd(model, images, labels, eps=eps, steps=steps, seed=seed).to(images.device)

    def harden(model: nn.Module, stage: stages.Stage) -> list[float]:
        model.load_state_dict(target.state_dict())
        train_classifier(
            model, data.target_images, data.target_labels, epochs=ROBUST["epochs"], seed=seed, device=job.device,
            learning_rate=ROBUST["learning_rate"], augment=True, perturb=perturb, progress=job.progress, desc="robust",
        )  # fmt: skip
        return []

    shape = DiffusionShape(data.image_shape, DIFFUSION["channels"])
    diffusion, first = stages.kept(
        job, "scene-diffusion", [DIFFUSION, RECIPE], lambda: DiffusionNetwork(shape), train
    )
    robust, second = stages.kept(
        job, "scene-robust", [ROBUST, target_stage.fingerprint],
        lambda: build_classifier(job.config.target.kind, data.image_shape, len(data.classes)), harden,
    )  # fmt: skip
    return {"target": target, "diffusion": diffusion, "robust": robust}, [target_stage, first, second]


def attacked(
    job: stages.Job, target: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The images under each attack on the target alone; what mixup and mixcut mix is one training scene of each class."""
    data = job.data
    firsts = np.unique(data.target_labels, return_index=True)[1]
    others = torch.from_numpy(data.target_images[firsts])
    return {
        name: scene_attack(name, target, images, labels, eps=EPS, seed=job.config.seed, others=others)
        for name in ATTACKS
    }


@torch.inference_mode()
def judged(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Which images are told right, (N,)."""
    device = next(model.parameters()).device
    guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(128)])
    return (guesses == labels).numpy()


def choose_steps(job: stages.Job, networks: dict[str, nn.Module], images, labels, shown) -> dict[str, dict]:
    """For each attack: accuracy at each t (as hits of images), ANLS's distances, and both choices."""
    data, target, found = job.data, networks["target"], {}
    clean = torch.from_numpy(np.concatenate([data.target_images, data.pool])).to(job.device)
    for name, attack in {"clean": images, **shown}.items():
        hits: dict[int, np.ndarray] = {}

        def keep(t: int, purified: torch.Tensor, hits=hits) -> None:
            hits[t] = judged(target, purified, labels)

        choice = anls(
            networks["diffusion"], target, clean, attack.to(job.device), GRID, steps=STEPS, seed=job.config.seed,
            seen=keep, progress=lambda grid, name=name: job.progress(grid, desc=f"ANLS {name}"),
        )  # fmt: skip
        found[name] = {
            "undefended": judged(target, attack, labels), "hits": hits, "t": choice.t, "distances": choice.distances,
            "best": max(GRID, key=lambda t, hits=hits: hits[t].mean()),
        }  # fmt: skip
    return found


def guided(job: stages.Job, networks: dict[str, nn.Module], images, labels, t: int, **guidance) -> np.ndarray:
    """Hits of AGDM, with the noise that ANLS's purification had."""
    generator = torch.Generator(job.device).manual_seed(job.config.seed)
    purifier = AGDM(
        networks["diffusion"], networks["robust"], t, **guidance, steps=STEPS, generator=generator
    )
    return judged(networks["target"], purify(purifier, images.to(job.device)), labels)


def choose_guidance(
    job: stages.Job, networks: dict[str, nn.Module], steps: dict[str, int], count: int
) -> dict:
    """Accuracy of each scale and distance on attacked pool images, each at its attack's t; the target's labels are the truth."""
    images = torch.from_numpy(job.data.pool[:count])
    with torch.no_grad():
        labels = networks["target"](images.to(job.device)).argmax(1).cpu()
    shown = {
        name: attack
        for name, attack in attacked(job, networks["target"], images, labels).items()
        if name in SEARCH
    }
    found = {}
    settings = [(0.0, "cosine"), *((scale, distance) for distance in DISTANCES for scale in SCALES)]
    for scale, distance in job.progress(settings, desc="guidance"):
        found[f"{distance} {scale:g}"] = float(np.mean([
            guided(job, networks, attack, labels, steps[name], scale=scale, distance=distance)
            for name, attack in shown.items()
        ]))  # fmt: skip
    return found


def difference(first: np.ndarray, second: np.ndarray, draws: int = 2000) -> list[float]:
    """Mean of first - second over the same images, with its 95% bootstrap interval."""
    random, apart = np.random.default_rng(0), first.astype(float) - second
    means = apart[random.integers(len(apart), size=(draws, len(apart)))].mean(1)
    return [float(apart.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def measure(job: stages.Job, stage: stages.Stage, networks: dict[str, nn.Module], arguments) -> dict:
    """Everything, as plain values."""
    images, labels = (
        torch.from_numpy(part[: arguments.images]) for part in (job.data.heldout_images, job.data.heldout_labels)
    )  # fmt: skip
    target = networks["target"]
    shown = attacked(job, target, images, labels)
    found = choose_steps(job, networks, images, labels, shown)
    search = choose_guidance(
        job, networks, {name: found[name]["t"] for name in SEARCH}, arguments.choice_images
    )
    chosen = max((name for name in search if not name.endswith(" 0")), key=search.__getitem__)
    distance, scale = chosen.split()

    def share(hits: np.ndarray) -> list[float]:
        return stages.interval(int(hits.sum()), len(hits))

    rows = {}
    for name, each in job.progress(found.items(), desc="AGDM"):
        plain, t = each["hits"][each["t"]], each["t"]
        agdm = guided(
            job, networks, shown.get(name, images), labels, t, scale=float(scale), distance=distance
        )
        rows[name] = {
            "undefended": share(each["undefended"]), "t": t, "best": each["best"],
            "accuracy": {str(t): share(hits) for t, hits in each["hits"].items()},
            "distances": {str(t): value for t, value in each["distances"].items()},
            "regret": difference(each["hits"][each["best"]], plain),
            "agdm": share(agdm), "gain": difference(agdm, plain),
        }  # fmt: skip
    (stage.path / "anls.png").write_bytes(pictures.noise_level_plot(rows))
    return {
        "images": len(images), "rows": rows, "search": search, "chosen": chosen,
        "robust": share(judged(networks["robust"], images, labels)),
    }  # fmt: skip


def cell(share: list[float]) -> str:
    return f"{100 * share[0]:.1f} [{100 * share[1]:.1f}, {100 * share[2]:.1f}]"


def show(result: dict) -> None:
    rows = result["rows"]
    print(
        f"\n{result['images']} test scenes, L∞ {255 * EPS:g}/255, {STEPS} reverse steps; accuracy in % with 95% intervals\n"
    )
    print(
        "| attack | undefended | t of ANLS | accuracy | most accurate t | accuracy | regret, points | AGDM | AGDM - plain, points |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        at = row["accuracy"]
        print(
            f"| {name} | {cell(row['undefended'])} | {row['t']} | {cell(at[str(row['t'])])} | {row['best']} | "
            f"{cell(at[str(row['best'])])} | {cell(row['regret'])} | {cell(row['agdm'])} | {cell(row['gain'])} |"
        )
    print(
        "\naccuracy in % (and Frechet distance) at each t\n\n| attack | " + " | ".join(map(str, GRID)) + " |"
    )
    print("| --- |" + " ---: |" * len(GRID))
    for name, row in rows.items():
        cells = (f"{100 * row['accuracy'][str(t)][0]:.1f} ({row['distances'][str(t)]:.3g})" for t in GRID)
        print(f"| {name} | " + " | ".join(cells) + " |")
    near = sum(abs(rows[name]["t"] - rows[name]["best"]) <= GRID[1] - GRID[0] for name in ATTACKS)
    print(f"\nANLS within one grid step of the most accurate t: {near} of {len(ATTACKS)} attacks")
    print(
        "AGDM on attacked pool images: "
        + ", ".join(f"{k} {100 * v:.1f}" for k, v in result["search"].items())
    )
    print(f"chosen: {result['chosen']}; clean accuracy of the robust network: {cell(result['robust'])}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--images", type=int, default=250, help="Test scenes.")
    parser.add_argument("--choice-images", type=int, default=60, help="Pool scenes that AGDM is chosen on.")
    arguments = parser.parse_args()
    config = certdef.load_config(
        preset="aerial",
        data__root=arguments.data_root,
        work_dir=str(arguments.work_dir / "aerial"),
        threads=1,
    )
    settings = {
        "images": arguments.images,
        "choice_images": arguments.choice_images,
        "steps": STEPS,
        "eps": EPS,
    }
    with pipeline.open_job(config) as job:
        networks, made = trained(job)
        prints = [stage.fingerprint for stage in made]
        stage = job.stage("anls", settings, list(GRID), list(SCALES), list(SEARCH), *prints)
        with job.tracker.stage(stage):
            if not stage.done:
                result = measure(job, stage, networks, arguments)
                metrics = {}
                for name, row in result["rows"].items():
                    metrics |= {
                        f"anls/{name}/t": row["t"], f"anls/{name}/best_t": row["best"], f"anls/{name}/regret": row["regret"][0],
                        f"anls/{name}/accuracy": row["accuracy"][str(row["t"])][0], f"anls/{name}/agdm": row["agdm"][0],
                    }  # fmt: skip
                params = settings | RECIPE | {"guidance": result["chosen"]}
                stage.finish(result | {"params": params, "metrics": metrics, "artifacts": ["anls.png"]})
        show(stage.result)


if __name__ == "__main__":
    main()
