"""A service that means harm, or is broken, costs neither memory nor time past the limits, and gets no secret out."""

import base64
import gzip
import html
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import numpy as np
import pytest

import surrogates
from surrogates import QueryLedger, TargetError, open_target
from surrogates.targets import http
from tests.servers.raw import Reaction, Script, raw_server, response

SHAPE = (1, 2, 2)
IMAGES = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, *SHAPE)
TOKEN = 'hush/hush+4711"&%ok=='


def model(images: np.ndarray) -> np.ndarray:
    """Three probabilities that differ from image to image."""
    mean = images.reshape(len(images), -1).mean(axis=1, keepdims=True).astype(np.float64)
    return np.hstack([mean / 2, (1 - mean) / 2, np.full_like(mean, 0.5)])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Script]]:
    monkeypatch.setattr(http, "FIRST_BACKOFF_SECONDS", 0.0)
    with raw_server(model) as (url, script):
        yield url, script


def opened(url: str, **options: Any) -> surrogates.Target:
    return open_target(url, num_classes=3, **{"timeout": 1.0} | options)


def says(*parts: bytes | float, **details: Any) -> Callable[..., Reaction]:
    """React with these parts, whatever is queried."""
    return lambda images, headers: Reaction(parts, **details)


def nested(size: int, depth: int) -> bytes:
    """Zeros, packed so many times."""
    body = b"\0" * size
    for _ in range(depth):
        body = gzip.compress(body)
    return body


PACKED = {
    "gzip in gzip": (
        nested(200_000_000, 2),
        "gzip, gzip",
        r"cannot be unpacked \(it is packed as gzip, gzip",
    ),
    "gzip": (nested(200_000_000, 1), "gzip", r"more than 4096 bytes: raise max_bytes"),
    "deflate": (nested(200_000_000, 1), "deflate", r"more than 4096 bytes"),
    "two members": (gzip.compress(b"{}") * 2, "gzip", r"cannot be unpacked \(more follows behind its end"),
    "cut": (gzip.compress(b"{}" * 50)[:-9], "gzip", r"cannot be unpacked \(its end is missing"),
    "unknown": (b"abc", "br", r"cannot be unpacked \(it is packed as br, gzip was asked for"),
}


@pytest.mark.parametrize(("body", "coding", "message"), PACKED.values(), ids=PACKED.keys())
def test_a_packed_answer_takes_no_more_memory_than_allowed(
    body: bytes, coding: str, message: str, service: Any
) -> None:
    url, script = service
    script.will(says(response(body, headers=f"Content-Encoding: {coding}\r\n")))
    target = opened(url, max_bytes=4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TargetError, match=message):
        target.query(IMAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert script.requests == 1


def test_a_packed_answer_is_read(service: Any) -> None:
    url, script = service

    def packed(images: np.ndarray, headers: dict[str, str]) -> Reaction:
        assert headers["accept-encoding"] == "gzip"
        body = gzip.compress(script.predictions(images))
        return Reaction((response(body, headers="Content-Encoding: GZIP\r\n"),))

    np.testing.assert_allclose(opened(url, dtype="float64").query(IMAGES).scores, model(IMAGES), rtol=1e-6)
    script.will(packed)
    np.testing.assert_allclose(opened(url).query(IMAGES).scores, model(IMAGES), rtol=1e-6)


def trickled(data: bytes, pause: float = 0.05) -> tuple[bytes | float, ...]:
    return tuple(part for byte in data for part in (bytes([byte]), pause))


SLOW = {
    "status line": says(*trickled(b"HTTP/1.1 200 " + b"O" * 400)),
    "headers": says(b"HTTP/1.1 200 OK\r\n", *trickled(b"X: y\r\n" * 100)),
    "interim answers": says(
        *[part for _ in range(200) for part in (b"HTTP/1.1 102 Processing\r\n\r\n", 0.05)]
    ),
    "body": says(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", *trickled(b"x" * 400)),
    "chunks": says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *[part for _ in range(200) for part in (b"1\r\nx\r\n", 0.05)],
    ),
    "trailers": says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        *[part for _ in range(200) for part in (b"X: y\r\n", 0.05)],
    ),
    "nothing": says(30.0),
}


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW.keys())
def test_an_attempt_ends_at_its_deadline_whatever_comes_slowly(
    slow: Any, service: Any, tmp_path: Path
) -> None:
    url, script = service
    target = opened(url, timeout=0.4, repeats=0, keep_alive=True)
    target.query(IMAGES / 2)  # on a kept connection
    script.will(slow)
    start = time.monotonic()
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(TargetError, match=r"gave no answer within 0\.4 s"):
            ledger.attach(target).query(IMAGES)
        assert ledger.bill()["training"].unknown == 4
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1])
def test_a_second_answer_is_never_taken_for_the_next(delay: float, service: Any) -> None:
    url, script = service

    def twice(images: np.ndarray, headers: dict[str, str]) -> Reaction:
        answer = response(script.predictions(images))
        return Reaction((answer, delay, answer) if delay else (2 * answer,))

    target = opened(url)
    refused = []
    for number in range(1, 21):
        script.will(twice)
        try:
            answers = target.query(IMAGES / number)
            np.testing.assert_allclose(answers.scores, model(IMAGES / number), rtol=1e-6)
        except TargetError as error:
            refused.append("sent more than one answer to a request: look at the service" in str(error))
    assert all(refused)
    assert delay or len(refused) == 20
    assert script.requests == 20


