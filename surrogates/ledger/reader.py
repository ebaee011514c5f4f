"""A ledger's file read from outside, while other processes go on writing: its queries, and what they may cost."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.integrity import check_undamaged, explained
from surrogates.ledger.schema import (
    APPLICATION_ID,
    BUSY_SECONDS,
    READABLE_VERSIONS,
    prepare,
    unknown_version,
    version_of,
)

LATEST = 100  # batches


@dataclass(frozen=True)
class Account:
    """Queries of one purpose by their state, and the seconds since 1970 of the first and the last."""

    answered: int
    unknown: int
    in_flight: int
    refused: int
    first: float | None
    last: float | None

    @property
    def smallest(self) -> int:
        """The smallest charge that is consistent with what was seen."""
        return self.answered

    @property
    def largest(self) -> int:
        """The largest charge that is consistent with what was seen."""
        return self.answered + self.unknown + self.in_flight


@dataclass(frozen=True)
class Statement:
    """The contents of a ledger's file; batches of a process that has ended stay in flight until it is next queried.

    Args:
        identity: The target that it belongs to, None before the first.
        num_classes: Of that target.
        accounts: The account of each purpose.
        kept: Distinct images with an answer that is handed out again.
    """

    identity: str | None
    num_classes: int | None
    accounts: dict[str, Account]
    kept: int

    @property
    def total(self) -> Account:
        """The sum over all purposes."""
        accounts = self.accounts.values()
        return Account(
            sum(account.answered for account in accounts),
            sum(account.unknown for account in accounts),
            sum(account.in_flight for account in accounts),
            sum(account.refused for account in accounts),
            min((account.first for account in accounts if account.first is not None), default=None),
            max((account.last for account in accounts if account.last is not None), default=None),
        )


def read_statement(path: str | os.PathLike[str]) -> Statement:
    """Return the accounts of a ledger's file, which is only read.

    Raises:
        LedgerError: No such file, no ledger of a known version, or a damaged one.
    """
    with reading(path) as db:
        identity, num_classes = subject(db)
        accounts = {
            purpose: Account(*counts)
            for purpose, *counts in db.execute(
                "SELECT purpose, "
                "sum(size * (state = 'answered')), sum(size * (state = 'unknown')), "
                "sum(size * (state IN ('reserved', 'sent'))), sum(size * (state = 'refused')), "
                "min(reserved_at), max(coalesce(settled_at, sent_at, reserved_at)) "
                "FROM batches GROUP BY purpose ORDER BY min(id)"
            )
        }
        # Those of the other purposes answer nobody else.
        kept = db.execute(
            "SELECT coalesce(sum(size), 0) FROM batches WHERE state = 'answered' "
            "AND purpose IN ('training', 'evaluation', 'preflight') AND reason IS NULL"
        ).fetchone()[0]
    return Statement(identity, num_classes, accounts, kept)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """Yield a read-only connection inside one transaction: one moment of the file, whoever writes.

    A file without tables reads as a ledger that nobody has queried: who makes it is doing that now, or was killed meanwhile.

    Raises:
        LedgerError: No such file, no ledger of a known version, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise LedgerError(
            f"ledger {path} does not exist: give the file of a ledger, e.g. runs/digits/ledger.db"
        )
    with explained(path), closing(_connected(path.resolve())) as connection:
        if _is_blank(connection):
            connection.close()
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
                prepare(empty, path)
                yield empty
            return
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise LedgerError(f"{path} is no ledger but a database of another program: give another file")
        if (version := version_of(connection)) not in READABLE_VERSIONS:
            raise unknown_version(path, version)
        check_undamaged(connection, path)
        yield connection


def _connected(path: Path) -> sqlite3.Connection:
    """Return a read-only connection in a transaction that has begun: all that it reads is of one moment."""
    try:
        return _begun(_read_only(path))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK or not os.access(path, os.W_OK):
            raise
    # Who was killed while it changed the tables left half of that; whoever may write has SQLite take it back.
    _begun(f"{path.as_uri()}?mode=rw").close()
    return _begun(_read_only(path))


def _begun(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN")
        _is_blank(connection)  # the first look at the file is what fixes the moment
    except BaseException:
        connection.close()
        raise
    return connection


def _is_blank(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _read_only(path: Path) -> str:
    """Return the address of a file for SQLite, which makes files of its own beside it unless nobody can write there."""
    # Beside a journal the file is only half of what it says.
    journal = any(Path(f"{path}{ending}").exists() for ending in ("-wal", "-journal"))
    alone = not os.access(path.parent, os.W_OK) and not journal
    return f"{path.as_uri()}?mode=ro{'&immutable=1' if alone else ''}"


def subject(db: sqlite3.Connection) -> tuple[str | None, int | None]:
    """Return identity and number of classes of a ledger's target, None before the first one."""
    return db.execute("SELECT identity, num_classes FROM subject").fetchone() or (None, None)


def seconds_per_query(path: str | os.PathLike[str]) -> float | None:
    """Return how long the latest answers took to come, a query on average; None before the first.

    Raises:
        LedgerError: No such file, no ledger of a known version, or a damaged one.
    """
    with reading(path) as db:
        seconds, queries = db.execute(
            "SELECT sum(settled_at - sent_at), sum(size) FROM (SELECT * FROM batches "
            "WHERE state = 'answered' AND sent_at IS NOT NULL ORDER BY id DESC LIMIT ?)",
            (LATEST,),
        ).fetchone()
    return max(0.0, seconds) / queries if queries else None
