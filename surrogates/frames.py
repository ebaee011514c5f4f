"""What a notebook shows of a value: a line and a table."""

import html
import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

ROWS = 20  # of a long table in a notebook: the first and the last


class Framed:
    """A value that a notebook shows as its line, ``repr``, above its table, ``to_frame``.

    (certify.certificate has the same class: these two packages import nothing of each other.)
    """

    def to_frame(self) -> "pandas.DataFrame":
        """The value as a table. Only this imports pandas."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        bounds = {name: how for name in frame.columns if (how := _bound(str(name)))}
        table = frame.to_html(
            index=False, border=0, max_rows=ROWS, formatters=bounds, float_format="{:,.6g}".format
        )
        return f"<p><code>{html.escape(repr(self))}</code></p>\n{table}"


def _bound(column: str) -> Any:
    """How the bounds of a column are written: never as more than was proven."""
    if column == "radius" or column.endswith("lower"):
        return partial(rounded, mode=ROUND_FLOOR)
    return partial(rounded, mode=ROUND_CEILING) if column.endswith("upper") else None


def rounded(value: float, mode: str = ROUND_FLOOR) -> str:
    """A number with at most four decimals, rounded down or as ``mode`` says; one of four decimals stays as it is."""
    if not math.isfinite(value):
        return str(value)
    return f"{Decimal(repr(float(value))).quantize(Decimal('0.0001'), mode).normalize():f}"
