"""YAML that nobody vouches for: a file of bounded size, whose anchors do not multiply, is all that is parsed."""

from __future__ import annotations

from pathlib import Path

from certdef.config.job import ConfigError

MOST_BYTES = 2**20  # a whole configuration has some 10 kB
MOST_NODES = 100_000
DEEPEST = 50


def read_config(path: Path | str) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: It can't be read, is too large, too deep, or multiplies itself by its anchors.
    """
    what = f"config file {str(path)!r}"
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(
            f"{what} can't be read ({error.strerror}): check its name and permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is no YAML: {error}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{what} has more than {MOST_BYTES:,} bytes: give a file of options")
    check_yaml(text, what)
    return text


def check_yaml(text: str, what: str) -> None:
    """Refuse YAML that takes more than its text to parse; whether it is YAML at all, the parser says.

    Raises:
        ConfigError: It is too deep, refers to itself, or its anchors make too much of it.
    """
    import yaml

    sizes: dict[str, int] = {}  # by anchor: nodes, with those of the aliases inside
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            anchor, size = getattr(event, "anchor", None), 0
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            elif isinstance(event, yaml.AliasEvent):
                if anchor in {name for name, _ in open_nodes}:
                    raise ConfigError(f"{what} refers to itself by the anchor {anchor!r}: write it out")
                size, anchor = sizes.get(str(anchor), 1), None
            if anchor is not None and size:
                sizes[anchor] = size
            open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
            if sum(count for _, count in open_nodes) > MOST_NODES:
                raise ConfigError(
                    f"{what} has more than {MOST_NODES:,} values: write fewer, or fewer aliases"
                )
            if len(open_nodes) > DEEPEST:
                raise ConfigError(f"{what} is nested more than {DEEPEST} levels deep: options have three")
    except yaml.YAMLError:
        return
