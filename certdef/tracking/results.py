"""Typed results of stages, and their plain form: what result.json holds and what MLflow is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import certify


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


@dataclass(frozen=True, kw_only=True)
class StageResult:
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
