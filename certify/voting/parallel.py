"""Certify on many workers: the same votes as on one, merged in order.

Images are independent and their noise is seeded by their index, so shards of images go to joblib's workers:
``loky`` (processes of this computer), ``dask`` or ``ray`` (clusters). The records are written by the caller's
process, in the order of the images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from certify.certificate import Certificate, Certificates
from certify.errors import CertifyError, check_count
from certify.voting.checks import check_images, check_indices

BACKENDS = ("loky", "dask", "ray")
Timed = list[tuple[Certificate, float]]


class Certifier(Protocol):
    """What a worker needs: ``SmoothedClassifier`` is one."""

    def certify(self, *arguments: Any, **options: Any) -> list[Certificate]:
        """``certify(images, indices=..., on_certificate=..., **options)``: one certificate each, in order."""


def certify_parallel(
    smoothed: Certifier,
    images: Any,
    *,
    workers: int = 2,
    backend: str = "loky",
    scheduler: str | None = None,
    shard: int = 8,
    indices: Sequence[int] | None = None,
    known_class: ArrayLike | None = None,
    on_certificate: Callable[[int, Certificate, float], None] | None = None,
    progress: Any = None,
    **options: Any,
) -> Certificates:
    """``smoothed.certify(images, **options)`` on many workers: the same votes, in order.

    Args:
        smoothed: Travels to the workers by pickle.
        images, indices, known_class, on_certificate: As in ``certify``; called back in this process, in order, as shards
            arrive.
        workers: Processes.
        backend: "loky" (processes of this computer), "dask" or "ray" (clusters).
        scheduler: Address of a running dask or ray cluster; without one, a local cluster of ``workers`` is
            started and stopped.
        shard: Images that a worker gets at a time.
        progress: Anything with ``update(draws)``; updated by the votes of each image then.
        options: Of ``certify``.

    Raises:
        CertifyError: An unknown backend, or one that is not installed.
    """
    import joblib

    check_count("workers", workers)
    check_count("shard", shard)
    if backend not in BACKENDS:
        raise CertifyError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}: try 'loky'")
    if backend == "loky" and scheduler is not None:
        raise CertifyError(f"backend 'loky' has no scheduler, got {scheduler!r}: use 'dask' or 'ray'")
    images = check_images(images)
    names = check_indices(indices, len(images))
    if hasattr(smoothed, "settle"):
        smoothed.settle(images)  # once, and not by each worker's clock
    parts = [slice(start, start + shard) for start in range(0, len(images), shard)]
    known = None if known_class is None else np.asarray(known_class)
    if known is not None and known.shape != (len(images),):
        raise CertifyError(f"known_class must be ({len(images)},), got shape {known.shape}: one an image")
    jobs = [
        joblib.delayed(_certify_shard)(
            smoothed,
            images[part],
            names[part],
            options | ({} if known is None else {"known_class": known[part]}),
        )
        for part in parts
    ]
    certificates = Certificates()
    with _backend(backend, workers, scheduler) as parallel:
        for part, timed in zip(parts, parallel(jobs), strict=True):
            for index, (certificate, seconds) in zip(names[part], timed, strict=True):
                certificates.append(certificate)
                if on_certificate is not None:
                    on_certificate(index, certificate, seconds)
                if progress is not None:
                    progress.update(certificate.n0 + certificate.n)
    return certificates


def _certify_shard(smoothed: Certifier, images: Any, indices: list[int], options: dict[str, Any]) -> Timed:
    timed: Timed = []
    smoothed.certify(
        images, indices=indices, on_certificate=lambda _, c, seconds: timed.append((c, seconds)), **options
    )
    return timed


@contextmanager
def processes(count: int) -> Iterator[Any]:
    """An executor of so many processes of this computer, which end with it, also in the middle of their work.

    They take functions and modules that a notebook or a script defines.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(max_workers=count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextmanager
def _backend(name: str, workers: int, scheduler: str | None) -> Iterator[Any]:
    """A joblib.Parallel that yields its results in order, inside whatever cluster it needs."""
    import joblib

    with ExitStack() as stack:
        try:
            if name == "dask":
                from dask.distributed import Client

                own = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
                stack.enter_context(Client(scheduler) if scheduler else Client(**own))
            elif name == "ray":
                import ray
                from ray.util.joblib import register_ray

                own = {"num_cpus": workers, "include_dashboard": False}
                ray.init(**({"address": scheduler} if scheduler else own), log_to_driver=False)
                stack.callback(ray.shutdown)
                register_ray()
        except ImportError as error:
            raise CertifyError(
                f"backend {name!r} is not installed ({error.name}): pip install certdef[{name}]"
            ) from None
        stack.enter_context(joblib.parallel_config(backend=name, n_jobs=workers))
        # Only loky hands results over one by one; the clusters return them together.
        yield joblib.Parallel(return_as="generator" if name == "loky" else "list")
