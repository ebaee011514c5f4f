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

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.addresses import public_url
from surrogates.targets.base import Target
from surrogates.targets.bodies import form_body, json_body, multipart_body
from surrogates.targets.classes import ClassNames, name_of
from surrogates.targets.declared import Declared
from surrogates.targets.http import Reply, client_of
from surrogates.targets.json_answers import json_numbers, quoted, read_json
from surrogates.targets.kinds import PROBABILITY_SLACK
from surrogates.targets.mapping import Mapping, pixel_format, read_mapping
from surrogates.targets.pictures import TYPES, picture
from surrogates.targets.served import open_served


def open_json(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open the endpoint that a mapping in a YAML file describes.

    Args:
        options: Those of HTTP; they win over the mapping.

    Raises:
        TargetError: The mapping cannot be used, or contradicts what was declared.
    """
    mapping = read_mapping(uri)
    for name in ("layout", "dtype", "classes", "output"):
        if getattr(declared, name) is not None:
            raise TargetError(f"{name} stands in the mapping: leave it out")
    if mapping.token_env is not None and options.get("token_env") is None:
        # A file alone must not send a secret away.
        raise TargetError(
            f"mapping {uri} wants the value of the environment variable {mapping.token_env} sent to "
            f"{public_url(mapping.url)}: allow it with --target.token_env {mapping.token_env} "
            f"(in Python open_target(..., token_env={mapping.token_env!r}))"
        )
    own = {name: getattr(mapping, name) for name in ("token_header", "headers", "rate", "timeout")}
    options = {name: value for name, value in own.items() if value is not None} | options
    client, rest = client_of(mapping.url, options, [], "a JSON endpoint")
    form = pixel_format(mapping)
    shape = mapping.input_shape
    declared = declared.agreed(
        num_classes=mapping.known_classes,
        output_kind=None if declared.output_kind else mapping.kind,
        input_shape=None if shape is None else tuple(shape),
    )
    # Headers of the mapping are in its digest, those of the caller are not.
    name = f"{client.url if options.get('headers') == mapping.headers else client.name}#{mapping.digest}"
    declared = replace(
        declared,
        classes=mapping.classes,
        layout=form.layout,
        dtype=form.dtype,
        pixel_range=declared.pixel_range or form.pixel_range,
        quantize=declared.quantize or form.quantize,
        mean=declared.mean if declared.mean is not None else form.mean,
        std=declared.std if declared.std is not None else form.std,
        color=declared.color or form.color,
        resize=declared.resize or form.resize,
        order_is_known=form.order_is_known,
        batch_size=mapping.per_request or declared.batch_size,
        identity=declared.identity or mapping.identity or name,
    )
    wire = JsonEndpoint(
        mapping, mapping.names, client.url, declared.num_classes or 0, declared.output_kind or ""
    )
    if declared.input_shape is not None:  # what cannot be sent is known before anything is
        wire.encode(declared.pixels.encode(np.zeros((1, *declared.input_shape), np.float32)))
    return open_served(wire, client, declared, lossy=mapping.lossy, **rest)


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
        mapping = self.mapping
        if mapping.images == "array":
            body, kind = json_body(mapping.request, pixels.tolist(), mapping.per_request == 1)
            return body, {"Content-Type": kind}
        pictures = [picture(image, mapping.images, mapping.quality) for image in pixels]
        if mapping.send == "json":
            body, kind = json_body(mapping.request, pictures, mapping.per_request == 1)
        elif mapping.send == "form":
            body, kind = form_body(mapping.request, pictures)
        elif mapping.send == "multipart":
            body, kind = multipart_body(mapping.request, pictures, mapping.images, mapping.filename)
        else:
            body, kind = pictures[0], TYPES[mapping.images]
        return body, {"Content-Type": kind}

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
                return _best(self._scores(answer))
            return self._index(label[0] if isinstance(label, list) and label else label)
        return _best(self._scores(answer))

    def _scores(self, answer: Any) -> np.ndarray:
        scores = _at(answer, self.mapping.scores or "")
        if (
            self.mapping.labels is None
            and type(scores) in (int, float)
            and self.mapping.positive_class is not None
        ):
            return self._pair(scores)
        if self.mapping.labels is None and not isinstance(scores, dict):
            if not isinstance(scores, list) or len(scores) != self.num_classes:
                many = len(scores) if isinstance(scores, list) else type(scores).__name__
                raise TargetError(f"target answered {many} classes, expected {self.num_classes}")
            return _row(scores)
        labels = list(scores) if isinstance(scores, dict) else _at(answer, self.mapping.labels or "")
        values = list(scores.values()) if isinstance(scores, dict) else scores
        labels, values = (part if isinstance(part, list) else [part] for part in (labels, values))
        if len(labels) != len(values) or not labels:
            raise TargetError(
                f"target answered {len(labels)} labels and {len(values)} scores, expected as many"
            )
        named = _row(values)
        if not np.isfinite(named).all():
            raise TargetError(f"target answered {named[~np.isfinite(named)][0]}, expected finite scores")
        texts = [name_of(label) for label in labels]
        if len(set(texts)) < len(texts):
            twice = next(label for label, text in zip(labels, texts, strict=True) if texts.count(text) > 1)
            raise TargetError(f"target scored label {quoted(twice)} twice for one image, expected it once")
        indices = [self._index(label) for label in labels]
        row = np.full(self.num_classes, np.nan)
        row[indices] = 0
        np.add.at(row, indices, named)  # several names may stand for one class
        if self.output_kind not in ("top_k", "") and np.isnan(row).any():  # unset, the answer tells
            raise TargetError(
                f"target named {len(labels)} of {self.num_classes} classes: open it with output_kind='top_k'"
            )
        return row

    def _pair(self, score: float) -> np.ndarray:
        """Return the scores of two classes from that of one of them."""
        if self.output_kind != "logits" and not -PROBABILITY_SLACK <= score <= 1 + PROBABILITY_SLACK:
            raise TargetError(
                f"target answered {score:.4g}, expected the probability of one of two classes: give output_kind: logits "
                "if it is a score of another kind"
            )
        rest = 0.0 if self.output_kind == "logits" else 1 - score
        return np.array([rest, score] if self.mapping.positive_class == 1 else [score, rest])

    def _index(self, label: Any) -> int:
        if self.names is not None:
            return self.names.index(label)
        if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label < self.num_classes:
            raise TargetError(
                f"target answered label {quoted(label)}, expected an integer in [0, {self.num_classes}): "
                "list the label names under classes"
            )
        if label != int(label):
            raise TargetError(f"target answered label {label!r}, expected an integer")
        return int(label)


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


def _best(row: np.ndarray) -> int:
    """Return the class of the highest score."""
    if np.isnan(row).all():
        raise TargetError("target answered no score, expected at least 1")
    return int(np.nanargmax(row))


def _row(scores: list[Any]) -> np.ndarray:
    """Return the scores (K,) of one image."""
    row = json_numbers(scores)
    if row.ndim != 1:
        raise TargetError(f"target answered scores {quoted(scores)}, expected numbers in one row")
    return row
