"""The shipped denoiser before targets that nobody here trained: one pass, certified share, votes, seconds, memory.

    python benchmarks/foreign.py --data-root FOLDER

Targets: MLPerf Tiny's ResNet-8 (int8 TFLite) on CIFAR-10, EfficientNet-Lite0 at 224x224 on photographs, a fully connected
MNIST network. Each stands bare, behind the shipped denoiser (purifier de3-leaves), behind a NIM that is trained on the user's
own unlabeled pool, and behind the shipped one fine-tuned on that pool. Beside them, three networks that are trained on the
same dead leaves for the same time: the shipped architecture, a DnCNN-like convolution and a plain ViT NIM of about its cost.

Certificates: Gaussian noise, L2, alpha .001, group_sequential; sigma and the share of the noise that is kept (nim.keep) are
chosen on other images than are certified, for radius .1, for .25, and for .5 and .75. Intervals: 95%, Clopper-Pearson over
images. No figure is paid for twice: every part is kept as JSON in --work-dir, and an interrupted run goes on. About an hour of
two cores; --images, --minutes, --targets and --parts make it shorter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from foreign_denoisers import EQUAL, SEED, Bench, Figures, denoiser
from foreign_subjects import SUBJECTS, Chain, Subject, photographs
from torch import Tensor
from tqdm import tqdm

import certify
from certdef.purifiers.networks.shipped import WEIGHTS
from certdef.tracking.checked_json import file_digest
from surrogates.intervals import clopper_pearson

ALPHA, SIGMAS = 0.001, (0.06, 0.09, 0.12, 0.15, 0.18, 0.25)
RADII = ((0.1,), (0.25,), (0.5, 0.75))  # each group with a sigma of its own
KEEPS, DEFAULT_KEEP = (
    (0.0, 0.05, 0.1, 0.2),
    0.05,
)  # shares of the noise that a denoised image keeps (nim.keep)
PASSES = {True: 8, False: 1}  # noisy versions of each image, of few large images and of many small ones
VOTES = {True: 48, False: 192}  # of each image that sigma is chosen on
LARGE = "efficientnet"
PSNR_SIGMAS = (0.12, 0.25, 0.5)
OWN = {
    "bare": "bare",
    "shipped": "De^3 (shipped)",
    "own": "De^3 (own pool)",
    "tuned": "De^3 (shipped, fine-tuned on the pool)",
}
PARTS = ("one-pass", "certify", "photographs", "speed", "memory")
# At 224x224 a vote takes a tenth of a second.
CERTIFIED_LARGE, CERTIFIED_PHOTOGRAPHS = ("bare", "shipped"), 24


def share(hits: np.ndarray) -> list[float]:
    """Mean share of hits of each image, with the 95% interval over images."""
    return [float(hits.mean()), *clopper_pearson(round(float(hits.sum())), len(hits), 0.025)]


def choice(bench: Bench, subject: Subject, name: str, sigma: float) -> dict[str, list[float]]:
    """How often the other images are right at a sigma, by the share of the noise that is kept: what is chosen by."""
    front, mark = denoiser(bench, subject, name)
    keeps = KEEPS if front else (0.0,)
    votes = VOTES[subject.name == LARGE]

    def compute(found: Figures) -> None:
        right: dict[float, list[float]] = {keep: [] for keep in keeps}
        for number, (image, label) in enumerate(zip(subject.others, subject.other_labels, strict=True)):
            noise = torch.randn(votes, *image.shape, generator=torch.Generator().manual_seed(number))
            noisy = image + sigma * noise
            with torch.no_grad():
                clean = noisy if front is None else front(noisy)
            for keep in keeps:
                given = clean if front is None else (clean + keep * (noisy - clean)).clamp(0, 1)
                labels = subject.target.query(given, bounded=front is not None).labels
                right[keep].append(float((labels == label).mean()))
        found["right"] = {str(keep): shares for keep, shares in right.items()}

    return bench.kept(f"choice-{subject.name}-{name}-{sigma:g}", [subject.key, mark, keeps, votes], compute)[
        "right"
    ]


def kept_share(bench: Bench, subject: Subject, name: str, sigma: float) -> float:
    """The share of kept noise with which most of the other images are right at this sigma."""
    if name in EQUAL:
        return DEFAULT_KEEP
    found = choice(bench, subject, name, sigma)
    return float(max(found, key=lambda keep: np.mean(found[keep])))


def chosen(bench: Bench, subject: Subject, name: str, n: int) -> list[list[float] | None]:
    """For each group of radii the sigma and kept share that promise most on the other images; None where none does.

    Promised is what n votes would prove if they were right as often as the few that were drawn foretell, by Laplace's rule
    of succession: few that are all right do not promise that all are.
    """
    few = VOTES[subject.name == LARGE]
    right = {sigma: choice(bench, subject, name, sigma) for sigma in SIGMAS}
    best: list[list[float] | None] = []
    for group in RADII:
        promised = {}
        for sigma in SIGMAS:
            for keep, shares in right[sigma].items():
                counts = np.round(n * (few * np.array(shares) + 1) / (few + 2)).astype(int)
                radius = sigma * scipy.stats.norm.ppf(certify.binomial_lower_bound(counts, n, ALPHA))
                promised[sigma, float(keep)] = np.mean([(radius >= each).mean() for each in group])
        first = max(promised, key=lambda pair: promised[pair])
        best.append([*first] if promised[first] > 0 else None)
    return best


def one_pass(bench: Bench, subject: Subject, name: str) -> Figures:
    """Right answers to single noisy images."""
    front, mark = denoiser(bench, subject, name)
    passes = PASSES[subject.name == LARGE]
    keeps = [kept_share(bench, subject, name, sigma) for sigma in SIGMAS]

    def compute(found: Figures) -> None:
        for sigma, keep in zip(SIGMAS, keeps, strict=True):
            chain = Chain(front, subject.target, keep)
            generator, right = torch.Generator().manual_seed(SEED), []
            for _ in range(passes):
                noise = torch.randn(subject.images.shape, generator=generator)
                noisy = (subject.images + sigma * noise).split(subject.batch)
                right.append(np.concatenate([chain(batch) for batch in noisy]) == subject.labels)
            found[str(sigma)] = share(np.mean(right, axis=0))

    found = bench.kept(f"one-pass-{subject.name}-{name}", [subject.key, mark, SIGMAS, keeps, passes], compute)
    return Figures(found.path, found | {"keeps": keeps})


def smoothed(chain: Chain, sigma: float, subject: Subject) -> certify.SmoothedClassifier:
    return certify.SmoothedClassifier(
        chain,
        certify.Gaussian(sigma),
        subject.target.num_classes,
        subject="target",
        batch_size=subject.batch,
        seed=SEED,
    )


def certified(bench: Bench, subject: Subject, name: str) -> Figures:
    """Certified share by radius, at the sigmas and kept shares that other images chose."""
    large = subject.name == LARGE
    n0, n, size = (32, 500, 2) if large else (100, 5_000, 20)
    front, mark = denoiser(bench, subject, name)
    choices = chosen(bench, subject, name, n)
    images = subject.images[: CERTIFIED_PHOTOGRAPHS if large else None]

    def compute(found: Figures) -> None:
        for pair in [each for number, each in enumerate(choices) if each and each not in choices[:number]]:
            groups = [group for own, group in zip(choices, RADII, strict=True) if own == pair]
            done = found.setdefault(str(pair), [])
            classifier = smoothed(Chain(front, subject.target, pair[1]), pair[0], subject)
            bar = tqdm(range(len(done), len(images), size), desc=f"{subject.name}, {name}, {pair}")
            for first in bar:
                indices = list(range(first, min(first + size, len(images))))
                started = time.perf_counter()
                proofs = classifier.certify(
                    images[indices],
                    n0=n0,
                    n=n,
                    alpha=ALPHA,
                    method="group_sequential",
                    radii=[radius for group in groups for radius in group],
                    indices=indices,
                )
                seconds = (time.perf_counter() - started) / len(indices)
                for number, proof in zip(indices, proofs, strict=True):
                    right = proof.prediction == subject.labels[number]
                    done.append(
                        [float(proof.radius) if right else 0.0, proof.n0 + sum(proof.counts), seconds]
                    )
                found.save()

    settings = [subject.key, mark, choices, RADII, n0, n, ALPHA, len(images)]
    found = bench.kept(f"certify-{subject.name}-{name}", settings, compute)
    return Figures(found.path, found | {"choices": choices})


def on_photographs(bench: Bench, subject: Subject | None, name: str) -> Figures:
    """PSNR on 68 photographs, 96x96."""
    images = photographs(bench.data, 96)
    front, mark = denoiser(bench, subject, name)
    assert front is not None

    def compute(found: Figures) -> None:
        for sigma in PSNR_SIGMAS:
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
            found[str(sigma)] = [psnr((images + sigma * noise).clamp(0, 1), images)]
            with torch.no_grad():
                started = time.perf_counter()
                denoised = front(images + sigma * noise)
                seconds = (time.perf_counter() - started) / len(images)
            found[str(sigma)].append(psnr(denoised, images))
            found["milliseconds"] = 1e3 * seconds

    named = f"{subject.name}-{name}" if subject else name
    return bench.kept(f"photographs-{named}", [mark, subject and subject.key], compute)


def psnr(images: Tensor, clean: Tensor) -> float:
    return float(-10 * (images - clean).square().mean(dim=(1, 2, 3)).log10().mean())


def speed(bench: Bench, subject: Subject) -> Figures:
    """Votes a second of certify behind the shipped denoiser, against the chain's and the bare target's best batch."""
    front, mark = denoiser(bench, subject, "shipped")
    small = subject.images.shape[-1] < 100
    votes, sizes = (1024, (64, 256, 1024)) if small else (32, (1, 4, 16))
    chain, bare = Chain(front, subject.target, DEFAULT_KEEP), Chain(None, subject.target)

    def compute(found: Figures) -> None:
        image = subject.images[:1]
        noisy = image + 0.12 * torch.randn(
            votes, *image.shape[1:], generator=torch.Generator().manual_seed(SEED)
        )
        classifier = smoothed(chain, 0.12, subject)

        def forward(what: Chain, size: int) -> None:
            for batch in noisy.split(size):
                what(batch)

        def vote() -> None:
            classifier.engine.count(
                chain, image, classifier.noise, subject.target.num_classes, votes, indices=[0], stage=9
            )

        best = {}
        for key, what in {"chain": chain, "bare": bare}.items():
            best[key] = min(sizes, key=lambda size: clock(lambda: forward(what, size)))  # noqa: B023
        runs = {
            "votes": vote,
            "chain": lambda: forward(chain, best["chain"]),
            "bare": lambda: forward(bare, best["bare"]),
        }
        clocks: dict[str, list[float]] = {key: [] for key in runs}
        for turn in range(3):
            for key in runs if turn % 2 == 0 else reversed(runs):
                clocks[key].append(clock(runs[key]))
        found |= {key: votes / statistics.median(each) for key, each in clocks.items()} | {"batch": best}

    return bench.kept(
        f"speed-{subject.name}", [subject.key, mark, votes, sizes, torch.get_num_threads()], compute
    )


def clock(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def memory(bench: Bench, subject: Subject, arguments: argparse.Namespace) -> Figures:
    """Peak memory of 64 votes beyond the model, of a process of its own."""

    def compute(found: Figures) -> None:
        command = [
            sys.executable,
            __file__,
            "--data-root",
            arguments.data_root,
            "--work-dir",
            arguments.work_dir,
        ]
        for name in ("bare", "shipped"):
            done = subprocess.run(
                [*command, "--peak", f"{subject.name}/{name}"], capture_output=True, text=True, check=True
            )
            found[name] = float(done.stdout.split()[-1])

    return bench.kept(f"memory-{subject.name}", [subject.key, file_digest(WEIGHTS)], compute)


def print_peak(bench: Bench, what: str) -> None:
    """Print how much memory 64 votes of an image took beyond a single one, in GiB."""
    subject_name, _, name = what.partition("/")
    subject = SUBJECTS[subject_name](bench.data, 2)
    front, _ = denoiser(bench, subject, name)
    chain = Chain(front, subject.target, DEFAULT_KEEP)
    chain(subject.images[:1])
    before = peak()
    classifier = smoothed(chain, 0.12, subject)
    classifier.engine.count(
        chain, subject.images[:1], classifier.noise, subject.target.num_classes, 64, indices=[0], stage=9
    )
    print((peak() - before) / 2**20)


def peak() -> int:
    """The most memory that this process has had, in KiB. Not ru_maxrss: a new process inherits that."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def cell(found: list[float]) -> str:
    value, low, high = found
    return f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_one_pass(bench: Bench, subject: Subject, denoisers: list[str]) -> None:
    names = {name: title for name, title in OWN.items() if name in denoisers}
    if len(names) == len(OWN) and subject.images.shape[1] == 3:
        names |= EQUAL
    rows = []
    for name, title in names.items():
        found = one_pass(bench, subject, name)
        equal = f"{title}, {bench.minutes:g} min. of dead leaves" if name in EQUAL else title
        cells = [cell(found[str(sigma)]) for sigma in SIGMAS]
        if name != "bare":
            cells = [f"{each} ({keep:g})" for each, keep in zip(cells, found["keeps"], strict=True)]
        rows.append([equal, *cells])
    print(
        f"\n### {subject.title}: one pass, {len(subject.images)} images, % right (share of the noise kept)\n"
    )
    table(["denoiser", *(f"sigma {sigma:g}" for sigma in SIGMAS)], rows)


