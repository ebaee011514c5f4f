"""Patches: certified share and labels an image, for gray, mean and inpainted masks, patches of 1x1 to 5x5 pixels.

    python benchmarks/patches.py --data-root FOLDER [--images 40] [--fills gray mean mim leaves]

Targets that never saw a mask: a small CNN on Fashion-MNIST, and MLPerf Tiny's int8 ResNet-8 on CIFAR-10 (needs
certdef[tflite]; nobody here trained it). Targets that did: the same CNN, and one on the CIFAR-10 part, trained with two
random gray masks on each image. The masked autoencoder `mim` is trained on images without labels, as the purifier is, but
hides half of the patches: masks hide less than three quarters. `leaves` is the shipped denoiser, which never saw either
data set; it is slow, so it is asked about 3x3 patches alone.

A row: accuracy on the images as they are; certified share, every one of them against any patch of the size anywhere; mean
labels an image, which stop at the first pair of masks that is wrong. 16 masks, 4 a side: 136 pairs. The last line
orders the pairs by a surrogate, a CNN trained on 2,000 of the target's answers.

Networks and rows are kept in the work directory; the same command goes on where it was. About 12 minutes of one core.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import certify
import surrogates
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers import MIM, MIMShape, pretrain_nim
from certdef.purifiers.networks.inpainting import DenoisedFill, MaskedFill
from certdef.purifiers.networks.nim import nim_training
from certdef.purifiers.networks.shipped import shipped_denoiser
from certify.threats.fills import FILLS, cover, gray
from certify.threats.masks import CoveringMasks
from certify.threats.patches import MaskedClassifier

SIDES = (1, 2, 3, 4, 5)
A_SIDE = 4
CLASSES = 10
NEVER, TRAINED = "never saw masks", "trained with masks"
TRAINED_ON = 3  # side of the patch whose masks the targets saw that saw any
FILL_NAMES = ("gray", "mean", "mim", "leaves")
RATIO, MIM_EPOCHS = 0.5, {"Fashion-MNIST": 6, "CIFAR-10": 5}


@dataclass(frozen=True)
class Images:
    """Arrays of one data set: to train on, and to certify."""

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: Tensor
    test_labels: np.ndarray


def fashion(data: Path, count: int) -> Images:
    from torchvision.datasets import FashionMNIST

    parts = [FashionMNIST(str(data / "fashion_mnist"), train=train) for train in (True, False)]
    pixels = [part.data.numpy()[:, None].astype(np.float32) / 255 for part in parts]
    labels = [part.targets.numpy() for part in parts]
    return Images(
        "Fashion-MNIST",
        pixels[0][:12_000],
        labels[0][:12_000],
        torch.from_numpy(pixels[1][:count]),
        labels[1][:count],
    )


def cifar(data: Path, count: int) -> Images:
    with np.load(data / "cifar10/cifar10_lossless.npz") as arrays:
        pixels = [
            arrays[name].transpose(0, 3, 1, 2).astype(np.float32) / 255 for name in ("x_train", "x_test")
        ]
        labels = [arrays[name].astype(np.int64) for name in ("y_train", "y_test")]
    return Images("CIFAR-10", pixels[0], labels[0], torch.from_numpy(pixels[1][:count]), labels[1][:count])


def network(folder: Path, name: str, build: Callable[[], Any], train: Callable[[Any], Any]) -> Any:
    """A network that is trained once, from seed 0."""
    path = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    model = build()
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train(model)
        save_file(model.state_dict(), path)
    return model.eval()


def classifier(folder: Path, images: Images, *, masked: bool) -> nn.Module:
    """A small CNN; with masks, two random gray ones hide a part of each training image."""
    shape = images.train.shape[1:]
    masks = CoveringMasks.over(shape[1:], (TRAINED_ON, TRAINED_ON), A_SIDE).hidden
    generator = torch.Generator().manual_seed(1)

    def hide(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        first, second = torch.randint(len(masks), (2, len(batch)), generator=generator)
        return cover(batch, masks[first] | masks[second], gray)

    color = shape[0] == 3
    return network(
        folder,
        f"cnn-{images.name}-{'masked' if masked else 'plain'}",
        lambda: build_classifier("cnn", shape, CLASSES),
        lambda model: train_classifier(
            model,
            images.train,
            images.train_labels,
            epochs=6 if color else 3,
            seed=0,
            device=torch.device("cpu"),
            augment=color,
            perturb=hide if masked else None,
        ),
    )


def inpainter(folder: Path, images: Images) -> MaskedFill:
    """The masked autoencoder, trained on images without labels."""
    training = nim_training(MIM_EPOCHS[images.name], 64, 6e-3)
    model = network(
        folder,
        f"mim-{images.name}",
        lambda: MIM(MIMShape(images.train.shape[1:], ratio=RATIO)),
        lambda model: pretrain_nim(
            model,
            torch.from_numpy(images.train),
            None,
            training,
            checkpoint=folder / f"mim-{images.name}.pt",
        ),
    )
    return MaskedFill(model)


def asked(target: nn.Module | surrogates.Target) -> Callable[[Tensor], Any]:
    """What answers with labels alone."""
    if isinstance(target, nn.Module):
        return lambda batch: target(batch).argmax(dim=1)
    return lambda batch: target.query(batch).labels


def row(
    target: Any, images: Images, side: int, fill: Any, name: str, guide: nn.Module | None = None
) -> dict[str, float]:
    """Shares and mean labels of the images of a data set."""
    masks = CoveringMasks.over(tuple(images.test.shape[2:]), (side, side), A_SIDE)
    system = MaskedClassifier(asked(target), masks, CLASSES, fill=fill, fill_name=name, surrogate=guide)
    found = system.certify(images.test, known_class=images.test_labels)
    with torch.no_grad():
        plain = np.asarray(asked(target)(images.test))
    return {
        "accuracy": float((plain == images.test_labels).mean()),
        "certified": float(np.mean([not each.abstained for each in found])),
        "labels": float(np.mean([each.n for each in found])),
    }


def interval(share: float, count: int) -> str:
    low, high = certify.binomial_interval(round(share * count), count)
    return f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


SETS = {"fashion-mnist": fashion, "cifar10": cifar}


class Rows:
    """Rows by name, each measured once and kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}

    def once(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self.known:
            self.known[key] = compute()
            self.path.write_text(json.dumps(self.known, indent=1))
        return self.known[key]


def never_masked(folder: Path, data: Path, images: Images) -> Any:
    """A target that was trained without masks."""
    if images.name == "Fashion-MNIST":
        return classifier(folder, images, masked=False)
    return surrogates.open_target(data / "targets/mlperf_tiny/resnet8_cifar10_int8.tflite")


def student(folder: Path, images: Images, target: Any) -> nn.Module:
    """A surrogate of a target, from its answers to 2,000 images."""
    pool = images.train[:2_000]

    def train(model: nn.Module) -> None:
        with torch.no_grad():
            answers = np.asarray(asked(target)(torch.from_numpy(pool)))
        train_classifier(model, pool, answers, epochs=10, seed=0, device=torch.device("cpu"))

    build = partial(build_classifier, "cnn", pool.shape[1:], CLASSES)
    return network(folder, f"student-{images.name}", build, train)


def table(images: Images, arguments: argparse.Namespace, rows: Rows) -> None:
    """Measure and print the rows of one data set."""
    folder, names = arguments.work_dir, arguments.fills
    makers: dict[str, Callable[[], Any]] = {
        NEVER: partial(never_masked, folder, arguments.data_root, images),
        TRAINED: partial(classifier, folder, images, masked=True),
    }
    targets = {title: makers[title]() for title in (NEVER, *([TRAINED] if arguments.trained else []))}
    fills: dict[str, Any] = {name: FILLS[name] for name in names if name in FILLS}
    if "mim" in names:
        fills["mim"] = inpainter(folder, images)
    if "leaves" in names:
        fills["leaves"] = DenoisedFill(shipped_denoiser())
    count = len(images.test)
    print(
        f"\n### {images.name}, {count} images, {A_SIDE**2} masks: certified share in % [95%], labels an image\n"
    )
    print("| target (accuracy) | patch | " + " | ".join(names) + " |")
    print("| --- | ---: |" + " ---: |" * len(names))
    for title, target in targets.items():
        for side in SIDES:
            cells, accuracy = [], 0.0
            for name in names:
                if name == "leaves" and side != 3:
                    cells.append("")
                    continue
                compute = partial(row, target, images, side, fills[name], name)
                found = rows.once(f"{images.name}/{count}/{title}/{side}/{name}", compute)
                accuracy = found["accuracy"]
                cells.append(f"{interval(found['certified'], count)}, {found['labels']:.0f}")
            print(f"| {title} ({100 * accuracy:.0f}) | {side}x{side} | {' | '.join(cells)} |", flush=True)
    target = targets[NEVER]
    plain = partial(row, target, images, 3, gray, "gray")
    guide = student(folder, images, target)
    orders = [
        rows.once(f"{images.name}/{count}/{NEVER}/3/gray", plain),
        rows.once(f"{images.name}/{count}/ordered", partial(plain, guide)),
    ]
    labels = [f"{found['labels']:.1f}" for found in orders]
    print(f"\nlabels an image, 3x3, gray: {labels[0]}; ordered by a surrogate {labels[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("../shared/data"), help="Folder of the data sets."
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs/patches"), help="Where networks and rows are kept."
    )
    parser.add_argument("--images", type=int, default=40, help="Test images of each data set.")
    parser.add_argument(
        "--fills", nargs="+", default=list(FILL_NAMES), choices=FILL_NAMES, help="What masks are filled with."
    )
    parser.add_argument(
        "--sets", nargs="+", default=list(SETS), choices=list(SETS), help="Data sets, all unless named."
    )
    parser.add_argument(
        "--no-trained", dest="trained", action="store_false", help="Leave out targets trained with masks."
    )
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    rows = Rows(arguments.work_dir / "rows.json")
    for name in arguments.sets:
        table(SETS[name](arguments.data_root, arguments.images), arguments, rows)


if __name__ == "__main__":
    main()
