"""Names of objects: what was given in Python stands in a configuration under a name, and is found by it in this process."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from certdef.config.job import ConfigError
from certdef.config.target import SurrogateConfig

OBJECT = "object:"  # begins such a name
_KNOWN: WeakValueDictionary[str, Any] = WeakValueDictionary()
_LASTING: dict[str, Any] = {}  # those that have no weak references


def is_object(name: str | None) -> bool:
    """Whether a name is that of an object: object:module.name:digest."""
    return name is not None and name.startswith(OBJECT)


def is_given(surrogate: SurrogateConfig) -> bool:
    """Whether a job is given its surrogate, and distills none: an object in Python, or weights of another job."""
    return is_object(surrogate.model) or surrogate.weights is not None


def remember(identity: str, thing: Any) -> str:
    """Give an object a name, for as long as the caller holds the object; returns the name."""
    name = OBJECT + identity
    try:
        _KNOWN[name] = thing
    except TypeError:
        _LASTING[name] = thing
    return name


def object_named(name: str, what: str) -> Any:
    """The object of a name.

    Args:
        name: As `remember` returned it.
        what: The argument that it was given as.

    Raises:
        ConfigError: It was an object of another process.
    """
    thing = _KNOWN.get(name, _LASTING.get(name))
    if thing is None:
        raise ConfigError(
            f"{what} {name!r} was an object in Python: give it again, certdef.run(config, {what}=...)"
        )
    return thing
