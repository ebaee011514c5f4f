"""Restoration under a display: what an attack costs, what purification gives back, what fine-tuning adds.

    python benchmarks/restoration.py

About 16 minutes on one core the first time; networks and figures are kept in runs/restoration, so a second call takes
seconds. Photographs: crops of 48x48 grey pixels, 4,000 of the 400 training photographs, 136 of the 68 test photographs,
none of which is in both. Everything that is chosen (the step t) or trained sees training photographs alone.

Rows: the attacker knows the restoration network of that stage and not the purifier (blind, as published); in the column
"transfer" only the network before fine-tuning; in the last rows the purifier too, and follows the gradient straight
through it (BPDA) or the true one through all of it, averaged over its noise (EOT). Every figure is a mean over the crops
with its 95% normal interval; gains are of paired differences.
"""

import argparse
import copy
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pictures
import torch
from torch import Tensor, nn
from tqdm import tqdm

import certdef
from certdef import pipeline, stages
from certdef.attacks.gradient import StraightThrough
from certdef.data.natural import natural_crops
from certdef.purifiers.diffpure import DiffPure
from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape, train_diffusion
from certdef.restoration import (
    Display,
    RestorationNetwork,
    RestorationShape,
    apply,
    carlini_wagner,
    choose_level,
    finetune_restoration,
    pgd,
    psnr,
    purify_varied,
    simba,
    ssim,
    train_restoration,
    under_display,
)
from certdef.tracking.workspace import Stage
from surrogates.distillation.training import Training

