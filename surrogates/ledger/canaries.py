"""Canaries: a few images that are queried again and again, so that a target that changed is noticed in time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from surrogates.errors import DriftError, TargetError
from surrogates.ledger.store import LedgerStore
from surrogates.targets.base import Answers, Target, check_images

REFERENCE = "reference"


class Payer(Protocol):
    """Whatever lets a target pay: a QueryLedger."""

    @property
    def store(self) -> LedgerStore:
        """Its file."""

    def attach(self, target: Target, *, purpose: str, experiment: str | None = None) -> Target:
        """Return the target as one that pays for `purpose`."""


class Canaries:
    """Fixed images that a ledger queries again after every `every` paid queries; give them to QueryLedger.

    The first answers ever are kept in the ledger's file, so that a change between runs is noticed too: the first check of a
    process comes before it pays for anything. Each check costs N queries of the purpose "canary". Where two answers in a
    row differ the target is not deterministic: that is recorded, and no more is queried, since drift would not differ from
    chance. Where the target has changed, the answers since the last good check are marked in the ledger and not used again,
    and nothing is paid for until a check is good.

    Args:
        images: (N, C, H, W) in [0, 1].
        every: Paid queries between two checks.
        tolerance: Relative and absolute difference of scores that counts as rounding.

    Attributes:
        deterministic: Whether the target repeats itself; None before the first check.

    Raises:
        TargetError: `every` is no positive integer, or bad images.
    """

    def __init__(self, images: np.ndarray, *, every: int = 2000, tolerance: float = 1e-3) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise TargetError(
                f"every must be a whole number of queries of at least 1, got {every!r}: try 2000"
            )
        self.images = check_images(images)
        self.every = every
        self.tolerance = tolerance
        self.deterministic: bool | None = None
        self._since: int | None = None  # queries since the last check
        self._subject: tuple[Payer, Target] | None = None

    @property
    def due(self) -> bool:
        """Whether it is time for a check."""
        return self.deterministic is not False and (self._since is None or self._since >= self.every)

    def count(self, queries: int) -> bool:
        """Note paid queries; returns whether it is time for a check."""
        since = self._since  # another thread may begin a check now
        if since is not None:
            self._since = since + queries
        return self.due

    def finish(self) -> None:
        """Check where anything was paid since the last check.

        Raises:
            DriftError: The target has changed.
        """
        if self._subject is not None and self._since != 0 and self.deterministic is not False:
            self.check(*self._subject)

    def check(self, ledger: Payer, target: Target) -> None:
        """Query the canaries now and compare with the reference.

        Raises:
            DriftError: The target has changed.
        """
        self._subject, self._since = (ledger, target), None  # a check that fails is repeated
        until = ledger.store.settled_until()
        reference = ledger.attach(target, purpose="canary", experiment=REFERENCE).query(self.images)
        answers = ledger.attach(target, purpose="canary").query(self.images)
        changed = self._differ(reference, answers)
        if not changed.any():
            self.deterministic, self._since = True, 0
            ledger.store.note_check(until, changed=False)
            return
        if self._differ(answers, ledger.attach(target, purpose="canary").query(self.images)).any():
            self.deterministic = False
            return
        marked = ledger.store.note_check(until, changed=True)
        raise DriftError(
            f"target {target.identity} answers {changed.sum()} of {len(changed)} canary images otherwise than "
            f"at first: it has changed, and the {marked} batches since the last good check are marked and not used again; "
            "query the earlier version, or begin a new ledger"
        )

    def _differ(self, first: Answers, second: Answers) -> np.ndarray:
        """Return for each canary whether two answers differ by more than rounding."""
        if first.scores is None or second.scores is None:
            return first.labels != second.labels
        near = np.isclose(
            first.scores, second.scores, rtol=self.tolerance, atol=self.tolerance, equal_nan=True
        )
        return ~near.all(axis=1)