def print_certified(bench: Bench, subject: Subject, denoisers: list[str]) -> None:
    rows = []
    count = min(len(subject.images), CERTIFIED_PHOTOGRAPHS if subject.name == LARGE else len(subject.images))
    for name, title in OWN.items():
        if name not in denoisers or (subject.name == LARGE and name not in CERTIFIED_LARGE):
            continue
        found = certified(bench, subject, name)
        cells, spent = [], {}
        for pair, group in zip(found["choices"], RADII, strict=True):
            proofs = np.array(found[str(pair)] if pair else [[0, 0, 0]] * count)
            cells += [cell(share(proofs[:, 0] >= radius)) for radius in group]
            spent[str(pair)] = proofs[:, 1:].mean(axis=0)
        pairs = [f"{each[0]:g}, {each[1]:g}" if each else "none" for each in found["choices"]]
        votes = " / ".join(f"{each[0]:.0f}" for each in spent.values())
        seconds = " / ".join(f"{each[1]:.2f}" for each in spent.values())
        rows.append([title, " / ".join(dict.fromkeys(pairs)), *cells, votes, seconds])
    radii = [f"r = {radius:g}" for group in RADII for radius in group]
    print(f"\n### {subject.title}: certified right, {count} images, %, alpha {ALPHA:g}\n")
    table(["denoiser", "sigma, kept", *radii, "votes an image", "seconds an image"], rows)


