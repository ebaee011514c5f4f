"""Another package imports as `surrogates` too: the one of that name on the registry, or a file of the user's. Loads neither."""

from __future__ import annotations

import importlib.util
from importlib.metadata import packages_distributions
from pathlib import Path

NAME = "surrogates"
OURS = Path(__file__).parents[2] / NAME


def clash() -> str | None:
    """What imports as `surrogates` beside certdef's own package or in its place, and the remedy; None where nothing does."""
    others = sorted({name for name in packages_distributions().get(NAME, []) if name != "certdef"})
    if others:
        again = "pip install --force-reinstall --no-deps certdef"
        return (
            f"the installed package {', '.join(others)} imports under this name too: pip uninstall {' '.join(others)}, "
            f"then {again}, because it may have replaced files"
        )
    spec = importlib.util.find_spec(NAME)
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin is None or origin.resolve().parent != OURS.resolve():
        return f"{origin or 'nothing'} is imported in the place of {OURS}: rename or remove it"
    return None
