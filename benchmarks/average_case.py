"""Does a surrogate as guide save labels of the average case (certdef robustness)? No: this is the measurement.

    python benchmarks/average_case.py [--preset digits] [--data-root FOLDER] [--q 0.1]

Target and surrogate of the preset, under corruptions that are stronger than the default ones, so that there is
something to guide. Plain: ``certify.certify_population``, exact looks. Guided: P(the answer stays) > 1 - q by the bets of
``certify.guided``, of the same level alpha. The first 16 labels of an image are plain draws, as the bound on the mean needs
them; once a change was seen, each label is of one of 16 draws, picked by the surrogate's confidence. What images
have taught of surrogate and target is kept for the next ones. Labels are counted apart for images whose answer never changed in the plain
test.

About two minutes of one core with the training of target and surrogate.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import certdef
import certify
from certdef import pipeline, stages
from certify.guided.bets import Bets, GuidedTest, pick_draws
from certify.guided.calibration import Calibration, strata_of
from certify.threats.perturbations import Perturbation
from certify.threats.population import corruption

ALPHA, FIRST = 0.001, 16
FREE, PILOT = 16, 64  # the surrogate's answers for a label, and before the first one
CORRUPTIONS = ("noise=0.1", "brightness=0.3", "contrast=0.5", "blur=1", "shift=1", "rotation=15")

Classify = Callable[[torch.Tensor], np.ndarray]


@dataclass
class Guided:
    """One image: its draws, the surrogate's strata on them, and the paid labels."""

    classify: Classify
    surrogate: nn.Module
    image: torch.Tensor
    law: Perturbation
    answer: int
    seed: int
    labels: int = 0
    changes: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.random = np.random.default_rng(self.seed)

    def draw(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        """Draws (count, C, H, W) and their strata (count,)."""
        drawn = self.law.sample(self.image.expand(count, -1, -1, -1), self.generator)
        with torch.no_grad():
            return drawn, strata_of(self.surrogate(drawn.clone()).numpy(), self.answer)

    def pay(self, test: GuidedTest, bets: Bets | None, rounds: int, free: int) -> None:
        """One label in each of ``rounds`` of ``free`` draws."""
        drawn, strata = self.draw(rounds * free)
        strata = strata.reshape(rounds, free)
        picks = np.zeros(rounds, dtype=np.int64)
        if bets is not None and free > 1:
            picks = pick_draws(strata, bets.tilt, self.random)
        asked = drawn[torch.as_tensor(np.arange(rounds) * free + picks)]
        stays = self.classify(asked) == self.answer
        self.labels, self.changes = self.labels + rounds, self.changes + int((~stays).sum())
        if bets is not None:
            test.settle(bets, strata, picks, stays)

    def decide(self, q: float, n: int, calibration: Calibration) -> bool:
        """Whether P(the answer changes) <= q is claimed, by at most n labels."""
        test = GuidedTest(1 - q, ALPHA, n, calibration, self.draw(PILOT)[1])
        self.pay(test, test.bets(), FIRST, 1)
        while not test.claimed and self.labels < n and test.outlook()[0] > 0:
            bets = test.bets()
            if bets is None:
                break
            # Without a change seen there is nothing to pick: plain draws.
            self.pay(test, bets, test.batch_size(bets), FREE if self.changes else 1)
        calibration.observe(test.successes, test.trials)
        return test.claimed


def compare(
    classify: Classify,
    surrogate: nn.Module,
    images: torch.Tensor,
    law: Perturbation,
    q: float,
    calibration: Calibration,
) -> list[int]:
    """Claims and labels, plain and guided; then the labels of images that changed not at all, and of the others."""
    answers = classify(images)
    plain = certify.certify_population(classify, images, law, q=q, alpha=ALPHA, answers=answers)
    guided = [
        Guided(classify, surrogate, image, law, int(answer), seed)
        for seed, (image, answer) in enumerate(zip(images, answers, strict=True))
    ]
    claims = sum(each.decide(q, plain.n, calibration) for each in guided)
    before = np.array([each.labels for each in plain.images])
    after = np.array([each.labels for each in guided])
    changed = np.array([each.changes > 0 for each in plain.images])
    return [
        plain.proven,
        claims,
        *(int(labels[rows].sum()) for rows in (~changed, changed) for labels in (before, after)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="digits", choices=["digits", "fashion-mnist", "cifar10"])
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--work-dir", type=Path, default=None, help="Folder of the job; default runs/PRESET.")
    parser.add_argument("--images", type=int, default=50, help="Held-out images.")
    parser.add_argument("--q", type=float, default=0.1, help="The share of draws that may change an answer.")
    arguments = parser.parse_args()
    where = {"data__root": arguments.data_root} if arguments.data_root else {}
    work_dir = str(arguments.work_dir or Path("runs") / arguments.preset)
    config = certdef.load_config(arguments.preset, work_dir=work_dir, threads=1, **where)
    with pipeline.open_job(config, verb="distill") as job:
        target, _ = stages.open_target(job)
        surrogate, _ = stages.distill(job, target)
        surrogate = surrogate.cpu().eval()
        images = torch.from_numpy(job.data.heldout_images[: arguments.images])
    calibration = Calibration()

    def classify(shown: torch.Tensor) -> np.ndarray:
        # Not through the ledger, which would give an answer that both tests ask for to the second one for nothing.
        return target.query(shown.numpy()).labels

    print(
        f"\n{len(images)} images, q = {arguments.q:g}, alpha = {ALPHA:g}; of two figures the first is plain, the second guided\n"
    )
    print("| corruption | proven | labels | of images that never changed | of the others |")
    print("| --- | ---: | ---: | ---: | ---: |")
    total = np.zeros(6, dtype=int)
    for name in CORRUPTIONS:
        row = compare(classify, surrogate, images, corruption(name), arguments.q, calibration)
        total += row
        show(name, row)
    show("all", total.tolist())


def show(name: str, row: list[int]) -> None:
    plain, guided, never, never_guided, changed, changed_guided = row
    print(
        f"| {name} | {plain}, {guided} | {never + changed:,}, {never_guided + changed_guided:,} "
        f"| {never:,}, {never_guided:,} | {changed:,}, {changed_guided:,} |"
    )


if __name__ == "__main__":
    main()
