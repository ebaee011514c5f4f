"""A ledger's file: a connection that no fork inherits, one transaction at a time, and proof that it is still in place."""

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surrogates.errors import LedgerError
from surrogates.ledger.integrity import check_undamaged, explained
from surrogates.ledger.migration import migrate
from surrogates.ledger.owners import OwnerLock
from surrogates.ledger.schema import (
    APPLICATION_ID,
    BUSY_SECONDS,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    enter_wal,
    prepare,
    version_of,
)

# SQLite's own files, and the lock file of owners.py.
ENDINGS = ("", "-wal", "-shm", "-lock")
RESERVED = (*ENDINGS[1:], "-journal")
# Less room than this on the disk, and nothing is sent: an answer that is paid must find a place.
ROOM_BYTES = 8 * 2**20
# The share of the time that commits wait for the disk: a power failure costs what was paid since the last one that did.
SYNC_SHARE = 0.01

Place = tuple[int, int]  # device and inode


class LedgerFile:
    """The SQLite database of a ledger in WAL mode, with its tables; threads and forked children may share it.

    Args:
        path: An existing ledger or a new file in an existing directory.

    Raises:
        LedgerError: No such directory, a database of another program or version, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if str(path) == ":memory:":
            raise LedgerError("ledger ':memory:' would keep nothing: give the path of a file")
        if self.path.is_dir():
            raise LedgerError(f"ledger {self.path} is a directory: give a file name inside it")
        if self.path.exists() and not self.path.is_file():
            raise LedgerError(
                f"ledger {self.path} is no regular file: give the path of one, or of a new file"
            )
        if self.path.name.endswith(RESERVED):
            raise LedgerError(
                f"ledger {self.path} has a name that SQLite takes for another file's: give it another ending"
            )
        if not self.path.parent.is_dir():
            raise LedgerError(
                f"ledger {self.path} has no directory: create {self.path.parent} or give another path"
            )
        self._where = self.path.resolve()  # whatever the working directory becomes
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._alive: OwnerLock | None = None
        self._places: list[Place] = []
        self._closed = False
        self._next_sync = 0.0
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        _register(self)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this process, which lasts until it forks.

        Raises:
            LedgerError: The file is closed, or no longer in place.
        """
        if self._connection is None:
            self._reconnect()
            assert self._connection is not None
        return self._connection

    @property
    def owner(self) -> int:
        """The name of this process for as long as it has the file open.

        Raises:
            LedgerError: The file is closed, or no longer in place.
        """
        assert self.connection
        assert self._alive is not None
        return self._alive.owner

    def is_alive(self, owner: int) -> bool:
        """Return whether another owner of batches still has the file open, in whatever process."""
        assert self._alive is not None
        return self._alive.is_alive(owner)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closed = True
            self._disconnect()
            self._forget_owner()

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Yield the connection inside BEGIN ... COMMIT; database faults become LedgerError."""
        with self._lock, explained(self.path):
            db = self.connection
            sync = kind == "IMMEDIATE" and time.monotonic() >= self._next_sync
            if sync:
                db.execute("PRAGMA synchronous = FULL")
            db.execute(f"BEGIN {kind}")
            try:
                yield db
                begun = time.monotonic()
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            if sync:
                db.execute("PRAGMA synchronous = NORMAL")
                now = time.monotonic()
                self._next_sync = now + (now - begun) / SYNC_SHARE

    def check_payable(self) -> None:
        """Check that what is sent next can be kept: the file is in its place, and the disk has room.

        Raises:
            LedgerError: The file was deleted, moved or replaced, so that other processes no longer see what is paid
                here; or the disk is full.
        """
        if self._seen_places() != self._places:
            raise self._moved()
        room = os.statvfs(self._where)
        if room.f_bavail * room.f_frsize < ROOM_BYTES:
            raise LedgerError(
                f"ledger {self.path} has {room.f_bavail * room.f_frsize} bytes of disk left, and answers need room: "
                "nothing more is paid until some is made"
            )

    def _open(self) -> None:
        """Connect for the first time, and create, migrate or check the tables."""
        with explained(self.path):
            version = self._connect(create=True)
            if version not in (0, SCHEMA_VERSION) and version in READABLE_VERSIONS:
                self._disconnect()
                assert self._alive is not None
                with self._alive.migration(BUSY_SECONDS):
                    self._connect(create=False)
                    with self.transaction("DEFERRED") as db:
                        check_undamaged(db, self.path)
                    migrate(self.connection, self.path)
            enter_wal(self.connection)
            with self.transaction() as db:
                prepare(db, self.path)
            with self.transaction("DEFERRED") as db:
                check_undamaged(db, self.path)
            self._remember_places()

    def _reconnect(self) -> None:
        """Connect again, after a fork, to the very same file."""
        if self._closed:
            raise LedgerError(f"ledger {self.path} is closed: open it again")
        if self._seen_places()[:1] != self._places[:1]:
            raise self._moved()
        self._connect(create=False)
        enter_wal(self.connection)
        with self.transaction("DEFERRED") as db:
            version_of(db)  # now the files of WAL mode exist
        self._remember_places()

    def _connect(self, *, create: bool) -> int:
        """Connect, take an owner's lock, and return the version of the tables."""
        self._connection = db = sqlite3.connect(
            f"{self._where.as_uri()}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA synchronous = NORMAL")
        # A file of another program must be recognized before WAL mode changes it.
        db.execute("BEGIN")  # one moment of it: another process may be making its tables
        application = db.execute("PRAGMA application_id").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        db.execute("COMMIT")
        if application != APPLICATION_ID and tables:
            raise LedgerError(
                f"ledger {self.path} is a database of another program: give the path of a new file"
            )
        if self._alive is None:
            mode = self._where.stat().st_mode & 0o777
            self._alive = OwnerLock(self._where.with_name(f"{self._where.name}-lock"), mode)
        return version_of(db)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _forget_owner(self) -> None:
        if self._alive is not None:
            self._alive.close()
            self._alive = None

    def _seen_places(self) -> list[Place]:
        """Return where the names of the files lead now: fewer places where one is missing."""
        places: list[Place] = []
        for ending in ENDINGS:
            try:
                status = os.stat(f"{self._where}{ending}")
            except OSError:
                break
            places.append((status.st_dev, status.st_ino))
        return places

    def _remember_places(self) -> None:
        assert self._alive is not None
        self._places = [*self._seen_places()[:-1], self._alive.place]

    def _moved(self) -> LedgerError:
        return LedgerError(
            f"ledger {self.path} was deleted, moved or replaced while it was in use: nothing more is paid; "
            "put it back and start again"
        )

    def before_fork(self) -> None:
        """Close the connection between two transactions: SQLite forbids to carry one over a fork."""
        self._lock.acquire()
        with suppress(sqlite3.Error):
            self._disconnect()

    def after_fork(self, *, child: bool) -> None:
        """Let transactions begin again, each process with a connection and an owner of its own."""
        if child:
            self._forget_owner()
        self._lock.release()


_OPEN: "weakref.WeakSet[LedgerFile]" = weakref.WeakSet()
_REGISTRY = threading.Lock()
_forking: list[LedgerFile] = []


def _register(file: LedgerFile) -> None:
    with _REGISTRY:
        _OPEN.add(file)


def _before_fork() -> None:
    _REGISTRY.acquire()
    _forking.extend(_OPEN)
    for file in _forking:
        file.before_fork()


def _after_fork(child: bool) -> None:
    for file in _forking:
        file.after_fork(child=child)
    _forking.clear()
    _REGISTRY.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(False),
    after_in_child=lambda: _after_fork(True),
)
