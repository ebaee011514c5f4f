"""Evidence of one model version: typed, frozen, and the JSON that it is written as.

Each part is what was measured, or an Absent that says why it is not there and what measures it. Nothing is left out in silence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, Literal, Self

SCHEMA: Final = "certdef-evidence-1"
SCHEMA_VERSION: Final = "1.0"
ID = "urn:certdef:schema:evidence:1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A part of the document: nothing else may stand in it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Absent(Entry):
    """What is not there.

    Attributes:
        status: `not measured`: nobody measured it; `not known`: what was named does not say.
        why: The reason.
        how: The command or option that brings it.
    """

    status: Literal["not measured", "not known"]
    why: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Interval(Entry):
    """A share, or an area under a curve, with its 95% interval; of a share Clopper and Pearson's, which is exact."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Model(Entry):
    """Which model this is evidence of.

    Attributes:
        name: In the registry; else where the target is.
        version: In the registry.
        aliases: Names in the registry that pointed to it when this was written.
        identity: What the ledger knows the target by.
        digest: SHA-256 of its files, or of its file.
        digest_of: What it is over, and how to compute it again.
        role: Whether it was the target of the job, or the surrogate that the job distilled and registered.
    """

    name: str | Absent
    version: str | Absent
    aliases: tuple[str, ...]
    identity: str | Absent
    digest: str | Absent
    digest_of: str
    role: Literal["target", "surrogate"]


@dataclass(frozen=True, kw_only=True)
class DataSet(Entry):
    """A data set that the job logged, by its digest in MLflow."""

    name: str
    digest: str
    use: str


@dataclass(frozen=True, kw_only=True)
class Data(Entry):
    """The images that were certified.

    Attributes:
        images: How many.
        classes: Labels that occur among them.
        digest: SHA-256 over a line `IDX LABEL DIGEST` for each image in the headline's records, by idx.
        prepared: What was done to each image before the noise, in words; empty for nothing.
        right: What counts as right where the images have no labels; empty where they have.
        sets: The data sets of the job.
    """

    images: int
    classes: int
    digest: str | Absent
    prepared: str
    right: str
    sets: tuple[DataSet, ...]


@dataclass(frozen=True, kw_only=True)
class Run(Entry):
    """The run of MLflow that it comes from.

    Attributes:
        store: Its tracking store.
        job: Id of the job's run.
        records: Id of the run that keeps the records.
        name: Of the job's run.
        started, ended: In UTC; ended is empty for one that is not finished.
        tags: That certdef gave it.
    """

    store: str
    job: str
    records: str
    name: str
    started: str
    ended: str
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AtRadius(Entry):
    """Certified accuracy at one radius.

    Attributes:
        radius: In [0, 1] pixel units, in the norm of the certificate.
        certified: Images that are right and certified at least that far.
        accuracy: Their share.
    """

    radius: float
    certified: int
    accuracy: Interval


@dataclass(frozen=True, kw_only=True)
class Certificate(Entry):
    """One smoothed classifier.

    Attributes:
        key: Name of its records.
        headline: Whether it is what this document is first about.
        subject: Whose votes: the target's or the surrogate's. A surrogate's certificate says nothing about the target.
        denoiser: What stands between noise and classifier.
        noise: Description of the noise law.
        law: The same in words.
        norm: Of the radii.
        n0, n: Votes that chose the class, and (at most) votes that bound its probability, an image.
        votes: Votes that an image took on average.
        alpha: Probability at most that a certificate is wrong, for each image by itself.
        method: How votes were drawn and bounded.
        seed: Of the noise.
        claim: Whether every radius is proven, or some are approximate.
        images: Certified images.
        radii: Certified accuracy, from radius 0 on.
        abstained: Share without a certificate.
        reach: The largest radius that n votes can prove, if they are unanimous: beyond it 0% says nothing of the model.
        median_radius: Over all images; a wrong or abstained one has radius 0.
        records: SHA-256 of the file with every vote, from which all of this can be computed again.
        versions: Of the libraries that drew and counted the votes.
    """

    key: str
    headline: bool
    subject: str | None
    denoiser: str | None
    noise: dict[str, Any] | None
    law: str
    norm: str | None
    n0: int | None
    n: int | None
    votes: float | None
    alpha: float | None
    method: str | None
    seed: int | None
    claim: Literal["sound", "approximate"]
    images: int
    radii: tuple[AtRadius, ...]
    abstained: Interval
    reach: float | None
    median_radius: float
    records: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class CleanAccuracy(Entry):
    """The bare target without noise, on the held-out images (None where their number is not known): nothing is proven of it."""

    status: Literal["measured"] = "measured"
    subject: Literal["target"] = "target"
    images: int | None
    accuracy: Interval


@dataclass(frozen=True, kw_only=True)
class Purpose(Entry):
    """Queries of one purpose; None where what was named does not say."""

    purpose: str
    spent: int
    answered: int | None
    unknown: int | None
    budget: int | None


@dataclass(frozen=True, kw_only=True)
class Ledger(Entry):
    """The ledger and its digest.

    Attributes:
        file: Where it was.
        identity: The target that it belongs to.
        sha256: Over every query and answer up to a batch.
        upto: That batch: later ones are of later jobs.
        queries: Up to it.
        in_flight: Of them, not settled when this was written: then the digest changes once more.
        recompute: The command.
    """

    file: str
    identity: str
    sha256: str
    upto: int
    queries: int
    in_flight: int
    recompute: str


@dataclass(frozen=True, kw_only=True)
class Queries(Entry):
    """What the target was asked, by purpose; a ledger may have paid for other jobs on it too."""

    status: Literal["measured"] = "measured"
    purposes: tuple[Purpose, ...]
    source: Literal["ledger", "run"]
    ledger: Ledger | Absent


