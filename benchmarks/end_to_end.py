"""Seconds to a certified share: this package against the 2019 loop and ART, same classifier, images, alpha and radii.

    python benchmarks/end_to_end.py [--data-root FOLDER] [--images 50] [--loop-images 2] [--clock processor]

A small CNN is trained on Fashion-MNIST under the noise that it is certified under, once, and kept in --work-dir. Ours stops as
soon as an image's radii are decided (``group_sequential``, at most 100,000 votes), in float32 and in the arithmetic that
``engine="auto"`` measures. The published loops take n0 = 100 and n = 100,000 votes for every image: Cohen et al. 2019
(repeat, add noise, argmax, count on the host) and PyTorchRandomizedSmoothing of the Adversarial Robustness Toolbox. As
their work does not depend on the image, --loop-images of them are run in full and their seconds are scaled to all images;
the share that their rule certifies is that of this package's ``fixed`` with the same n0, n and alpha, on other draws.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import certify
from certdef.config.job import DataConfig
from certdef.data.named import data_root
from certdef.models.small import cnn
from certify import Gaussian, SmoothedClassifier, VoteEngine
from certify.voting import Computed

CLASSES, N0, N, ALPHA = 10, 100, 100_000, 0.001


def images_and_labels(root: str | None, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Fashion-MNIST (N, 1, 28, 28) in [0, 1], and labels."""
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(str(data_root(DataConfig(root=root)) / "fashion_mnist"), train=train, download=False)
    return data.data[:, None].float() / 255, data.targets


def classifier(root: str | None, noise: Gaussian, epochs: int, path: Path) -> nn.Module:
    """The CNN, trained under the noise; kept at ``path``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cnn(1, 28, CLASSES)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    images, labels = images_and_labels(root, train=True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            noisy = images[batch] + noise.sample((len(batch), 1, 28, 28), generator)
            loss = nn.functional.cross_entropy(model(noisy), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def loop(model: nn.Module, image: torch.Tensor, noise: Gaussian, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """CERTIFY's counts for an image (C, H, W), as the 2019 reference takes them."""
    found = []
    with torch.no_grad():
        for left in (N0, N):
            counts = np.zeros(CLASSES, dtype=np.int64)
            while left > 0:
                size = min(batch, left)
                left -= size
                repeated = image.repeat((size, 1, 1, 1))
                for label in model(repeated + noise.sigma * torch.randn_like(repeated)).argmax(1).numpy():
                    counts[label] += 1
            found.append(counts)
    return found[0], found[1]


def art(model: nn.Module, image: torch.Tensor, noise: Gaussian, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by ART."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothed = PyTorchRandomizedSmoothing(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(image.shape),
        nb_classes=CLASSES,
        sample_size=N,
        scale=noise.sigma,
        device_type="cpu",
    )
    selection, counts = (smoothed._prediction_counts(image.numpy(), n=n, batch_size=batch) for n in (N0, N))
    return np.asarray(selection).ravel().astype(np.int64), np.asarray(counts).ravel().astype(np.int64)


def shares(
    certificates: Sequence[certify.Certificate], labels: torch.Tensor, radii: list[float]
) -> list[float]:
    """Percent of the images that are certified right at each radius."""
    right = np.array([each.prediction for each in certificates]) == labels[: len(certificates)].numpy()
    reached = np.array([each.radius for each in certificates])
    return [float(100 * np.mean(right & (reached >= radius))) for radius in radii]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root")
    parser.add_argument("--work-dir", default="runs/end_to_end")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--images", type=int, default=50, help="spread evenly over the test set")
    parser.add_argument("--loop-images", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="noisy images a call, of every side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "processor" else time.perf_counter
    noise, radii = Gaussian(arguments.sigma), arguments.radii
    name = f"cnn-{arguments.sigma:g}-{arguments.epochs}.pt"
    model = classifier(arguments.data_root, noise, arguments.epochs, Path(arguments.work_dir) / name)
    images, labels = images_and_labels(arguments.data_root, train=False)
    chosen = torch.arange(arguments.images) * (len(images) // arguments.images)
    images, labels = images[chosen], labels[chosen]

    def timed(work: Callable[[], list[certify.Certificate]]) -> tuple[float, list[certify.Certificate]]:
        start = clock()
        return (found := work()) and clock() - start, found

    engine = VoteEngine(batch_size=2 * arguments.batch)
    fast = SmoothedClassifier(model, noise, CLASSES, engine="auto", batch_size=2 * arguments.batch)
    stopping = {"n0": N0, "n": N, "alpha": ALPHA, "method": "group_sequential", "radii": radii}
    rows = []
    for title, smoothed in (
        ("certify, auto", fast),  # with the seconds of the choice
        ("certify, float32", SmoothedClassifier(model, noise, CLASSES, engine=engine)),
    ):
        seconds, found = timed(lambda each=smoothed: each.certify(images, **stopping))  # type: ignore[misc]
        votes = float(np.mean([each.n0 + each.n for each in found]))
        rows.append((title, seconds, votes, shares(found, labels, radii)))
    print(f"auto: {fast.engine.arithmetic}", flush=True)

    settled = replace(fast.engine, seed=1)
    reference = SmoothedClassifier(model, noise, CLASSES, engine=settled)
    fixed = shares(reference.certify(images, n0=N0, n=N, alpha=ALPHA), labels, radii)
    sides = {
        "2019 loop, float32": (loop, model),
        "2019 loop, arithmetic of auto": (loop, Computed(model, fast.engine).eval()),
        "ART, float32": (art, model),
    }
    for title, (votes_of, base) in sides.items():

        def work(votes_of=votes_of, base=base) -> list[certify.Certificate]:  # type: ignore[no-untyped-def]
            each = (
                votes_of(base, image, noise, arguments.batch) for image in images[: arguments.loop_images]
            )
            return [certify.core.certify(*counts, noise, ALPHA) for counts in each]

        seconds, found = timed(work)
        print(f"{title}: {arguments.loop_images} images, radii {[round(each.radius, 3) for each in found]}")
        rows.append((title, seconds * arguments.images / len(found), float(N0 + N), fixed))
    print(
        f"\nFashion-MNIST CNN, sigma {arguments.sigma:g}, {arguments.images} images, alpha {ALPHA:g}, "
        f"{arguments.threads} threads, {arguments.clock} time\n"
    )
    print("| side | seconds | of ours | votes an image | " + " | ".join(f"r = {r:g}" for r in radii) + " |")
    print("| --- |" + " ---: |" * (3 + len(radii)))
    for title, seconds, votes, certified in rows:
        cells = " | ".join(f"{share:.0f}%" for share in certified)
        print(f"| {title} | {seconds:,.1f} | {seconds / rows[0][1]:,.1f} | {votes:,.0f} | {cells} |")


if __name__ == "__main__":
    main()
