"""Seconds to certify the same images with 1, 2, ... workers: scaling of ``certify_parallel``.

    python benchmarks/workers.py [--workers 1 2] [--backend loky] [--images 16] [--n 1000] [--depth 20]

Every worker computes on one thread. The pool is warmed up first, so that its start is not counted; the votes
are compared with those of one worker.
"""

import argparse
import time

import torch
from votes import CLASSES, SIGMA, resnet

from certify import Certificate, Gaussian, SmoothedClassifier, certify_parallel


class OneThread(torch.nn.Module):
    """A model that keeps its process to one thread, wherever it was sent."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)
        return self.model(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backend", choices=["loky", "dask", "ray"], default="loky")
    parser.add_argument("--scheduler")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=20)
    arguments = parser.parse_args()
    images = torch.rand((arguments.images, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    smoothed = SmoothedClassifier(
        OneThread(resnet(arguments.depth)), Gaussian(SIGMA), CLASSES, batch_size=256, chunk_size=128
    )
    print(f"ResNet-{arguments.depth}, {arguments.images} images, n {arguments.n}, {arguments.backend}\n")
    print("| workers | seconds | speed-up | same votes |\n| ---: | ---: | ---: | --- |")
    first: tuple[float, list[Certificate]] | None = None
    for workers in arguments.workers:
        where = {"backend": arguments.backend, "scheduler": arguments.scheduler, "workers": workers}
        certify_parallel(smoothed, images[: 2 * workers], shard=1, n=20, n0=10, **where)  # warm up
        start = time.perf_counter()
        found = certify_parallel(smoothed, images, shard=2, n=arguments.n, **where)
        seconds = time.perf_counter() - start
        first = first or (seconds, found)
        same = "yes" if found == first[1] else "NO"
        print(f"| {workers} | {seconds:.1f} | {first[0] / seconds:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
