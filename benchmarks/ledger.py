"""What the query ledger costs: milliseconds added to a batch, and kept answers read in a second.

    python benchmarks/ledger.py [--batch 256] [--sleep 50] [--batches 40] [--kept 20000] [--shape 1 28 28]

The target sleeps and answers; the same batches go to it bare and through the ledger, in turn. "added" is the
difference of the medians of the time spent outside the target's own function: on a busy computer that function
wakes up late, by some milliseconds, and that is not the ledger's doing. The ledger holds `--kept` answers
beforehand. "read" queries only images whose answers are kept, in a random order over the whole file. Commits
wait for the disk for a hundredth of the time; in the rows "always" each does, so that a power failure would lose nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from surrogates import QueryLedger, open_target
from surrogates.ledger import file
from surrogates.targets.base import Target

CLASSES = 10


class Sleeper:
    """A service that takes some seconds for a batch; `took` is what the last one really took."""

    def __init__(self) -> None:
        self.seconds = self.took = 0.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        time.sleep(self.seconds)
        scores = np.full((len(images), CLASSES), 0.05, np.float32)
        scores[np.arange(len(images)), (images[:, 0, 0, 0] * CLASSES).astype(int)] = 0.55
        self.took = time.perf_counter() - start
        return scores


def outside(target: Target, sleeper: Sleeper, images: np.ndarray) -> tuple[float, float]:
    """Return the seconds of one query outside the service, and the seconds inside."""
    start = time.perf_counter()
    target.query(images)
    return time.perf_counter() - start - sleeper.took, sleeper.took


def measure(
    arguments: argparse.Namespace, purpose: str, name: str, folder: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return median (outside, inside) seconds of a bare batch and a paid one, and answers read in a second."""
    rng = np.random.default_rng(0)
    sleeper = Sleeper()

    def images(count: int) -> np.ndarray:
        return rng.random((count, *arguments.shape), np.float32)

    bare = open_target(sleeper, num_classes=CLASSES, identity="sleeper", batch_size=arguments.batch)
    with QueryLedger(Path(folder) / f"{purpose}-{name}.db", {purpose: 10**9}) as ledger:
        paid = ledger.attach(bare, purpose=purpose, experiment="benchmark")
        kept = images(arguments.kept)
        for start in range(0, len(kept), arguments.batch):
            paid.query(kept[start : start + arguments.batch])
        sleeper.seconds = arguments.sleep / 1000
        times: dict[str, list[tuple[float, float]]] = {"bare": [], "paid": []}
        for turn in tqdm(range(arguments.batches), desc=f"{purpose}, {name}", leave=False):
            batch = images(arguments.batch)
            ways = [("bare", bare), ("paid", paid)]
            for name, target in ways if turn % 2 else ways[::-1]:
                times[name].append(outside(target, sleeper, batch))
        rate = float("nan")
        if purpose == "training":
            queried = rng.permutation(kept)
            begun = time.perf_counter()
            for start in range(0, len(queried), arguments.batch):
                paid.query(queried[start : start + arguments.batch])
            rate = len(queried) / (time.perf_counter() - begun)
    return np.median(times["bare"], axis=0), np.median(times["paid"], axis=0), rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sleep", type=float, default=50, help="milliseconds that the target takes")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--kept", type=int, default=20_000)
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"batch {arguments.batch} of {arguments.shape}, target {arguments.sleep:g} ms, {arguments.kept} kept\n"
    )
    print("| purpose | waits for the disk | bare, ms | added, ms | added, % | read, answers/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, share in (("1% of the time", file.SYNC_SHARE), ("always", float("inf"))):
            file.SYNC_SHARE = share
            for purpose in ("training", "certification"):
                bare, paid, rate = measure(arguments, purpose, name, folder)
                whole, added = 1000 * bare.sum(), 1000 * (paid[0] - bare[0])
                read = "" if np.isnan(rate) else f"{rate:,.0f}"
                print(
                    f"| {purpose} | {name} | {whole:.1f} | {added:.2f} | {100 * added / whole:.1f} | {read} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
