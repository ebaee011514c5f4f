"""Votes that an old version's answers save when the new version is certified, against certifying it from scratch.

    python benchmarks/incremental.py --data ../shared/data --images 30

Two subjects: MLPerf Tiny's ResNet-8 for CIFAR-10, int8, whose old version is the float network that it was made from
(needs certdef[tflite]); and a small network for Fashion-MNIST, fine-tuned from an old one that this script trains. Each is
certified from its real old version, from an untrained network, and from answers that always name the next class. All
votes are of the new version.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

import certify
import surrogates
from certify.guided.answers import Redrawn

ALPHA, CLASSES = 0.001, 10
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A new version, its old one (scores), images (N, C, H, W) in [0, 1], the noise and the radius."""

    title: str
    new: Classifier
    old: Classifier
    images: Tensor
    noise: certify.NoiseLaw
    radius: float


def tiny(data: Path, count: int) -> Subject:
    """The int8 network and the float network that it was made from."""
    folder = data / "targets/mlperf_tiny"
    new = surrogates.open_target(folder / "resnet8_cifar10_int8.tflite")
    old = surrogates.open_target(folder / "resnet8_cifar10_float.tflite", pixel_range=(0, 255))
    with np.load(data / "cifar10/cifar10_lossless.npz") as arrays:
        images = torch.from_numpy(arrays["x_test"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 255)

    def labels(target: surrogates.Target) -> Classifier:
        return lambda noisy: torch.from_numpy(target.query(noisy, bounded=False).labels)

    def scores(noisy: Tensor) -> Tensor:
        found = old.query(noisy, bounded=False).scores
        return torch.from_numpy(np.log(np.maximum(found, 1e-6)))

    title = "MLPerf Tiny ResNet-8, CIFAR-10: int8 from float"
    return Subject(title, labels(new), scores, images, certify.Gaussian(0.04), 0.03)


def small() -> nn.Sequential:
    """A network for 28x28 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


def train(network: nn.Module, images: Tensor, labels: Tensor, sigma: float, epochs: int, rate: float) -> None:
    """Train under the noise that is certified."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            noisy = images[rows] + sigma * torch.randn_like(images[rows])
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(noisy), labels[rows]).backward()
            optimizer.step()


def fine_tuned(data: Path, count: int) -> Subject:
    """A network, and the same after two more epochs on images that it had not seen."""
    sets = [FashionMNIST(data / "fashion_mnist", train=kind, download=False) for kind in (True, False)]
    (seen, labels), (images, _) = ((each.data[:, None].float() / 255, each.targets) for each in sets)
    sigma = 0.25
    old = small()
    train(old, seen[:10_000], labels[:10_000], sigma, 3, 1e-3)
    new = small()
    new.load_state_dict(old.state_dict())
    train(new, seen[10_000:15_000], labels[10_000:15_000], sigma, 2, 3e-4)
    title = "a small network, Fashion-MNIST: fine-tuned from the old one"
    return Subject(title, new.eval(), old.eval(), images[:count], certify.Gaussian(sigma), 0.25)


