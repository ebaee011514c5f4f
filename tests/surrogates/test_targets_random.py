"""Properties that hold whatever a service does and whatever stands in a mapping file."""

import base64
import gzip
import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surrogates import QueryLedger, SurrogateError, TargetError, open_target
from surrogates.targets import http
from surrogates.targets.redaction import CUT, TELLING, Secrets
from tests.servers.raw import Reaction, Script, raw_server, response

SHAPE = (1, 2, 2)
TIMEOUT = 0.3
TOKEN = "hush-hush-4711"
BUDGET = 10_000
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
SOME = settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
MANY = settings(max_examples=600, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)


def model(images: np.ndarray) -> np.ndarray:
    """Three probabilities that tell each image from every other."""
    mean = images.reshape(len(images), -1).mean(axis=1, keepdims=True).astype(np.float64)
    return np.hstack([mean / 2, (1 - mean) / 2, np.full_like(mean, 0.5)])


# What a server does with one request: a strategy of functions of the right answer, in bytes.
Behavior = Callable[[bytes], Reaction]


def _chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x;note=x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-End: y\r\n\r\n"


def _well(body: bytes, how: str, size: int) -> Reaction:
    """Answer right, in one of the ways that HTTP has for it."""
    plain = response(body)
    ways: dict[str, tuple[tuple[bytes | float, ...], str]] = {
        "plain": ((plain,), "keep"),
        "pieces": (tuple(plain[start : start + size] for start in range(0, len(plain), size)), "keep"),
        "chunks": ((_chunked(body, size),), "keep"),
        "gzip": ((response(gzip.compress(body), headers="Content-Encoding: gzip\r\n"),), "keep"),
        "interim": ((b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * size, plain), "keep"),
        "closing": ((b"HTTP/1.1 200 OK\r\n\r\n" + body,), "close"),
        "old": ((b"HTTP/1.0 200 OK\r\n\r\n" + body,), "close"),
        "farewell": ((response(body, headers="Connection: close\r\n"),), "close"),
    }
    parts, end = ways[how]
    return Reaction(parts, end=end)


def _ill(body: bytes, how: str, size: int, noise: bytes) -> Reaction:
    """Do the work and answer wrong, late, twice, or not at all."""
    plain = response(body)
    ways: dict[str, tuple[tuple[bytes | float, ...], str]] = {
        "twice": ((plain * 2,), "keep"),
        "twice, later": ((plain, 0.02, plain), "keep"),
        "noise behind": ((plain + noise,), "keep"),
        "noise": ((noise,), "close"),
        "noise for a body": ((response(noise),), "keep"),
        "short": ((plain[: -1 - size % len(body)],), "close"),
        "short, reset": ((plain[: size * 7],), "reset"),
        "hangs": ((plain[: size * 7], 60.0), "close"),
        "trickles": (tuple(part for byte in plain for part in (bytes([byte]), 0.03)), "close"),
        "bomb": ((response(gzip.compress(b"0" * 10_000_000), headers="Content-Encoding: gzip\r\n"),), "keep"),
        "twice packed": (
            (response(gzip.compress(gzip.compress(body)), headers="Content-Encoding: gzip, gzip\r\n"),),
            "keep",
        ),
        "half packed": (
            (response(gzip.compress(body)[:-size], headers="Content-Encoding: gzip\r\n"),),
            "keep",
        ),
        "partial": ((response(body, "206 Partial Content"),), "keep"),
        "large head": ((b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,), "close"),
        "two lengths": ((response(body, headers=f"Content-Length: {size}\r\n"),), "close"),
        "two framings": ((response(body, headers="Transfer-Encoding: chunked\r\n"),), "close"),
        "key twice": ((response(body[:-1] + b"," + body[1:]),), "keep"),
        "words": ((response(body.replace(b"0.5", b'"0.5"')),), "keep"),
        "booleans": ((response(body.replace(b"0.5", b"true")),), "keep"),
        "echo": ((response(f"{TOKEN} {noise!r}".encode()),), "keep"),
    }
    parts, end = ways[how]
    return Reaction(parts, end=end)


