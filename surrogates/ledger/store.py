"""The ledger's file: an SQLite database in WAL mode that survives crashes and is shared by processes.

A batch goes reserved -> sent -> answered | unknown | refused. "sent" is committed before anything leaves, and
answers are committed together with "answered"; so whatever the moment of a crash, an answer is either kept
and charged, or its batch is still in "sent" and settled by the next process. A batch is sent only if it is still
reserved and the budget still holds: both are looked at in the transaction that says so.

Rows are only ever appended, in order, which keeps a commit to a few pages however large the file: which key was
answered where is an index that each process holds in memory (some 200 bytes a key) and extends from the file.
"""

import itertools
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surrogates.errors import BudgetExceeded, DriftError, LedgerError, SurrogateError
from surrogates.ledger.drift import MARK, has_changed, marked_among, note_check, settled_until
from surrogates.ledger.file import LedgerFile
from surrogates.ledger.integrity import checksum_of_answers, checksum_of_keys, damaged
from surrogates.ledger.packing import Kept, join, share
from surrogates.ledger.schema import KEY_BYTES, KEYS_A_ROW, PLACE_BITS

PROCESS_ENDED = "its process ended before the answer was kept"


@dataclass(frozen=True)
class Batch:
    """One charge: a row of the ledger and the keys of the answers that it will bring."""

    id: int
    keys: tuple[bytes, ...]
    purpose: str


@dataclass(frozen=True)
class Plan:
    """The answers that are kept, the batches to send (the first is marked sent), and whether others are in flight."""

    known: dict[bytes, Kept]
    batches: list[Batch]
    awaited: bool