# What the figures depend on. Crops: seed 0 for training, 1 for the test.
SIZE, CROPS, IMAGES, ADAPTIVE_IMAGES, SEEDS = 48, 4_000, 136, 48, 3
EPS_255 = (4, 8)
GRID, LONGEST = (
    (5, 10, 15, 20, 30, 50),
    150,
)  # noise steps t to choose from; none beyond the second is trained
REVERSE_STEPS = 1
DISPLAY = Display()
NETWORK = RestorationShape((1, SIZE, SIZE), width=32, depth=4)
DIFFUSION = DiffusionShape((1, SIZE, SIZE), channels=(32, 64))
TRAINING = Training(epochs=12, batch_size=32, learning_rate=2e-3)
DIFFUSION_TRAINING = Training(epochs=6, batch_size=32, learning_rate=2e-3, ema=0.995)
FINETUNING = Training(epochs=6, batch_size=32, learning_rate=1e-3)
ATTACKS: dict[str, tuple[Callable, int]] = {  # and how many seeds
    "PGD, 20 steps": (pgd, SEEDS),
    "C&W-like, 40 steps": (carlini_wagner, 1),
    "SimBA-like, 200 queries": (partial(simba, queries=200), 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("CERTDEF_DATA_ROOT", "../shared/data")
    parser.add_argument("--data-root", default=root, help="Folder of the data sets.")
    parser.add_argument("--work-dir", default="runs/restoration", help="Where networks and figures are kept.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = certdef.load_config(
        preset="digits", work_dir=arguments.work_dir, data__root=arguments.data_root
    )  # the job's own data set is not used
    with pipeline.open_job(config) as job:
        study = Study(job, arguments.data_root)
        figures, stage = study.figures()
    report(figures)
    print(f"\npicture: {stage.path / 'strip.png'}")


class Study:
    """The networks, each trained once, and the figures of every stage of the defence."""

    def __init__(self, job: stages.Job, root: str):
        self.job = job
        self.truth = natural_crops(root, 1, SIZE, CROPS, 0).to(job.device)
        self.test = natural_crops(root, 1, SIZE, IMAGES, 1, source="cbsd68").to(job.device)
        self.seen = under_display(self.truth, self._generator(0), DISPLAY)
        self.test_seen = under_display(self.test, self._generator(1), DISPLAY)

        # 1. The restoration that is attacked.
        made = [CROPS, asdict(DISPLAY), asdict(NETWORK), asdict(TRAINING)]
        self.network, _ = stages.trained_once(
            job, "restoration", made, lambda: RestorationNetwork(NETWORK),
            lambda network, stage: train_restoration(
                network, self.truth, TRAINING, display=DISPLAY, **self._running(stage)
            ),
        )  # fmt: skip
        # 2. A diffusion model of what the camera sees: the purifier stands in front of the restoration.
        made += [asdict(DIFFUSION), asdict(DIFFUSION_TRAINING), LONGEST]
        self.diffusion, _ = stages.trained_once(
            job, "restoration-diffusion", made, lambda: DiffusionNetwork(DIFFUSION),
            lambda network, stage: train_diffusion(
                network, self.seen, DIFFUSION_TRAINING, longest=LONGEST, **self._running(stage)
            ),
        )  # fmt: skip
        # 3. How far to diffuse, on attacked training images.
        made += [GRID, REVERSE_STEPS, EPS_255]
        self.level, _ = self._kept_result("restoration-level", made, self._choose)
        # 4. The restoration goes on training, on purified inputs.
        made += [asdict(FINETUNING)]
        self.finetuned, _ = stages.trained_once(
            job, "restoration-finetuned", made, lambda: copy.deepcopy(self.network), self._finetune
        )
        self.depends_on = [*made, IMAGES, ADAPTIVE_IMAGES, SEEDS]

    def purifier(self, t: int, seed: int = 0) -> DiffPure:
        return DiffPure(self.diffusion, t, REVERSE_STEPS, self._generator(seed))

    def figures(self) -> tuple[dict[str, Any], Stage]:
        return self._kept_result("restoration-figures", self.depends_on, self._measure)

    def _choose(self, stage: Stage) -> dict[str, Any]:
        truth, seen = self.truth[:64], self.seen[:64]
        attacked = [pgd(self.network, seen, truth, eps=eps / 255, seed=7) for eps in EPS_255]
        level = choose_level(self.purifier, self.network, seen, attacked, truth, GRID)
        return asdict(level) | {"metrics": {"restoration/t": level.t}}

    def _finetune(self, network: RestorationNetwork, stage: Stage) -> list[float]:
        """Half of the inputs as the camera saw them, half attacked (blind), all purified, around the chosen t."""
        inputs, half = self.seen.clone(), CROPS // 2
        parts = self.truth[:half].tensor_split(len(EPS_255))
        first = 0
        for eps, truth in zip(EPS_255, parts, strict=True):
            rows = slice(first, first := first + len(truth))
            inputs[rows] = pgd(self.network, inputs[rows], truth, eps=eps / 255, steps=10, seed=8)
        t = self.level["t"]
        purified = purify_varied(self.purifier, inputs, [max(1, t // 2), t, min(2 * t, LONGEST)], seed=9)
        return finetune_restoration(
            network, purified, self.truth, FINETUNING, **self._running(stage)
        )  # fmt: skip

    def _measure(self, stage: Stage) -> dict[str, Any]:
        rows = [self._row("no attack", 0, lambda model, seen, *_, **__: seen, SEEDS)]
        rows += [self._row(name, eps, *attack) for eps in EPS_255 for name, attack in ATTACKS.items()]
        rows += [self._adaptive("PGD, BPDA + EOT of 3", EPS_255[0], StraightThrough)]
        rows += [self._adaptive("PGD, full gradient + EOT of 3", EPS_255[0], lambda purifier: purifier)]
        (stage.path / "strip.png").write_bytes(self._strip(EPS_255[0]))
        return {
            "rows": rows,
            "t": self.level["t"],
            "levels": {kind: self.level[kind] for kind in ("clean", "attacked")},
            "params": {"t": self.level["t"], "images": IMAGES, "size": SIZE},
            "metrics": {
                f"restoration/{slug(row['attack'])}_{row['eps_255']}/psnr_{slug(stage)}": mean
                for row in rows
                for stage, (mean, *_) in row["psnr"].items()
            },
            "artifacts": ["strip.png"],
        }

    def _row(self, name: str, eps: int, attack: Callable, seeds: int) -> dict[str, Any]:
        """One attack on the restoration alone, against every stage of the defence; images averaged over the seeds."""
        truth, seen = self.test, self.test_seen
        outputs: list[dict[str, Tensor]] = []
        for seed in tqdm(range(seeds), desc=f"{name}, {eps}/255", leave=False):
            given = {"eps": eps / 255} | ({"seed": seed} if seeds > 1 else {})
            found = {model: attack(model, seen, truth, **given) for model in (self.network, self.finetuned)}
            guarded = {
                model: nn.Sequential(self.purifier(self.level["t"], 100 + seed), model) for model in found
            }
            outputs.append({
                "none": apply(self.network, found[self.network]),
                "purified": apply(guarded[self.network], found[self.network]),
                "fine-tuned": apply(guarded[self.finetuned], found[self.finetuned]),
                "fine-tuned, transfer": apply(guarded[self.finetuned], found[self.network]),
                "fine-tuned, not purified": apply(self.finetuned, found[self.finetuned]),
            })  # fmt: skip
        return self._scored(name, eps, truth, seen, outputs)

    def _adaptive(self, name: str, eps: int, through: Callable) -> dict[str, Any]:
        """PGD that knows the purifier and follows the gradient through it, or what stands for it; one seed."""
        truth, seen = self.test[:ADAPTIVE_IMAGES], self.test_seen[:ADAPTIVE_IMAGES]
        outputs = {"none": apply(self.network, pgd(self.network, seen, truth, eps=eps / 255))}
        for stage, model in (("purified", self.network), ("fine-tuned", self.finetuned)):
            known = nn.Sequential(through(self.purifier(self.level["t"], 200)), model)
            found = pgd(known, seen, truth, eps=eps / 255, eot=3)
            outputs[stage] = apply(nn.Sequential(self.purifier(self.level["t"], 100), model), found)
        return self._scored(name, eps, truth, seen, [outputs])

    def _scored(
        self, name: str, eps: int, truth: Tensor, seen: Tensor, outputs: list[dict[str, Tensor]]
    ) -> dict[str, Any]:
        """Means with intervals of PSNR and SSIM, and of their paired differences."""
        found = {
            kind: {stage: torch.stack([measure(each[stage], truth) for each in outputs]).mean(dim=0) for stage in outputs[0]}
            for kind, measure in (("psnr", psnr), ("ssim", ssim))
        }  # fmt: skip
        clean, now = psnr(apply(self.network, seen), truth), found["psnr"]
        gains = {
            "attack costs": clean - now["none"],
            "purification gains": now["purified"] - now["none"],
            "fine-tuning adds": now["fine-tuned"] - now["purified"],
            "left below clean": clean - now["fine-tuned"],
        }
        return {
            "attack": name, "eps_255": eps, "images": len(truth), "seeds": len(outputs),
            **{kind: {stage: mean_interval(values) for stage, values in each.items()} for kind, each in found.items()},
            "gains": {gain: mean_interval(values) for gain, values in gains.items()},
        }  # fmt: skip

    def _strip(self, eps: int) -> bytes:
        truth, seen = self.test[:5], self.test_seen[:5]
        found, tuned = (pgd(model, seen, truth, eps=eps / 255) for model in (self.network, self.finetuned))
        purified, purified_tuned = (
            apply(self.purifier(self.level["t"], 100), images) for images in (found, tuned)
        )
        return pictures.image_strip({
            "truth": truth,
            "degraded": seen,
            "restored": apply(self.network, seen),
            f"attacked, {eps}/255": found,
            "its restoration": apply(self.network, found),
            "purified": purified,
            "then restored": apply(self.network, purified),
            "fine-tuned": apply(self.finetuned, purified_tuned),
        })  # fmt: skip

    def _kept_result(self, name: str, depends_on: list[Any], make: Callable) -> tuple[dict[str, Any], Stage]:
        """What a stage found, computed once."""
        stage = self.job.stage(name, *depends_on)
        with self.job.tracker.stage(stage):
            if not stage.done:
                stage.finish(make(stage))
        return stage.result, stage

    def _running(self, stage: Stage) -> dict[str, Any]:
        return {
            "seed": self.job.config.seed, "device": self.job.device, "checkpoint": stage.path / "checkpoint.pt",
            "progress": lambda epochs: tqdm(epochs, desc=stage.name),
        }  # fmt: skip

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.job.device).manual_seed(seed)


def slug(text: str) -> str:
    return re.sub("[^a-z0-9]+", "_", text.lower())


def mean_interval(values: Tensor) -> list[float]:
    """Mean and its 95% normal interval: [mean, lower, upper]."""
    mean, error = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return [mean, mean - error, mean + error]


def report(figures: Mapping[str, Any]) -> None:
    print(f"\nt = {figures['t']} of 1,000, chosen on training images; mean PSNR by t:")
    for kind, found in figures["levels"].items():
        print(f"  {kind}: " + ", ".join(f"{t}: {value:.2f}" for t, value in found.items()))
    for kind, unit, digits in (("psnr", "PSNR, dB", 2), ("ssim", "SSIM", 3)):
        table(f"{unit}: mean over the crops [95% interval]", figures["rows"], kind, digits)
    table("Gains in dB, paired, against the attack on the stage's own network", figures["rows"], "gains", 2)


def table(title: str, rows: list[dict[str, Any]], kind: str, digits: int) -> None:
    columns = list(rows[0][kind])
    print(f"\n### {title}\n\n| attack | eps | crops x seeds | " + " | ".join(columns) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(columns))
    for row in rows:
        cells = [
            "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*row[kind][column], d=digits)
            if column in row[kind]
            else ""
            for column in columns
        ]
        size = f"{row['images']} x {row['seeds']}"
        print(f"| {row['attack']} | {row['eps_255']}/255 | {size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
