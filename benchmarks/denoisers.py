"""Certified accuracy of one classifier by what stands between the noise and it: De^3, blind-spot, one diffusion step, nothing.

    python benchmarks/denoisers.py --data-root FOLDER

Denoised smoothing (Salman et al., NeurIPS 2020) of the targets of the presets `fashion-mnist` and `cifar10`, taken by their own
weights, so that no query is paid. Noise: the NIM law, sigma ~ Gamma(25, 3)/255, one draw of sigma a vote; every denoiser was
trained without labels on the preset's pool. Same base, same images, same n0, n and alpha, fresh noise for each vote.

About an hour of one core the first time; the networks are kept, and an image is recorded as soon as it is certified. A table
and a picture for each data set, in MLflow too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from kept import Figures, kept
from torch import nn

import certdef
import certify
from certdef import pipeline, stages
from certdef.config.noise_laws import noise_law
from certdef.models import storage
from certdef.purifiers.base import Parts
from certdef.purifiers.registry import find_purifier
from certdef.report.words import purifier_title
from certdef.stages.conditions import Condition
from certdef.stages.votes import BaseClassifier, certify_condition
from certdef.tracking.workspace import Stage

DENOISERS = ("none", "de3", "blind-spot", "one-step")


def denoiser(job: stages.Job, name: str) -> tuple[nn.Module | None, list[str]]:
    """The trained denoiser of a purifier, and the fingerprints of its networks' stages."""
    if name == "none":
        return None, []
    spec = find_purifier(name)
    assert spec.denoiser is not None
    trained = {network.role: stages.train_network(job, network) for network in spec.networks(job.config)}
    networks = {role: each.network for role, each in trained.items()}
    front = spec.denoiser.build(Parts(spec.settings(job.config), networks))
    return front, [each.stage.fingerprint for each in trained.values()]


def measure(job: stages.Job) -> Stage[Figures]:
    """Certify the target under each denoiser; the records and the picture stay in the stage."""
    _, target_stage = stages.open_target(job)
    target = storage.load_model(target_stage.path / "model", job.device)
    fronts = {name: denoiser(job, name) for name in DENOISERS}
    noise = noise_law(job.config.certify.laws[0])

    def compute(stage: Stage) -> Figures:
        curves, lines = {}, {}
        for name, (front, _) in fronts.items():
            base = nn.Sequential(front, target) if front else target
            purifier = None if name == "none" else name
            condition = Condition("target", "nim", purifier, noise, white_box=True)
            classifier = BaseClassifier(base, len(job.data.classes), job.config.certify.n)
            curves[name] = certify_condition(job, condition, classifier, stage)
            records = certify.read_records(stage.path / "records" / f"{condition.key}.jsonl")
            furthest = 1.1 * max(0.25, float(records.radius.max()))
            radii = np.linspace(0, furthest, 300)
            lines[name_in_words(name)] = certify.curves.certified_accuracy(records, radii)
        title = f"{job.data.name}: certified by denoiser"
        certify.curves.plot(lines, stage.path / "denoisers.png", title=title)
        metrics = {
            f"denoisers/{name}/certified_accuracy_at_{radius:g}": share[0]
            for name, each in curves.items()
            for radius, share in zip(job.config.certify.radii, each.accuracy, strict=True)
        }
        figures = {name: [each.accuracy_at_0, *each.accuracy] for name, each in curves.items()}
        settings = job.config.certify.settings
        return Figures(figures=figures, params=settings, metrics=metrics, artifacts=("*.png", "records/*"))

    marks = [mark for _, mark in fronts.values()]
    return kept(job, "denoisers", [job.config.certify.settings, target_stage.fingerprint, marks], compute)


def name_in_words(name: str) -> str:
    return "none" if name == "none" else purifier_title(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder of the data sets; $CERTDEF_DATA_ROOT, else ../shared/data"
    )
    parser.add_argument("--presets", nargs="+", default=["fashion-mnist", "cifar10"])
    parser.add_argument("--work-dir", default="runs/denoisers", help="the jobs' folders are below it")
    parser.add_argument("--images", type=int, default=50, help="images certified")
    parser.add_argument("--n", type=int, default=2_000, help="votes an image")
    parser.add_argument("--nim-epochs", type=int, help="another number than the preset's")
    parser.add_argument("--diffusion-epochs", type=int, help="another number than the preset's")
    parser.add_argument("--blind-spot-epochs", type=int, help="another number than the preset's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for preset in arguments.presets:
        epochs = {
            f"{section}__epochs": value
            for section in ("nim", "diffusion", "blind_spot")
            if (value := getattr(arguments, f"{section}_epochs")) is not None
        }
        config = certdef.load_config(
            preset=preset,
            data__root=arguments.data_root,
            work_dir=str(Path(arguments.work_dir) / preset),
            certify__images=arguments.images,
            certify__target_images=arguments.images,
            certify__n=arguments.n,
            blind_spot__images="pool",
            threads=1,
            **epochs,
        )
        with pipeline.open_job(config) as job:
            stage = measure(job)
            print(
                f"\n{job.data.name}: {arguments.images} images, n = {arguments.n}, alpha = {config.certify.alpha}, {stage.path}"
            )
            print("| denoiser | r = 0 | " + " | ".join(f"{r:g}" for r in config.certify.radii) + " |")
            print("| --- |" + " --- |" * (1 + len(config.certify.radii)))
            for name, shares in stage.result.figures.items():
                cells = [f"{100 * a:.0f} [{100 * low:.0f}, {100 * high:.0f}]" for a, low, high in shares]
                print(f"| {name_in_words(name)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
