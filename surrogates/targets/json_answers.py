"""Reading JSON that a service answers: what it says twice, or not in numbers, is not guessed at."""

import json
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.http import QUOTABLE, Reply
from surrogates.targets.redaction import shortened


def read_json(reply: Reply) -> Any:
    """Return the body of a reply as JSON.

    Raises:
        TargetError: It is none, is nested too deeply, or has a key twice; the message quotes its beginning.
    """
    try:
        return json.loads(reply.body, object_pairs_hook=_unique)
    except TargetError:
        raise
    except RecursionError:
        raise TargetError("target answered JSON that is nested too deeply: check the address") from None
    except ValueError:
        start = shortened(reply.body[:QUOTABLE].decode("utf-8", "replace"), 80)
        raise TargetError(
            f"target answered no JSON but {start!r}: check the address and the protocol"
        ) from None


def json_numbers(answer: Any) -> np.ndarray:
    """Return JSON numbers, in lists of any depth, as int64 where all are whole, else as float64; null is NaN.

    Raises:
        TargetError: A text, a boolean or an object among them, or rows of different lengths.
    """
    try:
        values = np.array(_checked(answer), dtype=np.float64)
        exact = np.abs(values).max(initial=0) < 2**53
        return values.astype(np.int64) if exact and _are_whole(answer) else values
    except TargetError:
        raise
    except (ValueError, OverflowError, RecursionError):
        raise TargetError(
            f"target answered {quoted(answer)}, expected numbers in rows of one length"
        ) from None


def quoted(value: Any) -> str:
    """Return the beginning of a value of a service, as an error shows it."""
    return shortened(repr(value), 60)


def _checked(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_checked(part) for part in answer]
    if answer is None:
        return np.nan
    if type(answer) is int or type(answer) is float:
        return answer
    raise TargetError(f"target answered {quoted(answer)}, expected numbers")


def _are_whole(answer: Any) -> bool:
    """Whether JSON wrote every number without a point: labels, not scores that happen to be 0 or 1."""
    return all(map(_are_whole, answer)) if isinstance(answer, list) else type(answer) is int


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TargetError(f"target answered {quoted(twice)} twice in one object, expected it once")
    return entries
