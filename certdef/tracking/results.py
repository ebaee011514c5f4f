"""Typed results of stages, and their plain form: what result.json holds and what MLflow is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import certify
from surrogates.frames import Framed

if TYPE_CHECKING:
    import pandas


class Share(NamedTuple):
    """A share with its 95% Clopper-Pearson interval; in JSON the list [value, lower, upper]."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, successes: int, trials: int) -> Share:
        """Successes as a share of trials."""
        lower, upper = certify.binomial_interval(successes, trials)
        return cls(successes / trials, float(lower), float(upper))


def as_frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """Rows as a table; a Share takes three columns: its name, and the same with _lower and _upper."""
    import pandas

    return pandas.DataFrame([_spread(row) for row in rows])


def _spread(row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Share):
            cells |= dict(zip((name, f"{name}_lower", f"{name}_upper"), value, strict=True))
        else:
            cells[name] = value
    return cells


SHOWN = 3  # metrics in the line of a result


@dataclass(frozen=True, kw_only=True)
class StageResult(Framed):
    """What a stage computed. Each stage adds typed fields of its own: plain values, Shares, tuples, dataclasses.

    Attributes:
        params: For MLflow.
        metrics: For MLflow; also on the parent run, where jobs are compared.
        series: Metrics with a value a step, from step 0.
        points: Metrics as pairs (step, value).
        artifacts: Patterns of the files in the stage's folder that MLflow keeps.
    """

    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, tuple[float, ...]] = field(default_factory=dict)
    points: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Give each result the short line, before a dataclass writes one of all its fields."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = StageResult.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        shown = [f"{name}={value:.6g}" for name, value in list(self.metrics.items())[:SHOWN]]
        more = [f"{len(self.metrics) - SHOWN} more metrics"] if len(self.metrics) > SHOWN else []
        return f"{type(self).__name__}({', '.join(shown + more)})"

    def to_frame(self) -> pandas.DataFrame:
        """What the stage found, a row a finding; where a result has nothing else, a row a metric."""
        import pandas

        return pandas.DataFrame(self.metrics.items(), columns=["metric", "value"])

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; those that are None are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def tables(self, folder: Path) -> dict[str, dict[str, list[Any]]]:
        """Tables for MLflow by file name: columns by their names. Most results have none.

        Args:
            folder: Of the stage.
        """
        return {}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The result whose plain form was kept; entries that are no fields are ignored.

        Raises:
            pydantic.ValidationError: An entry is missing or of another type.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(plain)
