"""The bill of a ledger's file as a table in the terminal; it only reads, also while a job is writing."""

from __future__ import annotations

from datetime import datetime

from certdef.config.job import ConfigError, without_password
from surrogates.ledger.reader import Account, read_statement

COLUMNS = ("purpose", "answered", "unknown", "in flight", "refused", "smallest", "largest", "first", "last")


def render(path: str, price: float | None = None) -> str:
    """The account of a ledger by purpose, with its cost at a price in USD per 1,000 queries.

    Raises:
        ConfigError: A price that is no positive number.
        surrogates.LedgerError: A file that is missing, or no ledger.
    """
    if price is not None and not 0 < price < float("inf"):
        raise ConfigError(f"price must be USD per 1,000 queries above 0, got {price:g}: try --price 1.50")
    statement = read_statement(path)
    rows = [_row(purpose, account) for purpose, account in statement.accounts.items()]
    total = statement.total
    table = [COLUMNS, *rows, _row("total", total)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    classes = f" ({statement.num_classes} classes)" if statement.num_classes else ""
    lines = [
        f"ledger   {path}",
        f"target   {without_password(statement.identity or 'none yet')}{classes}",
        "",
        *(_line(row, widths) for row in table),
        "",
        f"kept     {statement.kept:,} distinct images, recalled free of charge from now on",
        f"charge   {_between(f'{total.smallest:,}', f'{total.largest:,}')} queries",
    ]
    if price is not None:
        low, high = (f"{queries * price / 1000:,.2f}" for queries in (total.smallest, total.largest))
        lines.append(f"cost     {_between(low, high)} USD at {price:g} USD per 1,000")
    if total.in_flight:
        lines.append(
            "         in flight: queried by a running process, or left by one that ended, which the next job settles"
        )
    return "\n".join(lines)


def _row(purpose: str, account: Account) -> tuple[str, ...]:
    counts = (
        account.answered,
        account.unknown,
        account.in_flight,
        account.refused,
        account.smallest,
        account.largest,
    )
    return (purpose, *(f"{count:,}" for count in counts), _moment(account.first), _moment(account.last))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])


def _between(low: str, high: str) -> str:
    return low if low == high else f"between {low} and {high}"


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
