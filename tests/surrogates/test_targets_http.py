"""Every fault of a misbehaving service gives the named behaviour, a true bill, and no secret in sight."""

import email.utils
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import surrogates
from surrogates import QueryLedger, Refused, TargetError, open_target
from surrogates.targets import http
from tests.servers.faulty import Faults, faulty_server
from tests.servers.proxy import certificate, proxy_server, tls

SHAPE = (1, 2, 2)
IMAGES = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, *SHAPE)


def model(images: np.ndarray) -> np.ndarray:
    """Three probabilities that depend on every pixel."""
    logits = images.reshape(len(images), -1).astype(np.float64) @ np.arange(12).reshape(4, 3) % 5
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.fixture
def service() -> Iterator[tuple[str, Faults]]:
    with faulty_server(model) as (url, faults):
        yield url, faults


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are noted and not made."""
    noted: list[float] = []
    monkeypatch.setattr(http.tenacity, "sleep_using_event", lambda event: noted.append)
    return noted


def opened(url: str, **options: Any) -> surrogates.Target:
    return open_target(url, num_classes=3, **{"timeout": 5.0} | options)


class Queried:
    """A query through a ledger, the error it ended with, and the bill after it."""

    def __init__(self, target: surrogates.Target, path: Path, images: np.ndarray = IMAGES) -> None:
        self.answers, self.error = None, None
        with QueryLedger(path / "ledger.db", budget=100) as ledger:
            try:
                self.answers = ledger.attach(target).query(images)
            except TargetError as error:
                self.error = error
            self.charge = ledger.bill()["training"]

    @property
    def bill(self) -> tuple[int, int]:
        assert self.charge.in_flight == 0
        return self.charge.answered, self.charge.unknown


REFUSED = {
    "unauthorized": (401, r"401 Unauthorized \(.*no.*\): give token_env"),
    "forbidden": (403, r"403 Forbidden"),
    "not found": (404, r"404 Not Found .*: check the address"),
    "bad request": (400, r"400 Bad Request .*: check input_shape, layout, dtype"),
    "too large": (413, r"413 .*: lower batch_size"),
    "teapot": (418, r"418 .*: check the address and the options"),
}


@pytest.mark.parametrize(("status", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_not_charged_and_not_repeated(
    status: int, message: str, service: Any, waits: list[float], tmp_path: Path
) -> None:
    url, faults = service
    faults.will("refuse", status=status)
    queried = Queried(opened(url), tmp_path)
    assert isinstance(queried.error, Refused)
    assert len(faults.seen) == 1
    assert waits == []
    assert queried.bill == (0, faults.charged) == (0, 0)
    with pytest.raises(TargetError, match=message) as caught:
        raise queried.error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_queried_again_when_it_says(
    status: int, service: Any, waits: list[float], tmp_path: Path
) -> None:
    url, faults = service
    date = "Sat, 21 Nov 2026 10:00:00 GMT"
    later = "Sat, 21 Nov 2026 10:00:12 GMT"
    faults.will("refuse", status=status, headers={"Retry-After": "7"})
    faults.will("refuse", status=status, headers={"Retry-After": later, "Date": date})
    faults.will("refuse", status=status, headers={"Retry-After": "soon"})
    queried = Queried(opened(url), tmp_path)
    assert queried.error is None
    np.testing.assert_allclose(queried.answers.scores, model(IMAGES), rtol=1e-6)
    assert queried.bill == (faults.charged, 0) == (4, 0)
    assert len(waits) == 3
    assert waits[:2] == [7, 12]
    assert 0 < waits[2] <= http.LONGEST_BACKOFF_SECONDS  # what cannot be read is backed off from


def test_a_service_that_wakes_up_is_waited_for(service: Any, waits: list[float], tmp_path: Path) -> None:
    url, faults = service
    faults.will("refuse", times=9, status=503)  # and does not say how long it takes
    queried = Queried(opened(url), tmp_path)
    assert queried.bill == (faults.charged, 0) == (4, 0)
    assert 60 < sum(waits) <= 120


def test_retry_after_as_seconds_and_as_date() -> None:
    def wait(**headers: str) -> float | None:
        return http.retry_after(
            httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})
        )

    date, later = "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:12 GMT"
    assert wait(Retry_After="3") == 3
    assert wait(Retry_After=later, Date=date) == 12  # by the server's clock, whatever ours says
    assert wait(Retry_After=date, Date=later) == 0
    soon = wait(Retry_After=email.utils.formatdate(time.time() + 1000, usegmt=True))
    assert 900 < soon <= 1001
    for wrong in ("", "soon", "-5", "1e9", "1.5"):
        assert wait(Retry_After=wrong) is None


def test_a_wait_past_the_limit_is_not_begun(service: Any, waits: list[float], tmp_path: Path) -> None:
    url, faults = service
    faults.will("refuse", status=429, headers={"Retry-After": "3600"})
    queried = Queried(opened(url, max_wait=60), tmp_path)
    assert isinstance(queried.error, Refused)
    assert "asks to wait 3600 s: lower rate" in str(queried.error)
    assert (len(faults.seen), waits, queried.bill) == (1, [], (0, 0))


def test_attempts_and_waiting_are_bounded(service: Any, waits: list[float], tmp_path: Path) -> None:
    url, faults = service
    faults.will("refuse", times=50, status=503)
    queried = Queried(opened(url, attempts=4), tmp_path)
    assert isinstance(queried.error, Refused)
    assert "answered 503 Service Unavailable (" in str(queried.error)
    assert "in 4 attempts" in str(queried.error)
    assert (len(faults.seen), len(waits), queried.bill) == (4, 3, (0, 0))
    for number, wait in enumerate(waits):  # full jitter above one half, doubling
        assert 0.5 <= wait / (http.FIRST_BACKOFF_SECONDS * 2**number) <= 1


def test_a_long_wait_is_said_once_and_again_after_an_answer(
    service: Any, waits: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, faults = service
    target = opened(url, attempts=8)
    for number, times in enumerate((2, 7, 7)):  # of waiting a second or so, then half a minute and more
        faults.will("refuse", times=times, status=503)
        (tmp_path / str(number)).mkdir()
        assert Queried(target, tmp_path / str(number)).error is None
    said = [record.getMessage() for record in caplog.records if record.name == http.__name__]
    assert len(said) == 2
    assert all(
        "answered 503 Service Unavailable" in line and "of 8 failed, trying again for" in line
        for line in said
    )


# Each does the work, and charges, before it fails; the second request is answered.
LOST = {
    "reset": ({}, r"broke off before its answer was complete"),
    "truncate": ({}, r"broke off before its answer was complete"),
    "hang": ({}, r"gave no answer within 0.4 s: raise timeout or lower batch_size|within 0.4 s in"),
    "trickle": ({}, r"gave no answer within 0.4 s"),
    "fail": ({"status": 500}, r"answered 500 Internal Server Error \(.*broken.*may be charged"),
}


@pytest.mark.parametrize(("fault", "details", "message"), [(k, *v) for k, v in LOST.items()], ids=LOST.keys())
def test_an_attempt_of_unknown_outcome_is_repeated_once_and_stays_on_the_bill(
    fault: str, details: dict, message: str, service: Any, waits: list[float], tmp_path: Path
) -> None:
    url, faults = service
    target = opened(url, timeout=0.4)
    faults.will(fault, **details)
    queried = Queried(target, tmp_path)
    assert queried.error is None
    np.testing.assert_allclose(queried.answers.scores, model(IMAGES), rtol=1e-6)
    assert faults.charged == 8
    assert queried.bill == (4, 4)
    assert len(waits) == 1

    faults.will(fault, times=2, **details)
    queried = Queried(target, tmp_path, IMAGES / 2)
    assert not isinstance(queried.error, Refused)
    with pytest.raises(TargetError, match=message) as caught:
        raise queried.error
    assert "\n" not in str(caught.value)
    assert faults.charged == 16
    assert queried.bill == (4, 12)
    assert queried.charge.smallest <= faults.charged <= queried.charge.largest

    faults.will(fault, **details)
    queried = Queried(opened(url, timeout=0.4, repeats=0), tmp_path, IMAGES / 3)
    assert queried.error is not None
    assert queried.bill == (4, 16)
    assert faults.charged == 20


def test_a_refusal_after_a_lost_attempt_does_not_make_it_free(
    service: Any, waits: list[float], tmp_path: Path
) -> None:
    url, faults = service
    faults.will("reset").will("refuse", times=5, status=429)
    queried = Queried(opened(url, attempts=6), tmp_path)
    assert not isinstance(queried.error, Refused)
    assert "answered 429" in str(queried.error)
    assert queried.bill == (0, faults.charged) == (0, 4)


WRONG = {
    "too few rows": ("alter", {"change": lambda rows: rows[:-1]}, r"answered 3 rows, expected 4"),
    "too many rows": ("alter", {"change": lambda rows: rows * 2}, r"answered 8 rows, expected 4"),
    "too few classes": ("alter", {"change": lambda rows: [r[:2] for r in rows]}, r"2 classes, expected 3"),
    "ragged": ("alter", {"change": lambda rows: [rows[0][:1], *rows[1:]]}, r"expected numbers"),
    "nan": (
        "alter",
        {"change": lambda rows: [[float("nan")] * 3, *rows[1:]]},
        r"answered nan, expected finite",
    ),
    "null": ("alter", {"change": lambda rows: [[None] * 3, *rows[1:]]}, r"answered nan, expected finite"),
    "infinite": ("alter", {"change": lambda rows: [[1e999] * 3, *rows[1:]]}, r"answered inf"),
    "words": ("alter", {"change": lambda rows: ["cat"] * 4}, r"expected numbers"),
    "numbers as words": (
        "alter",
        {"change": lambda rows: [[str(score) for score in row] for row in rows]},
        r"answered '0.*', expected numbers",
    ),
    "booleans": ("alter", {"change": lambda rows: [[True, False, 0.0]] * 4}, r"answered True, expected num"),
    "booleans in records": (
        "alter",
        {"change": lambda rows: [{"prediction": True}] * 4},
        r"answered truth values, expected labels as numbers",
    ),
    "booleans in columns": (
        "alter",
        {"change": lambda rows: [{"a": True, "b": 0.0, "c": 0.0}, *[{"a": 1.0, "b": 0.0, "c": 0.0}] * 3]},
        r"answered True or False in a column",
    ),
    "a key twice": (
        "say",
        {"body": b'{"predictions": [[0, 0, 1]], "predictions": [[1, 0, 0]]}'},
        r"answered 'predictions' twice in one object",
    ),
    "deep": ("say", {"body": b'{"predictions":' + b"[" * 3000}, r"nested too deeply|no JSON"),
    "a large number": ("say", {"body": b'{"predictions": [' + b"9" * 4000 + b"]}"}, r"expected numbers"),
    "records": ("alter", {"change": lambda rows: [{"a": "b"}] * 4}, r"answered fields \['a'\]"),
    "no predictions": ("say", {"body": b'{"outputs": []}'}, r"no 'predictions': is this an MLflow scoring"),
    "half json": ("say", {"body": b'{"predictions": [[0.1,'}, r"no JSON but '\{\"predictions\""),
    "html": ("say", {"body": b"<html>hello"}, r"no JSON but '<html>hello': check the address"),
    "binary": ("say", {"body": b"\xff\xfe\x00"}, r"no JSON but"),
    "empty": ("say", {"body": b""}, r"no JSON but ''"),
    "huge": ("say", {"body": b" " * 5000}, r"more than 4096 bytes: raise max_bytes or lower batch_size"),
    "not gzip": ("say", {"body": b"abc", "headers": {"Content-Encoding": "gzip"}}, r"cannot be unpacked"),
}


@pytest.mark.parametrize(("fault", "details", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_is_named_paid_for_and_not_repeated(
    fault: str, details: dict, message: str, service: Any, waits: list[float], tmp_path: Path
) -> None:
    url, faults = service
    faults.will(fault, **details)
    queried = Queried(opened(url, max_bytes=4096), tmp_path)
    assert not isinstance(queried.error, Refused)
    with pytest.raises(TargetError, match=message) as caught:
        raise queried.error
    assert "\n" not in str(caught.value)
    assert len(faults.seen) == 1
    assert queried.bill == (0, faults.charged) == (0, 4)


def test_a_slow_answer_is_waited_for(service: Any, tmp_path: Path) -> None:
    url, faults = service
    faults.will("slow", seconds=0.5)
    queried = Queried(opened(url, timeout=10), tmp_path)
    assert queried.bill == (4, 0)
    assert len(faults.seen) == 1


def test_a_redirect_is_named_and_not_followed(service: Any, tmp_path: Path) -> None:
    url, faults = service
    faults.will("refuse", status=302, headers={"Location": "https://user:pw@elsewhere/x?key=hush"})
    queried = Queried(opened(url), tmp_path)
    assert isinstance(queried.error, Refused)
    assert "302 Found" in str(queried.error)
    assert "points to, https://elsewhere/x?key=…" in str(queried.error)
    assert queried.bill == (0, 0)


def test_a_service_that_is_gone_charges_nothing(waits: list[float], tmp_path: Path) -> None:
    with faulty_server(model) as (url, faults):
        target = opened(url, attempts=2)
    queried = Queried(target, tmp_path)
    assert isinstance(queried.error, Refused)
    assert "cannot be reached" in str(queried.error)
    assert "in 2 attempts: check the address and that the service runs" in str(queried.error)
    assert queried.bill == (0, faults.charged) == (0, 0)
    with pytest.raises(TargetError, match="cannot be reached"):  # and is noticed before any query
        opened(url)


def test_requests_of_one_query_go_out_at_once_and_keep_their_order(service: Any, tmp_path: Path) -> None:
    url, faults = service
    images = np.random.default_rng(0).random((12, *SHAPE)).astype(np.float32)
    for _ in range(4):
        faults.will("slow", seconds=0.2)
    queried = Queried(opened(url, batch_size=3, concurrency=4), tmp_path, images)
    np.testing.assert_allclose(queried.answers.scores, model(images), rtol=1e-6)
    assert len(faults.seen) == 4
    assert 2 <= faults.most_at_once <= 4
    assert queried.bill == (12, 0)


@pytest.mark.parametrize(
    ("plan", "bill"),
    [
        # 3 requests of 4: what is not known to be refused counts for the whole query
        (["answer", "reset", "answer"], (0, 12)),
        (["answer", "refuse", "answer"], (0, 12)),
        (["refuse", "refuse", "refuse"], (0, 0)),
    ],
)
def test_a_query_that_fails_in_part(
    plan: list[str], bill: tuple[int, int], service: Any, tmp_path: Path
) -> None:
    url, faults = service
    for fault in plan:
        faults.will(fault, **({"status": 400} if fault == "refuse" else {}))
    images = np.concatenate([IMAGES, IMAGES / 2, IMAGES / 3])
    queried = Queried(opened(url, batch_size=4, concurrency=3, repeats=0), tmp_path, images)
    assert isinstance(queried.error, Refused) == (bill == (0, 0))
    assert queried.bill == bill
    assert queried.charge.smallest <= faults.charged <= queried.charge.largest


def test_the_rate_paces_queries_and_not_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(http.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(http.time, "sleep", sleep)
    pace = http.Pace(rate=8)
    for queries in (4, 4, 16, 1):
        pace.wait(queries)
    assert slept == [0, 0.5, 0.5, 2]


def test_threads_share_one_pace(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    pace = http.Pace(rate=100)
    monkeypatch.setattr(http.time, "sleep", starts.append)
    threads = [threading.Thread(target=pace.wait, args=(10,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(starts)[-1] > 0.3  # five times a tenth of a second, the first at once


def test_the_token_goes_out_and_nowhere_else(
    service: Any, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    url, faults = service
    token = "hush-hush-4711"
    monkeypatch.setenv("SERVICE_TOKEN", f"{token}\n")
    caplog.set_level(logging.DEBUG)
    target = opened(url, token_env="SERVICE_TOKEN")
    faults.will("reset").will("answer").will("echo", status=401)
    queried = Queried(target, tmp_path)
    wrong = Queried(target, tmp_path, IMAGES / 2)
    assert queried.error is None
    assert [seen["Authorization"] for seen in faults.seen] == [f"Bearer {token}"] * 3
    assert "into the environment variable SERVICE_TOKEN" in str(wrong.error)
    printed = [repr(target), repr(vars(target)), repr(vars(target._client)), str(wrong.error), caplog.text]
    printed += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert not any(token in text for text in printed)

    named = opened(url, token_env="SERVICE_TOKEN", token_header="X-Api-Key:")
    named.query(IMAGES)
    assert faults.seen[-1]["X-Api-Key"] == token
    monkeypatch.delenv("SERVICE_TOKEN")
    with pytest.raises(TargetError, match=r"SERVICE_TOKEN \(token_env\) is not set"):
        opened(url, token_env="SERVICE_TOKEN")


def test_passwords_in_addresses_are_used_and_not_printed(
    service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, faults = service
    caplog.set_level(logging.DEBUG)
    target = opened(url.replace("://", "://user:hush@"))
    assert target.identity == url
    faults.will("answer").will("echo", status=404)
    assert Queried(target, tmp_path).error is None
    assert faults.seen[0]["Authorization"].startswith("Basic ")
    queried = Queried(target, tmp_path, IMAGES / 2)
    printed = [str(queried.error), caplog.text]
    printed += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert not any("hush" in text for text in printed)
    with pytest.raises(TargetError, match=r"\?api_key=… carries a secret in 'api_key'.*token_env") as caught:
        opened(f"{url}?api_key=hush")
    assert "hush" not in str(caught.value)


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that is trusted, for the server itself and for a name that only a proxy knows."""
    path = certificate(tmp_path, "127.0.0.1", "service.invalid")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def test_an_encrypted_service_answers_and_a_stranger_does_not(
    encrypted: Path, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_server(model, tls(encrypted)) as (url, faults):
        target = opened(url, concurrency=2, batch_size=2)
        for part in (1, 2):
            np.testing.assert_allclose(target.query(IMAGES / part).scores, model(IMAGES / part), rtol=1e-6)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(Refused, match=r"cannot be reached \(.*certificate verify failed"):
            opened(url)
        with pytest.raises(Refused, match="cannot be reached"):
            opened(url.replace("https", "http").replace("127.0.0.1", "nowhere.invalid"))
    assert faults.charged == 8


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_environment_names_the_proxy(
    scheme: str, encrypted: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        faulty_server(model, tls(encrypted) if scheme == "https" else None) as (url, _),
        proxy_server(url.split("/")[2]) as (proxy, seen),
    ):
        monkeypatch.setenv(f"{scheme}_proxy", proxy.replace("//", "//user:hush@"))
        target = opened(f"{scheme}://service.invalid/invocations")
        np.testing.assert_allclose(target.query(IMAGES).scores, model(IMAGES), rtol=1e-6)
        assert all(line.endswith("Basic dXNlcjpodXNo") for line in seen)
        through = (
            "CONNECT service.invalid:443" if scheme == "https" else "POST http://service.invalid/invocations"
        )
        assert any(line.startswith(through) for line in seen)
        if scheme == "https":
            with pytest.raises(Refused, match=r"cannot be reached \(the proxy answered 407\)"):
                opened("https://refused.invalid/invocations")
        passed = len(seen)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        opened(url).query(IMAGES)
        assert len(seen) == passed
    monkeypatch.setenv(f"{scheme}_proxy", "socks5://user:hush@127.0.0.1:1080")
    with pytest.raises(TargetError, match=r"names the proxy 'socks5://127.0.0.1:1080' for http.*NO_PROXY"):
        opened(f"{scheme}://service.invalid/invocations")


def test_a_forked_child_has_connections_of_its_own(service: Any) -> None:
    import multiprocessing

    url, _ = service
    target = opened(url)
    target.query(IMAGES)

    def child(queue: Any) -> None:
        queue.put(target.query(IMAGES).labels.tolist())

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=30) == target.query(IMAGES).labels.tolist() == model(IMAGES).argmax(1).tolist()
    process.join(timeout=30)


