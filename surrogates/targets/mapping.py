"""The mapping of a JSON service: a small YAML file, which may come from a stranger."""

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.base import OUTPUT_KINDS
from surrogates.targets.classes import ClassNames, name_of
from surrogates.targets.formats import PixelFormat, check_input_shape
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
    layout: str | list[int] = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    color: str | None = None
    resize: tuple[int, int] | int | None = None
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
                self.num_classes is None or _is_count(self.num_classes),
                f"use a whole number from 2 to {MOST_CLASSES:,}",
            ),
            (
                "output_kind",
                self.output_kind in (None, *OUTPUT_KINDS),
                f"use one of {', '.join(OUTPUT_KINDS)}",
            ),
        ]
        rules += [
            (name, isinstance(getattr(self, name), str | None), "give a dotted path, e.g. data.label")
            for name in ("answers", "labels", "scores")
        ]
        for name, good, remedy in rules:
            if not good:
                raise TargetError(f"mapping: {name} is {shortened(repr(getattr(self, name)), 200)}: {remedy}")
        try:
            names = self.names
            if self.input_shape is not None:
                check_input_shape(self.input_shape)
        except TargetError as error:
            raise TargetError(f"mapping: {error}") from None
        if names is not None and self.num_classes not in (None, names.count):
            raise TargetError(
                f"mapping: num_classes is {self.num_classes!r}, but classes lists {names.count}: leave num_classes out"
            )
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
        return self.num_classes if self.names is None else self.names.count

    @property
    def names(self) -> ClassNames | None:
        """The names of the classes, where the mapping lists them."""
        return None if self.classes is None else ClassNames.of(self.classes)

    @property
    def digest(self) -> str:
        """Another request or another reading of the answers is another target."""
        meaning = asdict(self)
        for name in ("token_env", "token_header", "identity"):
            del meaning[name]
        for name in ("mean", "std", "color", "resize"):  # younger than the ledgers of many mappings
            if meaning[name] is None:
                del meaning[name]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
    for key, value in node.value:
        if key.value == "classes" and data.get("classes") is not None:
            data["classes"] = _as_written(value, data["classes"])
    try:
        return Mapping(**data)
    except TargetError as error:
        raise TargetError(str(error).replace("mapping:", f"mapping {path}:", 1)) from None


def pixel_format(mapping: Mapping) -> PixelFormat:
    """Return the pixel format of a mapping; a PNG rounds to 8 bits."""
    given = {name: getattr(mapping, name) for name in ("mean", "std", "color", "resize")}
    if mapping.images == "png":
        return PixelFormat("hwc", "uint8", None, 8, **given, order_is_known=True)
    form = PixelFormat(mapping.layout, mapping.dtype, mapping.pixel_range, **given)  # type: ignore[arg-type]
    return replace(form, order_is_known=True)  # the digest of the mapping says it


def _count(template: Any) -> int:
    """Return how many places a template has for the images."""
    if isinstance(template, dict | list):
        parts = template.values() if isinstance(template, dict) else template
        return sum(_count(part) for part in parts)
    return int(template == PLACE)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 2 <= value <= MOST_CLASSES


def _as_written(node: Any, classes: Any) -> Any:
    """Return class names as YAML reads them, but those that it turns into something else as the file has them."""
    import yaml

    if isinstance(classes, list):
        return [_name(part, name) for part, name in zip(node.value, classes, strict=True)]
    if isinstance(classes, dict) and all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        read = yaml.SafeLoader("")  # pairs, because no and off are one key to YAML
        return {
            _name(key, read.construct_object(key)): read.construct_object(value) for key, value in node.value
        }
    return classes


def _name(node: Any, read: Any) -> Any:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or isinstance(read, str) or name_of(read) == node.value:
        return read
    return node.value
