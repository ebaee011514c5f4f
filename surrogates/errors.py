"""The errors of this package: one line each, with the value that is wrong and what to do about it."""

from numbers import Integral


class SurrogateError(ValueError):
    """Base of every error raised by this package."""


class TargetError(SurrogateError):
    """The target cannot be opened, asked, or understood.

    lost counts queries of earlier attempts at the same batch that may have been charged besides it.
    """

    lost: int = 0


class Refused(TargetError):
    """The target surely did no work for this query: it is not charged, and may be asked again."""


class DriftError(TargetError):
    """The target no longer answers as it did: what was learnt about it may be wrong."""


class LedgerError(SurrogateError):
    """The ledger file cannot be used, or is used for the wrong target."""


class BudgetExceeded(LedgerError):
    """A query would pass the budget; nothing was sent."""


def check_positive_integers(**values: object) -> None:
    """Raise SurrogateError for the first of several named values that is not an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise SurrogateError(f"{name} must be a positive integer, got {value!r}")
