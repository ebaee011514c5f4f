"""The mapping of a JSON service: a small YAML file, which may come from a stranger."""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.base import OUTPUT_KINDS
from surrogates.targets.formats import PixelFormat
from surrogates.targets.redaction import shortened
from surrogates.targets.yaml_file import read_yaml

PLACE = "$images"
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Mapping:
    """The mapping, checked; the module's docstring shows one.

    Raises:
        TargetError: It names the key and the remedy.
    """

    url: str
    request: Any
    images: str = "array"
    layout: str = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    per_request: int | None = 1
    answers: str | None = None
    labels: str | None = None
    scores: str | None = None
    classes: Any = None
    num_classes: int | None = None
    output_kind: str | None = None
    input_shape: tuple[int, int, int] | None = None
    token_env: str | None = None
    token_header: str | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        rules = [
            ("url", isinstance(self.url, str), "give http(s)://host/path"),
            ("images", self.images in ("array", "png"), "use array or png"),
            ("request", _count(self.request) == 1, f"put {PLACE} in one place of it, as a value of its own"),
            (
                "per_request",
                self.per_request is None or (type(self.per_request) is int and self.per_request >= 1),
                "use a whole number of at least 1, or null for any number",
            ),
            ("request", _is_json(self.request), "use what JSON has: text, finite numbers, true, false, null"),
            (
                "token_env",
                self.token_env is None or _matches(r"[A-Za-z_][A-Za-z0-9_]*", self.token_env),
                "give the name of an environment variable",
            ),
            ("token_header", isinstance(self.token_header, str | None), "give 'Name: scheme'"),
            ("identity", isinstance(self.identity, str | None), "give a text"),
            (
                "num_classes",
                self.num_classes is None or _whole([self.num_classes], 2, MOST_CLASSES),
                f"use a whole number from 2 to {MOST_CLASSES:,}",
            ),
            (
                "input_shape",
                self.input_shape is None or _whole(self.input_shape, 1, 2**31, length=3),
                "give [channels, height, width]",
            ),
            (
                "output_kind",
                self.output_kind in (None, *OUTPUT_KINDS),
                f"use one of {', '.join(OUTPUT_KINDS)}",
            ),
            (
                "classes",
                self.classes is None or _indices(self.classes) is not None,
                "list the label names in the order of their indices, or map each name to its index",
            ),
        ]
        rules += [
            (name, isinstance(getattr(self, name), str | None), "give a dotted path, e.g. data.label")
            for name in ("answers", "labels", "scores")
        ]
        for name, good, remedy in rules:
            if not good:
                raise TargetError(f"mapping: {name} is {shortened(repr(getattr(self, name)), 200)}: {remedy}")
        if self.labels is None and self.scores is None:
            raise TargetError("mapping: labels and scores are missing: give the path of at least one of them")
        if self.per_request != 1 and self.answers is None:
            raise TargetError(
                'mapping: answers is missing: give the path of the list of answers, "" for the body'
            )

    @property
    def kind(self) -> str:
        """The output kind: as declared, else by what the answers hold."""
        if self.output_kind is not None:
            return self.output_kind
        if self.scores is None:
            return "labels"
        return "probabilities" if self.labels is None else "top_k"

    @property
    def known_classes(self) -> int | None:
        """The number of classes, where the mapping has it."""
        return self.num_classes if self.indices is None else max(self.indices.values()) + 1

    @property
    def indices(self) -> dict[str, int] | None:
        """The index of each label name, where the mapping lists them."""
        return None if self.classes is None else _indices(self.classes)


def read_mapping(path: str | Path) -> Mapping:
    """Read a mapping from a YAML file.

    Raises:
        TargetError: It names the file and what is wrong in it.
    """
    data, node = read_yaml(path, "mapping")
    if not isinstance(data, dict):
        raise TargetError(
            f"mapping {path} holds a {type(data).__name__}, expected keys such as url and request"
        )
    known = [field.name for field in fields(Mapping)]
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            remedy = f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}"
            raise TargetError(f"mapping {path}: unknown key {name!r}: {remedy}")
    missing = [name for name in ("url", "request") if name not in data]
    if missing:
        raise TargetError(f"mapping {path}: {missing[0]} is missing")
    for written, read in _misread(node):
        raise TargetError(
            f"mapping {path}: classes has {written}, which YAML reads as {read!r}: write '{written}' in quotes"
        )
    try:
        return Mapping(**data)
    except TargetError as error:
        raise TargetError(str(error).replace("mapping:", f"mapping {path}:", 1)) from None


def pixel_format(mapping: Mapping) -> PixelFormat:
    """Return the pixel format of a mapping; a PNG rounds to 8 bits."""
    if mapping.images == "png":
        return PixelFormat("hwc", "uint8", None, 8)
    return PixelFormat(mapping.layout, mapping.dtype, mapping.pixel_range)


def _count(template: Any) -> int:
    """Return how many places a template has for the images."""
    if isinstance(template, dict | list):
        parts = template.values() if isinstance(template, dict) else template
        return sum(_count(part) for part in parts)
    return int(template == PLACE)


def _indices(classes: Any) -> dict[str, int] | None:
    """Return label names with their indices; None where classes is neither a list nor a map of them."""
    if isinstance(classes, list) and len({str(name) for name in classes}) == len(classes) >= 2:
        return {str(name): index for index, name in enumerate(classes)}
    if isinstance(classes, dict) and len(classes) >= 2:
        indices = list(classes.values())
        if all(type(index) is int and 0 <= index < MOST_CLASSES for index in indices):
            return {str(name): index for name, index in classes.items()}
    return None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _whole(values: Any, least: int, most: int, length: int = 1) -> bool:
    """Whether these are as many whole numbers within bounds."""
    return (
        isinstance(values, list | tuple)
        and len(values) == length
        and all(type(value) is int and least <= value <= most for value in values)
    )


def _misread(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield class names that YAML takes for something else, as written and as read: no, 007, 1.10, null."""
    import yaml

    classes = next((value for key, value in node.value if key.value == "classes"), None)
    if isinstance(classes, yaml.MappingNode):
        names = [key for key, _ in classes.value]
    else:
        names = classes.value if isinstance(classes, yaml.SequenceNode) else []
    for name in names:
        if isinstance(name, yaml.ScalarNode) and name.tag != "tag:yaml.org,2002:str":
            read = yaml.safe_load(name.value)
            if type(read) is not int or str(read) != name.value:
                yield name.value, read
