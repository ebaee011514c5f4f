"""What the command lines of this room share: reading options that may be wrong, radii, and writing files."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError, nearest


def parse(
    parser: ArgumentParser, arguments: list[str], positional: Sequence[str], stops: Sequence[str] = ("help",)
) -> Any:
    """The options; all that is wrong with them at once.

    Args:
        parser: Named `certdef VERB`.
        arguments: What was typed.
        positional: What must be given, in this order.
        stops: Switches with which nothing else is needed.

    Raises:
        ConfigError: Names every unknown option, and what is missing.
    """
    usage = f"{parser.prog} {' '.join(name.upper() for name in positional)} [options]"
    try:
        namespace, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{error}: {parser.prog} --help shows the options") from error
    if any(getattr(namespace, name) for name in stops):
        return namespace
    names = [name.replace("_", "-") for name in vars(namespace) if name not in (*positional, "tracking_uri")]
    known = ["--tracking.uri", *(f"--{name}" for name in names)]
    problems = [
        f"unknown option {each!r}{nearest(each, known)}"
        if each.startswith("-")
        else f"{each!r} is one too many"
        for each in rest
    ]
    if any(getattr(namespace, name) is None for name in positional):
        needed = " and ".join(name.upper() for name in positional)
        problems.append(f"{needed} {'is' if len(positional) == 1 else 'are'} needed")
    if problems:
        raise ConfigError("\n".join(f"{each}: {usage}" for each in problems))
    return namespace


def all_at_once(*checks: Callable[[], object]) -> None:
    """Make every check, whatever the others find.

    Raises:
        ConfigError: A line for all that they refuse.
    """
    problems = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def radii(text: str | None) -> list[float]:
    """Numbers with commas between; none where nothing was given."""
    try:
        return [float(each) for each in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--radii is {text!r}: give numbers, e.g. --radii 0,0.25,0.5") from error


def write(path: str | Path, content: bytes, mend: str = "name another file") -> None:
    """Write a file whole, or say why not."""
    from surrogates.files import replacing

    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} can't be written ({error.strerror}): {mend}") from error
