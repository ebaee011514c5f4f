"""Routed sigma against the best single one: certified share at small and large radii, at equal alpha and paid votes.

    python benchmarks/routed.py --logs FOLDER        (published logs of ResNet-110 on CIFAR-10: FOLDER holds certify_logs)
    python benchmarks/routed.py --data-root FOLDER   (digits and Fashion-MNIST, as the presets train them)

A router may take another noise level for each image (routing.py, where it is proven); the certificate holds within the
smaller radius of router and target. All is chosen on other images than are reported: the best single level, and the best of
all routers (of two levels at a threshold; a level a class; the longest radius that is predicted). The rows:

single            the best level for all images
routed            the chosen router, bounded by the draws that were made
routed, flattered the chosen router, its shares taken for the truth, as if its free draws had no end
without R_e       the same images and levels, the router's own radius left out: no certificate, but what routing seems to gain
oracle            the level that serves each image best, by its label too: no certificate either

In the logs a router is a threshold on an average of the certified radii of the four models. Each of these is a function of
the image that changes by at most the distance, so the router's own radius is exact, and no surrogate knows the target better.
Records of the presets are kept in the work directory, 50 images at a time; the same command goes on where it was.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from routing import Route, certify_route, certify_threshold
from samples import LOGS, truths
from scipy.special import ndtri

import certdef
import certify
from certdef import stages
from certdef.data.sets import load_data
from certdef.models import storage
from certdef.pipeline.opening import open_job
from certify.voting.engine import VoteEngine

ALPHA, SHARE = 0.001, 0.1  # in all, and the router's share of it
RADII = np.array([0.1, 0.25, 0.5, 0.75])
LEVELS, TAUS = (0.12, 0.25, 0.35, 0.5), (0.25, 0.5)
PILOT, DRAWS = 64, 192  # the router's votes, from which the class is chosen and the bound comes
N0, N = 50, 500  # paid votes an image
CHUNK = 50  # images a file
THRESHOLDS = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7])  # of a radius
QUANTILES = (0.05, 0.2, 0.4, 0.6, 0.8)  # thresholds of a margin, over the images of the choice

Scores = NDArray[np.bool_]  # (images, radii): certified and right
Classifier = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What is certified: radii (N, M) under each level at level (1 - SHARE) ALPHA and at ALPHA, and whether they are right."""

    sigmas: tuple[float, ...]
    routed: NDArray[np.float64]
    single: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, sigmas: tuple[float, ...], successes: NDArray, n: int, right: NDArray) -> "Subject":
        both = []
        for alpha in ((1 - SHARE) * ALPHA, ALPHA):
            p = certify.binomial_lower_bound(successes, n, alpha)
            columns = [certify.Gaussian(sigma).radius(p[:, level]) for level, sigma in enumerate(sigmas)]
            both.append(np.where(p > 0.5, np.stack(columns, axis=1), -1.0))
        return cls(sigmas, *both, right)

    def scores(
        self, level: NDArray, router_radius: NDArray | float = np.inf, *, alone: bool = False
    ) -> Scores:
        """Where each image takes a level (N,), certified within the router's radius (N,)."""
        rows = np.arange(len(self.right))
        radius = np.minimum((self.single if alone else self.routed)[rows, level], router_radius)
        return (radius[:, None] >= RADII) & self.right[rows, level][:, None]


@dataclass(frozen=True)
class Candidate:
    """A router: the levels (N,) that it takes, its radius (N,) as bounded and flattered; level -1 where it abstains."""

    name: str
    bounded: tuple[NDArray, NDArray]
    flattered: tuple[NDArray, NDArray]


