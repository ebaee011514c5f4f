"""The denoisers that `foreign.py` compares: shipped, trained on a pool, and three architectures on the same dead leaves."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from foreign_subjects import Subject
from torch import Tensor, nn

import certify
from certdef.data.dead_leaves import dead_leaves
from certdef.models import storage
from certdef.purifiers import build
from certdef.purifiers.networks.leaves import LeavesTraining, pretrain_multiscale
from certdef.purifiers.networks.multiscale import MultiscaleNIM, MultiscaleShape
from certdef.purifiers.networks.nim import nim_training, pretrain_nim
from certdef.purifiers.networks.shipped import WEIGHTS, shipped_denoiser
from certdef.purifiers.networks.tiles import TiledNIM, TiledShape, chunks, random_squares
from certdef.tracking.checked_json import file_digest, fingerprint
from surrogates.files import replacing

SEED, BATCH = 0, 32
NOISE = certify.GaussianScaleMixture(scipy.stats.uniform(0.03, 0.32))  # that of the shipped denoiser
PLAIN = {"patch_size": 4, "width": 96, "depth": 4, "heads": 4, "decoder_width": 96}
EQUAL_VIT = {"patch_size": 4, "width": 128, "depth": 5, "heads": 4, "decoder_width": 128}
EQUAL = {"multiscale": "shipped architecture", "convolutions": "DnCNN-like", "vit": "plain ViT NIM"}
LEAVES = LeavesTraining(images=200, epochs=1)
RATES = {"own": 2e-3, "tuned": 3e-4}


class Bench:
    """The folder of the results, and how large everything is."""

    def __init__(self, folder: str, data: str, minutes: float):
        self.folder, self.data, self.minutes = Path(folder), Path(data), minutes
        self.folder.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str, settings: Any, compute: Callable[[Figures], None]) -> Figures:
        """The figures of a part: `compute` fills in what is missing, and may save on its way."""
        path = self.folder / f"{name}-{fingerprint(settings)}.json"
        found = Figures(path, json.loads(path.read_text()) if path.is_file() else {})
        if not found.get("done"):
            compute(found)
            found["done"] = True
            found.save()
        return found

    def trained(
        self, name: str, settings: Any, network: nn.Module, train: Callable[[Any], None]
    ) -> nn.Module:
        """A network that is trained once."""
        folder = self.folder / f"{name}-{fingerprint(settings, self.minutes)}"
        if not (folder / "model.json").is_file():
            train(network)
            storage.save_network(folder, network)
        return storage.load_weights(folder, network).eval()


class Figures(dict):
    """Figures with the file that keeps them."""

    def __init__(self, path: Path, values: dict[str, Any]):
        super().__init__(values)
        self.path = path

    def save(self) -> None:
        with replacing(self.path) as file:
            file.write(json.dumps(self).encode())


def denoiser(bench: Bench, subject: Subject | None, name: str) -> tuple[nn.Module | None, Any]:
    """What stands before a target, and what decides it."""
    if name == "bare":
        return None, "bare"
    if name == "shipped":
        return build.denoiser("de3-leaves", {}, {"leaves": shipped_denoiser()}), file_digest(WEIGHTS)
    if name in EQUAL:
        return _on_leaves(bench, name), [name, bench.minutes]
    assert subject is not None
    return _on_pool(bench, subject, name), [
        name,
        bench.minutes,
        file_digest(WEIGHTS) if name == "tuned" else "",
    ]


def _on_leaves(bench: Bench, kind: str) -> nn.Module:
    """One of the three architectures, trained on the same dead leaves for the same time."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "multiscale": lambda: MultiscaleNIM(MultiscaleShape()),
        "convolutions": lambda: Convolutions(ConvolutionsShape()),
        "vit": lambda: TiledNIM(TiledShape((3, 32, 32), **EQUAL_VIT)),
    }

    def epochs_of(network: Any, images: Tensor, epochs: int) -> None:
        recipe = replace(LEAVES, epochs=epochs)
        pretrain_multiscale(getattr(network, "nim", network), images, recipe)

    def train(network: nn.Module) -> None:
        _for_minutes(bench.minutes, network, _leaves(bench), epochs_of, kind)

    settings = [kind, asdict(LEAVES), EQUAL_VIT, asdict(ConvolutionsShape())]
    return bench.trained(f"leaves-{kind}", settings, _seeded(builders[kind]), train)


