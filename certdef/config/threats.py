"""The threats by name, and their options on the command line. Loads no torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from certdef.config.job import ConfigError, nearest

L2 = "l2"  # the threat of certdef certify without --threat
FOLDER = Path(__file__).parent.parent / "stages" / "threats"


class ThreatOption(NamedTuple):
    """An option of some threats, beside those of the configuration: name, type, help."""

    name: str
    kind: Any
    help: str


OPTIONS = (
    ThreatOption(
        "strength",
        float | None,
        "With --threat: how much the votes transform: sigma of brightness (pixel values), contrast (log of the factor) and "
        "translation (pixels); mean, largest value or sigma of a blur's variance (square pixels); largest pixel-shift.",
    ),
    ThreatOption(
        "grid", str | None, "With --threat: the parameters of the table and the picture, e.g. 0.05,0.1,0.2."
    ),
    ThreatOption(
        "patch",
        str | None,
        "With --threat patch: rows x columns of pixels, e.g. 3x3, or the share of the image that a square has, e.g. 5% (unset).",
    ),
    ThreatOption(
        "fill",
        str | None,
        "With --threat patch: what hidden pixels are filled with: gray (unset), mean of the others, mim (the masked autoencoder, "
        "trained on the pool) or leaves (the shipped denoiser).",
    ),
    ThreatOption(
        "masks",
        int | None,
        "With --threat patch: masks along each side, 6 unset; k of them take up to k^2 (k^2 + 1) / 2 answers an image.",
    ),
)


@cache
def threat_names() -> tuple[str, ...]:
    """Every threat by name: l2, and a file of certdef/stages/threats each."""
    files = sorted(each.name for each in pkgutil.iter_modules([str(FOLDER)]))
    return (L2, *(name.replace("_", "-") for name in files))


def check_name(name: str) -> None:
    """Refuse a threat that nobody knows.

    Raises:
        ConfigError: Names the known ones.
    """
    names = threat_names()
    if name not in names:
        raise ConfigError(
            f"threat is {name!r}{nearest(name, names)}: use --threat with one of {', '.join(names)}"
        )


def chosen_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given for a threat: those of all threats, without what is unset.

    Raises:
        ConfigError: An option of threats beside l2, which has its own in the configuration.
    """
    chosen = {each.name: given[each.name] for each in OPTIONS if given.get(each.name) is not None}
    if name == L2 and chosen:
        option, value = next(iter(chosen.items()))
        raise ConfigError(
            f"--{option} is {value!r}: it is for --threat with another name than {L2}, whose options are certify.*"
        )
    return chosen


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between them, rising; ConfigError otherwise."""
    try:
        values = tuple(float(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        values = ()
    if (
        not values
        or list(values) != sorted({*values})
        or not all(0 < value < float("inf") for value in values)
    ):
        raise ConfigError(
            f"--{option} is {text!r}: give rising numbers above 0 with commas between, e.g. 0.05,0.1"
        )
    return values
