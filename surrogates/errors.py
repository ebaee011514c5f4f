"""The errors of this package: one line each, with the value that is wrong and what to do about it."""

from numbers import Integral


class SurrogateError(ValueError):
    """Base of every error raised by this package."""


class TargetError(SurrogateError):
    """The target cannot be opened, queried, or understood.

    Attributes:
        lost: Queries of earlier attempts at the same batch that may have been charged besides it.
        lines: One for each fault, where several were found at once.
    """

    lost: int = 0
    lines: tuple[str, ...] = ()


class ClassesUnknown(TargetError):
    """The target does not tell its number of classes, and none was given."""


class Refused(TargetError):
    """The target surely did no work for this query: it is not charged, and may be repeated."""


class DriftError(TargetError):
    """The target no longer answers as it did: what was measured of it may be wrong."""


class LedgerError(SurrogateError):
    """The ledger file cannot be used, or is used for the wrong target."""


class BudgetExceeded(LedgerError):
    """A query would pass the budget; nothing was sent."""


def note_lost(error: BaseException, queries: int) -> None:
    """Note on an error, an interrupt too, how many queries of lost attempts may have been charged besides."""
    vars(error)["lost"] = queries


def check_positive_integers(**values: object) -> None:
    """Check that named values are integers of at least 1.

    Raises:
        SurrogateError: The first that is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise SurrogateError(f"{name} must be a positive integer, got {value!r}")