def _leaves(bench: Bench) -> Tensor:
    path = bench.folder / f"leaves-{fingerprint(LEAVES.images, LEAVES.side, LEAVES.seed)}.npy"
    if not path.is_file():
        with replacing(path) as file:
            np.save(file, dead_leaves(LEAVES.images, LEAVES.side, LEAVES.seed))
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _on_pool(bench: Bench, subject: Subject, name: str) -> nn.Module:
    """A NIM on squares of the user's pool: from nothing (own), or from the shipped weights (tuned)."""
    shape = tuple(subject.pool.shape[1:])
    side = min(32, *shape[1:])
    plain = TiledShape(shape, **PLAIN, tile=side)
    network = shipped_denoiser() if name == "tuned" else _seeded(lambda: TiledNIM(plain))
    rate = RATES[name] * 256 / BATCH

    def squares(images: Tensor, generator: torch.Generator) -> Tensor:
        return random_squares(images, side, generator)

    recipe = partial(nim_training, batch_size=BATCH, base_learning_rate=rate, ema=0.999, precision="bfloat16")

    def epochs_of(network: Any, images: Tensor, epochs: int) -> None:
        options = {"squares": squares, "distance": nn.functional.l1_loss}
        pretrain_nim(getattr(network, "nim", network), images, NOISE, recipe(epochs), **options)

    def train(network: nn.Module) -> None:
        _for_minutes(bench.minutes, network, subject.pool, epochs_of, f"{subject.name}, {name}")

    settings = [subject.key, rate, PLAIN, file_digest(WEIGHTS) if name == "tuned" else ""]
    return bench.trained(f"{subject.name}-{name}", settings, network, train)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose untrained weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return make()


def _for_minutes(
    minutes: float,
    network: nn.Module,
    images: Tensor,
    train: Callable[[Any, Tensor, int], None],
    name: str,
) -> None:
    """Train for about so many minutes of processor time: a few steps of a copy say how many epochs these are."""
    clock, few = [], images[: 4 * BATCH]
    for epochs in (1, 3):  # the first steps warm up
        started = time.process_time()
        train(copy.deepcopy(network), few, epochs)
        clock.append(time.process_time() - started)
    seconds = max(1e-3, (clock[1] - clock[0]) / 2) * len(images) / len(few)
    epochs = max(1, round(60 * minutes / seconds))
    print(f"{name}: {epochs} epochs of {seconds:.1f} s", file=sys.stderr)
    train(network, images, epochs)


@dataclass(frozen=True)
class ConvolutionsShape:
    """Size of a DnCNN-like denoiser, about the multiplications of a MultiscaleNIM.

    Args:
        width, layers: Channels and 3x3 convolutions.
    """

    width: int = 36
    layers: int = 12


class Convolutions(nn.Module):
    """DnCNN without its batch norm (Zhang et al., TIP 2017): convolutions at full resolution predict the noise."""

    def __init__(self, shape: ConvolutionsShape):
        super().__init__()
        self.shape = shape
        widths = [3, *[shape.width] * (shape.layers - 1), 3]
        layers: list[nn.Module] = []
        for given, made in pairwise(widths):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1]).to(memory_format=torch.channels_last)

    def reconstruct(self, noisy: Tensor) -> Tensor:
        return noisy - self.layers((noisy - 0.5).contiguous(memory_format=torch.channels_last))

    def forward(self, noisy: Tensor) -> Tensor:
        return torch.cat([self.reconstruct(part) for part in chunks(noisy)]).clamp(0, 1)