def test_an_interrupt_ends_the_retries_and_leaves_a_bill(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, faults = service
    monkeypatch.setattr(http, "FIRST_BACKOFF_SECONDS", 600.0)
    monkeypatch.setattr(http, "LONGEST_BACKOFF_SECONDS", 600.0)
    target = opened(url, batch_size=2, concurrency=2, max_wait=10_000, repeats=5)
    faults.will("refuse", times=9, status=503)

    from surrogates.targets import served

    settled = served.wait

    def interrupted(futures: Any) -> None:
        monkeypatch.setattr(served, "wait", settled)
        while len(faults.seen) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(served, "wait", interrupted)
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.attach(target).query(IMAGES)
        assert ledger.bill()["training"].unknown == 4
    assert len(faults.seen) == 2


def test_an_interrupt_counts_the_attempts_before_it(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, faults = service

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    target = opened(url)
    monkeypatch.setattr(http.tenacity, "sleep_using_event", lambda event: interrupted)
    faults.will("reset")
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.attach(target).query(IMAGES)
        charge = ledger.bill()["training"]
    assert charge.answered <= faults.charged == 4 <= charge.largest


BAD_OPTIONS = {
    "timeout": ({"timeout": 0}, r"timeout must be a positive number, got 0"),
    "rate": ({"rate": "fast"}, r"rate must be a positive number, got 'fast'"),
    "attempts": ({"attempts": 0}, r"attempts must be a whole number of at least 1, got 0"),
    "repeats": ({"repeats": -1}, r"repeats must be a whole number of at least 0, got -1"),
    "concurrency": ({"concurrency": 1.5}, r"concurrency must be a whole number"),
    "max_wait": ({"max_wait": None}, r"max_wait must be a number of seconds"),
    "token_header": ({"token_header": "Bearer"}, r"try 'Authorization: Bearer'"),
    "unknown": ({"tokn_env": "X"}, r"unknown option 'tokn_env' .*did you mean 'token_env'\?"),
    "protocol": ({"protocol": "soap"}, r"protocol must be one of mlflow, mlflow-server"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_named_before_anything_is_sent(options: dict, message: str, service: Any) -> None:
    url, faults = service
    with pytest.raises(TargetError, match=message) as caught:
        opened(url, **options)
    assert "\n" not in str(caught.value)
    assert faults.seen == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http:///invocations", r"is no address"),
        ("http://[::1/invocations", r"is no address"),
        ("https://host/predict?token=hush", r"no protocol for 'https://host/predict\?token=…': give"),
    ],
)
def test_bad_addresses_are_named(url: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        opened(url)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_learns_the_classes_for_one_query(service: Any) -> None:
    url, faults = service
    with pytest.raises(
        TargetError, match=r"give open_target\(..., num_classes=...\), or input_shape and probe"
    ):
        open_target(url)
    assert faults.charged == 0
    target = open_target(url, input_shape=SHAPE, probe=True)
    assert (target.num_classes, target.output_kind, faults.charged) == (3, "probabilities", 1)


def test_a_silent_port_times_out_when_it_is_opened() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/invocations"
        with pytest.raises(TargetError, match=r"gave no answer within 0.2 s"):
            opened(url, timeout=0.2, attempts=1)


def test_pixels_go_out_in_the_declared_form(service: Any) -> None:
    url, faults = service
    sent: list[np.ndarray] = []
    faults.model = lambda images: sent.append(images) or model(images)
    opened(url, dtype="uint8", layout="flat").query(IMAGES)
    assert sent[0].shape == (4, 4)
    np.testing.assert_array_equal(sent[0], np.rint(IMAGES.reshape(4, 4) * 255))
    opened(url, layout="hwc", pixel_range=(-1, 1)).query(IMAGES)
    np.testing.assert_allclose(sent[1], IMAGES.transpose(0, 2, 3, 1) * 2 - 1, atol=1e-7)
    opened(url).query(IMAGES)
    np.testing.assert_array_equal(sent[2], IMAGES)  # every bit of a float32 survives JSON


def test_json_is_what_the_scoring_server_takes(service: Any) -> None:
    url, faults = service
    opened(url).query(IMAGES)
    assert faults.seen[0]["Content-Type"] == "application/json"
    assert json.loads(json.dumps(IMAGES.tolist())) == IMAGES.tolist()