def test_two_answers_at_once_are_paid_for_and_not_repeated(service: Any, tmp_path: Path) -> None:
    url, script = service
    script.will(lambda images, headers: Reaction((2 * response(script.predictions(images)),)))
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(TargetError, match="sent more than one answer"):
            ledger.attach(opened(url)).query(IMAGES)
        assert (ledger.bill()["training"].unknown, script.requests) == (4, 1)


def test_a_kept_connection_ends_where_something_came_unasked(service: Any) -> None:
    url, script = service
    target = opened(url, concurrency=2, batch_size=2, keep_alive=True)
    for part in range(1, 6):
        target.query(IMAGES / part)
    assert script.requests == 10
    assert script.connections <= 2

    def later(images: np.ndarray, headers: dict[str, str]) -> Reaction:
        answer = response(script.predictions(images))
        return Reaction((answer, 0.02, answer))

    target = opened(url, keep_alive=True)
    for number in range(1, 6):
        script.will(later)
        np.testing.assert_allclose(target.query(IMAGES / number).scores, model(IMAGES / number), rtol=1e-6)
        time.sleep(0.1)
    script.will(says(response(b"", "500 Internal Server Error")))
    before = script.connections
    target.query(IMAGES / 9)
    assert script.connections == before + 2  # an error ends it too: the answer may follow after all


@pytest.mark.parametrize("status", ["206 Partial Content", "202 Accepted", "204 No Content", "299 Whatever"])
def test_only_a_whole_answer_is_one(status: str, service: Any, tmp_path: Path) -> None:
    url, script = service
    script.will(
        lambda images, headers: Reaction(
            (response(b"" if status.startswith("204") else script.predictions(images), status),), end="close"
        )
    )
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(TargetError, match=f"answered {status}.*: it must answer 200"):
            ledger.attach(opened(url)).query(IMAGES)
        assert (ledger.bill()["training"].unknown, script.requests) == (4, 1)


ENCODED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "url": lambda token: quote(token, safe=""),
    "url plus": quote_plus,
    "url lower case": lambda token: quote(token, safe="").lower().replace(token.lower(), token),
    "url twice": lambda token: quote(quote(token, safe=""), safe=""),
    "every byte": lambda token: "".join(f"%{byte:02x}" for byte in token.encode()),
    "json": lambda token: json.dumps({"error": token}),
    "json in json": lambda token: json.dumps(json.dumps({"error": token})),
    "json slashes": lambda token: token.replace('"', '\\"').replace("/", "\\/"),
    "unicode": lambda token: "".join(f"\\u{ord(letter):04X}" for letter in token),
    "repr": lambda token: repr({"Authorization": f"Bearer {token}'"}),
    "html": html.escape,
    "base64": lambda token: base64.b64encode(token.encode()).decode(),
    "base64 of the header": lambda token: base64.b64encode(f"Bearer {token}!".encode()).decode(),
    "base64 for urls": lambda token: base64.urlsafe_b64encode(f"x{token}".encode()).decode(),
    "base64 in a url": lambda token: quote(base64.b64encode(f"xy{token}".encode()), safe=""),
    "hexadecimal": lambda token: token.encode().hex(),
    "cut by the service": lambda token: token[:12],
    "spread": lambda token: f"{'x' * 190} {token}",
    "late": lambda token: f"{'x ' * 1000}{token}",
}


