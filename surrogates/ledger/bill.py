"""What a target costs: budgets by purpose, and the charge that is consistent with what the ledger saw.

Exactly-once charging is impossible without the server's help, so a charge is an interval: at least `answered` and at
most `answered + unknown + in flight` queries. The budget is held against the latter.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from surrogates.errors import LedgerError
from surrogates.frames import Framed

if TYPE_CHECKING:
    import pandas

PURPOSES = ("training", "evaluation", "certification", "attack", "canary", "preflight")


@dataclass(frozen=True)
class Charge:
    """Queries of one purpose.

    Args:
        budget: Queries that are allowed.
        answered: Queries with an answer.
        unknown: Queries whose answer was lost after they were sent, which may have been charged.
        in_flight: Queries that are reserved or sent.
        recalled: Queries that this process was given from the ledger for free.
        refused: Queries that cost nothing: never sent, or the target surely did no work for them.
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
        """Queries that the budget still allows."""
        return max(0, self.budget - self.largest)


@dataclass(frozen=True)
class Bill(Framed):
    """The charges of one target by purpose, and their totals.

    Examples:
        >>> bill = Bill(None, {"training": Charge(600, answered=500, unknown=2, in_flight=0, recalled=70)})
        >>> bill
        Bill(training 502 of 600, 2 of them without an answer)
        >>> bill["training"].remaining
        98
    """

    identity: str | None
    charges: dict[str, Charge]

    def __repr__(self) -> str:
        parts = [
            f"{name} {each.spent:,} of {each.budget:,}"
            for name, each in self.charges.items()
            if each.budget or each.largest
        ]
        lost = f", {self.total.unknown:,} of them without an answer" if self.total.unknown else ""
        return f"Bill({'; '.join(parts) or 'no budget'}{lost})"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a purpose that has a budget or a charge, in queries."""
        import pandas

        names = ("budget", "spent", "remaining", "answered", "unknown", "in_flight", "recalled", "refused")
        rows = [
            {"purpose": purpose} | {name: getattr(each, name) for name in names}
            for purpose, each in self.charges.items()
            if each.budget or each.largest
        ]
        return pandas.DataFrame(rows, columns=["purpose", *names])

    def __getitem__(self, purpose: str) -> Charge:
        return self.charges[purpose]

    @property
    def total(self) -> Charge:
        """The sum over all purposes."""
        names = [field.name for field in fields(Charge)]
        return Charge(*(sum(getattr(charge, name) for charge in self.charges.values()) for name in names))


def check_purpose(purpose: str) -> None:
    """Check that a purpose is one of PURPOSES.

    Raises:
        LedgerError: It is not.
    """
    if purpose not in PURPOSES:
        raise LedgerError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")


def checked_budget(budget: int | Mapping[str, int]) -> dict[str, int]:
    """Return the budget of every purpose, 0 where none was given.

    Args:
        budget: Training queries, or a mapping from purposes to queries.

    Raises:
        LedgerError: An unknown purpose, something that is no number of queries, or no query at all.
    """
    given = budget if isinstance(budget, Mapping) else {"training": budget}
    for purpose, queries in given.items():
        check_purpose(purpose)
        try:
            whole = operator.index(queries)
        except TypeError:
            whole = -1
        if isinstance(queries, bool) or whole < 0:
            raise LedgerError(f"{purpose} budget must be a whole number of queries, got {queries!r}")
    if not any(given.values()):
        raise LedgerError(f"budget must allow at least 1 query, got {budget!r}: give a positive number")
    return {purpose: operator.index(given.get(purpose, 0)) for purpose in PURPOSES}
