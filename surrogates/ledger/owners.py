"""Who is alive: an open ledger holds a lock that the kernel frees when its process ends, however it ends.

No clock, no process id and no host name is looked at, so that neither a clock step nor another PID namespace nor a
process id that is used again can make a living process look dead. The lock belongs to the open file (F_OFD_SETLK):
unlike the locks of `fcntl.lockf` it stays when another part of the process opens and closes the same file.
"""

import fcntl
import os
import secrets
import struct
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
MIGRATION = 0  # the byte that is locked while a file's tables are changed
FREE, TAKEN = fcntl.F_UNLCK, fcntl.F_WRLCK


class OwnerLock:
    """One byte of a lock file, which tells others that whoever opened it is alive.

    Args:
        path: The lock file, which is created where it is missing and never written.
        mode: Its permissions.

    Attributes:
        owner: The number of the byte: a name that no other owner has or had.

    Raises:
        OSError: The file cannot be created, or its file system has no locks.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        self._close = weakref.finalize(self, os.close, self._file)
        self._close.atexit = False  # the kernel does it, and others see this process alive until then
        try:
            self.owner = 1 + secrets.randbits(62)
            self._lock(fcntl.F_OFD_SETLK, TAKEN, self.owner)
        except OSError:
            self.close()
            raise

    @property
    def place(self) -> tuple[int, int]:
        """Device and inode of the file."""
        status = os.fstat(self._file)
        return status.st_dev, status.st_ino

    def is_alive(self, owner: int) -> bool:
        """Return whether another owner still has its file open."""
        return self._lock(fcntl.F_OFD_GETLK, TAKEN, owner) != FREE

    @contextmanager
    def migration(self, seconds: float) -> Iterator[None]:
        """Hold the lock under which a file's tables are changed.

        Raises:
            TimeoutError: Another process held it for so long.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._lock(fcntl.F_OFD_SETLK, TAKEN, MIGRATION)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"another process has been changing its tables for {seconds:g} s"
                    ) from error
                time.sleep(0.02)
        try:
            yield
        finally:
            self._lock(fcntl.F_OFD_SETLK, FREE, MIGRATION)

    def close(self) -> None:
        """Let go of the lock; in a forked child, of the parent's copy, which stays locked."""
        self._close()

    def _lock(self, command: int, kind: int, byte: int) -> int:
        packed = struct.pack(FLOCK, kind, os.SEEK_SET, byte, 1, 0)
        return int(struct.unpack(FLOCK, fcntl.fcntl(self._file, command, packed))[0])
