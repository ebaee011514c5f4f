"""All that needs a GPU, in one command and within nine minutes: one table, and an exit code other than 0 if a part failed.

    python benchmarks/gpu.py [--device cuda] [--toy] [--seconds 540] [--parts engine records job pretraining]

engine: samples a second of the bare forward pass and of the vote engine, ResNet-110 at 3x32x32 and ViT-B/16 at 3x224x224
with random weights, in float32, in bfloat16 (channels_last) and compiled. records: certificates of the same seed
with other batch sizes, vote by vote. job: ``certdef run`` on the digits with --device. pretraining: images a second of
noisy image modeling, the network of the preset fashion-mnist. Each part runs in a process of its own; one that fails, misses a
package or runs out of time has a row that says so. ``--device cpu --toy`` does the same in miniature.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from votes import resnet

from certify import Gaussian, SmoothedClassifier, VoteEngine
from certify.voting.chunks import ESTIMATION

CLASSES, NOISE = 10, Gaussian(0.25)
KINDS = {
    "float32": {},
    "bfloat16": {"autocast": "bfloat16", "channels_last": True},
    "bfloat16 compiled": {"autocast": "bfloat16", "channels_last": True, "compile": True},
}
Row = tuple[str, str]  # what was measured, and the figure
Arguments = argparse.Namespace


def models(arguments: Arguments) -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, int, int], int]]:
    """Name, how it is built, shape of an image, images a call."""
    from timm import create_model

    toy = arguments.toy
    depth, name, side = (8, "vit_tiny_patch16_224", 32) if toy else (110, "vit_base_patch16_224", 224)
    yield f"ResNet-{depth}", lambda: resnet(depth), (3, 32, 32), 32 if toy else 1024
    vit = {"pretrained": False, "num_classes": CLASSES, "img_size": side}
    yield name, lambda: create_model(name, **vit).eval(), (3, side, side), 32 if toy else 256


def engine(arguments: Arguments) -> Iterator[Row]:
    """The engine against the bare forward pass, in each arithmetic."""
    for name, build, shape, batch in models(arguments):
        model, image = build().to(arguments.device), torch.rand(shape, device=arguments.device)
        for kind, fields in KINDS.items():
            votes = VoteEngine(batch_size=batch, chunk_size=min(batch, 256), **fields)
            base = torch.compile(model) if votes.compile else model
            x = image.expand(batch, *shape).contiguous(memory_format=votes.layout)

            def forward(base=base, votes=votes, x=x) -> None:  # type: ignore[no-untyped-def]
                with torch.no_grad(), votes.precision(x.device):
                    base(x)

            def count(base=base, votes=votes, image=image, calls=1) -> None:  # type: ignore[no-untyped-def]
                where = {"indices": [0], "stage": ESTIMATION}
                votes.count(base, image[None], NOISE, CLASSES, calls * votes.batch_size, **where)

            bare = rate(arguments, lambda calls, f=forward: [f() for _ in range(calls)], batch)  # type: ignore[misc]
            ours = rate(arguments, lambda calls, f=count: f(calls=calls), batch)  # type: ignore[misc]
            cell = f"bare {bare:,.0f}/s, certify {ours:,.0f}/s, {ours / bare:.2f} of bare"
            yield f"{name}, {kind}, batch {batch}", cell


def rate(arguments: Arguments, work: Callable[[int], object], batch: int) -> float:
    """Images a second of work(calls), each call a batch: the median of three, after a warm-up that tells how many calls."""
    work(1)
    taken = [seconds(arguments, work, 1)]
    calls = max(1, int((0.05 if arguments.toy else 1.0) / taken[0]))
    runs = sorted(seconds(arguments, work, calls) for _ in range(3))
    return calls * batch / runs[1]


def seconds(arguments: Arguments, work: Callable[[int], object], calls: int) -> float:
    start = time.perf_counter()
    work(calls)
    if arguments.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def records(arguments: Arguments) -> Iterator[Row]:
    """Counts of the same seed with other batch sizes; RuntimeError where a vote moved."""
    count, n, sizes = (2, 300, (32, 100)) if arguments.toy else (16, 10_000, (64, 1000, 4096))
    model = resnet(8 if arguments.toy else 20).to(arguments.device)
    images = torch.rand((count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    moved_in = []
    for kind in ("float32", "bfloat16"):
        found = [
            SmoothedClassifier(
                model, NOISE, CLASSES, device=arguments.device, batch_size=size, **KINDS[kind]
            ).certify(images, n=n)
            for size in (512, *sizes)
        ]
        moved = sum(
            abs(a - b)
            for other in found[1:]
            for one, two in zip(found[0], other, strict=True)
            for a, b in zip(one.counts, two.counts, strict=True)
        )
        total = len(sizes) * count * n
        moved_in += [kind] if moved else []
        same = f"{moved // 2} of {total:,} votes moved" if moved else "the same"
        yield f"records, {kind}, batches of {', '.join(map(str, (512, *sizes)))}", same
    if moved_in:
        raise RuntimeError(f"counts follow the batch in {', '.join(moved_in)}")


def job(arguments: Arguments) -> Iterator[Row]:
    """The main job on the digits."""
    import mlflow  # noqa: F401  the job tracks itself; without it the row says so

    toy = {"certify.n": 200, "certify.images": 4, "certify.target_images": 2, "nim.epochs": 2}
    toy |= {"surrogate.epochs": 2, "attack.images": 10, "attack.steps": 2, "certify.choose": "off"}
    options = [f"--{name}={value}" for name, value in toy.items()] if arguments.toy else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from certdef.cli import main; sys.exit(main())", "run"]
        command += ["--device", arguments.device.partition(":")[0], "--work-dir", folder, *options]
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        root = Path(__file__).parents[1]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | store | {"PYTHONPATH": path},
        )
        taken = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(
                f"certdef run ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
            )
    yield f"certdef run --device {arguments.device}, digits", f"{taken:,.0f} s"


def pretraining(arguments: Arguments) -> Iterator[Row]:
    """Noisy image modeling on random images: the speed does not depend on what they show."""
    from certdef.purifiers.networks.nim import NIM, NIMShape, nim_training, pretrain_nim

    width, count = (32, 64) if arguments.toy else (96, 60_000)
    images = torch.rand((count, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        shape = {"depth": 1 if arguments.toy else 4, "width": width, "decoder_width": width}
        model = NIM(NIMShape((1, 28, 28), **shape))
        device = torch.device(arguments.device)
        training = nim_training(1, 32 if arguments.toy else 512, 1e-3, precision=precision)
        few = images[: max(32, count // 10)]
        pretrain_nim(model, few, NOISE, training, seed=0, device=device)  # warm up
        taken = seconds(
            arguments,
            lambda _, m=model, t=training, d=device: pretrain_nim(m, images, NOISE, t, seed=0, device=d),  # type: ignore[misc]
            1,
        )
        yield f"NIM pre-training, 28x28, {precision}", f"{count / taken:,.0f} images/s"


PARTS = {"engine": engine, "records": records, "job": job, "pretraining": pretraining}


def run_part(name: str, most: float) -> tuple[list[Row], str]:
    """The rows of a part in a process of its own, and its error, empty where it ended well."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(1.0, most))
        output, error = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode()
        error = [f"it was stopped after {most:.0f} s"]
    lines = [line for line in output.splitlines() if line.startswith('["')]
    return [tuple(json.loads(line)) for line in lines], error[0] if error else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="everything small")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        for row in PARTS[arguments.part](arguments):
            print(json.dumps(row), flush=True)
        return
    ends = time.monotonic() + arguments.seconds
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"torch {torch.__version__}, {arguments.device} ({kind}){', toy sizes' if arguments.toy else ''}\n")
    print("| what | figure |\n| --- | --- |")
    failed = []
    for number, name in enumerate(arguments.parts):
        # No part takes the time of those that come after it.
        fair = (ends - time.monotonic()) / (len(arguments.parts) - number) * 2
        rows, error = run_part(name, min(fair, ends - time.monotonic()))
        rows += [(f"{name}: FAILED", error)] if error else []
        for what, figure in rows:
            print(f"| {what} | {figure} |", flush=True)
        failed += [name] if error else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