def table(title: str, subject: Subject, candidates: Iterator[Candidate], choice: NDArray[np.bool_]) -> None:
    """Choose on the images of the choice, and print the rows of the others."""
    single = [subject.scores(np.full(len(choice), level), alone=True) for level in range(len(subject.sigmas))]
    default = int(np.argmax([each[choice].mean() for each in single]))
    constant = Candidate("none", *[(np.full(len(choice), default), np.full(len(choice), np.inf))] * 2)
    best: dict[str, tuple[float, str, Scores]] = {}
    for each in (constant, *candidates):
        found = {
            "routed": subject.scores(*each.bounded),
            "routed, flattered": subject.scores(*each.flattered),
        }
        found["without R_e"] = subject.scores(each.flattered[0])
        for row, scores in found.items():
            value = float(scores[choice].mean())
            if row not in best or value > best[row][0]:
                best[row] = (value, each.name, scores)
    rows = {f"single, sigma {sigma:g}": scores for sigma, scores in zip(subject.sigmas, single, strict=True)}
    chosen = rows[f"single, sigma {subject.sigmas[default]:g}"]
    rows |= {f"{row}: {name}": scores for row, (_, name, scores) in best.items()}
    means = np.stack([scores.mean(axis=1) for scores in single])
    rows["oracle"] = np.stack(single)[means.argmax(axis=0), np.arange(len(choice))]
    print(f"\n### {title}: {int((~choice).sum())} images, chosen on {int(choice.sum())} others\n")
    print("| | " + " | ".join(f"r = {r:g}" for r in RADII) + " | mean | against the best single [95%] |")
    print("| --- |" + " ---: |" * (len(RADII) + 2))
    for name, scores in rows.items():
        own = 100 * scores[~choice]
        gain = own.mean(axis=1) - 100 * chosen[~choice].mean(axis=1)
        half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        mark = (
            "(chosen)"
            if scores is chosen
            else f"{gain.mean():+.2f} [{gain.mean() - half:+.2f}, {gain.mean() + half:+.2f}]"
        )
        cells = " | ".join(f"{share:.1f}" for share in own.mean(axis=0))
        print(f"| {name} | {cells} | {own.mean():.2f} | {mark} |")


# --- published logs -----------------------------------------------------------------------------------------------


def from_logs(folder: Path, n: int) -> None:
    """Four models, each trained under its own sigma; n votes an image from the shares that the logs tell."""
    sigmas = (0.12, 0.25, 0.5, 1.0)
    read = [truths(folder / LOGS.format(f"{sigma:.2f}"), sigma) for sigma in sigmas]
    shares, right = np.stack([p for p, _ in read], axis=1), np.stack([ok for _, ok in read], axis=1)
    subject = Subject.of(sigmas, np.random.default_rng(0).binomial(n, shares), n, right)
    # An abstention counts as 1/2, which shortens the router's radius; a unanimous log does not tell 1.
    exact = ndtri(np.clip(shares, 0.5, 1 - 1e-5)) * np.array(sigmas)
    choice = np.arange(len(shares)) % 2 == 0

    def candidates() -> Iterator[Candidate]:
        weights = list(np.eye(4))
        weights += [
            a * row + b * other
            for row, other in combinations(np.eye(4), 2)
            for a, b in ((1, 1), (1, -1), (2, -1), (-1, 2))
        ]
        for weight in weights:
            statistic = exact @ weight / np.abs(weight).sum()
            for threshold in (*-THRESHOLDS, 0.0, *THRESHOLDS):
                for below, above in permutations(range(4), 2):
                    route = np.where(statistic < threshold, below, above), np.abs(statistic - threshold)
                    name = f"radii . {weight / np.abs(weight).sum()} < {threshold:.2f}: {sigmas[below]:g}, else {sigmas[above]:g}"
                    yield Candidate(name, route, route)

    table(f"CIFAR-10, ResNet-110 trained under each sigma, n = {n:,}", subject, candidates(), choice)


# --- the presets --------------------------------------------------------------------------------------------------


