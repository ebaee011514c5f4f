"""AGDM against plain diffusion at equal steps, under attacks through the whole chain.

    python benchmarks/agdm.py

Digits, a small network as the classifier. Three purifiers with the same diffusion model, t and ten reverse steps: plain, guided
by an auxiliary network that was trained against attacks on images as they are, and guided by one that saw diffused images in
that training (the default of the job, certdef/purifiers/networks/robust.py). Scale and distance of each guidance are chosen
on pool images under a short attack of the same kind, by the classifier's own labels.

The attacker knows everything. APGD with three losses follows the true gradient of each system, through all reverse steps and
through the guidance's own gradient, and the mean over several draws of the noise (EOT). Every system is then given
what was found on any of them, and on the classifier alone: for each image the candidate that it most often gets wrong in passes of
the attacker's. So no system looks robust because its own gradient is of little use. What is reported are fresh passes;
differences are of the same images, with bootstrap intervals over these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anls import SETTINGS, trained_networks
from kept import Figures, kept
from torch import Tensor, nn

import certdef
from certdef import pipeline, stages
from certdef.attacks.apgd import LOSSES, STARTS, apgd, wrong
from certdef.attacks.gradient import forked, pgd
from certdef.purifiers.agdm import AGDM, DISTANCES
from certdef.purifiers.diffpure import DiffPure
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork
from certdef.purifiers.networks.robust import ROBUST
from certdef.stages.networks import Defended, Trained, train_network
from certdef.tracking.workspace import Stage

T = 100
STEPS = 10
EPS = 0.1
SCALES = (300.0, 3_000.0, 30_000.0)
ROBUST_EPOCHS = 20
PASSES = 20  # of the attacker, for each candidate
FRESH = 20  # of the figures
PLAIN, AS_THEY_ARE, DIFFUSED = "plain", "guided, images as they are", "guided, diffused images"

Guidance = tuple[nn.Module, str, float]  # auxiliary network, distance, scale


def system(network: DiffusionNetwork, classifier: nn.Module, guidance: Guidance | None) -> nn.Module:
    """Images to logits through the whole chain; it draws from the global generator, which the attacks fork."""
    if guidance is None:
        return nn.Sequential(DiffPure(network, T, STEPS), classifier)
    auxiliary, distance, scale = guidance
    return nn.Sequential(AGDM(network, auxiliary, T, scale, distance=distance, steps=STEPS), classifier)


def auxiliary_networks(job: stages.Job, classifier: nn.Module, parts: list[Stage], network: DiffusionNetwork):
    """The auxiliary networks by name, each trained by the job's own stage, and their stages."""
    target, diffusion = parts
    trained = {}
    for name, diffused in ((AS_THEY_ARE, False), (DIFFUSED, True)):
        options = replace(job.config.diffusion, robust_diffused=diffused, t=T, robust_epochs=ROBUST_EPOCHS)
        config = replace(job.config, diffusion=options, attack=replace(job.config.attack, eps=(EPS,)))
        needs = {DIFFUSION.role: Trained(network, diffusion)} if diffused else {}
        trained[name] = train_network(
            replace(job, config=config), ROBUST, defended=Defended(classifier, target), needs=needs
        )
    return trained


@torch.inference_mode()
def rates(model: nn.Module, images: Tensor, labels: Tensor, *, passes: int, seed: int) -> np.ndarray:
    """How often each image is right, (N,), in so many passes."""
    with forked(seed, images.device):
        right = [(model(images.clone()).argmax(1) == labels).float() for _ in range(passes)]
    return torch.stack(right).mean(0).numpy()


def choose_guidance(job: stages.Job, network, classifier, auxiliary: Trained, count: int, key: list) -> dict:
    """Accuracy of each distance and scale on pool images under PGD through the chain; the classifier's answers are the truth."""

    def compute(stage: Stage) -> Figures:
        images = torch.from_numpy(job.data.pool[:count])
        with torch.no_grad():
            labels = classifier(images.clone()).argmax(1)
        accuracy = {}
        for distance, scale in job.progress([*product(DISTANCES, SCALES)], desc="guidance"):
            model = system(network, classifier, (auxiliary.network, distance, scale))
            found = pgd(model, images, labels, eps=EPS, steps=8, seed=job.config.seed, eot=2)
            accuracy[f"{distance} {scale:g}"] = float(rates(model, found, labels, passes=5, seed=1).mean())
        return Figures(
            figures={"accuracy": accuracy, "chosen": max(accuracy, key=accuracy.__getitem__)},
        )

    fingerprint = auxiliary.stage.fingerprint
    return kept(job, "agdm-choice", [list(SCALES), count, fingerprint, *key], compute).result.figures


def candidates(
    model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, eot: int, seed: int
) -> list[Tensor]:
    """What APGD finds with each loss on one system, each of (N, C, H, W)."""
    with forked(seed, images.device):
        return [
            apgd(
                model,
                images,
                labels,
                loss,
                start=images + EPS * start(images, labels),
                eps=EPS,
                steps=steps,
                eot=eot,
            )
            for loss, start in zip(LOSSES.values(), STARTS, strict=True)
        ]


