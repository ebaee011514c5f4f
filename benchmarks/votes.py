"""Samples a second and memory of the vote engine against the bare model and two published loops.

    python benchmarks/votes.py [--depth 110] [--draws 2048] [--batch 256] [--threads 1] [--device cuda] [--repeats 3]

(a) the bare forward pass of the same model and batch; (b) this engine; (c) one image at a time as in the 2019
reference: repeat the image, add noise, argmax, count on the host; (d) PyTorchRandomizedSmoothing of the
Adversarial Robustness Toolbox, where it is installed. Each way twice: the model as it is (float32), and in the
arithmetic that ``engine="auto"`` measures to be fastest here, which the other ways are given too. Every way runs in its own
process, in turn, every other round backwards; the medians of the repeats count. The model is a CIFAR ResNet of 6n + 2
layers with random weights. Peak memory is that of the process (CPU) or of the allocator (GPU), beyond what it was before
the first batch. ``--clock processor`` counts processor time, for a machine that does other work as well.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from certify import Gaussian, VoteEngine, fastest_engine
from certify.voting import Computed
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


def way(
    name: str, model: nn.Module, image: torch.Tensor, draws: int, engine: VoteEngine
) -> Callable[[], None]:
    """A function that takes ``draws`` votes of one image (C, H, W) in an engine's batches and arithmetic."""
    batch = engine.batch_size
    if name == "engine":

        def votes() -> None:
            base = torch.compile(model) if engine.compile else model
            engine.count(base, image[None], Gaussian(SIGMA), CLASSES, draws, indices=[0], stage=ESTIMATION)

        return votes
    if engine.autocast or engine.channels_last or engine.compile:
        model = Computed(model, engine).eval()
    if name == "forward":
        x = image.expand(batch, -1, -1, -1).contiguous(memory_format=engine.layout)

        def forward() -> None:
            with torch.no_grad():
                for _ in range(draws // batch):
                    model(x)

        return forward
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
    """One way in this process."""
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "processor" else time.perf_counter
    device = torch.device(arguments.device)
    model, image = resnet(arguments.depth).to(device), torch.rand(3, 32, 32, device=device)
    engine = VoteEngine(**json.loads(arguments.arithmetic))
    before = peak(device)
    way(arguments.way, model, image, engine.batch_size, engine)()  # warm up
    take = way(arguments.way, model, image, arguments.draws, engine)
    start = clock()
    take()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"rate": arguments.draws / (clock() - start), "memory": peak(device) - before}


def fastest(arguments: argparse.Namespace, engine: VoteEngine) -> VoteEngine:
    """What ``engine="auto"`` takes for the model here, in batches that are whole parts of the draws."""
    torch.set_num_threads(arguments.threads)
    model = resnet(arguments.depth).to(arguments.device)
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    tuned = fastest_engine(model, images, Gaussian(SIGMA), engine=engine, seconds=arguments.seconds)
    print("images a second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in tuned.rates.items()))
    for name, reason in tuned.left_out.items():
        print(f"left out: {name}, {reason}")
    return replace(tuned.engine, device=None)


def measure(arguments: argparse.Namespace, name: str, engine: VoteEngine) -> dict[str, float] | None:
    """One way in a process of its own; None where ART is not installed."""
    own = ["--way", name, "--arithmetic", json.dumps(engine.arithmetic)]
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *own], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "No module named 'art'" in done.stderr:
        return None
    sys.exit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring what is fastest")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--arithmetic", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run_one(arguments)))
        return
    plain = VoteEngine(batch_size=arguments.batch)
    engines = {"float32": plain, "fastest": fastest(arguments, plain)}
    ways = [(name, kind) for kind in engines for name in WAYS]
    results: dict[tuple[str, str], list[dict[str, float]]] = {each: [] for each in ways}
    for turn in range(arguments.repeats):
        for name, kind in ways if turn % 2 == 0 else ways[::-1]:
            found = measure(arguments, name, engines[kind])
            results[name, kind] += [found] if found else []
    print(f"\nResNet-{arguments.depth}, 3x32x32, {arguments.device}, {arguments.threads} threads, ", end="")
    print(f"{arguments.draws} draws, medians of {arguments.repeats}, {arguments.clock} time")
    print(f"fastest: {engines['fastest'].arithmetic}\n")
    print(
        "| way | arithmetic | samples/s | of (a) in the same | memory, MiB |\n| --- | --- | ---: | ---: | ---: |"
    )
    for (name, kind), runs in results.items():
        if not runs:
            print(f"| {WAYS[name]} | {kind} | not installed | | |")
            continue
        rate, bare = (
            statistics.median(run["rate"] for run in each) for each in (runs, results["forward", kind])
        )
        memory = max(run["memory"] for run in runs)
        print(f"| {WAYS[name]} | {kind} | {rate:,.0f} | {rate / bare:.2f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
