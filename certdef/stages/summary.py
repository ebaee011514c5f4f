"""What a verb leaves behind."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import surrogates
from certdef.tracking.results import as_frame
from certdef.tracking.workspace import Stage
from surrogates.frames import Framed

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Summary(Framed):
    """What a verb leaves behind: the finished stages by name, and where to look. Printed, it is the job in a few lines."""

    stages: dict[str, Stage]
    workspace: Path
    report: Path | None = None
    tracking_uri: str = ""
    run_id: str = ""
    run_page: str = ""
    bill: surrogates.Bill | None = None
    ledger: Path | None = None
    purified: dict[str, Any] = field(default_factory=dict)
    in_words: Callable[[Summary], str] = field(default=repr, repr=False, compare=False)

    def __str__(self) -> str:
        return self.in_words(self)

    def __repr__(self) -> str:
        paid = "" if self.bill is None else f", {self.bill.total.spent:,} queries charged so far"
        return f"Summary({', '.join(self.stages)} in {str(self.workspace)!r}{paid})"

    def _repr_html_(self) -> str:
        """In a notebook it is what it is in print: the job in a few lines."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """A row a stage and metric. A stage's own table is ``stages[name].result.to_frame()``."""
        return as_frame(
            {"stage": name, "metric": metric, "value": value}
            for name, stage in self.stages.items()
            for metric, value in stage.result.metrics.items()
        )

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The result of each stage in plain form, as result.json has it."""
        # a table of budgets is one of many, and each has a name of its own
        plain = {
            name.split("-")[0] if name.startswith("budgets-") else name: stage
            for name, stage in self.stages.items()
        }
        purified = {"purify": self.purified} if self.purified else {}
        return {name: stage.result.to_json() for name, stage in plain.items()} | purified

    @property
    def reused(self) -> bool:
        """Whether every stage was done before."""
        return all(stage.reused for stage in self.stages.values())
