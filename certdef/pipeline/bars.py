"""Progress bars where somebody watches, and one line a stage in a log."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm


def bars(progress: bool) -> Callable[..., Any]:
    """A factory of bars like tqdm: none without `progress`; in a terminal bars; else a line for each that ends."""
    if not progress:
        return partial(tqdm, disable=True)
    return tqdm if sys.stderr.isatty() else Line


class Line(tqdm):
    """A bar that shows nothing until it ends, and then a line without carriage returns, for logs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"file": _Nowhere()})

    def close(self) -> None:
        """Say what was done and how long it took."""
        told, done, seconds = self.disable, self.n, self.format_dict["elapsed"]
        super().close()
        if not told and done:
            unit = "step" if self.unit == "it" else self.unit
            unit += "s" if done != 1 and not unit.endswith("s") else ""
            of = f" of {self.total:,}" if self.total and self.total != done else ""
            print(
                f"{self.desc.rstrip(': ') or 'done'}: {done:,}{of} {unit} in {self.format_interval(seconds)}",
                file=sys.stderr,
                flush=True,
            )


class _Nowhere(io.TextIOBase):
    """Keeps nothing of what is written."""

    def write(self, text: str) -> int:
        return len(text)
