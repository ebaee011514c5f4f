"""Canaries: a few images that a target is asked again and again, so that one that changed is noticed in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surrogates.errors import DriftError, TargetError
from surrogates.targets.base import Answers, Target, check_images

if TYPE_CHECKING:
    from surrogates.ledger.ledger import QueryLedger

REFERENCE = "reference"


class Canaries:
    """Fixed images (N, C, H, W) in [0, 1] that a ledger re-asks after every `every` paid queries.

    The first answers ever are kept in the ledger's file, so that a change between runs is noticed too. Each
    check costs N queries of the purpose "canary". Where two askings in a row differ, the target is not
    deterministic: that is recorded, and no more is asked, since drift cannot be told from chance. Give them to
    `QueryLedger(..., canaries=...)`.
    """

    def __init__(self, images: np.ndarray, *, every: int = 2000, tolerance: float = 1e-3) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise TargetError(
                f"every must be a whole number of queries of at least 1, got {every!r}: try 2000"
            )
        self.images = check_images(images)
        self.every = every
        self.tolerance = tolerance
        self.deterministic: bool | None = None  # unknown until asked
        self._since: int | None = None  # queries since the last check
        self._subject: tuple[QueryLedger, Target] | None = None

    def count(self, asked: int, ledger: QueryLedger, target: Target) -> None:
        """Take note of `asked` paid queries and check where it is time; raises DriftError."""
        if not asked or self.deterministic is False:
            return
        self._subject = (ledger, target)
        if self._since is None or self._since + asked >= self.every:
            self._since = None  # a check that fails is made again
            self.check(ledger, target)
            self._since = 0
        else:
            self._since += asked

    def finish(self) -> None:
        """Check what was asked since the last check, if anything; raises DriftError."""
        if self._subject is not None and self._since != 0 and self.deterministic is not False:
            self.check(*self._subject)
            self._since = 0

    def check(self, ledger: QueryLedger, target: Target) -> None:
        """Ask now, compare with the reference, and raise DriftError where the target has changed."""
        reference = ledger.attach(target, purpose="canary", experiment=REFERENCE).query(self.images)
        answers = ledger.attach(target, purpose="canary").query(self.images)
        changed = self._differ(reference, answers)
        if not changed.any():
            self.deterministic = True
            return
        if self._differ(answers, ledger.attach(target, purpose="canary").query(self.images)).any():
            self.deterministic = False
            return
        raise DriftError(
            f"target {target.identity} answers {changed.sum()} of {len(changed)} canary images otherwise than "
            "at first: it has changed, so ask the version that was asked before, or begin a new ledger"
        )

    def _differ(self, first: Answers, second: Answers) -> np.ndarray:
        """Return for each canary whether two askings differ by more than rounding."""
        if first.scores is None or second.scores is None:
            return first.labels != second.labels
        near = np.isclose(
            first.scores, second.scores, rtol=self.tolerance, atol=self.tolerance, equal_nan=True
        )
        return ~near.all(axis=1)