def leaks(text: str) -> bool:
    """Whether six characters of the token, or of a form of it, can be read."""
    forms = [TOKEN, quote(TOKEN, safe=""), base64.b64encode(TOKEN.encode()).decode(), TOKEN.encode().hex()]
    forms += [base64.b64encode(b"x" * before + TOKEN.encode()).decode()[4:] for before in (1, 2, 7)]
    return any(form[start : start + 6] in text for form in forms for start in range(len(form) - 5))


WHERE: dict[str, Callable[[str], bytes]] = {
    "error": lambda said: response(said.encode(), "400 Bad Request"),
    "unauthorized": lambda said: response(said.encode(), "401 Unauthorized"),
    "server error": lambda said: response(said.encode(), "500 Internal Server Error"),
    "reason": lambda said: response(b"", f"403 no {said}"),
    "redirect": lambda said: response(
        b"", "302 Found", f"Location: http://127.0.0.1:1/x?q={said}#{said}\r\n"
    ),
    "status line": lambda said: f"{said}\r\n\r\n".encode(),
    "coding": lambda said: response(b"", headers=f"Content-Encoding: {said}\r\n"),
    "no json": lambda said: response(said.encode()),
    "field": lambda said: response(json.dumps({"predictions": [{said: "x"}] * 4}).encode()),
    "scores": lambda said: response(json.dumps({"predictions": [[said] * 3] * 4}).encode()),
    "label": lambda said: response(json.dumps({"predictions": [said] * 4}).encode()),
}


@pytest.mark.parametrize("place", WHERE.values(), ids=WHERE.keys())
def test_an_echoed_token_is_in_no_error_log_or_ledger(
    place: Callable[[str], bytes],
    service: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, script = service
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    leaked = {}
    with QueryLedger(tmp_path / "ledger.db", budget=1000) as ledger:
        paid = ledger.attach(opened(url, token_env="SERVICE_TOKEN", repeats=0))
        for name, encode in ENCODED.items():
            script.will(says(place(encode(TOKEN)), end="close"))
            with pytest.raises(TargetError) as caught:
                paid.query(IMAGES)
            error: BaseException | None = caught.value
            while error is not None:
                leaked |= {name: str(error)} if leaks(f"{error} {error!r}") else {}
                assert "\n" not in str(error)
                error = error.__cause__ or error.__context__
    assert leaked == {}
    assert not leaks(caplog.text)
    assert not any(leaks(path.read_bytes().decode("latin-1")) for path in tmp_path.iterdir())


def test_the_token_does_not_follow_a_redirect(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, script = service
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    with raw_server(model) as (other, elsewhere):
        for status in (
            "301 Moved Permanently",
            "302 Found",
            "303 See Other",
            "307 Temporary Redirect",
            "308 Permanent Redirect",
        ):
            script.will(says(response(b"", status, f"Location: {other}\r\n"), charged=False))
            with pytest.raises(surrogates.Refused, match=f"give the address that it points to, {other}"):
                opened(url, token_env="SERVICE_TOKEN").query(IMAGES)
        assert (elsewhere.connections, elsewhere.requests, script.charged) == (0, 0, 0)


def test_a_password_in_the_address_is_hidden_too(service: Any) -> None:
    url, script = service

    def echo(images: np.ndarray, headers: dict[str, str]) -> Reaction:
        login = base64.b64decode(headers["authorization"].split()[1]).decode()
        said = f"{headers['authorization']} {login} {quote(login, safe='')}"
        return Reaction((response(said.encode(), "400 Bad Request"),), charged=False)

    script.will(echo)
    with pytest.raises(TargetError) as caught:
        opened(url.replace("//", "//user:correct-horse@")).query(IMAGES)
    assert "correct" not in str(caught.value)
    assert "dXNlc" not in str(caught.value)
