"""The query ledger: every query to a paid target is budgeted, charged once, and its answer kept.

Exactly-once charging is impossible without the server's help, so the ledger says what it knows: the charge is
at least `answered` and at most `answered + unknown + in flight`, and the budget is held against the latter.
"""

import hashlib
import operator
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import TracebackType

import numpy as np

from surrogates.errors import BudgetExceeded, LedgerError, Refused
from surrogates.ledger.canaries import Canaries
from surrogates.ledger.packing import Kept, pack, unpack
from surrogates.ledger.store import Batch, LedgerStore
from surrogates.targets.base import Answers, Target

PURPOSES = ("training", "evaluation", "certification", "attack", "canary")
# These must see fresh answers: nothing asked for another purpose or experiment reaches them.
FRESH_PURPOSES = ("certification", "attack", "canary")
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Charge:
    """Queries of one purpose; `recalled` counts those that this process got from the ledger for free.

    Refused queries cost nothing: they were never sent, or the target surely did no work for them.
    """

    budget: int
    answered: int
    unknown: int
    in_flight: int
    recalled: int
    refused: int = 0

    @property
    def spent(self) -> int:
        """Queries charged, or possibly charged, and settled."""
        return self.answered + self.unknown

    @property
    def smallest(self) -> int:
        """The smallest charge that is consistent with what was seen."""
        return self.answered

    @property
    def largest(self) -> int:
        """The largest charge that is consistent with what was seen."""
        return self.answered + self.unknown + self.in_flight

    @property
    def remaining(self) -> int:
        """Queries that can still be asked."""
        return max(0, self.budget - self.largest)


@dataclass(frozen=True)
class Bill:
    """The charges of one target by purpose, and their totals."""

    identity: str | None
    charges: dict[str, Charge]

    def __getitem__(self, purpose: str) -> Charge:
        return self.charges[purpose]

    @property
    def total(self) -> Charge:
        """The sum over all purposes."""
        names = [field.name for field in fields(Charge)]
        return Charge(*(sum(getattr(charge, name) for charge in self.charges.values()) for name in names))