def record(
    subject: Classifier, student: Classifier, images: torch.Tensor, num_classes: int, stem: str
) -> dict[str, NDArray]:
    """Votes of the subject (2, levels, N, K) for class and bound, and of the surrogate's answers: logits (N, taus, draws, K).

    Args:
        subject: What is certified, and pays for its votes.
        student: The surrogate, whose answers are free.
        images: (N, C, H, W) in [0, 1].
        num_classes: K.
        stem: Of the files, 50 images each.
    """
    engine, parts = VoteEngine(recheck=0), []
    for first in range(0, len(images), CHUNK):
        names = range(first, min(first + CHUNK, len(images)))
        path = Path(f"{stem}-{names.start}-{names.stop}.npz")
        if not path.is_file():
            batch = images[list(names)]
            votes = [
                [
                    engine.count(
                        subject, batch, certify.Gaussian(s), num_classes, n, indices=names, stage=stage
                    )
                    for s in LEVELS
                ]
                for stage, n in enumerate((N0, N))
            ]
            with torch.no_grad():
                logits = [
                    [answers(student, image, tau, index) for tau in TAUS]
                    for index, image in zip(names, batch, strict=True)
                ]
            np.savez(path, votes=np.array(votes), logits=np.array(logits))
        parts.append(np.load(path))
    return {
        name: np.concatenate([part[name] for part in parts], axis=axis)
        for name, axis in {"votes": 2, "logits": 0}.items()
    }


def answers(student: Classifier, image: torch.Tensor, tau: float, index: int) -> NDArray:
    """Logits (PILOT + DRAWS, K) of noisy copies of an image."""
    generator = torch.Generator().manual_seed(1_000_000 * round(100 * tau) + index)
    noise = certify.Gaussian(tau).sample((PILOT + DRAWS, *image.shape), generator)
    return student(image + noise).numpy().astype(np.float16)


def tally(labels: NDArray, classes: int) -> tuple[list[NDArray], list[NDArray], NDArray]:
    """Counts of the pilot and of the bound, a row an image, and the shares (N, classes) of all draws together."""
    hits = labels[..., None] == np.arange(classes)
    return list(hits[:, :PILOT].sum(axis=1)), list(hits[:, PILOT:].sum(axis=1)), hits.mean(axis=1)


def columns(routes: list[Route]) -> tuple[NDArray, NDArray]:
    """Levels and radii; -1 where the router abstained, so that nothing is certified."""
    level = np.array([route.level for route in routes])
    return level, np.where(level < 0, -1.0, [route.radius for route in routes])


def by_majority(name: str, levels: NDArray, default: int, tau: float) -> Candidate:
    """The level with most of the base's answers (N, draws)."""
    pilot, counts, share = tally(levels, len(LEVELS))
    routes = [certify_route(a, b, default, tau, SHARE * ALPHA) for a, b in zip(pilot, counts, strict=True)]
    share[:, default] = 0
    level = np.where(share.max(axis=1) > 0.5, share.argmax(axis=1), default)
    return Candidate(f"{name}, tau {tau:g}", columns(routes), (level, tau * np.abs(ndtri(share.max(axis=1)))))


def by_radius(labels: NDArray, classes: int, tau: float) -> Iterator[Candidate]:
    """Two levels, below and above a threshold of the surrogate's own radius, from its labels (N, draws)."""
    pilot, counts, share = tally(labels, classes)
    radius = tau * ndtri(share.max(axis=1))
    for threshold in THRESHOLDS:
        found = [
            certify_threshold(a, b, [threshold], tau, SHARE * ALPHA)
            for a, b in zip(pilot, counts, strict=True)
        ]
        level, bounded = columns(found)
        for below, above in permutations(range(len(LEVELS)), 2):
            taken = np.where(radius < threshold, below, above)
            name = f"{LEVELS[below]:g} where the surrogate's radius is below {threshold:.2f}, else {LEVELS[above]:g}, tau {tau:g}"
            yield Candidate(
                name, (np.where(level == 1, above, below), bounded), (taken, np.abs(radius - threshold))
            )


