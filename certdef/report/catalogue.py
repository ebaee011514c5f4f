"""Every purifier as the command line lists it."""

from __future__ import annotations

from certdef.purifiers.catalogue import CATALOGUE


def purifiers_listed() -> str:
    """The catalogue, some lines a purifier."""
    lines = []
    for name, entry in CATALOGUE.items():
        lines += [
            f"{name}\n    {entry.line}",
            f"    source     {entry.source}",
            f"    attacker   {entry.threat}",
            f"    certified  {'with ' + entry.denoiser + ' between noise and classifier' if entry.denoiser else 'no: it is no denoiser'}",
        ]
    return "\n".join(
        [*lines, "", "certdef run --purifier NAME puts one in front; certdef attack --ladder tests it."]
    )