def print_photographs(bench: Bench, subjects: list[Subject]) -> None:
    rows = []
    cases: list[tuple[Subject | None, str, str]] = [(None, "shipped", OWN["shipped"])]
    cases += [
        (None, name, f"{title}, {bench.minutes:g} min. of dead leaves") for name, title in EQUAL.items()
    ]
    for subject in subjects:
        if subject.images.shape[1] == 3:
            cases += [(subject, name, f"{OWN[name]}: {subject.name}") for name in ("own", "tuned")]
    for owner, name, title in cases:
        found = on_photographs(bench, owner, name)
        if not rows:
            rows.append(["noisy", *(f"{found[str(sigma)][0]:.1f}" for sigma in PSNR_SIGMAS), ""])
        psnrs = [f"{found[str(sigma)][1]:.1f}" for sigma in PSNR_SIGMAS]
        rows.append([title, *psnrs, f"{found['milliseconds']:.1f}"])
    print("\n### 68 photographs, 96x96: PSNR in dB\n")
    table(["denoiser", *(f"sigma {sigma:g}" for sigma in PSNR_SIGMAS), "ms an image"], rows)


def print_costs(
    bench: Bench, subjects: list[Subject], parts: list[str], arguments: argparse.Namespace
) -> None:
    rows = []
    for subject in subjects:
        row = [subject.name]
        if "speed" in parts:
            found = speed(bench, subject)
            row += [
                f"{found[key]:,.0f}" if found[key] > 10 else f"{found[key]:.1f}"
                for key in ("votes", "chain", "bare")
            ]
            row += [f"{found['votes'] / found['chain']:.2f}", f"{found['votes'] / found['bare']:.2f}"]
        if "memory" in parts:
            found = memory(bench, subject, arguments)
            row += [f"{found[name]:.2f}" for name in ("bare", "shipped")]
        rows.append(row)
    head = ["target"]
    if "speed" in parts:
        head += [
            "votes a second, shipped",
            "its forward passes",
            "the bare target's",
            "votes / passes",
            "votes / bare",
        ]
    if "memory" in parts:
        head += ["GiB of 64 votes, bare", "shipped"]
    print(f"\n### Speed and memory, {torch.get_num_threads()} threads\n")
    table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default="../shared/data", help="Folder of the data sets.")
    parser.add_argument("--work-dir", default="runs/foreign", help="Where figures and networks are kept.")
    parser.add_argument("--images", type=int, default=200, help="Images of the small targets.")
    parser.add_argument("--large-images", type=int, default=60, help="Photographs of EfficientNet-Lite0.")
    parser.add_argument("--minutes", type=float, default=1.5, help="Processor minutes of each training.")
    parser.add_argument("--targets", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--denoisers", nargs="+", choices=OWN, default=list(OWN), help="Of the shares.")
    parser.add_argument("--threads", type=int, default=2, help="Processor threads of torch.")
    parser.add_argument("--peak", metavar="TARGET/DENOISER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.work_dir, arguments.data_root, arguments.minutes)
    if arguments.peak:
        print_peak(bench, arguments.peak)
        return
    subjects = [
        SUBJECTS[name](bench.data, arguments.large_images if name == LARGE else arguments.images)
        for name in arguments.targets
    ]
    if "photographs" in arguments.parts:
        print_photographs(bench, subjects)
    for subject in subjects:
        if "one-pass" in arguments.parts:
            print_one_pass(bench, subject, arguments.denoisers)
        if "certify" in arguments.parts:
            print_certified(bench, subject, arguments.denoisers)
    costs = [part for part in ("speed", "memory") if part in arguments.parts]
    if costs:
        print_costs(bench, subjects, costs, arguments)


if __name__ == "__main__":
    main()
