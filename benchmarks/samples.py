"""Votes an image: the sequential methods against a fixed number, on published certification logs.

    python benchmarks/samples.py [--data FOLDER] [--sigma 0.25 ...] [--repeats 5] [--error]

The truth of every image is the vote share in its log (abstentions: 0.45), and certify's own tests are run on
simulated votes. Accuracy differences are against the exact expectation of the fixed method with n = 100,000
at the same truths. ``--error`` prints the exact error probability of every rule.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from certify import Gaussian, read_records, recover_successes
from certify.bounds.binomial import required_successes
from certify.bounds.sequential import Plan, make_plan

N, N0, ALPHA = 100_000, 100, 0.001
LOGS = "certify_logs/cifar10_resnet110_gaussian/noise_{0}/test/sigma_{0}"
RADII = {"0.12": [0.1, 0.25, 0.35], "0.25": [0.25, 0.5, 0.75], "0.50": [0.5, 1, 1.5], "1.00": [1, 2, 3]}


def truths(path: Path, sigma: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Vote share of the top class (M,) behind each row of a log, and whether that class is right."""
    records = read_records(path)
    votes = recover_successes(records.radius, Gaussian(sigma), N, ALPHA)
    return np.where(votes < 0, 0.45, votes / N), records.correct


def simulate(plan: Plan, p: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Votes spent (n0 included) and levels claimed for each image (M,) of vote share p."""

    def more(images: NDArray, first: int, last: int) -> NDArray:
        hits = rng.binomial(last - first, p[images])
        return np.stack([hits, last - first - hits], axis=1)

    outcome = plan.run(np.zeros(len(p), dtype=np.int64), more, 2)
    return outcome.counts.sum(axis=1) + N0, outcome.claimed


def measure(
    method: str, sigma: float, radii: list[float], p: NDArray, correct: NDArray, repeats: int
) -> tuple[float, list[float]]:
    """Mean votes an image, and certified accuracy minus the fixed method's at each radius, in points."""
    noise, rng = Gaussian(sigma), np.random.default_rng(0)
    plan = make_plan(noise, radii, N, ALPHA, method)
    runs = [simulate(plan, p, rng) for _ in range(repeats)]
    differences = []
    for number, level in enumerate(plan.levels):
        ours = np.mean([np.mean(correct & (claimed > number)) for _, claimed in runs])
        needed = required_successes(level.p, N, ALPHA)
        fixed = np.mean(correct * binom.sf(needed - 1, N, p)) if needed is not None else 0.0
        differences.append(float(100 * (ours - fixed)))
    return float(np.mean([spent.mean() for spent, _ in runs])), differences


def exact_error(plan: Plan, number: int) -> float:
    """P(claim level ``number`` | p is exactly what it requires), by dynamic programming over the analyses."""
    level, alive, drawn, error = plan.levels[number], np.ones(1), 0, 0.0
    for analysis, size in enumerate(plan.sizes):
        step = int(size) - drawn
        drawn = int(size)
        alive = np.convolve(alive, binom.pmf(np.arange(step + 1), step, level.p))
        error += alive[level.upper[analysis] :].sum()
        alive[level.upper[analysis] :] = 0
        alive[: level.lower[analysis] + 1] = 0
    return float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("CERTDEF_DATA_ROOT", "../shared/data"))
    )
    parser.add_argument("--sigma", nargs="+", choices=list(RADII), default=["0.25"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--error", action="store_true")
    arguments = parser.parse_args()
    print(f"alpha {ALPHA:g}, n0 {N0}, cap {N:,}; fixed: {N + N0:,} votes an image\n")
    print("| sigma | method | decide r | mean votes | fewer | accuracy against fixed, points |")
    print("| --- | --- | --- | ---: | ---: | --- |")
    for sigma in arguments.sigma:
        p, correct = truths(arguments.data / LOGS.format(sigma), float(sigma))
        for method in ("sequential", "group_sequential"):
            for radii in [[r] for r in RADII[sigma]] + [[0.0, *RADII[sigma]]]:
                spent, points = measure(method, float(sigma), radii, p, correct, arguments.repeats)
                name = "whole curve" if len(radii) > 1 else f"{radii[0]:g}"
                cells = " ".join(f"{value:+.2f}" for value in points)
                print(f"| {sigma} | {method} | {name} | {spent:,.0f} | {(N + N0) / spent:.0f}x | {cells} |")
    if arguments.error:
        print("\n| method | p | exact error / alpha (n = 8,000) |\n| --- | --- | ---: |")
        for method in ("sequential", "group_sequential"):
            for p in (0.5, 0.7, 0.84, 0.95, 0.99):
                noise = Gaussian(1.0)
                plan = make_plan(noise, [noise.radius(p)], 8000, ALPHA, method)
                number = len(plan.levels) - 1
                print(f"| {method} | {plan.levels[number].p:.4g} | {exact_error(plan, number) / ALPHA:.3f} |")


if __name__ == "__main__":
    main()
