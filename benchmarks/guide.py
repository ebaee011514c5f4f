"""Paid votes with the surrogate as guide, against the same tests without one: decide, and budgeted.

    certdef run --preset fashion-mnist --data.root FOLDER        (makes target, surrogate and denoiser)
    certdef distill --preset fashion-mnist --ledger.training 1000   (further surrogates in the same folder, if wanted)
    python benchmarks/guide.py --job runs/fashion-mnist --data-root FOLDER

Every image's noise draws are recorded once, with the target's label and each surrogate's logits, behind the
denoiser (`bank/` in the job's folder, resumable). The tests then draw from that record with replacement, so its
shares are their truth, and hundreds of them cost no further forward pass.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import certdef
import certify
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models import storage
from certify.bounds.sequential import make_plan
from certify.guided.certify import certify_set
from certify.guided.image import GuidedImage

ALPHA, PRICE = 0.001, 1.5 / 1000  # USD a query


def record(arguments, config) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Target labels (N, D) and surrogate logits (N, S, D, K) of D draws an image, and the surrogates' names."""
    job, device = arguments.job, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folders = sorted(job.glob("surrogate-*"), key=lambda folder: -_queries(folder))
    names = [f"{_queries(folder):,} queries" for folder in folders]
    target, denoiser = (
        storage.load_model(next(job.glob(f"{name}-*/model")), device) for name in ("target", "nim")
    )
    surrogates = [storage.load_model(folder / "model", device) for folder in folders]
    noise = noise_law(config.certify.laws[0])
    images = torch.from_numpy(load_data(config.data, config.seed).heldout_images[: arguments.images])
    bank = job / f"bank-{arguments.draws}-{len(folders)}"
    bank.mkdir(exist_ok=True)
    for number, image in enumerate(tqdm(images, desc="record votes", unit="image")):
        path = bank / f"{number}.npz"
        if path.is_file():
            continue
        generator = torch.Generator(device).manual_seed(number)
        labels, logits = [], []
        with torch.inference_mode():
            for _ in range(0, arguments.draws, 1024):
                shape = (1024, *image.shape)
                noisy = image.to(device) + noise.sample(shape, generator=generator, device=device)
                clean = denoiser(noisy)
                labels.append(target(clean).argmax(1).cpu())
                logits.append(torch.stack([each(clean) for each in surrogates]).cpu())
        np.savez(path, labels=torch.cat(labels).numpy(), logits=torch.cat(logits, dim=1).numpy())
    files = [np.load(bank / f"{number}.npz") for number in range(len(images))]
    return (
        np.stack([file["labels"] for file in files]),
        np.stack([file["logits"] for file in files]).astype(np.float32),
        names,
    )


def _queries(folder: Path) -> int:
    return json.loads((folder / "result.json").read_text())["queries"]


class Unguided:
    """The direct test of one radius on recorded votes; the class is the target's own favorite, for `n0` votes."""

    def __init__(self, labels, noise, radius, n, method, seed):
        self.plan = make_plan(noise, [radius], n, ALPHA, method)
        self.labels, self.random = labels, np.random.default_rng(seed)
        self.top = [np.bincount(row).argmax() for row in labels]

    def image(self, number: int) -> tuple[int, bool]:
        won = self.labels[number] == self.top[number]

        def more(_, first, last):
            hits = int(self.random.choice(won, last - first).sum())
            return np.array([[last - first - hits, hits]])

        found = self.plan.run(np.array([1]), more, 2)
        return int(found.counts.sum()), bool(found.claimed[0])

    def decide(self) -> np.ndarray:
        return np.array([self.image(number) for number in range(len(self.labels))])

    def budgeted(self, budget: int, n0: int) -> int:
        """Images certified, one after the other in a random order, until the votes are spent."""
        certified = 0
        for number in self.random.permutation(len(self.labels)):
            paid, claimed = self.image(number)
            budget -= n0 + paid
            if budget < 0:
                break
            certified += claimed
        return certified


def guided(labels, logits, noise, radius, n, seed, budget=None) -> np.ndarray:
    """Votes paid and claims (N, 2), the images in a random order; the calibration starts from nothing."""
    random, calibration = np.random.default_rng(seed), certify.Calibration()
    order = random.permutation(len(labels))
    num_classes = logits.shape[-1]

    def start(position: int) -> GuidedImage:
        number = order[position]

        def propose(count):
            draws = random.integers(0, labels.shape[1], count)
            return draws, logits[number][draws]

        guide = certify.Guide(propose, calibration, seed=int(number))
        settings = {"radii": [radius], "n": n, "alpha": ALPHA, "subject": "target"}
        return GuidedImage(lambda draws: labels[number][draws], guide, noise, num_classes, **settings)

    found = certify_set(start, len(labels), budget)
    result = np.empty((len(labels), 2))
    result[order] = [(each.n0 + each.n, not each.abstained) for each in found]
    return result


