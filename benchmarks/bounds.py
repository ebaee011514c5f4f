"""What a longer bound or fewer votes are worth: certified share and votes an image, every rule on the same images.

    python benchmarks/bounds.py [--data FOLDER] [--sigma 0.25] [--n 1000 10000]
    python benchmarks/bounds.py --records RECORDS.jsonl [...]
    python benchmarks/bounds.py --digits

The truth of every image is the vote share in a published log (abstentions: 0.45, of which another class
may win), and votes are simulated: the class by n0 = 100 votes or known, its bound by n. Shares are means over the
simulated votes, so the figures of one n are comparable to about 0.1 points. With records of a fixed number of votes, all
bounds are computed from the very same votes. ``--digits`` trains a small network under noise on scikit-learn's digits and
makes such records of it, under NIM noise and a Gaussian of its mean sigma.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from samples import LOGS, RADII, simulate, truths

from certify import (
    Gaussian,
    RecordLog,
    SmoothedClassifier,
    binomial_lower_bound,
    nim_noise,
    randomized_lower_bound,
    read_records,
    recertify,
)
from certify.bounds.sequential import make_plan
from certify.noise.description import open_law
from certify.records.table import Records

N0, ALPHA = 100, 0.001


def simulated(sigma: str, n: int, data: Path, repeats: int) -> None:
    """Rows of a published log: the rules whose votes can be simulated from the share of the top class alone."""
    noise, radii = Gaussian(float(sigma)), RADII[sigma]
    p, correct = truths(data / LOGS.format(sigma), float(sigma))
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[NDArray[np.float64], float]]] = {}

    def keep(rule: str, radius: NDArray[np.float64], right: NDArray[np.bool_], votes: float) -> None:
        shares = np.array([np.mean(right & (radius >= r)) for r in radii])
        found.setdefault(rule, []).append((shares, votes))

    for _ in range(repeats):
        k, uniform = rng.binomial(n, p), rng.random(len(p))
        # The class of n0 votes is the top class unless it gets fewer than half: then another one may be chosen.
        chosen = correct & (rng.binomial(N0, p) > N0 / 2)
        plain = noise.radius(binomial_lower_bound(k, n, ALPHA))
        longer = noise.radius(randomized_lower_bound(k, n, ALPHA, uniform))
        keep("fixed", plain, chosen, N0 + n)
        keep("fixed, randomized", longer, chosen, N0 + n)
        keep("fixed, class known", plain, correct, n)
        plan = make_plan(noise, [0.0, *radii], n, ALPHA, "group_sequential")
        levels = np.array([-1.0, *(level.radius for level in plan.levels)])

        # Of an image whose top class is wrong the known class is another one: at most what the top class leaves.
        given = np.where(correct, p, (1 - p) / 2)
        for rule, share, right, n0 in (
            ("group_sequential", p, chosen, N0),
            ("group_sequential, class known", given, correct, 0),
        ):
            spent, claimed = simulate(plan, share, rng)
            keep(rule, levels[claimed], right, n0 + float(spent.mean()) - N0)
    for rule, runs in found.items():
        shares = 100 * np.mean([each for each, _ in runs], axis=0)
        votes = np.mean([each for _, each in runs])
        cells = " | ".join(f"{share:.2f}" for share in shares)
        print(f"| {sigma} | {n:,} | {rule} | {votes:,.0f} | {cells} |", flush=True)


def recorded(path: Path, radii: list[float]) -> None:
    """Rows of a record of a fixed number of votes: every bound from the same votes."""
    records = read_records(path)
    noise = open_law(records.noise or {})
    if (
        noise is None
        or records.counts is None
        or records.n0 is None
        or records.method not in ("fixed", "two_sided")
    ):
        raise SystemExit(f"{path}: give records of a fixed number of votes and a common law")
    rows = {"fixed": recertify(records, noise, ALPHA)}
    rows["two_sided"] = recertify(records, noise, ALPHA, bound="two_sided")
    uniform = np.random.default_rng(0).random(len(records))
    drawn = Records(**{**vars(records), "uniform": uniform})
    rows["fixed, randomized"] = recertify(drawn, noise, ALPHA, bound="randomized")
    for rule, found in rows.items():
        cells = " | ".join(f"{100 * np.mean(found.correct & (found.radius >= r)):.1f}" for r in radii)
        mean = np.mean(np.where(found.correct, found.radius, 0))
        longer = np.mean(found.radius > rows["fixed"].radius * (1 + 1e-9))
        print(
            f"| {path.stem} | {len(records)} | {rule} | {mean:.4f} | {100 * longer:.0f} | {cells} |",
            flush=True,
        )


def digits(folder: Path, n: int, images: int) -> list[Path]:
    """Records of n votes for held-out digits, by a network of two layers that was trained under the law; and the votes that
    group_sequential takes for the same images."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = np.random.default_rng(0).permutation(len(x))
    train, held = order[:1000], order[1000 : 1000 + images]
    paths = []
    for name, noise in {"nim": nim_noise(), "gaussian-75": Gaussian(75 / 255)}.items():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
        )
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        generator, y = torch.Generator().manual_seed(0), torch.tensor(labels)
        for _ in range(150):
            noisy = x[train] + noise.sample(x[train].shape, generator)
            for part in torch.randperm(len(train), generator=generator).split(100):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(network(noisy[part]), y[train][part])
                loss.backward()
                optimizer.step()
        smoothed = SmoothedClassifier(network, noise, 10, batch_size=8192)
        path = folder / f"digits-{name}"
        with RecordLog(path, {"noise": noise.describe(), "alpha": ALPHA}) as log:
            smoothed.certify(
                x[held],
                n=n,
                on_certificate=lambda at, each, seconds, log=log: log.append(
                    at, int(labels[held[at]]), each, seconds
                ),
            )
        paths.append(log.path)
        radii = [0.0, 0.25, 0.5, 0.75]
        rules = [("group_sequential", None), ("group_sequential", labels[held])]
        rules += [("group_sequential_two_sided", None), ("group_sequential_two_sided", labels[held])]
        for method, known in rules:
            options = {"n": n, "radii": radii, "method": method, "known_class": known}
            found = smoothed.certify(x[held], **options)
            right = np.array([each.prediction for each in found]) == labels[held]
            radius = np.array([each.radius for each in found])
            votes = np.mean([each.n0 + each.n for each in found])
            cells = " | ".join(f"{100 * np.mean(right & (radius >= r)):.1f}" for r in radii)
            rule = method if known is None else f"{method}, class known"
            print(f"| {path.name} | {len(held)} | {rule} | {votes:,.0f} | | | {cells} |", flush=True)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("CERTDEF_DATA_ROOT", "../shared/data"))
    )
    parser.add_argument("--sigma", choices=list(RADII), default="0.25")
    parser.add_argument("--n", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", nargs="+", type=Path, default=[])
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--images", type=int, default=300, help="of the digits")
    parser.add_argument("--radii", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75])
    arguments = parser.parse_args()
    if arguments.records or arguments.digits:
        radii = " | ".join(f"r = {r:g}" for r in arguments.radii)
        print(f"| records | images | rule | votes an image | mean radius | longer than fixed, % | {radii} |")
        print("| --- | ---: | --- | ---: | ---: | ---: |" + " ---: |" * len(arguments.radii))
        with tempfile.TemporaryDirectory() as folder:
            made = digits(Path(folder), arguments.n[-1], arguments.images) if arguments.digits else []
            for path in [*arguments.records, *made]:
                recorded(path, arguments.radii)
        return
    radii = " | ".join(f"r = {r:g}, %" for r in RADII[arguments.sigma])
    print(f"| sigma | n | rule | votes an image | {radii} |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for n in arguments.n:
        simulated(arguments.sigma, n, arguments.data, arguments.repeats)


if __name__ == "__main__":
    main()