class QueryLedger:
    """A durable record of what one target was asked, what it answered, and what that cost.

    path is an SQLite file (its directory must exist) that belongs to the first target attached and may be
    shared by processes on one machine. budget is the number of training queries, or a mapping from purposes
    ("training", "evaluation", "certification", "attack", "canary") to numbers; a purpose left out has none.
    It is held before a query is sent. Only attempts that a target loses and repeats on its own
    (Answers.lost) can pass it, by their number: they are booked as unknown and nothing more is sent.
    After a killed process nothing is missing; after a power failure the last moments may be
    (synchronous=NORMAL). canaries, if given, are asked from their own budget while others pay; a target that
    has changed stops the query with DriftError. Raises LedgerError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        budget: int | Mapping[str, int],
        canaries: Canaries | None = None,
    ) -> None:
        self.budget = _checked_budget(budget)
        self.canaries = canaries
        self._store = LedgerStore(path)
        self._recalled: Counter[str] = Counter()

    @property
    def path(self) -> str:
        """The ledger's file."""
        return str(self._store.path)

    def attach(
        self, target: Target, *, purpose: str = "training", experiment: str | None = None
    ) -> "PaidTarget":
        """Return the target as one that pays from this ledger's budget for `purpose`.

        For training and evaluation an image is asked once ever: repeated images, in one batch, later or by
        another process, get the kept answer. For certification and attack every batch is asked afresh;
        its answers are kept as a receipt of `experiment`, a fingerprint of what determines the queries (seed
        and configuration), so that the same experiment, run again from its start after an interruption,
        gets back what it has paid for and no other experiment ever does. Certification answers are labels
        only. Canaries are asked afresh too; without an experiment their answers are nobody's receipt.
        `experiment` is ignored for training and evaluation. Raises LedgerError.
        """
        if isinstance(target, PaidTarget):
            raise LedgerError(
                f"target {target.identity!r} already pays from {target.ledger.path}: attach the one behind it"
            )
        if not isinstance(target, Target):
            raise LedgerError(
                f"only an opened target can be attached, got {type(target).__name__}: open_target it"
            )
        _check_purpose(purpose)
        if purpose == "canary":
            experiment = experiment or os.urandom(16).hex()  # one that nobody can repeat
        elif purpose in FRESH_PURPOSES and not experiment:
            raise LedgerError(
                f"purpose {purpose!r} needs an experiment, got {experiment!r}: "
                "give a fingerprint of its seed and configuration"
            )
        self._store.claim(target.identity, target.num_classes)
        return PaidTarget(self, target, purpose, experiment)

    def bill(self) -> Bill:
        """Return the charges so far, over all processes."""
        tally = self._store.tally()
        charges = {
            purpose: Charge(
                budget=self.budget[purpose],
                answered=tally.get((purpose, "answered"), 0),
                unknown=tally.get((purpose, "unknown"), 0),
                in_flight=tally.get((purpose, "reserved"), 0) + tally.get((purpose, "sent"), 0),
                recalled=self._recalled[purpose],
                refused=tally.get((purpose, "refused"), 0),
            )
            for purpose in PURPOSES
        }
        return Bill(self._store.identity(), charges)

    def remaining(self, purpose: str = "training") -> int:
        """Return how many more queries the budget of a purpose allows."""
        _check_purpose(purpose)
        return self.bill()[purpose].remaining

    def close(self) -> None:
        """Close the ledger's file; attached targets can no longer be asked."""
        self._store.close()

    def __enter__(self) -> "QueryLedger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PaidTarget(Target):
    """A target behind a ledger; made by QueryLedger.attach."""

    def __init__(self, ledger: QueryLedger, target: Target, purpose: str, experiment: str | None) -> None:
        super().__init__(
            target.identity,
            target.num_classes,
            "labels" if purpose == "certification" else target.output_kind,
            charged_when_sent=target.charged_when_sent,
            input_shape=target.input_shape,
            num_features=target.num_features,
            # batch_size stays with the target: a query is planned, and refused, as a whole.
        )
        self.ledger = ledger
        self.purpose = purpose
        self._target = target
        self._experiment = experiment
        self._asked: Counter[bytes] = Counter()

    def _checked(self, pixels: np.ndarray) -> Answers:
        return self._answer(pixels)  # the target behind copies what it gets and checks what it answers

    def _answer(self, pixels: np.ndarray) -> Answers:
        store, repeats = self.ledger._store, Counter[bytes]()
        if self.purpose in FRESH_PURPOSES:
            order, rows = self._fresh_items(pixels, repeats)
        else:
            order, rows = self._items(pixels)
        found: dict[bytes, Kept] = {}
        asked = 0
        while missing := {key: len(rows[key]) for key in rows if key not in found}:
            plan = store.plan(
                missing,
                purpose=self.purpose,
                budget=self.ledger.budget[self.purpose],
                limit=self._target.batch_size,
                charged_when_sent=self.charged_when_sent,
            )
            found |= plan.known
            found |= self._send(plan.batches, pixels, rows)
            asked += sum(len(rows[key]) for batch in plan.batches for key in batch.keys)
            if plan.awaited:
                time.sleep(POLL_SECONDS)  # another process is asking the same images
        self._asked += repeats  # only now: a query that failed is repeated under its own keys
        self.ledger._recalled[self.purpose] += len(pixels) - asked
        if self.ledger.canaries is not None and self.purpose != "canary":
            self.ledger.canaries.count(asked, self.ledger, self._target)
        return unpack([found[key] for key in order], self.num_classes)

    def _items(self, pixels: np.ndarray) -> tuple[list[bytes], dict[bytes, range]]:
        """Return the key of each image, and for each distinct key the row to ask."""
        start = self._hash("image", pixels[0])
        order: list[bytes] = []
        for image in pixels:
            key = start.copy()
            key.update(image)
            order.append(key.digest())
        rows: dict[bytes, range] = {}
        for row, image_key in enumerate(order):
            rows.setdefault(image_key, range(row, row + 1))
        return order, rows

    def _fresh_items(
        self, pixels: np.ndarray, repeats: Counter[bytes]
    ) -> tuple[list[bytes], dict[bytes, range]]:
        """Return a key for each batch; the n-th asking of equal bytes has its own, to be answered anew."""
        rows: dict[bytes, range] = {}
        size = self._target.batch_size or len(pixels)
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            key = self._hash("batch", batch, self.purpose, self._experiment)
            key.update(batch)
            turn = self._asked[key.digest()] + repeats[key.digest()]
            repeats[key.digest()] += 1
            rows[hashlib.sha256(key.digest() + turn.to_bytes(8)).digest()] = range(start, start + len(batch))
        return list(rows), rows

    def _hash(self, *parts: object) -> "hashlib._Hash":
        """Return sha256 begun with everything but the pixels that determines an answer."""
        parts = tuple(
            (part.dtype.str, part.shape) if isinstance(part, np.ndarray) else part for part in parts
        )
        subject = (self.identity, self.output_kind, getattr(self._target, "preprocessing", None))
        return hashlib.sha256(hashlib.sha256(repr((subject, parts)).encode()).digest())

    def _send(self, batches: list[Batch], pixels: np.ndarray, rows: dict[bytes, range]) -> dict[bytes, Kept]:
        """Ask batches one after the other, keeping each answer before the next is asked."""
        found: dict[bytes, Kept] = {}
        for position, batch in enumerate(batches):
            following = (batches[position + 1 :] or [None])[0]
            places = [row for key in batch.keys for row in rows[key]]
            images = pixels if len(places) == len(pixels) else pixels[places]
            try:
                answers = self._target.query(images, bounded=False)  # the range was checked at our own door
                counts = [len(rows[key]) for key in batch.keys]
                kept = pack(answers, counts, self.num_classes, scores=self.output_kind != "labels")
                self.ledger._store.settle(batch, kept, following, lost=answers.lost)
                if answers.lost and following is not None:
                    self._check_overspent(answers.lost)
            except BaseException as error:  # an interrupt too leaves a query of unknown fate
                self.ledger._store.fail(
                    batches[position:],
                    f"{type(error).__name__}: {error}",
                    refused=isinstance(error, Refused | BudgetExceeded),
                    lost=getattr(error, "lost", 0),
                )
                raise
            found |= zip(batch.keys, kept, strict=True)
        return found

    def _check_overspent(self, lost: int) -> None:
        """Stop a query whose repeated attempts may have used up what its other batches had reserved."""
        budget = self.ledger.budget[self.purpose]
        spent, in_flight = self.ledger._store.charged(self.purpose)
        if spent + in_flight > budget:
            raise BudgetExceeded(
                f"{self.purpose} budget is {budget} queries, {spent} spent now that {lost} were lost on the way "
                f"and asked again: raise ledger.{self.purpose} to at least {spent + in_flight}"
            )


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise LedgerError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")


def _checked_budget(budget: int | Mapping[str, int]) -> dict[str, int]:
    """Return the budget of every purpose, 0 where none was given."""
    given = budget if isinstance(budget, Mapping) else {"training": budget}
    for purpose, queries in given.items():
        _check_purpose(purpose)
        try:
            whole = operator.index(queries)
        except TypeError:
            whole = -1
        if isinstance(queries, bool) or whole < 0:
            raise LedgerError(f"{purpose} budget must be a whole number of queries, got {queries!r}")
    if not any(given.values()):
        raise LedgerError(f"budget must allow at least 1 query, got {budget!r}: give a positive number")
    return {purpose: operator.index(given.get(purpose, 0)) for purpose in PURPOSES}