def untrained(subject: Subject) -> nn.Module:
    """An unrelated network of the same images and classes."""
    values = int(np.prod(subject.images.shape[1:]))
    return nn.Sequential(nn.Flatten(), nn.Linear(values, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def row(name: str, found: list[certify.Certificate], radius: float, scratch: float | None = None) -> str:
    votes = np.mean([each.n0 + each.n for each in found])
    certified = sum(each.radius >= radius for each in found)
    against = "" if scratch is None else f"{100 * (votes / scratch - 1):+.0f}%"
    return f"| {name} | {votes:,.0f} | {certified} of {len(found)} | {against} |"


def table(subject: Subject, arguments: argparse.Namespace) -> None:
    """Print the votes of every way to certify the new version."""
    images, noise, n = subject.images, subject.noise, arguments.n
    olds = {"old version": subject.old, "unrelated (an untrained network)": untrained(subject)}
    kept = {
        name: certify.record_answers(old, images, noise, CLASSES, n=arguments.draws, seed=1)
        for name, old in olds.items()
    }
    first = kept["old version"]
    kept["always wrong (its class + 1)"] = replace(first, labels=(first.labels + 1) % CLASSES)
    with torch.no_grad():
        which, redrawn = np.arange(200), Redrawn(first, noise)
        agree = [
            np.mean(hard(subject.new(redrawn(at, which, image))) == first.labels[at][which])
            for at, image in enumerate(images)
        ]
    print(f"\n### {subject.title}; {noise!r}, {len(images)} images, alpha {ALPHA}, n at most {n:,}")
    print(f"\nBoth versions agree on {100 * np.mean(agree):.1f}% of the noise draws.")
    radius = subject.radius
    print(f"\n| r = {radius:g} | votes an image | certified | votes |\n| --- | ---: | ---: | ---: |")
    one = {"n": n, "alpha": ALPHA, "radii": [radius]}
    smoothed = certify.SmoothedClassifier(subject.new, noise, CLASSES, seed=2)
    scratch = smoothed.certify(images, n0=100, method="sequential", **one)
    least = float(np.mean([each.n0 + each.n for each in scratch]))
    print(row("from scratch, sequential, n0 = 100", scratch, radius, least))
    own = [replace(each, n0=0) for each in scratch]
    print(row("from scratch, its class given", own, radius, least), flush=True)
    for name, answers in kept.items():
        found = certify.certify_from_old(subject.new, answers, images, noise, CLASSES, seed=3, **one)
        print(row(f"{arguments.draws:,} recorded answers, {name}", found, radius, least), flush=True)
    for name, old in olds.items() if arguments.afresh else ():
        found = certify.certify_from_old(subject.new, old, images, noise, CLASSES, seed=3, **one)
        print(row(f"asked afresh for free, {name}", found, radius, least), flush=True)
    print(irs(subject, kept["old version"], radius, arguments.pairs, least), flush=True)


def irs(subject: Subject, kept: certify.OldAnswers, radius: float, pairs: int, least: float) -> str:
    """Incremental randomized smoothing: a fixed number of pairs, p_old and zeta bounded apart."""
    certified, p = 0, subject.noise.p_required(radius)
    for position, image in enumerate(subject.images):
        labels = kept.labels[position]
        generator = torch.Generator().manual_seed(10_000 + position)
        noisy = image + subject.noise.sample((pairs, *image.shape), generator)
        with torch.no_grad():
            before, after = hard(subject.old(noisy)), hard(subject.new(noisy))
        top = np.bincount(before, minlength=CLASSES).argmax()  # on other draws than those of the count
        lost = int(np.sum((before == top) & (after != top)))
        bound = certify.incremental_lower_bound(int(np.sum(labels == top)), len(labels), lost, pairs, ALPHA)
        certified += bound >= p
    share = f"{certified} of {len(subject.images)}"
    return f"| zeta bound (IRS), {pairs} pairs | {pairs} | {share} | {100 * (pairs / least - 1):+.0f}% |"


def hard(answers: Tensor) -> np.ndarray:
    return (answers.argmax(1) if answers.ndim == 2 else answers).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the data sets.")
    parser.add_argument(
        "--subjects", nargs="+", default=["tiny", "fine_tuned"], choices=("tiny", "fine_tuned")
    )
    parser.add_argument("--images", type=int, default=20, help="Test images, the first ones.")
    parser.add_argument(
        "--draws", type=int, default=5_000, help="Recorded answers of the old version an image."
    )
    parser.add_argument(
        "--afresh", action="store_true", help="Also ask the old version itself: 32 answers a vote."
    )
    parser.add_argument("--n", type=int, default=5_000, help="Most votes of an image.")
    parser.add_argument("--pairs", type=int, default=400, help="Of the zeta bound.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for name in arguments.subjects:
        table({"tiny": tiny, "fine_tuned": fine_tuned}[name](arguments.data, arguments.images), arguments)


if __name__ == "__main__":
    main()
