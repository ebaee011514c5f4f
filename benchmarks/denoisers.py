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
from certdef.purifiers.catalogue import title
from torch import nn

import certdef
import certify
from certdef import pipeline, stages
from certdef.config.noise_laws import noise_law
from certdef.models import storage
from certdef.purifiers import build
from certdef.stages.certificates import Condition, certify_condition
from certdef.stages.networks import PER_LAW, SHARED

# The purifier, and the network that denoises for it.
DENOISERS = {"none": None, "de3": "nim", "blind-spot": "blind_spot_noisy", "one-step": "diffusion"}


def denoiser(job: stages.Job, name: str) -> tuple[nn.Module | None, str]:
    """The trained denoiser of a purifier, and the fingerprint of its stage."""
    need = DENOISERS[name]
    if need is None:
        return None, ""
    network, stage = (
        PER_LAW[need](job, job.config.certify.laws[0]) if need in PER_LAW else SHARED[need](job, None, None)
    )
    return build.denoiser(name, build.settings(name, job.config), {need: network}), stage.fingerprint


def measure(job: stages.Job) -> stages.Stage:
    """Certify the target under each denoiser; the records and the picture stay in the stage."""
    _, target_stage = stages.open_black_box(job)
    target = storage.load_model(target_stage.path / "model", job.device)
    fronts = {name: denoiser(job, name) for name in DENOISERS}
    stage = job.stage(
        "denoisers", job.config.certify.settings, target_stage.fingerprint, [mark for _, mark in fronts.values()]
    )  # fmt: skip
    noise = noise_law(job.config.certify.laws[0])
    with job.tracker.stage(stage):
        if not stage.done:
            found, lines = {}, {}
            for name, (front, _) in fronts.items():
                base = nn.Sequential(front, target) if front else target
                condition = Condition(
                    "target", "nim", None if name == "none" else name, noise, white_box=True
                )
                found[name] = certify_condition(
                    job, condition, base, len(job.data.classes), stage, job.config.certify.n
                )
                records = certify.read_records(stage.path / "records" / f"{condition.key}.jsonl")
                furthest = 1.1 * max(0.25, float(records.radius.max()))
                lines[title(name)] = certify.curves.certified_accuracy(records, np.linspace(0, furthest, 300))
            certify.curves.plot(
                lines, stage.path / "denoisers.png", title=f"{job.data.name}: certified by denoiser"
            )
            stage.finish({
                "found": found,
                "params": job.config.certify.settings,
                "metrics": {
                    f"denoisers/{name}/certified_accuracy_at_{radius:g}": share[0]
                    for name, each in found.items()
                    for radius, share in zip(job.config.certify.radii, each["accuracy"], strict=True)
                },
                "artifacts": ["*.png", "records/*"],
            })  # fmt: skip
    return stage


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
            preset=preset, data__root=arguments.data_root, work_dir=str(Path(arguments.work_dir) / preset),
            certify__images=arguments.images, certify__target_images=arguments.images, certify__n=arguments.n,
            blind_spot__images="pool", threads=1, **epochs,
        )  # fmt: skip
        with pipeline.open_job(config) as job:
            stage = measure(job)
            found = stage.result["found"]
            print(
                f"\n{job.data.name}: {arguments.images} images, n = {arguments.n}, alpha = {config.certify.alpha}, {stage.path}"
            )
            print("| denoiser | r = 0 | " + " | ".join(f"{r:g}" for r in config.certify.radii) + " |")
            print("| --- |" + " --- |" * (1 + len(config.certify.radii)))
            for name, each in found.items():
                shares = [each["accuracy_at_0"], *each["accuracy"]]
                cells = [f"{100 * a:.0f} [{100 * low:.0f}, {100 * high:.0f}]" for a, low, high in shares]
                print(f"| {title(name)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
