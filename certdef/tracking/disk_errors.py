"""A full disk and missing permissions, as one line, whoever noticed them: the system, SQLite, safetensors or MLflow."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certdef.config.job import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# How libraries say it that wrap the system's error in one of their own.
SAID_FULL = ("disk is full", *map(os.strerror, FULL))
SAID_DENIED = ("readonly database", *map(os.strerror, DENIED))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What was wrong with the disk, as a ConfigError that says what to do; any other error passes.

    Args:
        folder: The job's work directory, which is where most is written.
    """
    try:
        yield
    except ConfigError:
        raise  # it says what to do
    except Exception as error:
        for cause in _causes(error):
            remedy = _remedy(cause)
            if remedy:
                reason = (str(cause).splitlines() or [type(cause).__name__])[0]
                raise ConfigError(f"{reason} (work_dir {str(folder)!r}): {remedy}") from error
        raise


def _remedy(error: BaseException) -> str:
    """What to do about an error of the disk; empty for any other."""
    number, said = getattr(error, "errno", None), str(error)
    if number in FULL or any(each in said for each in SAID_FULL):
        return "free some space, and the same command goes on where it was"
    if number in DENIED or any(each in said for each in SAID_DENIED):
        return "give this user the right, or choose another folder with --work-dir"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or during."""
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [other for other in (each.__cause__, each.__context__) if other is not None]
