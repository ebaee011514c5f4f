"""What a comparison of two certifications says: typed, frozen, and the JSON that it is written as."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from surrogates.frames import Framed

if TYPE_CHECKING:
    import pandas

SCHEMA: Final = "certdef-comparison-1"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One of the two: where its records are and how they were drawn; what a .tsv does not say is None.

    Attributes:
        given: What the caller named.
        records: Where its records were read.
        images: Records in it.
        subject: target or surrogate.
        denoiser: What stands between noise and classifier.
        noise: Description of the noise law.
        norm: Of the radii, in [0, 1] pixel units.
        n0, n: Selection and (at most) estimation votes an image.
        alpha: Probability of a wrong certificate, for each image.
        method: How votes were drawn and bounded.
        seed: Of the noise.
        sound: Whether its radii are proven rather than approximate.
        abstained: Share of the compared images without a certificate.
        median_radius, mean_radius: Over the compared images; a wrong or abstained one has radius 0.
    """

    given: str
    records: str
    images: int
    subject: str | None
    denoiser: str | None
    noise: dict[str, Any] | None
    norm: str | None
    n0: int | None
    n: int | None
    alpha: float | None
    method: str | None
    seed: int | None
    sound: bool
    abstained: float
    median_radius: float
    mean_radius: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Certified accuracy of both at one radius, of all images, of a class or of a group.

    Attributes:
        scope: all, class, or the name of a column of groups.
        name: The class or the value in that column; empty for all.
        radius: In [0, 1] pixel units.
        images: Number of pairs.
        old, new: Share that is right and certified at least that far.
        lost, won: Images that are so in OLD only, in NEW only.
        difference: new - old.
        lower, upper: Exact limits of the difference; all rows hold together with probability >= 1 - alpha (Bonferroni).
        p: McNemar's exact two-sided p-value.
        p_holm: The same, adjusted for all rows by Holm.
        verdict: worse or better where p_holm <= alpha, else unproven.
    """

    scope: str
    name: str
    radius: float
    images: int
    old: float
    new: float
    lost: int
    won: int
    difference: float
    lower: float
    upper: float
    p: float
    p_holm: float
    verdict: Literal["worse", "better", "unproven"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """An image that lost or won its certificate at some of the compared radii; prediction -1 is an abstention."""

    idx: int
    image: str | None
    label: int
    old_prediction: int
    old_radius: float
    new_prediction: int
    new_radius: float
    at: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on a release: what it says, whether it holds, and what was measured."""

    rule: str
    passed: bool
    measured: str


@dataclass(frozen=True, kw_only=True)
class Comparison(Framed):
    """OLD against NEW, image by image.

    Attributes:
        schema: Name and version of this form.
        old, new: The two certifications.
        images: Pairs that are compared.
        paired_by: What says that two records are of the same image: image (digest of its pixels) or idx.
        same_noise: Whether seed, chunks and numbers of the images agree, so that on one kind of device each pair had the
            same noise draws; None where the records do not say.
        radii: In norm and [0, 1] pixel units.
        alpha: Level of all tests together, and of all intervals together.
        tests: Number of rows, which the correction is for.
        correction: Its name, for p-values and intervals.
        rows: All images first, then classes, then groups.
        lost, won: Images, those that lost or won most first.
        gates: Conditions, if any were set.
        notes: What differs beside the model, or is not known.
    """

    schema: Literal["certdef-comparison-1"] = SCHEMA
    old: Version
    new: Version
    images: int
    paired_by: Literal["image", "idx"]
    same_noise: bool | None
    radii: tuple[float, ...]
    alpha: float
    tests: int
    correction: str
    rows: tuple[Row, ...]
    lost: tuple[Change, ...]
    won: tuple[Change, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        held = sum(gate.passed for gate in self.gates)
        gates = f", {held} of {len(self.gates)} gates hold" if self.gates else ""
        verdicts = [row.verdict for row in self.rows]
        return (
            f"Comparison({self.images} images, {len(self.rows)} rows: {verdicts.count('worse')} worse, "
            f"{verdicts.count('better')} better, {verdicts.count('unproven')} unproven{gates})"
        )

    def to_frame(self) -> pandas.DataFrame:
        """The rows, with the names of ``Row``: all images first, then classes, then groups."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @property
    def overall(self) -> tuple[Row, ...]:
        """The rows of all images, one a radius."""
        return tuple(row for row in self.rows if row.scope == "all")

    @property
    def worse(self) -> tuple[Row, ...]:
        """The rows in which NEW is proven to be worse."""
        return tuple(row for row in self.rows if row.verdict == "worse")

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON has it; schemas/comparison-1.json describes it."""
        return dataclasses.asdict(self) | {"passed": self.passed}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The comparison whose plain form was kept.

        Raises:
            pydantic.ValidationError: An entry is missing or of another type.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python({k: v for k, v in plain.items() if k != "passed"})


def json_schema() -> dict[str, Any]:
    """The JSON schema of to_json, as it is published."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Comparison).json_schema()
    schema["properties"]["passed"] = {"type": "boolean", "description": "Whether every gate holds."}
    schema["required"] = sorted({*schema["required"], "schema", "passed"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **{k: v for k, v in schema.items() if k != "title"},
    }
