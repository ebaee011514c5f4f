"""Samples a second and memory of the vote engine against the bare model and two published loops.

    python benchmarks/votes.py [--depth 110] [--draws 2048] [--batch 256] [--threads 2] [--device cuda] [--repeats 3]

(a) the bare forward pass of the same model and batch; (b) this engine; (c) one image at a time as in the 2019
reference: repeat the image, add noise, argmax, count on the host; (d) PyTorchRandomizedSmoothing of the
Adversarial Robustness Toolbox, where it is installed. Every way runs in its own process, in turn; the best of
the repeats counts. The model is a CIFAR ResNet of 6n + 2 layers with random weights. Peak memory is that of
the process (CPU) or of the allocator (GPU), beyond what it was before the first batch.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from certify import Gaussian, VoteEngine
from certify.voting.chunks import ESTIMATION

SIGMA, CLASSES = 0.25, 10
WAYS = {
    "forward": "(a) bare forward pass",
    "engine": "(b) certify",
    "loop": "(c) 2019-style loop",
    "art": "(d) ART",
}


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut that pads the channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.stride, self.padding = stride, width - width_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(self.body(x) + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.padding)))


def resnet(depth: int) -> nn.Module:
    """A CIFAR ResNet (He et al. 2016) of ``depth`` = 6n + 2 layers."""
    torch.manual_seed(0)
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for new, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(Block(width, new, stride if block == 0 else 1))
            width = new
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)).eval()


def way(name: str, model: nn.Module, image: torch.Tensor, draws: int, batch: int) -> Callable[[], None]:
    """A function that takes ``draws`` votes of one image (C, H, W)."""
    if name == "forward":
        x = image.expand(batch, -1, -1, -1).contiguous()

        def forward() -> None:
            with torch.no_grad():
                for _ in range(draws // batch):
                    model(x)

        return forward
    if name == "engine":

        def engine() -> None:
            votes = VoteEngine(batch_size=batch)
            votes.count(model, image[None], Gaussian(SIGMA), CLASSES, draws, indices=[0], stage=ESTIMATION)

        return engine
    if name == "loop":

        def loop() -> None:
            with torch.no_grad():
                counts = np.zeros(CLASSES, dtype=int)
                for _ in range(draws // batch):
                    repeated = image.repeat((batch, 1, 1, 1))
                    noise = torch.randn_like(repeated) * SIGMA
                    for label in model(repeated + noise).argmax(1).cpu().numpy():
                        counts[label] += 1

        return loop
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothed = PyTorchRandomizedSmoothing(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(image.shape),
        nb_classes=CLASSES,
        sample_size=draws,
        scale=SIGMA,
        device_type="gpu" if image.is_cuda else "cpu",
    )
    x = image.cpu().numpy()
    return lambda: smoothed._prediction_counts(x, n=draws, batch_size=batch)


def peak(device: torch.device) -> float:
    """Highest memory so far, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: a new process inherits that from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def run_one(arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    model, image = resnet(arguments.depth).to(device), torch.rand(3, 32, 32, device=device)
    before = peak(device)
    take = way(arguments.way, model, image, arguments.draws, arguments.batch)
    way(arguments.way, model, image, arguments.batch, arguments.batch)()  # warm up
    start = time.perf_counter()
    take()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"rate": arguments.draws / (time.perf_counter() - start), "memory": peak(device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run_one(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(arguments.repeats):
        for name in results:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
            elif "No module named 'art'" not in done.stderr:
                sys.exit(done.stderr)
    print(f"ResNet-{arguments.depth}, 3x32x32, {arguments.device}, {arguments.threads} threads, ", end="")
    print(f"batch {arguments.batch}, {arguments.draws} draws, best of {arguments.repeats}\n")
    print("| way | samples/s | of (a) | memory, MiB |\n| --- | ---: | ---: | ---: |")
    best = max(one["rate"] for one in results["forward"])
    for name, runs in results.items():
        if not runs:
            print(f"| {WAYS[name]} | not installed | | |")
            continue
        rate, memory = max(run["rate"] for run in runs), max(run["memory"] for run in runs)
        print(f"| {WAYS[name]} | {rate:,.0f} | {rate / best:.2f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