def _no(body: bytes, status: int, noise: bytes, headers: str) -> Reaction:
    """Answer with another status; what a 5xx has done is charged."""
    charged = status < 300 or (status >= 500 and status != 503)
    said = noise + TOKEN.encode()
    if 100 <= status < 200 or status in (204, 304):
        said = b""
    return Reaction((response(said, f"{status} {TOKEN}", headers),), charged, "close")


SIZES = st.integers(1, 40)
NOISE = st.binary(max_size=200)
WELL = st.sampled_from(["plain", "pieces", "chunks", "gzip", "interim", "closing", "old", "farewell"])
ILL = st.sampled_from(
    ["twice", "twice, later", "noise behind", "noise", "noise for a body", "short", "short, reset", "hangs", "trickles", "bomb", "twice packed", "half packed", "partial", "large head", "two lengths", "two framings", "key twice", "words", "booleans", "echo"]
)  # fmt: skip
EXTRA = st.one_of(
    st.just(""),
    st.from_regex(r"Retry-After: [0-9a-zA-Z :,-]{0,40}", fullmatch=True).map(lambda line: line + "\r\n"),
    st.from_regex(r"Location: [ -~]{0,60}", fullmatch=True).map(lambda line: f"{line}{TOKEN}\r\n"),
)
BEHAVIORS: st.SearchStrategy[Behavior] = st.one_of(
    st.builds(lambda how, size: lambda body: _well(body, how, size), WELL, SIZES),
    st.builds(lambda how, size, noise: lambda body: _ill(body, how, size, noise), ILL, SIZES, NOISE),
    st.builds(
        lambda status, noise, headers: lambda body: _no(body, status, noise, headers),
        st.integers(200, 599).filter(lambda status: status not in (200, 201, 203)),
        NOISE,
        EXTRA,
    ),
)


def _check_service(path: Path, behaviors: list[Behavior], many: int, **options: Any) -> None:
    """One query after the other; each answer is right or an error of ours, in time, without the token, and billed."""
    path.unlink(missing_ok=True)
    common = {"timeout": TIMEOUT, "attempts": 3, "max_wait": 0.05, "max_bytes": 100_000, "batch_size": 2}
    with raw_server(model) as (url, script), QueryLedger(path, budget=BUDGET) as ledger:
        script.will(*[_reacting(script, behavior) for behavior in behaviors])
        target = open_target(
            url, num_classes=3, token_env="SERVICE_TOKEN", concurrency=many, **common | options
        )
        paid = ledger.attach(target)
        for number in range(1, 4):
            images = np.full((2 * many, *SHAPE), number / 7, np.float32)
            images += np.arange(2 * many, dtype=np.float32)[:, None, None, None] / 100
            start = time.monotonic()
            try:
                answers = paid.query(images)
                np.testing.assert_allclose(answers.scores, model(images), rtol=1e-6)
            except TargetError as error:
                _check_line(error, 2_000)
            assert time.monotonic() - start < 3 * (TIMEOUT + 0.05) + 5
        charge = ledger.bill()["training"]
        assert charge.in_flight == 0
        assert charge.answered <= script.charged <= charge.largest
    assert TOKEN.encode() not in path.read_bytes()


def _check_line(error: Exception | str, longest: int) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < longest
    assert TOKEN[:TELLING] not in str(error)


