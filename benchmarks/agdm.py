"""AGDM against plain diffusion at equal steps, under attacks through the whole chain.

    python benchmarks/agdm.py

Digits, a small network as the classifier. Both purifiers have the same diffusion model, t and ten reverse steps. The auxiliary
network that guides is trained against attacks on images half of which are diffused, as is the default of the job
(certdef/purifiers/networks/robust.py); another one, trained without, is compared in the choice. Distance and scale are
chosen on pool images by the classifier's own labels, under attacks through the plain chain: the choice says what guidance does
against an attacker who does not know of it.

The attacker of the figures knows everything. APGD with two losses follows the true gradient of each system of --gradients, through
all reverse steps and, of the guided one, through the guidance's own gradient, and the mean over draws of the noise (EOT). Every
system is then given what was found on any of them, and on the classifier alone: for each image the candidate that it most
often gets wrong in passes of the attacker's. So neither looks robust because its own gradient is of little use. With
`--gradients plain` the plain chain's gradient is a surrogate of the guided one's: a guided pass back costs four plain
ones. What is reported are fresh passes; differences are of the same images, with bootstrap intervals over these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
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
from certdef.attacks.apgd import LOSSES, STARTS, apgd
from certdef.attacks.candidates import most_often_wrong
from certdef.attacks.gradient import forked, pgd
from certdef.purifiers.agdm import AGDM, DISTANCES
from certdef.purifiers.diffpure import DiffPure
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork, inside, outside
from certdef.purifiers.networks.robust import ROBUST
from certdef.stages.networks import Defended, Trained, train_network
from certdef.tracking.workspace import Stage

T = 100
STEPS = 10
EPS = 0.1
SCALES = (1_000.0, 10_000.0)
ROBUST_EPOCHS = 20
PASSES = 5  # of the attacker, for each candidate
FRESH = 6  # of the figures
CHOICE_PASSES = 3
OF = ("cross-entropy", "margin")  # losses
AS_THEY_ARE, DIFFUSED = (
    "images as they are",
    "half of them diffused",
)  # what an auxiliary network is trained on
PLAIN, GUIDED = "plain", "guided"

Guidance = tuple[nn.Module, str, float]  # auxiliary network, distance, scale


def system(network: DiffusionNetwork, classifier: nn.Module, guidance: Guidance | None) -> nn.Module:
    """Images to logits through the whole chain; it draws from the global generator, which the attacks fork."""
    if guidance is None:
        return nn.Sequential(DiffPure(network, T, STEPS), classifier)
    auxiliary, distance, scale = guidance
    return nn.Sequential(AGDM(network, auxiliary, T, scale, distance=distance, steps=STEPS), classifier)


def auxiliary_networks(
    job: stages.Job, classifier: nn.Module, parts: list[Stage], network: DiffusionNetwork
) -> dict[str, Trained]:
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


def choose_guidance(
    job: stages.Job,
    network: DiffusionNetwork,
    classifier: nn.Module,
    auxiliary: dict[str, Trained],
    count: int,
    effort: dict[str, int],
    key: list[Any],
) -> dict[str, Any]:
    """Accuracy of each auxiliary network, distance and scale on pool images that are attacked through the plain chain.

    The classifier's answers are the truth. Also that of the auxiliary networks by themselves, on images as they are and on
    diffused ones, each attacked there.
    """

    def compute(stage: Stage) -> Figures:
        images = torch.from_numpy(job.data.pool[:count])
        with torch.no_grad():
            labels = classifier(images.clone()).argmax(1)
        plain = system(network, classifier, None)
        found = attacked(plain, images, candidates(plain, images, labels, seed=1, **effort), labels, seed=2)
        accuracy = {PLAIN: float(rates(plain, found, labels, passes=CHOICE_PASSES, seed=3).mean())}
        settings = [*product(auxiliary, DISTANCES, SCALES)]
        for name, distance, scale in job.progress(settings, desc="guidance"):
            model = system(network, classifier, (auxiliary[name].network, distance, scale))
            right = rates(model, found, labels, passes=CHOICE_PASSES, seed=3).mean()
            accuracy[f"{name}, {distance} {scale:g}"] = float(right)
        alone = {name: by_itself(each.network, network, images, labels) for name, each in auxiliary.items()}
        own = {name: right for name, right in accuracy.items() if name.startswith(DIFFUSED)}
        chosen = max(own, key=own.__getitem__).removeprefix(f"{DIFFUSED}, ")
        return Figures(figures={"accuracy": accuracy, "alone": alone, "chosen": chosen})

    fingerprints = [each.stage.fingerprint for each in auxiliary.values()]
    return kept(job, "agdm-choice", [list(SCALES), count, effort, fingerprints, *key], compute).result.figures


def by_itself(auxiliary: nn.Module, network: DiffusionNetwork, images: Tensor, labels: Tensor) -> list[float]:
    """Accuracy of an auxiliary network on images as they are and diffused by T steps: clean, attacked, of both."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    steps = torch.full((len(images),), T)
    diffused = outside(network.diffuse(inside(images), steps, noise))
    shares = []
    for each in (images, diffused):
        found = pgd(auxiliary, each, labels, eps=EPS, steps=10, seed=5)
        shares += [float(rates(auxiliary, part, labels, passes=1, seed=0).mean()) for part in (each, found)]
    return shares


def candidates(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    eot: int,
    seed: int,
    of: tuple[str, ...] = OF,
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
            for loss, start in zip(
                (LOSSES[each] for each in of), (STARTS[OF.index(each)] for each in of), strict=True
            )
        ]


