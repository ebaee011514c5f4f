"""Repeated attempts: whoever pays for a query is asked before an attempt that may be charged once more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Payer = Callable[[int], str | None]  # the queries of one attempt -> why it may not be made, or None

_PAYER: ContextVar[Payer | None] = ContextVar("payer", default=None)


@contextmanager
def paid_by(refuse: Payer) -> Iterator[None]:
    """Let `refuse` decide on the repeated attempts of the queries that are made inside, in this context."""
    token = _PAYER.set(refuse)
    try:
        yield
    finally:
        _PAYER.reset(token)


def payer() -> Payer:
    """Return who decides on repeated attempts; without a ledger nobody forbids any."""
    return _PAYER.get() or (lambda queries: None)