def _reacting(script: Script, behavior: Behavior) -> Callable[..., Reaction]:
    return lambda images, headers: behavior(script.predictions(images))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    monkeypatch.setattr(http, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(http, "LONGEST_BACKOFF_SECONDS", 0.01)


@SOME
@given(behaviors=st.lists(BEHAVIORS, max_size=6), many=st.integers(1, 3))
def test_whatever_a_service_does(tmp_path: Path, quick: None, behaviors: list[Behavior], many: int) -> None:
    _check_service(tmp_path / "ledger.db", behaviors, many)


@pytest.mark.slow
@MANY
@given(behaviors=st.lists(BEHAVIORS, max_size=8), many=st.integers(1, 3))
def test_whatever_a_service_does_at_length(
    tmp_path: Path, quick: None, behaviors: list[Behavior], many: int
) -> None:
    _check_service(tmp_path / "ledger.db", behaviors, many)


def test_the_check_sees_an_answer_that_belongs_to_other_images(tmp_path: Path, quick: None) -> None:
    late = [lambda body: _ill(body, "twice, later", 1, b"")]
    _check_service(tmp_path / "ledger.db", late, 1)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _check_service(tmp_path / "ledger.db", late, 1, keep_alive=True)


# Answers

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just("a"),
)
TREES = st.recursive(
    SCALARS,
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.dictionaries(
            st.sampled_from(["label", "score", "predictions", "outputs", "name", "data", "shape", "datatype", "parameters", "binary_data_size", "a", "scores"]),
            parts,
            max_size=4,
        ),
    ),
    max_leaves=25,
)  # fmt: skip
TENSORS = st.fixed_dictionaries(
    {"name": st.just("a") | SCALARS, "shape": st.just([2, 2]) | TREES, "datatype": st.just("FP32") | SCALARS, "data": TREES}
)  # fmt: skip
FORMS = [
    {"labels": "label"},
    {"labels": "*.label", "scores": "*.score"},
    {"scores": "scores"},
    {"labels": "label", "classes": ["a", "b"]},
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Targets of every protocol in JSON, opened without a server."""
    from surrogates.targets.declared import Declared
    from surrogates.targets.http import HttpClient
    from surrogates.targets.http_options import HttpOptions
    from surrogates.targets.open_inference import OpenInference
    from surrogates.targets.scoring_server import ScoringServer
    from surrogates.targets.served import HttpTarget

    url = "http://127.0.0.1:9/x"
    declared = [Declared(num_classes=2, output_kind=kind) for kind in ("labels", "probabilities", "top_k")]
    protocols = [ScoringServer(url), OpenInference(url, "x", "FP32", "a", False)]
    targets = [
        HttpTarget(wire, HttpClient(url, HttpOptions()), each) for wire in protocols for each in declared
    ]
    for form in FORMS:
        mapping = {"url": url, "request": "$images", "per_request": 2, "answers": "predictions", **form}
        file = tmp_path_factory.mktemp("mapping") / "mapping.yaml"
        file.write_text(yaml.safe_dump({"num_classes": 2} | mapping))
        targets.append(open_target(file))
    return targets


def _check_answer(targets: list[Any], answer: Any) -> None:
    """Every protocol reads it as finite numbers of JSON, or refuses it in one line."""
    body = json.dumps(answer).encode()
    unforeseen: list[bool] = []  # what was foreseen has words of its own
    for target in targets:
        try:
            with target._client.discreet():
                read = target.parse_answer(target._wire.decode(http.Reply(body, httpx.Headers()), 2), 2)
        except SurrogateError as error:
            _check_line(error, 1_100)
            unforeseen += ["cannot be read" in str(error)]
            continue
        assert set(read.labels) <= {0, 1}
        assert read.scores is None or not np.isinf(read.scores).any()
    assert not any(unforeseen)


ANSWERS = (
    TREES
    | st.fixed_dictionaries({"predictions": TREES})
    | st.fixed_dictionaries({"outputs": st.lists(TENSORS, max_size=2)})
)


@settings(SOME, max_examples=150)
@given(answer=ANSWERS)
def test_whatever_is_answered(readers: list[Any], answer: Any) -> None:
    _check_answer(readers, answer)


@pytest.mark.slow
@settings(MANY, max_examples=20_000)
@given(answer=ANSWERS)
def test_whatever_is_answered_at_length(readers: list[Any], answer: Any) -> None:
    _check_answer(readers, answer)


# Mapping files

GOOD = "url: http://127.0.0.1:9/x\nrequest: {i: $images}\nlabels: label\nscores: score\nclasses: [a, b]\n"
KEYS = ["images", "layout", "dtype", "pixel_range", "per_request", "answers", "labels", "scores", "classes", "num_classes", "output_kind", "input_shape", "token_env", "token_header", "identity", "request"]  # fmt: skip
VALUES = TREES | st.sampled_from(
    ["png", "array", "hwc", "flat", "uint8", "labels", "top_k", "", "$images", "*.a", "HOME"]
)
MAPPINGS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
EDITS = st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 5), st.text("{}[]&*!:-#|>'\"%@`,? \n\tax0.~", max_size=6)), max_size=4)  # fmt: skip


FORM = {"layout", "dtype", "pixel_range", "mean", "std", "color", "resize", "pixels"}


def _check_mapping(path: Path, raw: bytes) -> None:
    """It opens, or is refused in one short line, at once; what opens fails only for want of a server."""
    file = path / "mapping.yaml"
    file.write_bytes(raw)
    if _seconds_of(file) > 3:
        assert _seconds_of(file) < 3  # a machine that stalls does not do so twice


def _seconds_of(file: Path) -> float:
    start = time.monotonic()
    try:
        target = open_target(file, attempts=1)
        if "127.0.0.1:9/" in target._wire.url:
            shape = target.input_shape or (1, 2, 2)
            if np.prod(shape) < 10_000:
                target.query(np.zeros((1, *shape), np.float32))
                pytest.fail("nobody is there to answer")
    except SurrogateError as error:
        lines = str(error).split("\n")  # each fault of the pixel format has one
        assert len(lines) == 1 or {line.split()[0] for line in lines} <= FORM
        for line in lines:
            _check_line(line, 2_000)
    return time.monotonic() - start


@SOME
@given(raw=st.binary(max_size=300))
def test_whatever_bytes_a_mapping_holds(tmp_path: Path, raw: bytes) -> None:
    _check_mapping(tmp_path, raw)


@settings(SOME, max_examples=80)
@given(changes=MAPPINGS, edits=EDITS)
def test_whatever_a_mapping_says(
    tmp_path: Path, changes: dict[str, Any], edits: list[tuple[int, int, str]]
) -> None:
    _check_mapping(tmp_path, _mapping(changes, edits))


@pytest.mark.slow
@settings(MANY, max_examples=20_000)
@given(changes=MAPPINGS, edits=EDITS)
def test_whatever_a_mapping_says_at_length(
    tmp_path: Path, changes: dict[str, Any], edits: list[tuple[int, int, str]]
) -> None:
    _check_mapping(tmp_path, _mapping(changes, edits))


def _mapping(changes: dict[str, Any], edits: list[tuple[int, int, str]]) -> bytes:
    """Return a good mapping with other values, or with its text edited."""
    text = yaml.safe_dump(yaml.safe_load(GOOD) | changes) if changes else GOOD
    for place, length, new in edits:
        text = text[:place] + new + text[place + length :]
    return text.encode("utf-8", "surrogatepass")


# Secrets

ENCODINGS: list[Callable[[str], str]] = [
    lambda text: quote(text, safe=""),
    lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    lambda text: json.dumps(text)[1:-1],
    lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    html.escape,
    lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    lambda text: text.upper(),
]
PACKINGS: list[Callable[[str], str]] = [
    str,
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: base64.urlsafe_b64encode(b"Bearer " + text.encode() + b"!").decode(),
    lambda text: text.encode().hex(),
]
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)


@settings(SOME, max_examples=150)
@given(
    secret=PRINTABLE,
    pack=st.sampled_from(PACKINGS),
    encodings=st.lists(st.sampled_from(ENCODINGS), max_size=2),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_a_secret_is_hidden_however_it_is_written(
    secret: str, pack: Callable, encodings: list[Callable], before: str, after: str
) -> None:
    secrets = Secrets()
    secrets.add(secret)
    written = pack(secret)
    for encode in encodings:
        written = encode(written)
    hidden = secrets.hide(before + written + after)
    assert secret not in hidden
    assert written not in hidden
    assert CUT in hidden


@SOME
@given(secret=PRINTABLE, text=st.text(st.characters(min_codepoint=0x370, max_codepoint=0x3FF)))
def test_what_holds_no_secret_is_left_alone(secret: str, text: str) -> None:
    secrets = Secrets()
    secrets.add(secret)
    assert secrets.hide(text) == text
