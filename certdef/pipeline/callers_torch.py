"""The caller's settings of torch and numpy, set aside for a job and given back: what it computes depends on none of them.

A notebook that works in float64, on a default device, without gradients or under autocast is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

KINDS = ("cpu", "cuda")  # of devices that a job runs on


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Default dtype and device, gradients, autocast and numpy's errors as a new process has them; afterwards as they were."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # a mode that sees every call of torch: not for nothing
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
