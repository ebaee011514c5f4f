"""Every purifier as the command line lists it."""

from __future__ import annotations

from certdef.config.purifiers import purifier_names
from certdef.purifiers.registry import find_purifier


def purifiers_listed() -> str:
    """Every registered purifier, some lines each."""
    lines = []
    for name in purifier_names():
        spec = find_purifier(name)
        part = spec.denoiser
        vote = f"with {part.name} between noise and classifier" if part else "no: it is no denoiser"
        lines += [
            f"{name}\n    {spec.about.line}",
            f"    source     {spec.about.source}",
            f"    attacker   {spec.about.threat}",
            f"    certified  {vote}",
        ]
    lines += [
        "",
        "certdef run --purifier NAME uses one; certdef attack --ladder evaluates it under attack.",
        "certdef run --purifier python:package.module:factory runs code of your own: factory() returns a torch module.",
    ]
    return "\n".join(lines)