@dataclass(frozen=True, kw_only=True)
class Group(Entry):
    """Certified accuracy of a subgroup; each interval holds by itself, not all at once.

    Attributes:
        column: class, or a column of the table that was given.
        name: The value in it.
        images: Certified images.
        radii: Certified accuracy at each radius.
    """

    column: str
    name: str
    images: int
    radii: tuple[AtRadius, ...]


@dataclass(frozen=True, kw_only=True)
class Subgroups(Entry):
    """By class, and by each column that was given, of the headline's certificate."""

    status: Literal["measured"] = "measured"
    of: str
    groups: tuple[Group, ...]
    columns: tuple[str, ...] | Absent


@dataclass(frozen=True, kw_only=True)
class WorstCase(Entry):
    """One system under every attack that submits an image once: what survives all of them, image by image.

    Attributes:
        subject: target (by paid queries) or surrogate (by its weights).
        system: The purifier in front of it; none for the bare classifier.
        own: Whether it is the job's.
        images: That were attacked.
        attacks: How many attacks were tried.
        accuracy: What survives; the intervals of all systems hold at once.
        strongest: The attack that leaves the least alone.
        alone: What it leaves.
        control: Clean images, submitted as often; None where no noise is drawn.
        queries: That they took.
        alarms: Signs that an attack was weak.
    """

    subject: str
    system: str
    own: bool
    images: int
    attacks: int
    accuracy: Interval
    strongest: str
    alone: Interval | None
    control: Interval | None
    queries: int
    alarms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attack(Entry):
    """The threat ladder: measurements, which can only show a weakness."""

    status: Literal["measured"] = "measured"
    norm: Literal["linf"] = "linf"
    eps: float
    systems: tuple[WorstCase, ...]


@dataclass(frozen=True, kw_only=True)
class LowRate(Entry):
    """True positive rate where at most a share fpr of the non-members is taken for members.

    Attributes:
        fpr: What is allowed.
        found: Members that are found, with the exact interval for this threshold.
        passed: Non-members that are taken for members.
        possible: Whether there are enough non-members: at least 1 / fpr.
    """

    fpr: float
    found: Interval
    passed: float
    possible: bool


@dataclass(frozen=True, kw_only=True)
class Inference(Entry):
    """One attack on one subject; 0.5 is a coin. The interval of the AUC is DeLong's."""

    subject: str
    attack: str
    auc: Interval
    rates: tuple[LowRate, ...]


@dataclass(frozen=True, kw_only=True)
class ListsAlike(Entry):
    """Whether images and labels alone, without the model, tell members from non-members."""

    status: Literal["measured"] = "measured"
    auc: Interval
    p: float
    differ: bool


@dataclass(frozen=True, kw_only=True)
class Membership(Entry):
    """Do the answers tell which images a model was trained on?"""

    status: Literal["measured"] = "measured"
    members: int
    nonmembers: int
    digests: dict[str, str]
    attacks: tuple[Inference, ...]
    lists: ListsAlike | Absent
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reproduce(Entry):
    """How to get the same.

    Attributes:
        command: Of the job; without secrets, which the environment holds.
        note: What else it takes.
        offline: The command that computes every radius again from the records.
    """

    command: str | Absent
    note: str
    offline: str


@dataclass(frozen=True, kw_only=True)
class Requirement(Entry):
    """A heading of a standard or law, what of it is here, and what is not. No claim of compliance is made.

    Attributes:
        source: The document.
        section: Its heading.
        asks: What it asks for, in our words.
        here: Parts of this document.
        absent: Of these, parts that were not measured or are not known.
        yours: What is still to be done by whoever answers for the model.
    """

    source: str
    section: str
    asks: str
    here: tuple[str, ...]
    absent: tuple[str, ...]
    yours: str


@dataclass(frozen=True, kw_only=True)
class Evidence(Entry):
    """Evidence of one model version.

    Attributes:
        made: When, in UTC.
        given: What was named on the command line.
        writer: Versions of what wrote this document.
        proves: What a certificate proves.
        does_not_prove: What it does not.
        limits: What can void it, the worst first: the sharp edges of certdef's README.
    """

    schema: Literal["certdef-evidence-1"] = SCHEMA
    schema_version: Literal["1.0"] = SCHEMA_VERSION
    made: str
    given: str
    writer: dict[str, str]
    model: Model
    data: Data
    run: Run | Absent
    certificates: tuple[Certificate, ...]
    clean_accuracy: CleanAccuracy | Absent
    subgroups: Subgroups | Absent
    attack: Attack | Absent
    membership: Membership | Absent
    queries: Queries | Absent
    proves: tuple[str, ...]
    does_not_prove: tuple[str, ...]
    limits: tuple[str, ...]
    reproduce: Reproduce
    requirements: tuple[Requirement, ...]

    @property
    def headline(self) -> Certificate:
        """What it is first about."""
        return next((each for each in self.certificates if each.headline), self.certificates[0])

    def to_json(self) -> dict[str, Any]:
        """The document as JSON has it; schemas/evidence-1.json describes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The document of a text, checked entry by entry: types, names, and nothing beside them.

        Raises:
            pydantic.ValidationError: It does not follow the schema.
        """
        return _reader().validate_json(text, strict=True)


@cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Evidence)


def json_schema() -> dict[str, Any]:
    """The JSON schema of to_json, as it is published."""
    schema = _reader().json_schema(mode="serialization")
    return {"$schema": DIALECT, "$id": ID, **schema, "title": SCHEMA}
