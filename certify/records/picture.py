"""A matplotlib figure that a notebook shows by itself. Only what draws imports this module, and matplotlib with it."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that belongs to no window and no pyplot: its last line in a cell is enough, without ``%matplotlib``.

    Args:
        width, height: In inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(self)

    def to_png(self) -> bytes:
        """The picture as PNG."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The picture, and the width at which it is shown: in pixels of which an inch has 96."""
        return self.to_png(), {"width": round(96 * self.get_figwidth())}
