"""The mapping of a JSON service: a small YAML file, which may come from a stranger."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.bodies import PLACE, places, stands_alone
from surrogates.targets.classes import ClassNames, name_of
from surrogates.targets.formats import PixelFormat, check_input_shape
from surrogates.targets.http_headers import check_headers
from surrogates.targets.kinds import OUTPUT_KINDS
from surrogates.targets.pictures import QUALITY
from surrogates.targets.redaction import shortened
from surrogates.targets.yaml_file import read_yaml

MOST_CLASSES = 1_000_000
IMAGES = ("array", "png", "jpeg")
SENDS = ("json", "form", "multipart", "raw")
LONGEST_TIMEOUT, SLOWEST_RATE = 3_600, 0.01  # a stranger's file must not make anybody wait for ever
# Where nothing was said of these, a mapping is the one that it was before they were there.
YOUNGER = ("mean", "std", "color", "resize", "quality", "send", "filename", "headers", "positive")


@dataclass(frozen=True)
class Mapping:
    """The mapping, checked; the module's docstring shows one.

    Raises:
        TargetError: It names the key and the remedy.
    """

    url: str
    request: Any = None
    images: str = "array"
    layout: str | list[int] = "chw"
    dtype: str = "float32"
    pixel_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    color: str | None = None
    resize: tuple[int, int] | int | None = None
    quality: int | None = None
    send: str = "json"
    filename: str | None = None
    headers: Any = None
    rate: float | None = None
    timeout: float | None = None
    per_request: int | None = 1
    answers: str | None = None
    labels: str | None = None
    scores: str | None = None
    classes: Any = None
    positive: Any = None
    num_classes: int | None = None
    output_kind: str | None = None
    input_shape: tuple[int, int, int] | None = None
    token_env: str | None = None
    token_header: str | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if self.send == "raw" and self.request is None:
            object.__setattr__(self, "request", PLACE)
        for name, good, remedy in (*self._rules(), *self._rules_of_request()):
            if not good:
                raise TargetError(f"mapping: {name} is {shortened(repr(getattr(self, name)), 200)}: {remedy}")
        try:
            names = self.names
            check_headers(self.headers)
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
        if self.positive is not None and (self.labels is not None or self.positive_class is None):
            raise TargetError(
                f"mapping: positive is {shortened(repr(self.positive), 60)}: it says which of two classes one score is for: "
                "give its name in classes, or 0 or 1, and scores without labels"
            )
        if self.per_request != 1 and self.answers is None:
            raise TargetError(
                'mapping: answers is missing: give the path of the list of answers, "" for the body'
            )

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yield the name of a value, whether it is good, and the remedy."""
        yield "url", isinstance(self.url, str), "give http(s)://host/path"
        use = "use array, png or jpeg" + ("; send says how they travel" if self.images in SENDS else "")
        yield "images", self.images in IMAGES, use
        yield "send", self.send in SENDS, f"use one of {', '.join(SENDS)}"
        many = self.per_request is None or (type(self.per_request) is int and self.per_request >= 1)
        yield "per_request", many, "use a whole number of at least 1, or null for any number"
        whole = type(self.quality) is int and 1 <= self.quality <= 100
        yield (
            "quality",
            self.quality is None or (whole and self.images == "jpeg"),
            "use 1 to 100, with images: jpeg",
        )
        file = self.filename is None or (
            _matches(r"[^\x00-\x1f/\\]{1,200}", self.filename) and self.send == "multipart"
        )
        yield "filename", file, "give the name of a file, with send: multipart"
        rate = self.rate is None or (_is_number(self.rate) and self.rate >= SLOWEST_RATE)
        yield "rate", rate, f"use a number of images a second, at least {SLOWEST_RATE}"
        timeout = self.timeout is None or (_is_number(self.timeout) and 0 < self.timeout <= LONGEST_TIMEOUT)
        yield "timeout", timeout, f"use seconds, up to {LONGEST_TIMEOUT:,}"
        variable = self.token_env is None or _matches(r"[A-Za-z_][A-Za-z0-9_]*", self.token_env)
        yield "token_env", variable, "give the name of an environment variable"
        yield "token_header", isinstance(self.token_header, str | None), "give 'Name: scheme'"
        yield "identity", isinstance(self.identity, str | None), "give a text"
        count = self.num_classes is None or _is_count(self.num_classes)
        yield "num_classes", count, f"use a whole number from 2 to {MOST_CLASSES:,}"
        kind = self.output_kind in (None, *OUTPUT_KINDS)
        yield "output_kind", kind, f"use one of {', '.join(OUTPUT_KINDS)}"
        for name in ("answers", "labels", "scores"):
            yield name, isinstance(getattr(self, name), str | None), "give a dotted path, e.g. data.label"

    def _rules_of_request(self) -> Iterator[tuple[str, bool, str]]:
        """Yield the same for the request, which is to be what `send` can send."""
        alone = stands_alone(self.request)
        array = self.images == "array"
        own = f"put {PLACE} in one place of it, as a value of its own"
        within = (
            f"put {PLACE} in one place of it, as a value of its own or, with per_request: 1, within a text"
        )
        yield "request", places(self.request) == 1 and (alone or not array), own if array else within
        yield "request", _is_json(self.request), "use what JSON has: text, finite numbers, true, false, null"
        if self.send == "json":
            yield "per_request", alone or self.per_request == 1, f"use 1, since {PLACE} stands within a text"
            return
        yield "send", not array, "use images: png or jpeg with it, or send: json"
        if self.send == "raw":
            yield "request", self.request == PLACE, "leave it out: with send: raw the body is the picture"
            yield "per_request", self.per_request == 1, "use 1: with send: raw the body is one picture"
            return
        form = isinstance(self.request, dict) and all(
            _matches(r"[^\x00-\x1f]{1,200}", name) for name in self.request
        )
        yield "request", form, "name the fields of the form, e.g. {file: $images}"
        named = self.headers if isinstance(self.headers, dict) else {}
        typed = any(str(name).lower() == "content-type" for name in named)
        yield "headers", not typed, "leave Content-Type out: a form writes its own"
        top = form and PLACE in self.request.values()
        yield "per_request", top or self.per_request == 1, f"use 1, since {PLACE} is no field of its own"

    @property
    def kind(self) -> str | None:
        """The output kind: as declared, else by what the answers hold; None where scores alone do not tell."""
        if self.output_kind is not None:
            return self.output_kind
        if self.scores is None:
            return "labels"
        if self.labels is not None:
            return "top_k"
        return None if self.positive_class is None else "probabilities"  # of one number a kind cannot be told

    @property
    def known_classes(self) -> int | None:
        """The number of classes, where the mapping has it."""
        return self.num_classes if self.names is None else self.names.count

    @property
    def names(self) -> ClassNames | None:
        """The names of the classes, where the mapping lists them."""
        return None if self.classes is None else ClassNames.of(self.classes)

    @property
    def positive_class(self) -> int | None:
        """The class that a single score of two is for; None where there are more, or `positive` names none."""
        if self.known_classes != 2:
            return None
        if self.positive is None:
            return 1
        if self.names is not None and isinstance(self.positive, str):
            return self.names.indices.get(self.positive)
        return self.positive if type(self.positive) is int and self.positive in (0, 1) else None

    @property
    def lossy(self) -> str:
        """What a kept answer depends on besides the pixels' own format; empty for nothing."""
        return f"jpeg {self.quality or QUALITY}" if self.images == "jpeg" else ""

    @property
    def digest(self) -> str:
        """Another request or another reading of the answers is another target."""
        meaning = asdict(self)
        for name in ("token_env", "token_header", "identity", "rate", "timeout"):
            del meaning[name]
        for name in YOUNGER:
            if meaning[name] == getattr(Mapping, name):
                del meaning[name]
        try:
            text = json.dumps(meaning, sort_keys=True, default=str)
        except TypeError:  # keys of several types have no order of their own
            text = json.dumps(_by_kind(meaning), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    needed = ("url",) if data.get("send") == "raw" else ("url", "request")
    missing = [name for name in needed if name not in data]
    if missing:
        raise TargetError(f"mapping {path}: {missing[0]} is missing")
    for key, value in node.value:
        if key.value == "classes" and data.get("classes") is not None:
            data["classes"] = _as_written(value, data["classes"])
        if key.value == "positive" and isinstance(data.get("classes"), list | dict):
            data["positive"] = _name(value, data["positive"])
    try:
        return Mapping(**data)
    except TargetError as error:
        raise TargetError(str(error).replace("mapping:", f"mapping {path}:", 1)) from None


def pixel_format(mapping: Mapping) -> PixelFormat:
    """Return the pixel format of a mapping; pictures round to 8 bits."""
    given = {name: getattr(mapping, name) for name in ("mean", "std", "color", "resize")}
    if mapping.images != "array":
        return PixelFormat("hwc", "uint8", None, 8, **given, order_is_known=True)
    form = PixelFormat(mapping.layout, mapping.dtype, mapping.pixel_range, **given)  # type: ignore[arg-type]
    return replace(form, order_is_known=True)  # the digest of the mapping says it


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _by_kind(value: Any) -> Any:
    """Return a value with the keys of its maps as texts, 1 and "1" apart."""
    if isinstance(value, dict):
        return {f"{type(key).__name__} {key}": _by_kind(part) for key, part in value.items()}
    return list(map(_by_kind, value)) if isinstance(value, list | tuple) else value


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


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