def decide_table(labels, logits, noise, radii, n, seeds) -> None:
    print(f"\n### Decide: paid votes an image, n = {n:,}, {len(labels)} images, {seeds} runs\n")
    print(
        "| test | " + " | ".join(f"r = {r:g}: votes (certified)" for r in radii) + " | mean votes | ratio |"
    )
    print("| --- |" + " --- |" * len(radii) + " ---: | ---: |")

    def decide(name: str, radius: float, seed: int) -> np.ndarray:
        if name == "guided":
            return guided(labels, logits, noise, radius, n, seed)
        return Unguided(labels, noise, radius, n, name, seed).decide()

    rows = {
        name: [np.concatenate([decide(name, radius, seed) for seed in range(seeds)]) for radius in radii]
        for name in ("sequential", "group_sequential", "guided")
    }
    ours = np.mean([row[:, 0].mean() for row in rows["guided"]])
    for name, label, n0 in (
        ("sequential", "sequential, n0 = 100", 100),
        ("sequential", "sequential, class given free", 0),
        ("group_sequential", "group_sequential, n0 = 100", 100),
        ("group_sequential", "group_sequential, class given free", 0),
        ("guided", "guided", 0),
    ):
        cells = [f"{n0 + row[:, 0].mean():,.0f} ({100 * row[:, 1].mean():.1f}%)" for row in rows[name]]
        mean = n0 + np.mean([row[:, 0].mean() for row in rows[name]])
        print(f"| {label} | " + " | ".join(cells) + f" | {mean:,.0f} | {mean / ours:.2f} |")
    floor = [f"{-np.log(ALPHA) / -np.log(noise.p_required(r)):,.0f}" for r in radii]
    print("| unbroken votes that any test needs | " + " | ".join(floor) + " | | |")
    for radius, row in zip(radii, rows["guided"], strict=True):
        quantiles = np.quantile(row[:, 0], [0.1, 0.25, 0.5, 0.75, 0.9, 1])
        print(
            f"\nguided at r = {radius:g}: 10, 25, 50, 75, 90% and most: "
            + ", ".join(f"{q:,.0f}" for q in quantiles)
            + f"; money an image {PRICE * row[:, 0].mean():.3f} USD (fixed n = 100,000: {PRICE * 100_100:.0f} USD)"
        )


def budget_table(labels, logits, noise, radius, each, seeds) -> None:
    budget = each * len(labels)
    print(
        f"\n### Budgeted: {budget:,} votes for {len(labels)} images ({each} each, {PRICE * budget:.0f} USD), r = {radius:g}\n"
    )
    print("| test | images certified | ratio |\n| --- | ---: | ---: |")
    found = [guided(labels, logits, noise, radius, 10_000, seed, budget) for seed in range(seeds)]
    assert all(run[:, 0].sum() <= budget for run in found)
    ours = np.mean([run[:, 1].sum() for run in found])
    for method in ("sequential", "group_sequential"):
        for n0 in (100, 0):
            for n in (1_000, 10_000):
                try:
                    direct = Unguided(labels, noise, radius, n, method, 0)
                except certify.CertifyError:
                    continue
                theirs = np.mean([direct.budgeted(budget, n0) for _ in range(20)])
                print(f"| {method}, n0 = {n0}, n = {n:,} | {theirs:.1f} | {ours / max(theirs, 1e-9):.2f} |")
    print(f"| guided | {ours:.1f} | 1 |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--job", type=Path, default=Path("runs/fashion-mnist"), help="Folder of a finished job."
    )
    parser.add_argument("--preset", default="fashion-mnist", help="Preset that the job was run with.")
    parser.add_argument("--data-root", default=None, help="Folder of the data sets.")
    parser.add_argument("--images", type=int, default=200, help="Held-out images.")
    parser.add_argument("--draws", type=int, default=4096, help="Recorded draws an image.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of every test.")
    arguments = parser.parse_args()
    config = certdef.load_config(preset=arguments.preset, data__root=arguments.data_root)
    labels, logits, names = record(arguments, config)
    noise, radii = noise_law(config.certify.laws[0]), config.certify.radii
    own = config.certify.n
    for n in (own, 10_000):
        within = [r for r in radii if -np.log(ALPHA / 2) / -np.log(noise.p_required(r)) <= n]
        print(
            f"\nradii of the preset within reach of n = {n:,}: {', '.join(f'{r:g}' for r in within)} of {radii}"
        )
        decide_table(labels, logits[:, 0], noise, within, n, arguments.seeds)
    for radius in radii[1:3]:
        budget_table(labels, logits[:, 0], noise, radius, 100, arguments.seeds)
    print(f"\n### Dependence on the surrogate, decide, n = {own:,}\n")
    print(
        "| surrogate | agreement under noise | votes at "
        + ", ".join(f"r = {r:g}" for r in radii[:2])
        + " | certified |"
    )
    print("| --- | ---: | --- | --- |")
    choices = [(name, logits[:, number]) for number, name in enumerate(names)]
    choices.append(("useless: random logits", np.random.default_rng(0).normal(0, 3, logits[:, 0].shape)))
    for name, guide in choices:
        agreement = (guide.argmax(-1) == labels).mean()
        found = [guided(labels, guide, noise, radius, own, 0) for radius in radii[:2]]
        votes = ", ".join(f"{run[:, 0].mean():,.0f}" for run in found)
        certified = ", ".join(f"{100 * run[:, 1].mean():.1f}%" for run in found)
        print(f"| {name} | {100 * agreement:.1f}% | {votes} | {certified} |")


if __name__ == "__main__":
    main()