def attacked(
    model: nn.Module, images: Tensor, found: Iterable[Tensor], labels: Tensor, *, seed: int
) -> Tensor:
    """For each image the candidate that the system most often gets wrong; the image itself where none is worse."""
    with forked(seed, images.device):
        return most_often_wrong(model, images, found, labels, PASSES)


def measure(
    job: stages.Job,
    systems: dict[str, nn.Module],
    classifier: nn.Module,
    count: int,
    gradients: list[str],
    effort: dict[str, int],
    key: list[Any],
) -> dict[str, Any]:
    """Rates of every system by kind of attack: clean, blind (on the classifier alone) and aware (of everything, blind included)."""
    images = torch.from_numpy(job.data.heldout_images[:count])
    labels = torch.from_numpy(job.data.heldout_labels[:count])

    def found_on(name: str, model: nn.Module, eot: int) -> list[Tensor]:
        """What each loss finds on a model, kept: a guided pass back takes long."""
        steps = {"steps": effort["steps"], "eot": eot}

        def one(loss: str, stage: Stage) -> Figures:
            return Figures(
                figures={"images": candidates(model, images, labels, seed=0, of=(loss,), **steps)[0].tolist()}
            )

        stages = [kept(job, f"agdm-{name}-{loss}", [count, steps, *key], partial(one, loss)) for loss in OF]
        return [torch.tensor(each.result.figures["images"]) for each in stages]

    blind = found_on("classifier", classifier, 1)
    aware = [*blind]
    for name in gradients:
        aware += found_on(name, systems[name], effort["eot"])

    def compute(stage: Stage) -> Figures:
        figures: dict[str, Any] = {}
        for name, model in job.progress([*systems.items()], desc="judge"):
            submitted = {"clean": images}
            # The classifier alone chooses what is blind to the purifier.
            submitted["blind"] = attacked(classifier, images, blind, labels, seed=3)
            submitted["aware"] = attacked(model, images, aware, labels, seed=3)
            figures[name] = {
                kind: rates(model, each, labels, passes=FRESH, seed=4).tolist()
                for kind, each in submitted.items()
            }
        return Figures(figures=figures)

    return kept(job, "agdm", [count, gradients, effort, *key], compute).result.figures


def interval(values: np.ndarray, draws: int = 2_000) -> list[float]:
    """Mean over the images with its 95% bootstrap interval."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(draws, len(values)))].mean(1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def cell(values: np.ndarray) -> str:
    mean, low, high = (100 * each for each in interval(values))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def show(figures: dict[str, Any], choice: dict[str, Any], count: int, followed: list[str]) -> None:
    plain = {attack: np.array(each) for attack, each in figures[PLAIN].items()}
    print(
        f"\n{count} digits, L∞ {EPS:g}, t = {T}, {STEPS} reverse steps, guidance by {choice['chosen']}; accuracy of a single pass "
        f"in %, mean of {FRESH} fresh ones [95% over images]; gradients of: {', '.join(followed)}\n"
    )
    print(f"| purifier | {' | '.join(plain)} |\n| --- |" + " ---: |" * len(plain))
    for name, row in figures.items():
        print(f"| {name} | {' | '.join(cell(np.array(each)) for each in row.values())} |")
    gains = [cell(np.array(each) - plain[attack]) for attack, each in figures[GUIDED].items()]
    print(f"| {GUIDED} - {PLAIN}, points | {' | '.join(gains)} |")
    print("\npool images attacked through the plain chain, accuracy in %")
    for name, right in choice["accuracy"].items():
        print(f"  {name}: {100 * right:.1f}")
    print("auxiliary networks by themselves: clean, attacked; diffused, diffused and attacked")
    for name, shares in choice["alone"].items():
        print(f"  {name}: {', '.join(f'{100 * each:.1f}' for each in shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--images", type=int, default=64, help="Test images.")
    parser.add_argument("--choice-images", type=int, default=48, help="Pool images of the choice.")
    parser.add_argument("--steps", type=int, default=8, help="Of each run of APGD.")
    parser.add_argument("--eot", type=int, default=2, help="Draws of the noise that a step follows.")
    systems_followed = {"nargs": "*", "choices": (PLAIN, GUIDED), "default": [PLAIN, GUIDED]}
    parser.add_argument(
        "--gradients", **systems_followed, help="Systems whose gradients the attacker follows."
    )
    arguments = parser.parse_args()
    setting, effort = SETTINGS["digits"], {"steps": arguments.steps, "eot": arguments.eot}
    work_dir = str(arguments.work_dir / "digits")
    config = certdef.load_config("digits", work_dir=work_dir, threads=1, **setting.options)
    with pipeline.open_job(config) as job:
        classifier, network, parts = trained_networks(job, setting)
        auxiliary = auxiliary_networks(job, classifier, parts, network)
        key: list[Any] = [T, STEPS, EPS, *(stage.fingerprint for stage in parts)]
        choice = choose_guidance(job, network, classifier, auxiliary, arguments.choice_images, effort, key)
        distance, scale = choice["chosen"].split()
        guidance = (auxiliary[DIFFUSED].network, distance, float(scale))
        systems = {
            PLAIN: system(network, classifier, None),
            GUIDED: system(network, classifier, guidance),
        }
        key += [auxiliary[DIFFUSED].stage.fingerprint, choice["chosen"]]
        followed = arguments.gradients
        figures = measure(job, systems, classifier, arguments.images, followed, effort, key)
        show(figures, choice, arguments.images, followed)


if __name__ == "__main__":
    main()