def attacked(
    model: nn.Module, images: Tensor, found: Iterable[Tensor], labels: Tensor, *, seed: int
) -> Tensor:
    """For each image the candidate that the system most often gets wrong; the image itself where none is worse."""
    with forked(seed, images.device):
        best, lost = images, wrong(model, images, labels, PASSES)
        for each in found:
            often = wrong(model, each, labels, PASSES)
            best = torch.where((often > lost)[:, None, None, None], each, best)
            lost = torch.maximum(lost, often)
    return best


def measure(
    job: stages.Job, systems: dict[str, nn.Module], classifier: nn.Module, arguments, key: list
) -> dict[str, Any]:
    """Rates of every system on clean images and under every attack, by system and attack."""
    images = torch.from_numpy(job.data.heldout_images[: arguments.images])
    labels = torch.from_numpy(job.data.heldout_labels[: arguments.images])
    effort = {"steps": arguments.steps, "eot": arguments.eot}

    def compute(stage: Stage) -> Figures:
        sources: dict[str, list[Tensor]] = {}
        for name, model in {"classifier": classifier, **systems}.items():
            eot = 1 if name == "classifier" else effort["eot"]
            job.progress([0], desc=f"attack {name}")
            sources[name] = candidates(model, images, labels, steps=effort["steps"], eot=eot, seed=0)
        figures: dict[str, Any] = {}
        for name, model in systems.items():
            found = {source: sources[source] for source in sources}
            found["all"] = [each for part in sources.values() for each in part]
            row = {"clean": rates(model, images, labels, passes=FRESH, seed=2)}
            for source, tried in found.items():
                adversarial = attacked(model, images, tried, labels, seed=3)
                row[source] = rates(model, adversarial, labels, passes=FRESH, seed=4)
            figures[name] = {attack: each.tolist() for attack, each in row.items()}
        return Figures(figures=figures)

    return kept(job, "agdm", [arguments.images, effort, *key], compute).result.figures


def interval(values: np.ndarray, draws: int = 2_000) -> list[float]:
    """Mean over the images with its 95% bootstrap interval."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(draws, len(values)))].mean(1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def cell(values: np.ndarray) -> str:
    mean, low, high = (100 * each for each in interval(values))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def show(figures: dict[str, Any], chosen: dict[str, str], robust: dict[str, str]) -> None:
    plain = {attack: np.array(each) for attack, each in figures[PLAIN].items()}
    print("\naccuracy of one pass in %, mean of fresh passes [95% over images]; gains on plain are paired\n")
    columns = ("purifier", "guidance", *plain)
    print(f"| {' | '.join(columns)} |\n| --- | --- |" + " ---: |" * len(plain))
    for name, row in figures.items():
        print(
            f"| {name} | {chosen.get(name, '')} | {' | '.join(cell(np.array(each)) for each in row.values())} |"
        )
    for name in chosen:
        gains = [cell(np.array(each) - plain[attack]) for attack, each in figures[name].items()]
        print(f"| {name} - plain | | {' | '.join(gains)} |")
    print(
        "\nthe auxiliary networks themselves: "
        + "; ".join(f"{name}: {line}" for name, line in robust.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--images", type=int, default=150, help="Test images.")
    parser.add_argument(
        "--choice-images", type=int, default=60, help="Pool images that the guidance is chosen on."
    )
    parser.add_argument("--steps", type=int, default=15, help="Of each run of APGD.")
    parser.add_argument("--eot", type=int, default=3, help="Draws of the noise that a step follows.")
    arguments = parser.parse_args()
    setting = SETTINGS["digits"]
    work_dir = str(arguments.work_dir / "digits")
    config = certdef.load_config("digits", work_dir=work_dir, threads=1, **setting.options)
    with pipeline.open_job(config) as job:
        classifier, network, parts = trained_networks(job, setting)
        auxiliary = auxiliary_networks(job, classifier, parts, network)
        key: list[Any] = [T, STEPS, EPS, *(stage.fingerprint for stage in parts)]
        systems, chosen, robust = {PLAIN: system(network, classifier, None)}, {}, {}
        for name, each in auxiliary.items():
            choice = choose_guidance(job, network, classifier, each, arguments.choice_images, key)
            distance, scale = choice["chosen"].split()
            chosen[name] = choice["chosen"]
            systems[name] = system(network, classifier, (each.network, distance, float(scale)))
            robust[name] = ", ".join(
                f"{setting} {100 * value:.1f}" for setting, value in choice["accuracy"].items()
            )
        key += [[each.stage.fingerprint for each in auxiliary.values()], chosen]
        show(measure(job, systems, classifier, arguments, key), chosen, robust)


if __name__ == "__main__":
    main()
