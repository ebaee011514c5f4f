"""YAML files that describe an endpoint, perhaps a stranger's: small, without anchors, and class names as they are written."""

from pathlib import Path
from typing import Any

import yaml

from surrogates.errors import TargetError
from surrogates.targets.classes import name_of

MOST_BYTES = 2**20
DEEPEST = 50  # no mapping nests deeper, and YAML takes minutes to see that thousands of brackets stay open


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, which make a small file a large one, and not deeper than DEEPEST."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, *name: write out what it stands for")
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"it nests more than {DEEPEST} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a mapping file.

    YAML reads `no` as a truth value, 007 as 7 and 1.10 as 1.1. Under `classes`, such a name stays what the file says.

    Raises:
        TargetError: It cannot be read, is too large, is no YAML, or has an alias or a key twice.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise TargetError(f"cannot read the mapping {path} ({error.strerror}): check the path") from error
    if len(raw) > MOST_BYTES:
        raise TargetError(f"mapping {path} has more than {MOST_BYTES} bytes: give a mapping, not data")
    try:
        loader = _Loader(raw.decode("utf-8"))
        node = loader.get_single_node()
        _check_keys(node, path)
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(
            f"mapping {path} is no YAML that can be used ({' '.join(str(error).split())[:200]})"
        ) from error
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise TargetError(
            f"mapping {path} holds a {type(data).__name__}, expected keys such as url and request"
        )
    for key, value in node.value:
        if key.value == "classes" and data.get("classes") is not None:
            data["classes"] = _as_written(value, data["classes"])
    return data


def _check_keys(node: Any, path: Path) -> None:
    """Check that no mapping in a file has a key twice, of which YAML would keep the last.

    Raises:
        TargetError: It names the key.
    """
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise TargetError(f"mapping {path} has the key {key.value!r} twice: keep one of them")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            _check_keys(key, path)
            _check_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_keys(part, path)


def _as_written(node: Any, classes: Any) -> Any:
    """Return class names as YAML reads them, but those that it turns into something else as the file has them."""
    if isinstance(classes, list):
        return [_name(part, name) for part, name in zip(node.value, classes, strict=True)]
    if isinstance(classes, dict) and all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        read = yaml.SafeLoader("")  # pairs, because no and off are one key to YAML
        return {
            _name(key, read.construct_object(key)): read.construct_object(value) for key, value in node.value
        }
    return classes


def _name(node: Any, read: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode) or isinstance(read, str) or name_of(read) == node.value:
        return read
    return node.value
