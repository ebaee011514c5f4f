"""De^3's dial under an attacker who knows it: of a plain classifier, and of classifiers fine-tuned on denoised images.

    python benchmarks/dial.py [--presets digits] [--data-root FOLDER]

Published (You et al., NeurIPS 2023) is a dial that is attacked through De^3, of a classifier that was fine-tuned on denoised
images. Here the classifier is the job's surrogate, whose weights the attacker knows, behind De^3 at each noise level:

- plain: as it was distilled;
- fine-tuned at this level: by surrogate.finetune_epochs, on images that De^3 purified at the very level of the row;
- fine-tuned as published: once, with a noise level of its own for each image, U(0, 30)/255.

Each is attacked by itself, within L-infinity, and accuracy is the mean over passes with fresh noise:

- blind: PGD on the classifier alone;
- aware: certdef.attacks.apgd through De^3: APGD-EOT with cross-entropy, DLR and margin, and for each image the candidate
  that passes of the attacker's own most often get wrong.

The best level by each figure is found on held-out images that the tables do not use. Digits: 8 minutes of one core.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kept import Figures, kept, trained
from torch import Tensor, nn

import certdef
from certdef import pipeline, stages
from certdef.attacks import apgd, candidates, gradient
from certdef.models.classifiers import build_classifier
from certdef.purifiers import Training
from certdef.purifiers.de3 import DeCubed
from certdef.purifiers.networks.finetuning import finetune
from certdef.stages.finetuning import RATE
from certdef.stages.surrogate import queried_images
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage

SIGMAS_255 = (0, 30, 60, 75, 105, 140)
PLAIN, AT_LEVEL, PUBLISHED = "plain", "fine-tuned at this level", "fine-tuned as published"
CLASSIFIERS = (PLAIN, AT_LEVEL, PUBLISHED)
FIGURES = ("clean", "blind", "aware")
PASSES = 10  # with fresh noise, of an accuracy


@dataclass(frozen=True)
class Size:
    """How large a measurement is.

    Attributes:
        images: Held-out images of the tables, the first ones.
        choice: Held-out images that the best level is found on, the last ones.
        steps: Of each attack.
        eot: Passes of a step of the aware attack.
        judging: Passes of the attacker's own that judge a candidate.
        finetune_epochs: Passes over the answered images.
        nim_epochs: Of De^3's denoiser; None for the preset's.
        sigmas_255: The dial.
        classifiers: Which are attacked.
    """

    images: int
    choice: int
    steps: int
    eot: int
    judging: int
    finetune_epochs: int
    nim_epochs: int | None = None
    sigmas_255: tuple[int, ...] = SIGMAS_255
    classifiers: tuple[str, ...] = CLASSIFIERS


SIZES = {
    "digits": Size(200, 100, 30, 4, 20, 30),
    "fashion-mnist": Size(40, 30, 20, 3, 10, 3, 4, (0, 75, 140), (PLAIN, AT_LEVEL)),
}


def as_published(
    job: stages.Job, target, surrogate: stages.Defended, denoiser: stages.Trained, epochs: int
) -> stages.Defended:
    """The surrogate fine-tuned by the published recipe, on the images and the labels that it was distilled from."""
    config = job.config.surrogate
    images = queried_images(job, surrogate.stage)
    labels = torch.from_numpy(job.ledger.attach(target).query(images).labels)
    built = surrogate.classifier.built

    def train(model: nn.Module, stage: Stage) -> list[float]:
        model.load_state_dict(surrogate.classifier.state_dict())
        training = Training(epochs, config.batch_size, RATE * config.learning_rate)
        where = {"device": job.device, "checkpoint": stage.path / "checkpoint.pt", "progress": job.progress}
        return finetune(
            model, denoiser.network, torch.from_numpy(images), labels, training, seed=job.config.seed, **where
        )

    key = [epochs, surrogate.stage.fingerprint, denoiser.stage.fingerprint]
    return stages.Defended(
        *trained(job, "finetuned-published", key, partial(build_classifier, **built), train)
    )


class Attacked:
    """Classifiers behind De^3, and how often each image is right under each attack."""

    def __init__(self, job: stages.Job, denoiser: nn.Module, size: Size, eps: float):
        self.job, self.denoiser, self.size, self.eps = job, denoiser, size, eps

    def right(
        self, classifier: nn.Module, sigma_255: float, images: Tensor, labels: Tensor
    ) -> dict[str, np.ndarray]:
        """By figure, the share of passes with fresh noise in which each image is right, (N,)."""
        system = nn.Sequential(DeCubed(self.denoiser, sigma_255 / 255), classifier).eval()
        size, seed, drawn = self.size, self.job.config.seed, sigma_255 > 0
        searches = apgd.searches(
            [system],
            eps=self.eps,
            steps=size.steps,
            eot=size.eot if drawn else 1,
            restarts=1 if drawn else size.eot,  # as many passes, from other starts
        )
        shown = {
            "clean": images,
            "blind": gradient.pgd(classifier, images, labels, eps=self.eps, steps=size.steps, seed=seed),
            "aware": candidates.strongest(
                searches,
                system,
                images,
                labels,
                eps=self.eps,
                seed=seed,
                passes=size.judging if drawn else 1,
                batch_size=len(images),
            ),
        }
        return {name: self._passes(system, each, labels) for name, each in shown.items()}

    @torch.no_grad()
    def _passes(self, system: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
        with gradient.forked(10_000 + self.job.config.seed, self.job.device):
            passes = [system(images.to(self.job.device)).argmax(1).cpu() == labels for _ in range(PASSES)]
        return torch.stack(passes).float().mean(dim=0).numpy()


def share(right: np.ndarray) -> list[float]:
    """Accuracy with its 95% interval over images; right (N,) is each one's share of passes."""
    mean, count = float(right.mean()), len(right)
    return [mean, *Share.of(round(mean * count), count)[1:]]


