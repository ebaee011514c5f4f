"""How many processor threads this process may use, as far as limits from outside go, and torch with so many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = 256  # values of an image, for which several threads wait for each other longer than they work
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: quota and period in microseconds


def allowed_threads() -> int:
    """The smallest of the processors of this process, the quota of its cgroup, and OMP_NUM_THREADS."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        processors = os.cpu_count() or 1
    limits = [processors, _quota(processors), _environment(processors)]
    return max(1, min(limits))


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads, by default as many as are allowed; afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    # one that can't be used is refused later, with all else that is wrong
    torch.set_num_threads(max(1, count or min(before, allowed_threads())))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_threads(count: int | None, values: int) -> None:
    """Inside torch_threads: a single one for images of so few values, unless the caller said how many."""
    import torch

    if count is None and values <= SMALL:
        torch.set_num_threads(1)


def _quota(default: int) -> int:
    try:
        quota, period = CPU_MAX.read_text().split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return default


def _environment(default: int) -> int:
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() and int(value) > 0 else default
