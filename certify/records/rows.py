"""One record as plain values: nothing that a file says is believed, neither alone nor beside the rest."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from certify.certificate import ABSTAIN
from certify.errors import CertifyError

INT64 = 2**63 - 1
EXACT = "deterministic"  # every vote there is: no alpha, no selection
STOPPING = ("sequential", "group_sequential", "group_sequential_two_sided")
BOUNDS = ("clopper_pearson", "randomized")  # which has a uniform draw
DRAWN = ("fixed", "two_sided", *STOPPING)  # n0 selection draws, then n or at most n

Row = dict[str, Any]


class Fault(ValueError):
    """What is wrong with a record, in a few words."""


class Unreadable(Fault):
    """The line is no record at all: it may have been cut off while it was written."""


def parse_lines(path: Path, lines: Iterable[Any], parse: Callable[[Any], Row], ended: bool) -> list[Row]:
    """The records of the lines below a header.

    Args:
        path: Of the file.
        lines: From the second line of the file on.
        parse: Reads one line, or raises Fault.
        ended: The last line has its line end. Without it a line that can't be read was cut off, and is left out.

    Raises:
        CertifyError: Names the first line that is no valid record, or whose image has one already.
    """
    lines = list(lines)
    rows: list[Row] = []
    known: dict[int, int] = {}
    for number, line in enumerate(lines, start=2):
        try:
            row = parse(line)
            if row["idx"] in known:
                raise Fault(f"image {row['idx']} is in line {known[row['idx']]} already")
            check_alike(row, rows[-1] if rows else row)
        except Unreadable as fault:
            if not ended and number == len(lines) + 1:
                break
            raise damaged(path, number, fault) from None
        except Fault as fault:
            raise damaged(path, number, fault) from None
        known[row["idx"]] = number
        rows.append(row)
    return rows


def check_alike(row: Row, before: Row) -> None:
    """Raise Fault unless a record has the classes, the noise law and the kind of bound of the one before."""
    classes, others = len(row.get("counts", ())), len(before.get("counts", ()))
    if classes != others:
        raise Fault(f"votes for {classes} classes, not {others}")
    if before.get("noise") and row.get("noise") != before["noise"]:
        raise Fault("its noise is not the law of the record before")
    if ("uniform" in row) != ("uniform" in before):
        raise Fault("of this record and the one before only one has a uniform draw")
    if row.get("known_class", False) != before.get("known_class", False):
        raise Fault("of this record and the one before only one has a known class")


def damaged(path: Path, number: int, fault: object) -> CertifyError:
    """The error that names a line of a file."""
    return CertifyError(
        f"{path} line {number} is no valid record ({fault}): restore the file, or remove the line"
    )


def check_claim(row: Row) -> None:
    """Check the values that every format holds, and set ``correct`` to a bool.

    Raises:
        Fault: idx, label or predict is no whole number in range, the radius is not finite and >= 0, an abstention
            has a radius, or ``correct`` is not what label and prediction say.
    """
    for name, least in (("idx", 0), ("label", -INT64), ("predict", ABSTAIN)):
        whole(row, name, least)
    radius, predict, label = number(row, "radius", 0.0, math.inf), row["predict"], row["label"]
    if predict == ABSTAIN and radius > 0:
        raise Fault(f"an abstention with radius {radius:g}")
    if type(row["correct"]) not in (int, bool) or row["correct"] not in (0, 1):
        raise Fault(f"correct is {_shown(row['correct'])}, not 0 or 1")
    right = is_correct(predict, label)
    unlabeled = predict == label == ABSTAIN  # version 0.1.0 wrote correct = 1 there
    if bool(row["correct"]) != right and not unlabeled:
        raise Fault(f"correct is {int(row['correct'])} for label {label} and prediction {predict}")
    row["correct"] = right


def is_correct(predict: int, label: int) -> bool:
    """Whether a prediction is right; an abstention never is, also where the label is -1 for unknown."""
    return predict != ABSTAIN and predict == label


def check_votes(row: Row) -> None:
    """Check the votes and how they were bounded; ``check_claim`` comes first.

    Raises:
        Fault: Counts that are no whole numbers or do not sum to n, a class without counts, or a value out of range.
    """
    counts = row["counts"]
    if not isinstance(counts, list) or not counts:
        raise Fault(f"counts is {_shown(counts)}, not a list of votes")
    for vote in counts:
        whole({"a count": vote}, "a count", 0)
    number(row, "p_lower", 0.0, 1.0)
    method = row.setdefault("method", "fixed")
    if not isinstance(method, str):
        raise Fault(f"method is {_shown(method)}, not a name")
    whole(row, "n0", 0)
    if sum(counts) != whole(row, "n", 1 if method in (*DRAWN, EXACT) else 0):
        raise Fault(f"counts sum to {sum(counts)}, not to n = {row['n']}")
    if number(row, "alpha", 0.0, 0.5) == 0.5 or (row["alpha"] == 0) != (method == EXACT):
        raise Fault(f"alpha is {row['alpha']:g} for method {method!r}")
    selected = whole({"selected": ABSTAIN, **row}, "selected", ABSTAIN)
    row.setdefault("selected", row["predict"])
    if max(row["predict"], selected) >= len(counts):
        raise Fault(f"class {max(row['predict'], selected)} of {len(counts)}")
    if ABSTAIN not in (row["predict"], selected) and row["predict"] != selected:
        raise Fault(f"prediction {row['predict']}, but the votes bound class {selected}")
    if "uniform" in row and (method != "fixed" or number(row, "uniform", 0.0, 1.0) == 1.0):
        raise Fault(f"a uniform draw of {row['uniform']} for method {method!r}")
    known = row.get("known_class", False)
    if not isinstance(known, bool) or (known and (row["n0"] != 0 or row["selected"] == ABSTAIN)):
        raise Fault(f"known_class is {_shown(known)} for class {row['selected']} and n0 = {row['n0']}")
    if not isinstance(row.get("image", "-"), str) or not row.get("image", "-"):
        raise Fault(f"image is {_shown(row['image'])}, not the digest of an image")
    whole({"row": 0, **row}, "row", 0)
    if not isinstance(row.get("noise", {}), dict):
        raise Fault(f"noise is {_shown(row['noise'])}, not the description of a law")


def check_config(row: Row, config: Mapping[str, Any]) -> None:
    """Check that a record with its votes says what the header of its file says; sets ``noise`` and ``sound``.

    Raises:
        Fault: Another alpha, method, n, n0 or noise law, or ``sound`` for an approximate law.
    """
    method = row["method"]
    for name, kind in (("alpha", (int, float)), ("method", str)):
        told = config.get(name)
        if isinstance(told, kind) and not isinstance(told, bool) and told != row[name] and method != EXACT:
            raise Fault(f"{name} is {row[name]}, but {told} in the header")
    for name, methods in (("n0", DRAWN), ("n", DRAWN)):
        told = config.get(name)
        if not isinstance(told, int) or isinstance(told, bool) or method not in methods:
            continue
        fewer = name == "n" and method in STOPPING and row[name] < told
        if row[name] != told and not fewer:
            raise Fault(f"{name} is {row[name]}, but {told} in the header")
    known = {"known_class": (row.get("known_class", False), (True, False)), "bound": (_bound(row), BOUNDS)}
    for name, (kept, values) in known.items():
        if config.get(name) in values and config[name] != kept:  # anything else is a word of the caller's own
            raise Fault(f"{name} is {kept}, but {config[name]} in the header")
    header = config.get("noise")
    named = header if isinstance(header, dict) else {}
    noise = row.setdefault("noise", named)
    if any(noise.get(name) != value for name, value in named.items()):
        raise Fault("its noise is not the law in the header")
    sound = row.setdefault("sound", not _approximate(noise))
    if not isinstance(sound, bool) or (sound and _approximate(noise)):
        raise Fault(f"sound is {_shown(sound)} for law {noise.get('law')!r}")


def _bound(row: Row) -> str:
    return BOUNDS["uniform" in row]


def _approximate(noise: Mapping[str, Any]) -> bool:
    return noise.get("law") == "iid" or noise.get("radius") == "approximate"


def whole(row: Mapping[str, Any], name: str, least: int) -> int:
    """The value of a name as an int in [least, 2^63), or Fault."""
    value = row[name]
    if type(value) is not int or not least <= value <= INT64:
        raise Fault(f"{name} is {_shown(value)}, not a whole number >= {least}")
    return value


def number(row: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """The value of a name as a finite number in [least, most], or Fault."""
    value = row[name]
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise Fault(f"{name} is {_shown(value)}, not a finite number in [{least:g}, {most:g}]")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