def measure(job: stages.Job, size: Size, eps: float) -> dict[str, dict]:
    """Every figure at the job's noise level, by classifier; kept in its folder, which the levels share."""
    sigma = job.config.attack.sigma_255
    target, _ = stages.open_target(job)
    surrogate = stages.Defended(*stages.distill(job, target))
    denoiser = stages.Trained(*stages.pretrain_denoiser(job, job.config.certify.laws[0]))
    purifier = stages.prepare_purifier(job, "de3", surrogate.classifier, surrogate.stage)
    makers = {
        PLAIN: lambda: surrogate,
        AT_LEVEL: lambda: stages.finetune_surrogate(job, target, surrogate, purifier),
        PUBLISHED: lambda: as_published(job, target, surrogate, denoiser, size.finetune_epochs),
    }
    images, labels = map(torch.from_numpy, (job.data.heldout_images, job.data.heldout_labels))
    used = torch.cat([torch.arange(size.images), torch.arange(len(images) - size.choice, len(images))])
    parts = {"report": slice(None, size.images), "choice": slice(size.images, None)}
    attacked = Attacked(job, denoiser.network.requires_grad_(False), size, eps)

    def row(classifier: nn.Module, name: str, stage: Stage) -> Figures:
        right = attacked.right(classifier.requires_grad_(False), sigma, images[used], labels[used])
        figures = {
            part: {figure: share(each[rows]) for figure, each in right.items()}
            for part, rows in parts.items()
        }
        prefix = f"dial/{CLASSIFIERS.index(name)}_eps_{eps:g}"
        return Figures(
            figures=figures,
            params={"classifier": name, "sigma_255": sigma},
            metrics={f"{prefix}/{figure}": each[0] for figure, each in figures["report"].items()},
        )

    found = {}
    for name in size.classifiers:
        made = makers[name]()
        key = [size.images, size.choice, size.steps, size.eot, size.judging, PASSES, eps, sigma]
        key += [denoiser.stage.fingerprint, made.stage.fingerprint]
        stage_name = f"dial-{CLASSIFIERS.index(name)}-{eps:g}".replace(".", "_")
        found[name] = kept(job, stage_name, key, partial(row, made.classifier, name)).result.figures
    return found


def cell(share: list[float]) -> str:
    return f"{100 * share[0]:.1f} [{100 * share[1]:.0f}, {100 * share[2]:.0f}]"


def show(preset: str, levels: dict[int, dict], size: Size, eps: float) -> None:
    found = {name: {sigma: rows[name] for sigma, rows in levels.items()} for name in size.classifiers}
    print(
        f"\n### {preset}: L∞ {eps:g}, {size.images} images, mean of {PASSES} passes; {size.steps} steps, EOT {size.eot}; in %\n"
    )
    print("| sigma, /255 | " + " | ".join(f"{name}: {figure}" for name in found for figure in FIGURES) + " |")
    print("| ---: |" + " ---: |" * (len(found) * len(FIGURES)))
    for sigma in levels:
        cells = [cell(found[name][sigma]["report"][figure]) for name in found for figure in FIGURES]
        print(f"| {sigma} | " + " | ".join(cells) + " |")
    print(f"\nbest level, found on {size.choice} other images, and what it leaves on those of the table:\n")
    print("| classifier | by | level | there | table |\n| --- | --- | ---: | ---: | ---: |")
    for name in found:
        for figure in ("blind", "aware"):
            by_level = {sigma: rows["choice"][figure][0] for sigma, rows in found[name].items()}
            best = max(by_level, key=by_level.__getitem__)
            row = found[name][best]
            print(
                f"| {name} | {figure} | {best} | {cell(row['choice'][figure])} | {cell(row['report'][figure])} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"), help="Folder of the jobs.")
    parser.add_argument("--presets", nargs="+", default=["digits"], choices=list(SIZES))
    parser.add_argument("--eps", nargs="+", type=float, default=[0.2], help="L-infinity budgets.")
    parser.add_argument("--sigmas", nargs="+", type=int, help="Noise levels, /255; unset, the preset's.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for preset in arguments.presets:
        size = SIZES[preset]
        epochs = {} if size.nim_epochs is None else {"nim__epochs": size.nim_epochs}
        levels: dict[float, dict[int, dict]] = {eps: {} for eps in arguments.eps}
        for sigma in arguments.sigmas or size.sigmas_255:
            config = certdef.load_config(
                preset=preset,
                seed=arguments.seed,
                data__root=arguments.data_root,
                work_dir=str(arguments.work_dir / f"dial-{preset}"),
                threads=1,
                attack__sigma_255=float(sigma),
                surrogate__finetune_epochs=size.finetune_epochs,
                **epochs,
            )
            with pipeline.open_job(config) as job:
                for eps in arguments.eps:
                    levels[eps][sigma] = measure(job, size, eps)
        for eps, found in levels.items():
            show(preset, found, size, eps)


if __name__ == "__main__":
    main()
