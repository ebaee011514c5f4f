"""Any service that takes images in JSON and answers in JSON, described by a small mapping in YAML.

    url: https://host/models/fashion
    images: png                    # array, or png: base64 of an 8-bit PNG
    request: {inputs: $images}     # where they go; $images is one image if per_request is 1, else a list
    per_request: 1
    answers: predictions           # where the list with one answer an image is; leave out where it is the body
    labels: "*.label"              # inside one answer: a dotted path, * for every entry of a list
    scores: "*.score"
    classes: [t-shirt, trouser]    # label names as they are answered, in the order of their indices, or {name: index}

labels alone gives hard labels, scores alone one number a class in order, both give named scores. Where each
answer is {name: score}, `scores` is its path and `labels` is left out. A path may be "" for the answer itself.
"""

import base64
import difflib
import hashlib
import io
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import OUTPUT_KINDS, Target
from surrogates.targets.classes import ClassNames
from surrogates.targets.declared import Declared
from surrogates.targets.formats import PixelFormat, check_input_shape
from surrogates.targets.http import Reply, client_of
from surrogates.targets.records import numbers
from surrogates.targets.served import open_served, read_json

PLACE = "$images"


def open_json(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open the endpoint that a mapping in a YAML file describes.

    Args:
        options: Those of HTTP; they win over the mapping.

    Raises:
        TargetError: The mapping cannot be used, or contradicts what was declared.
    """
    mapping = read_mapping(uri)
    for name in ("layout", "dtype", "classes"):
        if getattr(declared, name) is not None:
            raise TargetError(f"{name} stands in the mapping: leave it out")
    own = {"token_env": mapping.token_env, "token_header": mapping.token_header}
    options = {name: value for name, value in own.items() if value is not None} | options
    client, rest = client_of(mapping.url, options, [], "a JSON endpoint")
    form = pixel_format(mapping)
    shape = mapping.input_shape
    declared = declared.agreed(
        num_classes=mapping.known_classes,
        output_kind=None if declared.output_kind else mapping.kind,
        input_shape=None if shape is None else tuple(shape),
    )
    declared = replace(
        declared,
        layout=form.layout,
        dtype=form.dtype,
        pixel_range=declared.pixel_range or form.pixel_range,
        quantize=declared.quantize or form.quantize,
        mean=declared.mean if declared.mean is not None else form.mean,
        std=declared.std if declared.std is not None else form.std,
        batch_size=mapping.per_request or declared.batch_size,
        identity=declared.identity or mapping.identity or f"{client.url}#{mapping.digest}",
    )
    wire = JsonEndpoint(
        mapping, mapping.names, client.url, declared.num_classes or 0, declared.output_kind or ""
    )
    return open_served(wire, client, declared, **rest)


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
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
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
        rules += [
            (name, isinstance(getattr(self, name), str | None), "give a text")
            for name in ("token_env", "token_header", "identity")
        ]
        for name, good, remedy in rules:
            if not good:
                raise TargetError(f"mapping: {name} is {getattr(self, name)!r}: {remedy}")
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
        for name in ("mean", "std"):  # younger than the ledgers of many mappings
            if meaning[name] is None:
                del meaning[name]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_mapping(path: str | Path) -> Mapping:
    """Read a mapping from a YAML file.

    Raises:
        TargetError: It names the file and what is wrong in it.
    """
    from surrogates.targets.mapping_file import read_yaml  # and with it YAML

    data = read_yaml(Path(path))
    known = [field.name for field in fields(Mapping)]
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            remedy = f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}"
            raise TargetError(f"mapping {path}: unknown key {name!r}: {remedy}")
    missing = [name for name in ("url", "request") if name not in data]
    if missing:
        raise TargetError(f"mapping {path}: {missing[0]} is missing")
    try:
        return Mapping(**data)
    except TargetError as error:
        raise TargetError(str(error).replace("mapping:", f"mapping {path}:", 1)) from None


@dataclass(frozen=True)
class JsonEndpoint:
    """The protocol that a mapping describes."""

    mapping: Mapping
    names: ClassNames | None
    url: str
    num_classes: int
    output_kind: str

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Write a request: the template with the images in their place."""
        if self.mapping.images == "png":
            images: list[Any] = [base64.b64encode(png(image)).decode("ascii") for image in pixels]
        else:
            images = pixels.tolist()
        value = images[0] if self.mapping.per_request == 1 else images
        body = json.dumps(_filled(self.mapping.request, value)).encode()
        return body, {"Content-Type": "application/json"}

    def decode(self, reply: Reply, count: int) -> np.ndarray:
        """Read labels (N,) or scores (N, K), NaN for the classes that an answer does not name."""
        body = read_json(reply)
        answers = [body] if self.mapping.answers is None else _at(body, self.mapping.answers)
        if (
            self.mapping.answers is not None
            and self.mapping.per_request == 1
            and not isinstance(answers, list)
        ):
            answers = [answers]
        if not isinstance(answers, list) or len(answers) != count:
            many = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
            raise TargetError(f"target answered {many}, expected a list of {count}: one for each image")
        if self.output_kind == "labels":
            return np.array([self._label(answer) for answer in answers])
        return np.array([self._scores(answer) for answer in answers], dtype=np.float64)

    def _label(self, answer: Any) -> int:
        if self.mapping.labels is not None:
            label = _at(answer, self.mapping.labels)
            if isinstance(label, list) and self.mapping.scores is not None:  # the best of a ranking
                return int(np.nanargmax(self._scores(answer)))
            return self._index(label[0] if isinstance(label, list) and label else label)
        return int(np.nanargmax(self._scores(answer)))

    def _scores(self, answer: Any) -> np.ndarray:
        scores = _at(answer, self.mapping.scores or "")
        if self.mapping.labels is None and not isinstance(scores, dict):
            if not isinstance(scores, list) or len(scores) != self.num_classes:
                many = len(scores) if isinstance(scores, list) else type(scores).__name__
                raise TargetError(f"target answered {many} classes, expected {self.num_classes}")
            return _numbers(scores)
        labels = list(scores) if isinstance(scores, dict) else _at(answer, self.mapping.labels or "")
        values = list(scores.values()) if isinstance(scores, dict) else scores
        labels, values = (part if isinstance(part, list) else [part] for part in (labels, values))
        if len(labels) != len(values) or not labels:
            raise TargetError(
                f"target answered {len(labels)} labels and {len(values)} scores, expected as many"
            )
        named = _numbers(values)
        if not np.isfinite(named).all():
            raise TargetError(f"target answered {named[~np.isfinite(named)][0]}, expected finite scores")
        if len(set(map(str, labels))) < len(labels):
            raise TargetError(f"target named a class twice: {str(labels)[:60]}")
        places = [self._index(label) for label in labels]
        row = np.full(self.num_classes, np.nan)
        row[places] = 0
        np.add.at(row, places, named)  # several names may stand for one class
        if self.output_kind != "top_k" and np.isnan(row).any():
            raise TargetError(
                f"target named {len(labels)} of {self.num_classes} classes: open it with output_kind='top_k'"
            )
        return row

    def _index(self, label: Any) -> int:
        if self.names is not None:
            return self.names.index(label)
        if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label < self.num_classes:
            raise TargetError(
                f"target answered label {label!r}, expected an integer in [0, {self.num_classes}): "
                "list the label names under classes"
            )
        if label != int(label):
            raise TargetError(f"target answered label {label!r}, expected an integer")
        return int(label)


def png(image: np.ndarray) -> bytes:
    """Return an image (H, W, C) uint8 with 1 or 3 channels as a PNG."""
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise TargetError(
            f"a PNG takes 1 or 3 channels, got an image of shape {image.shape}: use images: array"
        )
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def pixel_format(mapping: Mapping) -> PixelFormat:
    """Return the pixel format of a mapping; a PNG rounds to 8 bits."""
    if mapping.images == "png":
        return PixelFormat("hwc", "uint8", None, 8, mapping.mean, mapping.std)
    return PixelFormat(mapping.layout, mapping.dtype, mapping.pixel_range, mean=mapping.mean, std=mapping.std)


def _at(answer: Any, path: str) -> Any:
    """Return what lies at a dotted path: names and positions, * for every entry of a list."""
    steps = [step for step in path.split(".") if step]
    for position, step in enumerate(steps):
        if step == "*":
            if not isinstance(answer, list):
                raise TargetError(
                    f"target answered {type(answer).__name__} at '*' of {path!r}, expected a list"
                )
            rest = ".".join(steps[position + 1 :])
            return [_at(entry, rest) for entry in answer]
        try:
            answer = answer[int(step)] if isinstance(answer, list) else answer[step]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            names = sorted(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
            raise TargetError(f"target answered nothing at {path!r}: {step!r} is not in {names}") from error
    return answer


def _filled(template: Any, value: Any) -> Any:
    if template == PLACE:
        return value
    if isinstance(template, dict):
        return {key: _filled(part, value) for key, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, value) for part in template]
    return template


def _count(template: Any) -> int:
    """Return how many places a template has for the images."""
    if isinstance(template, dict | list):
        parts = template.values() if isinstance(template, dict) else template
        return sum(_count(part) for part in parts)
    return int(template == PLACE)


def _numbers(values: list[Any]) -> np.ndarray:
    array = numbers(values)
    if array.dtype.kind == "b" or array.shape != (len(values),):
        raise TargetError(f"target answered scores {str(values)[:60]}, expected numbers")
    return array.astype(np.float64)