class LedgerStore:
    """The tables of one ledger file; every method is one transaction."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._answered: dict[bytes, int] = {}  # key -> its place, until a mark is found on it
        self._unsettled: dict[int, list[bytes]] = {}  # batch -> keys that somebody is waiting for
        self._former_sizes: dict[str, tuple[int, ...]] = {}
        self._seen = 0  # batches up to this one are in one of the two, or were given up
        self._under_way: set[int] = set()  # batches that a thread of this process is busy with
        self.file = LedgerFile(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def claim(self, identity: str, num_classes: int) -> None:
        """Bind the file to one target for ever.

        Raises:
            LedgerError: It belongs to another target.
        """
        with self.file.transaction() as db:
            row = db.execute("SELECT identity, num_classes FROM subject").fetchone()
            if row is None:
                db.execute("INSERT INTO subject VALUES (?, ?)", (identity, num_classes))
            elif row[0] != identity:
                raise LedgerError(
                    f"ledger {self.path} belongs to target {row[0]!r}, got {identity!r}: "
                    "give each target its own ledger file"
                )
            elif row[1] != num_classes:
                raise LedgerError(
                    f"ledger {self.path} holds answers over {row[1]} classes, got {num_classes}: "
                    "open the target with the same num_classes"
                )

    def identity(self) -> str | None:
        """Return the target this ledger belongs to, None before the first one."""
        with self.file.transaction() as db:
            row = db.execute("SELECT identity FROM subject").fetchone()
            return None if row is None else row[0]

    def tally(self) -> dict[tuple[str, str], int]:
        """Return the number of queries by (purpose, state), after settling what dead processes left."""
        with self.file.transaction() as db:
            self._settle_stale(db)
            return self._tally(db)

    def holds(self, purposes: Collection[str]) -> bool:
        """Return whether there are answers for any of these purposes."""
        with self.file.transaction("DEFERRED") as db:
            tally = self._tally(db)
        return any(tally.get((purpose, "answered"), 0) for purpose in purposes)

    def former_sizes(self, purpose: str) -> tuple[int, ...]:
        """Return the sizes of the full batches of a purpose that version 0.1 kept under one key; 1 may also be newer."""
        if purpose not in self._former_sizes:
            with self.file.transaction("DEFERRED") as db:
                least, most = db.execute(
                    "SELECT min(size), max(size) FROM batches JOIN asked ON batch = id "
                    "WHERE purpose = ? AND state = 'answered' AND length(keys) = ?",
                    (purpose, KEY_BYTES),
                ).fetchone()
            sizes = () if most is None else (most, 1) if least == 1 else (most,)
            self._former_sizes[purpose] = tuple(dict.fromkeys(sizes))
        return self._former_sizes[purpose]

    def plan(
        self,
        items: Mapping[bytes, int],
        *,
        purpose: str,
        budget: int,
        limit: int | None,
        charged_when_sent: bool,
    ) -> Plan:
        """Look up items (key -> number of queries) and reserve those that are neither answered nor in flight.

        Args:
            limit: Queries that a batch holds at most.

        Raises:
            BudgetExceeded: Answered, unknown and in-flight queries would pass the budget; nothing is reserved.
            LedgerError: The file is no longer in its place, or its disk is full; nothing is reserved.
            DriftError: The last canary check found that the target has changed; nothing is reserved.
        """
        batches: list[Batch] = []
        awaited = False
        if not items.keys() <= self._answered.keys():
            with self.file.transaction() as db:
                self._settle_stale(db)
                in_flight = self._refresh(db)
                new = [key for key in items if key not in self._answered and key not in in_flight]
                awaited = not in_flight.isdisjoint(items)
                if new:
                    self._check_payable(db, purpose, budget, sum(items[key] for key in new))
                batches = [
                    self._reserve(db, group, items, purpose, charged_when_sent)
                    for group in _group(new, items, limit)
                ]
                if batches and (reason := self._mark_sent(db, batches[0], budget)):
                    raise reason
        return Plan(self._recall(items), batches, awaited)

    def recall(self, keys: Collection[bytes]) -> dict[bytes, Kept]:
        """Return what is kept for those keys that are answered."""
        if not self._answered.keys() >= set(keys):
            with self.file.transaction("DEFERRED") as db:
                self._refresh(db)
        return self._recall(keys)

    def send(self, batch: Batch, *, budget: int) -> None:
        """Mark a reserved batch sent.

        Raises:
            BudgetExceeded: It may not be sent.
            LedgerError: As above, because the file is no longer in its place or its disk is full.
            DriftError: As above, because the target has changed.
        """
        with self.file.transaction() as db:
            reason = self._mark_sent(db, batch, budget)
        if reason is not None:
            raise reason

    def settled_until(self) -> int:
        """Return the batch up to which every one is settled: what a canary check that begins now can vouch for."""
        with self.file.transaction("DEFERRED") as db:
            return settled_until(db)

    def note_check(self, until: int, *, changed: bool) -> int:
        """Note a canary check that began at `until`; return how many batches it marks: their answers are not used again."""
        with self.file.transaction() as db:
            return note_check(db, until, changed)

    def settle(
        self,
        batch: Batch,
        answers: Sequence[Kept],
        following: Batch | None,
        *,
        budget: int,
        repeats: Sequence[Batch] = (),
        lost: int = 0,
    ) -> None:
        """Keep the answers of a batch, mark it answered and, in the same commit, the following one sent.

        Args:
            budget: Of the purpose.
            repeats: What was booked for repeated attempts at this batch.
            lost: Queries, charged or not, of all earlier attempts at it.

        Raises:
            BudgetExceeded: The following one may not be sent; the answers are kept all the same.
            LedgerError: As above, because the file is no longer in its place or its disk is full.
            DriftError: A canary check found meanwhile that the target has changed; the answers are kept with a mark.
        """
        first = (batch.id << PLACE_BITS) // KEYS_A_ROW
        parts = (answers[start : start + KEYS_A_ROW] for start in range(0, len(answers), KEYS_A_ROW))
        rows = [(first + row, len(part), *join(part)) for row, part in enumerate(parts)]
        reason: SurrogateError | None = None
        with self.file.transaction() as db:
            db.executemany(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                ((*row, checksum_of_answers(*row)) for row in rows),
            )
            changed = batch.purpose != "canary" and has_changed(db)
            _close(db, batch.id, "answered", MARK if changed else None)
            self._close_repeats(db, batch, repeats, lost)
            if changed:
                reason = self._drifted()
            elif following is not None:
                reason = self._mark_sent(db, following, budget)
            self._under_way.discard(batch.id)
        if reason is not None:
            raise reason

    def repeat(self, batch: Batch, queries: int, *, budget: int) -> Batch:
        """Book one attempt more at a batch that was sent: it is charged besides the one whose answer was lost.

        Raises:
            BudgetExceeded: It would pass the budget.
            LedgerError: The file is no longer in its place, or its disk is full.
            DriftError: The target has changed.
        """
        with self.file.transaction() as db:
            self._check_payable(db, batch.purpose, budget, queries)
            return Batch(self._insert(db, batch.purpose, queries, "sent", True), (), batch.purpose)

    def fail(
        self,
        batches: Sequence[Batch],
        reason: str,
        *,
        refused: bool = False,
        repeats: Sequence[Batch] = (),
        lost: int = 0,
    ) -> None:
        """Settle batches that got no answer: a sent one that may be charged is unknown, else refused.

        Args:
            refused: Whether none was charged.
            repeats: What was booked for repeated attempts at the first batch.
            lost: Queries of all earlier attempts at it.
        """
        try:
            with self.file.transaction() as db:
                for batch in batches:
                    row = db.execute(
                        "SELECT state, charged_when_sent FROM batches WHERE id = ? AND settled_at IS NULL",
                        (batch.id,),
                    ).fetchone()
                    if row is not None:
                        state, charged_when_sent = row
                        _abandon(db, batch.id, state, charged_when_sent and not refused, reason)
                self._close_repeats(db, batches[0], repeats, lost)
        finally:  # what could not be written is settled by the next transaction that can
            self._under_way -= {batch.id for batch in (*batches, *repeats)}

    def _tally(self, db: sqlite3.Connection) -> dict[tuple[str, str], int]:
        return {(purpose, state): queries for purpose, state, queries in db.execute("SELECT * FROM tally")}

    def _refresh(self, db: sqlite3.Connection) -> set[bytes]:
        """Read which keys were sent and answered since the last time, by any process; return those in flight."""
        for batch, keys, checksum in db.execute("SELECT * FROM asked WHERE batch > ?", (self._seen,)):
            if checksum != checksum_of_keys(batch, keys):
                raise damaged(self.path, f"the keys of batch {batch}")
            self._unsettled[batch] = [
                keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)
            ]
            self._seen = batch
        fates = db.execute(
            "SELECT id, state, reason FROM batches WHERE settled_at IS NOT NULL "
            "AND id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(self._unsettled)),),
        )
        for batch, state, mark in fates:
            keys = self._unsettled.pop(batch)
            if state == "answered" and mark is None:
                self._answered.update(zip(keys, itertools.count(batch << PLACE_BITS), strict=False))
        return set(itertools.chain.from_iterable(self._unsettled.values()))

    def _recall(self, keys: Iterable[bytes]) -> dict[bytes, Kept]:
        """Return what is kept for those keys that are known to be answered, and forget those that were marked since."""
        places = {key: place for key in keys if (place := self._answered.get(key)) is not None}
        wanted: dict[int, list[tuple[int, bytes]]] = {}
        kept: dict[bytes, Kept] = {}
        if places:
            with self.file.transaction("DEFERRED") as db:
                doubtful = marked_among(db, {place >> PLACE_BITS for place in places.values()})
                for key, place in places.items():
                    if place >> PLACE_BITS in doubtful:
                        self._answered.pop(key, None)
                    else:
                        wanted.setdefault(place // KEYS_A_ROW, []).append((place % KEYS_A_ROW, key))
                rows = db.execute(
                    "SELECT * FROM answers WHERE id IN (SELECT value FROM json_each(?))",
                    (json.dumps(list(wanted)),),
                )
                for row, count, labels, scores, checksum in rows:
                    if checksum != checksum_of_answers(row, count, labels, scores):
                        raise damaged(self.path, f"answers {row}")
                    for position, key in wanted.pop(row):
                        values = None if scores is None else share(scores, position, count)
                        kept[key] = (share(labels, position, count), values)
            if wanted:
                raise damaged(self.path, f"answers {min(wanted)} are missing")
        return kept

    def _check_payable(self, db: sqlite3.Connection, purpose: str, budget: int, queries: int) -> None:
        self.file.check_payable()
        if purpose != "canary" and has_changed(db):
            raise self._drifted()
        self._check_budget(db, purpose, budget, queries)

    def _drifted(self) -> DriftError:
        return DriftError(
            f"the target of ledger {self.path} had changed at the last canary check: query it with "
            "canaries, which notice when the earlier version is back, or begin a new ledger"
        )

    def _check_budget(self, db: sqlite3.Connection, purpose: str, budget: int, queries: int) -> None:
        spent, in_flight = _charged(self._tally(db), purpose)
        if spent + in_flight + queries > budget:
            flying = f" and {in_flight} in flight" if in_flight else ""
            needed = f", this batch needs {queries} more" if queries else ""
            raise BudgetExceeded(
                f"{purpose} budget is {budget} queries, {spent} spent{flying}{needed}: "
                f"raise ledger.{purpose} to at least {spent + in_flight + queries} or query fewer images"
            )

    def _reserve(
        self,
        db: sqlite3.Connection,
        keys: list[bytes],
        items: Mapping[bytes, int],
        purpose: str,
        charged_when_sent: bool,
    ) -> Batch:
        size = sum(items[key] for key in keys)
        batch = self._insert(db, purpose, size, "reserved", charged_when_sent)
        # These tell other processes what is in flight.
        blob = b"".join(keys)
        db.execute("INSERT INTO asked VALUES (?, ?, ?)", (batch, blob, checksum_of_keys(batch, blob)))
        return Batch(batch, tuple(keys), purpose)

    def _mark_sent(self, db: sqlite3.Connection, batch: Batch, budget: int) -> SurrogateError | None:
        """Mark a batch as sent where it is still reserved and may be paid for, else return why not."""
        try:
            self._check_payable(db, batch.purpose, budget, 0)
        except SurrogateError as error:
            return error
        changed = db.execute(
            "UPDATE batches SET state = 'sent', sent_at = ? WHERE id = ? AND state = 'reserved'",
            (time.time(), batch.id),
        ).rowcount
        if not changed:
            return LedgerError(f"ledger {self.path} has given up batch {batch.id}: query again")
        return None

    def _close_repeats(
        self, db: sqlite3.Connection, batch: Batch, repeats: Sequence[Batch], lost: int
    ) -> None:
        """Charge `lost` queries of attempts at a batch that were repeated, first to what was booked for them."""
        reason = f"lost attempts at batch {batch.id}, repeated"
        for booked in repeats:
            row = db.execute(
                "SELECT size FROM batches WHERE id = ? AND settled_at IS NULL", (booked.id,)
            ).fetchone()
            if row is None:  # it was closed with the answers, and a later batch failed
                continue
            (size,) = row
            used = size <= lost
            lost -= size if used else 0
            _close(db, booked.id, "unknown" if used else "refused", reason)
            self._under_way.discard(booked.id)
        if lost:
            more = self._insert(db, batch.purpose, lost, "sent", True)
            _close(db, more, "unknown", reason)
            self._under_way.discard(more)

    def _insert(
        self, db: sqlite3.Connection, purpose: str, size: int, state: str, charged_when_sent: bool
    ) -> int:
        now = time.time()
        row = db.execute(
            "INSERT INTO batches (purpose, size, state, charged_when_sent, owner, reserved_at, sent_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (purpose, size, state, charged_when_sent, self.file.owner, now, now if state == "sent" else None),
        ).lastrowid
        assert row is not None
        self._under_way.add(row)
        return row

    def _settle_stale(self, db: sqlite3.Connection) -> None:
        """Settle batches whose owner is gone, as `fail` would have done."""
        rows = db.execute(
            "SELECT id, state, charged_when_sent, owner FROM batches WHERE settled_at IS NULL"
        ).fetchall()
        owners = {owner for *_, owner in rows} - {self.file.owner}
        living = {owner for owner in owners if self.file.is_alive(owner)}
        for batch, state, charged, owner in rows:
            ours = owner == self.file.owner
            if batch not in self._under_way if ours else owner not in living:
                _abandon(db, batch, state, charged, PROCESS_ENDED)


def _charged(tally: Mapping[tuple[str, str], int], purpose: str) -> tuple[int, int]:
    spent, in_flight = (
        sum(tally.get((purpose, state), 0) for state in states)
        for states in (("answered", "unknown"), ("reserved", "sent"))
    )
    return spent, in_flight


def _close(db: sqlite3.Connection, batch: int, state: str, reason: str | None) -> None:
    db.execute(
        "UPDATE batches SET state = ?, settled_at = ?, reason = ? WHERE id = ?",
        (state, time.time(), reason, batch),
    )


def _abandon(db: sqlite3.Connection, batch: int, state: str, charged_when_sent: bool, reason: str) -> None:
    _close(db, batch, "unknown" if state == "sent" and charged_when_sent else "refused", reason)


def _group(keys: list[bytes], items: Mapping[bytes, int], limit: int | None) -> list[list[bytes]]:
    """Split keys in order into groups of at most `limit` queries."""
    groups: list[list[bytes]] = []
    room = 0
    for key in keys:
        if not groups or (limit is not None and room < items[key]):
            groups.append([])
            room = limit or 0
        groups[-1].append(key)
        room -= items[key]
    return groups
