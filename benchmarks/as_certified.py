"""The surrogate trained as it is certified, against the surrogate trained under uniform noise: certified accuracy.

    python benchmarks/as_certified.py --data-root FOLDER [--preset fashion-mnist] [--laws nim 64 89] [--behind none de3]
        [--recipes uniform certified 5 10] [--images 200] [--n 1000] [--method fixed] [--seeds 1]
        [--options data.pool_copies=4 ...]

Every row learns from the same answers, of the preset's target to its pool, and is certified on the same held-out images
under the same draws. `uniform` is trained under U(0, 75)/255 noise without the denoiser; `certified` under the noise of its
votes and behind its denoiser; a number adds consistency of that weight. A law is nim, Gamma(25, 3)/255, or the level (of
255) of a Gaussian; behind De^3 both have the denoiser that was trained under nim. Target, denoiser and finished rows are
kept in the preset's job: the same command goes on where it was. `--options` are options of certdef, for a target of your own:

    --preset cifar10 --options target.uri=resnet8_cifar10_int8.tflite data.pool_images=8152 data.pool_copies=4
        ledger.training=20000 surrogate.model=dla34 surrogate.epochs=14 surrogate.precision=bfloat16
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import torch
from kept import Figures, kept, surrogate_of
from torch import nn

import certdef
import certify
import surrogates
from certdef import stages
from certdef.config.job import SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.models import storage
from certdef.pipeline import open_job
from certdef.stages import surrogate as distillation
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage

RADII = (0.25, 0.5, 0.75)


def law_of(name: str) -> SigmaLaw:
    """nim, or a constant sigma by its level of 255."""
    return SigmaLaw() if name == "nim" else SigmaLaw(f"gaussian-{name}", "constant", (), float(name))


def row(job: stages.Job, target, law: str, denoiser: nn.Module | None, recipe: str, options, seed: int):
    """Figures of one row: certified accuracy at 0 and RADII, agreement with the clean answer under noise, seconds."""
    noise, behind = noise_law(law_of(law)), "none" if denoiser is None else "de3"
    config = job.config.surrogate
    if recipe == "uniform":
        how, key = distillation.recipe_of(config), ["uniform"]
    else:
        weight = 0.0 if recipe == "certified" else float(recipe)
        how = distillation.certified_recipe(replace(config, consistency=weight), noise, denoiser)
        key = ["certified", weight, law, behind]
    own = [config.agreeing, config.entropy, target.subject, job.config.ledger.training, seed, *key]

    def train(stage: Stage) -> Figures:
        start = time.perf_counter()
        surrogate_of(job, target, stage, how, seed)
        return Figures(figures={"seconds": time.perf_counter() - start})

    student = kept(job, f"row-{recipe}", own, train)
    model = storage.load_model(student.path / "model", job.device)

    def measure(stage: Stage) -> Figures:
        base = model if denoiser is None else nn.Sequential(denoiser, model)
        smoothed = certify.SmoothedClassifier(
            base, noise, target.num_classes, subject="surrogate", device=job.device, batch_size=options.batch
        )
        images = torch.from_numpy(job.data.heldout_images[: options.images])
        stops = {} if options.method == "fixed" else {"radii": RADII}
        found = smoothed.certify(images, n0=100, n=options.n, alpha=0.001, method=options.method, **stops)
        right = [
            each.prediction == label for each, label in zip(found, job.data.heldout_labels, strict=False)
        ]
        shares = {
            f"{radius:g}": Share.of(
                sum(ok and each.radius >= radius for ok, each in zip(right, found, strict=True)), len(found)
            )
            for radius in (0.0, *RADII)
        }
        paid = job.ledger.attach(target, purpose="evaluation")
        agreed = surrogates.fidelity(
            model, paid, job.data.heldout_images, noise, denoiser=denoiser, reference="clean"
        )
        return Figures(figures={"shares": shares, "agreement": agreed.agreement})

    size = [options.images, options.n, law, behind, *([options.method] if options.method != "fixed" else [])]
    measured = kept(job, f"certified-{recipe}", [student.fingerprint, *size], measure)
    return measured.result.figures | student.result.figures


def line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--preset", default="fashion-mnist")
    parser.add_argument("--laws", nargs="+", default=["nim", "64", "89"])
    parser.add_argument("--behind", nargs="+", default=["none", "de3"], choices=("none", "de3"))
    parser.add_argument("--recipes", nargs="+", default=["uniform", "certified", "5", "10"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--method", default="fixed", choices=("fixed", "group_sequential"))
    parser.add_argument("--seeds", type=int, default=1, help="Training seeds; each is a row.")
    parser.add_argument("--batch", type=int, default=1_024, help="Noisy images a forward pass.")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="Options of certdef.")
    options = parser.parse_args()
    given = dict(each.replace(".", "__", 1).split("=", 1) for each in options.options)
    root = {} if options.data_root is None else {"data__root": options.data_root}
    config = certdef.load_config(preset=options.preset, tracking__system_metrics=False, **root, **given)
    head = ["noise", "behind", "trained", *(f"r = {r:g}" for r in (0.0, *RADII)), "agreement", "seconds"]
    print(line(head), line(["---"] * 3 + ["---:"] * (len(head) - 3)), sep="\n", flush=True)
    with open_job(config, progress=False) as job:
        target, _ = stages.open_target(job)
        measure = partial(row, job, target)
        for behind in options.behind:
            denoiser = None if behind == "none" else stages.pretrain_denoiser(job, SigmaLaw())[0]
            for law in options.laws:
                for recipe in options.recipes:
                    for seed in range(job.config.seed, job.config.seed + options.seeds):
                        found = measure(law, denoiser, recipe, options, seed)
                        shares = [
                            "{:.1f} ({:.1f}-{:.1f})".format(*(100 * x for x in each))
                            for each in found["shares"].values()
                        ]
                        ends = [f"{100 * found['agreement']:.1f}", f"{found['seconds']:.0f}"]
                        print(line([law, behind, recipe, *shares, *ends]), flush=True)


if __name__ == "__main__":
    main()
