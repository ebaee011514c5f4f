"""A ledger's file: a connection that survives forks, and one transaction at a time."""

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from surrogates.errors import LedgerError
from surrogates.ledger.schema import APPLICATION_ID, BUSY_SECONDS, enter_wal, prepare

# A forked child opens its own connection and never closes its parent's: SQLite forbids both uses.
_INHERITED: list[sqlite3.Connection] = []


class LedgerFile:
    """The SQLite database of a ledger in WAL mode, with its tables; threads and forked children may share it.

    Args:
        path: An existing ledger or a new file in an existing directory.

    Attributes:
        connection: The connection of this process.
        owner: Host, process id and creation time of this process.

    Raises:
        LedgerError: No such directory, or a database of another program or version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        if self.path.is_dir():
            raise LedgerError(f"ledger {self.path} is a directory: give a file name inside it")
        if not self.path.parent.is_dir():
            raise LedgerError(
                f"ledger {self.path} has no directory: create {self.path.parent} or give another path"
            )
        self._connect()
        try:
            with self.transaction() as db:
                prepare(db, self.path)
        except LedgerError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Yield the connection inside BEGIN ... COMMIT; database faults become LedgerError."""
        with self._lock:
            try:
                if self._pid != os.getpid():
                    _INHERITED.append(self.connection)
                    self._connect()
                self.connection.execute(f"BEGIN {kind}")
                try:
                    yield self.connection
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(
                    f"ledger {self.path} cannot be used ({error}): "
                    "give the path of a ledger, or of a new file"
                ) from error

    def _connect(self) -> None:
        try:
            self.connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self.connection.execute("PRAGMA synchronous = NORMAL")
            # A file of another program must be recognized before WAL mode changes it.
            application = self.connection.execute("PRAGMA application_id").fetchone()[0]
            tables = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and application != APPLICATION_ID:
                raise LedgerError(
                    f"ledger {self.path} is a database of another program: give the path of a new file"
                )
            enter_wal(self.connection)
        except LedgerError:
            self.connection.close()
            raise
        except sqlite3.Error as error:
            if hasattr(self, "connection"):
                self.connection.close()
            raise LedgerError(
                f"ledger {self.path} cannot be opened ({error}): "
                "give the path of a ledger, or of a new file that can be written"
            ) from error
        self._pid = os.getpid()
        self.owner = (socket.gethostname(), self._pid, psutil.Process().create_time())
