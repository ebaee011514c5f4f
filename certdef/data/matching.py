"""Which class of a target each label of the data is: by name, by number, or by a file of the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from certdef.config.job import ConfigError, nearest
from certdef.config.yaml_limits import check_yaml, read_config
from certdef.data.sets import Splits

ABSENT = -1  # of a class that no image is of
SHOWN = 8  # names that an error lists
REMEDY = (
    "map them with --data.labels FILE (lines of NAME: NUMBER or NAME: THE TARGET'S NAME), or give --data.labels ignore, "
    "and right means the target's own clean answer"
)


def match_labels(
    data: Splits, names: Sequence[str] | None, num_classes: int, config_labels: str | None = None
) -> Splits:
    """The same images, with label k for class k of the target.

    Args:
        data: Images with labels in an order of their own, or without.
        names: What the target calls its classes, in its order; None where it does not say.
        num_classes: How many it has.
        config_labels: data.labels: a file that maps the labels, or ignore.

    Raises:
        ConfigError: Labels that are no classes of the target; it shows both, and the remedy.
    """
    known = None if names is None else tuple(map(str, names))
    if not data.labeled:
        return replace(data, classes=known or tuple(map(str, range(num_classes))), named=known is not None)
    if config_labels not in (None, "ignore"):
        return _renumbered(
            data, _by_file(data, Path(str(config_labels)), known, num_classes), known, num_classes
        )
    found = _by_name(data, known) if data.named and known else None
    if found is not None:
        return _renumbered(data, found, known, num_classes)
    if data.by_name:
        _check_order(data, known, num_classes)
    elif data.named and known and (moved := _moved(data.classes, known)):
        raise ConfigError(
            f"{data.name} calls class {data.classes.index(moved)} {moved!r}, which is class {known.index(moved)} of the target: "
            f"mend --target.classes, or {REMEDY}"
        )
    elif num_classes < len(data.classes):
        raise ConfigError(
            f"it answers {num_classes} classes, but the labels of {data.name} go up to "
            f"{len(data.classes) - 1}: give the data that it was trained for"
        )
    return data if data.named or known is None else replace(data, classes=known, named=True)


def _by_name(data: Splits, known: tuple[str, ...]) -> list[int] | None:
    """The target's class of each of ours where all have the same name, whatever the case and the marks between words."""
    for same in (str, _plain):
        places = {same(name): index for index, name in enumerate(known)}
        ours = [same(name) for name in data.classes]
        if len(places) == len(known) and len(set(ours)) == len(ours) and {*ours} <= places.keys():
            return [places[name] for name in ours]
    return None


def _moved(ours: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of our names that the target has at another place; None where its numbers do not contradict ours."""
    for number, name in enumerate(ours):
        if name in known and known[number : number + 1] != (name,):
            return name
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _check_order(data: Splits, known: tuple[str, ...] | None, num_classes: int) -> None:
    """Refuse names that the target does not have, or of which nobody says which class they are."""
    ours = f"{data.name} has the classes {_some(data.classes)}"
    if known is not None:
        plain = {_plain(name) for name in known}
        foreign = [name for name in data.classes if _plain(name) not in plain]
        raise ConfigError(
            f"it answers the classes {_some(known)}, and {ours}, among them {_some(foreign or data.classes)}, which it does not "
            f"have: {REMEDY}"
        )
    if num_classes != len(data.classes):
        raise ConfigError(
            f"it answers {num_classes} classes and does not tell their names, and {ours}: give --target.classes, or {REMEDY}"
        )


def _by_file(data: Splits, path: Path, known: tuple[str, ...] | None, num_classes: int) -> list[int]:
    """The target's class of each of ours, as a file says; ConfigError for one that it lacks or maps to no class."""
    places = {name: index for index, name in enumerate(known or ())}
    entries = _entries(path)
    present = {*np.unique(np.concatenate([data.heldout_labels, data.audit_labels])).tolist()}
    found: list[int] = []
    problems = []
    for label, name in enumerate(data.classes):
        value = entries.get(name)
        index = places.get(value, ABSENT) if isinstance(value, str) else value
        if index is None and label in present:
            problems.append(f"{name} is not in it{nearest(name, entries)}")
        elif index is not None and (isinstance(index, bool) or not 0 <= index < num_classes):
            hint = nearest(str(value), places) if isinstance(value, str) else ""
            problems.append(f"{name} is mapped to {value!r}, which is no class of the target's{hint}")
        found.append(ABSENT if index is None else index)
    if problems:
        few = "; ".join(problems[:SHOWN]) + (" ..." if len(problems) > SHOWN else "")
        names = f"the names {_some(known)}" if known else f"numbers from 0 to {num_classes - 1}"
        raise ConfigError(f"data.labels {str(path)!r}: {few}: map each label to one of {names}")
    return found


def _entries(path: Path) -> dict[str, int | str]:
    """A .yaml or .json of names to numbers or names; or a list of names in the target's order, also one a line."""
    import yaml

    if not path.is_file():
        raise ConfigError(
            f"data.labels {str(path)!r} is no file: give ignore, or a .yaml or .json that maps labels to classes"
        )
    text = read_config(str(path))
    if path.suffix.lower() == ".txt":
        return {name.strip(): number for number, name in enumerate(text.strip().splitlines())}
    try:
        check_yaml(text, "data.labels")
        plain = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"data.labels {str(path)!r} can't be read ({' '.join(str(error).split())}): write NAME: NUMBER"
        ) from error
    if isinstance(plain, list):
        return {str(name): number for number, name in enumerate(plain)}
    if not isinstance(plain, Mapping) or not all(isinstance(value, int | str) for value in plain.values()):
        raise ConfigError(f"data.labels {str(path)!r} maps no labels: write a line NAME: NUMBER for each")
    return {
        str(name): int(value) if re.fullmatch(r"[0-9]{1,18}", str(value)) else value
        for name, value in plain.items()
    }


def _renumbered(
    data: Splits, order: Sequence[int], known: tuple[str, ...] | None, num_classes: int
) -> Splits:
    """The same images with label order[k] for label k, under the target's names where it has some."""
    classes = list(known or map(str, range(num_classes)))
    if known is None:
        for label, index in enumerate(order):
            if index != ABSENT:
                classes[index] = data.classes[label]
    new = np.asarray(order, np.int64)
    heldout, audit = new[data.heldout_labels], new[data.audit_labels]
    return replace(data, classes=tuple(classes), named=True, heldout_labels=heldout, audit_labels=audit)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