def from_votes(title: str, votes: dict[str, NDArray], labels: NDArray, choice: NDArray[np.bool_]) -> None:
    """The table of what was recorded."""
    counts0, counts = votes["votes"].swapaxes(1, 2)
    top = counts0.argmax(axis=2)
    successes = np.take_along_axis(counts, top[..., None], axis=2)[..., 0]
    subject = Subject.of(LEVELS, successes, N, top == labels[:, None])
    every = [subject.scores(np.full(len(choice), level)).mean(axis=1) for level in range(len(LEVELS))]
    scores = np.stack(every, axis=1)
    default = int(scores[choice].mean(axis=0).argmax())

    def candidates() -> Iterator[Candidate]:
        for number, tau in enumerate(TAUS):
            logits = votes["logits"][:, number].astype(np.float32)
            classes, own = logits.shape[2], logits.argmax(axis=2)
            yield from by_radius(own, classes, tau)
            usual = np.array([np.bincount(row).argmax() for row in own])
            prior = 5 * scores[choice].mean(
                axis=0
            )  # a class with few images takes the level that is best for all
            best = [(scores[choice & (usual == c)].sum(axis=0) + prior).argmax() for c in range(classes)]
            yield by_majority("a level a class", np.array(best)[own], default, tau)
            second, first = np.partition(logits, -2, axis=2)[..., -2:].transpose(2, 0, 1)
            margin = first - second
            for threshold in np.quantile(margin[choice].mean(axis=1), QUANTILES):
                for other in set(range(len(LEVELS))) - {default}:
                    for below in (True, False):
                        levels = np.where((margin < threshold) == below, other, default)
                        name = (
                            f"{LEVELS[other]:g} where the margin is {'<' if below else '>='} {threshold:.1f}"
                        )
                        yield by_majority(name, levels, default, tau)

    table(title, subject, candidates(), choice)


def of_job(config: certdef.RunConfig, progress: bool = False) -> tuple[Classifier, Classifier]:
    """The target of a job behind De^3, and its surrogate behind the same."""
    config = replace(config, certify=replace(config.certify, laws=config.certify.laws[:1]))
    with open_job(config, progress=progress) as job:
        target, _ = stages.open_target(job)
        surrogate, stage = stages.distill(job, target)
        denoiser = stages.prepare_purifier(job, "de3", surrogate, stage).denoiser()

    def paid(noisy: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(target.query(denoiser(noisy), bounded=False).labels)

    return paid, lambda noisy: surrogate(denoiser(noisy))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=Path, help="folder of certify_logs: its tables, and nothing else")
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--preset", default="digits")
    parser.add_argument(
        "--models", nargs=2, help="folders of certdef models, certified and routing, without a denoiser"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/routed"))
    parser.add_argument(
        "--images", type=int, default=300, help="held-out images; the choice is made on the first third"
    )
    arguments = parser.parse_args()
    if arguments.logs:
        for n in (1_000, 100_000):
            from_logs(arguments.logs, n)
        return
    torch.set_num_threads(1)
    folder = arguments.work_dir / arguments.preset
    config = certdef.load_config(
        preset=arguments.preset, data__root=arguments.data_root, work_dir=str(folder), threads=1
    )
    data = load_data(config.data, config.seed)
    if arguments.models:
        subject, student = (storage.load_model(path, torch.device("cpu")) for path in arguments.models)
        kind = "-".join(Path(path).parent.name for path in arguments.models)
    else:
        subject, student = of_job(config)
        kind = "target behind De^3"
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (
        torch.from_numpy(data.heldout_images[: arguments.images]),
        data.heldout_labels[: arguments.images],
    )
    votes = record(subject, student, images, len(data.classes), f"{folder}/{kind}")
    choice = np.arange(len(images)) < len(images) // 3
    from_votes(f"{arguments.preset}, {kind}, n = {N0} + {N}", votes, labels, choice)


if __name__ == "__main__":
    main()
