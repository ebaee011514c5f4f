"""Reading a small YAML file that may come from a stranger."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surrogates.errors import TargetError

MOST_BYTES = 2**20
MOST_LEVELS = 32


def read_yaml(path: str | Path, what: str) -> tuple[Any, Any]:
    """Return the values of a YAML file, and its nodes, which have every scalar as it was written.

    Args:
        what: Name of this kind of file, for errors.

    Raises:
        TargetError: One line: no such file, too large, too deep, not YAML, an alias, or a key twice.
    """
    import yaml

    text = _text(Path(path), what)
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        levels = 0
        for event in yaml.parse(text, Loader=base):
            if isinstance(event, yaml.AliasEvent):
                raise TargetError(
                    f"{what} {path} has the alias *{event.anchor}: write out what it stands for"
                )
            levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if levels > MOST_LEVELS:
                raise TargetError(
                    f"{what} {path} is nested more than {MOST_LEVELS} levels deep: write it flatter"
                )
        loader = base(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except TargetError:
        raise
    except Exception as error:  # a parser that is fed anything raises anything: KeyError for "!!bool x"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TargetError(f"{what} {path} is no YAML ({reason})") from None
    for name in _twice(node):
        raise TargetError(f"{what} {path} has {name!r} twice: leave one of them out")
    return value, node


def _text(path: Path, what: str) -> str:
    try:
        if not path.exists():
            raise TargetError(f"cannot read the {what} {path} (No such file or directory): check the path")
        if not path.is_file():
            raise TargetError(f"cannot read the {what} {path} (it is no regular file): check the path")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise TargetError(
                f"{what} {path} holds {path.stat().st_size:,} bytes, expected at most {MOST_BYTES:,}: check the path"
            )
        return raw.decode("utf-8")
    except OSError as error:
        raise TargetError(f"cannot read the {what} {path} ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise TargetError(f"{what} {path} is no YAML ({error.reason}): save it as UTF-8") from None


def _twice(node: Any) -> Iterator[str]:
    """Yield the keys that a mapping has more than once."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    yield key.value
                seen.add((key.tag, key.value))
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value)
