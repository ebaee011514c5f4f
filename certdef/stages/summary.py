"""What a verb leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import surrogates
from certdef.tracking.workspace import Stage


@dataclass(frozen=True)
class Summary:
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
