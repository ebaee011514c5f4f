"""One way to talk HTTP to a paid service: retries that know what they may cost, pacing, and no secret in sight.

Every attempt ends in one of three ways. It was answered. It was refused: no connection, or a 4xx status, 429 and 503
(taken at their word) among them, so surely nothing was charged. Or its outcome is unknown: a timeout or a reset after
sending, another 5xx, a body cut short; the service may have done the work and charged for it.
"""

import email.utils
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import h11
import httpcore
import httpx
import tenacity

from surrogates.errors import Refused, SurrogateError, TargetError, note_lost
from surrogates.targets.addresses import public_url, without_login
from surrogates.targets.declared import check_options
from surrogates.targets.http_exchange import (
    Answer,
    Connections,
    Limits,
    Surplus,
    TooLarge,
    Unreachable,
    Unreadable,
    basic,
)
from surrogates.targets.http_headers import joined, mark
from surrogates.targets.http_options import HttpOptions, Pace
from surrogates.targets.paid_repeats import payer
from surrogates.targets.redaction import Secrets, shortened

LOG = logging.getLogger(__name__)
FREE_ATTEMPTS = 3  # for health and metadata
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
SILENT_SECONDS = 3.0  # of waiting before a line says why
COMPLETE = (200, 201, 203)  # the statuses of an answer that is there, and whole
QUOTABLE, QUOTED = 65_536, 200  # bytes of what a service says that are looked at, characters that are shown
LONGEST_MESSAGE = 1000  # characters
HEADERS = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "certdef"}
JITTER = random.Random()  # needs no seed: it changes when a request is sent, never its content
SHAPE_REMEDY = "check input_shape, layout, dtype and pixel_range; a model of tables takes layout='flat'"
REMEDIES = {
    400: SHAPE_REMEDY,
    404: "check the address",
    408: "try again, or lower batch_size",
    413: "lower batch_size",
    415: "check the address and the protocol",
    422: SHAPE_REMEDY,
    429: "lower rate or concurrency, or raise attempts or max_wait",
    503: "try again later, or raise attempts or max_wait",
}


@dataclass(frozen=True)
class Reply:
    """A complete answer; `lost` counts queries of lost attempts that may have been charged besides."""

    body: bytes
    headers: httpx.Headers
    status: int = 200
    lost: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """What is sent, and how its attempts count.

    Args:
        queries: Images that one attempt may be charged for; 0 for what is free.
        stop: No retry begins once it is set.
        any_status: Whether every status counts as an answer.
    """

    method: str
    url: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    queries: int = 0
    stop: threading.Event | None = None
    any_status: bool = False


class _Failure(Exception):
    """One attempt that brought no answer: may it have been charged, may it be repeated, and when."""

    def __init__(
        self, reason: str, remedy: str, *, charged: bool, again: bool, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.remedy, self.charged, self.again, self.wait = remedy, charged, again, wait


# What an error of an attempt means: reason, remedy, whether it may be charged, whether to try again.
FAULTS: list[tuple[tuple[type[Exception], ...], tuple[str, str, bool, bool]]] = [
    (
        (Unreachable,),
        ("cannot be reached ({error})", "check the address and that the service runs", False, True),
    ),
    (
        (h11.LocalProtocolError, httpx.InvalidURL),
        ("cannot be queried ({error})", "check the address, the token and token_header", False, False),
    ),
    (
        (Unreadable,),
        ("sent a body that cannot be unpacked ({error})", "look at the service's compression", True, False),
    ),
    (
        (TooLarge,),
        ("answered with more than {most} bytes", "raise max_bytes or lower batch_size", True, False),
    ),
    (
        (Surplus,),
        (
            "sent more than one answer to a request",
            "look at the service and the proxies before it",
            True,
            False,
        ),
    ),
    (
        (httpcore.TimeoutException,),
        ("gave no answer within {timeout:g} s", "raise timeout or lower batch_size", True, True),
    ),
    (
        (httpcore.NetworkError, h11.RemoteProtocolError),
        ("broke off before its answer was complete ({error})", "look at the service's log", True, True),
    ),
]
FAULT_TYPES = tuple(kind for kinds, _ in FAULTS for kind in kinds)


class HttpClient:
    """Sends requests to one service; threads may share it, and a forked child gets connections of its own.

    Raises:
        TargetError: No address, a secret in the address, or a missing token.
    """

    def __init__(self, url: str, options: HttpOptions) -> None:
        self.url, self._login = without_login(url)
        self.options = options
        self.name = self.url + mark(options.headers)  # what an identity is made of
        self._pace = Pace(options.rate)
        self._connections = Connections(self.url, options.keep_alive)
        self._secrets = Secrets()
        self._wait_was_said = False
        self._headers()  # a missing token is noticed before anything is sent

    def __repr__(self) -> str:
        return f"HttpClient({self.url})"

    def get(self, url: str) -> Reply:
        """Return the answer of a free resource (health, metadata).

        Raises:
            TargetError: No answer.
        """
        return self._persist(Request("GET", url))

    def reach(self, url: str) -> None:
        """Check that something answers there, with whatever status.

        Raises:
            TargetError: Nothing does.
        """
        self._persist(Request("GET", url, any_status=True))

    def ask(self, url: str, content: bytes, headers: Mapping[str, str]) -> Reply:
        """Return the answer to a POST that asks for no image, with whatever status.

        Raises:
            TargetError: No answer.
        """
        return self._persist(Request("POST", url, content, headers, any_status=True))

    def post(
        self,
        url: str,
        content: bytes,
        headers: Mapping[str, str],
        queries: int,
        stop: threading.Event | None = None,
    ) -> Reply:
        """Send a batch of `queries` images, again where that may help; no retry begins once `stop` is set.

        Raises:
            Refused: Surely nothing was charged.
            TargetError: With the queries in `lost` that may have been charged besides the batch itself.
        """
        return self._persist(Request("POST", url, content, headers, queries, stop))

    def _persist(self, request: Request) -> Reply:
        """Attempt a request as often as the options allow."""
        made = unknown = 0  # attempts, and those of them that may have been charged
        allowed = 1  # attempts that may be charged
        refuse_repeat = payer()
        last = ""

        def attempt() -> Reply:
            nonlocal made, unknown, allowed, last
            self._pace.wait(request.queries)
            if request.stop is not None and request.stop.is_set():
                raise _Failure("was interrupted", "query again", charged=False, again=False)
            if unknown == allowed:
                if refusal := refuse_repeat(request.queries):
                    remedy = f"it is not queried again, since the {refusal}"
                    raise _Failure(last, remedy, charged=False, again=False)
                allowed += 1
            made += 1
            try:
                return self._attempt(request)
            except _Failure as failure:
                unknown += failure.charged
                last = str(failure)
                raise

        def may_help(error: BaseException) -> bool:
            if not isinstance(error, _Failure) or not error.again:
                return False
            return not error.charged or unknown <= self.options.repeats

        retrying = self._retrying(request, may_help)
        try:
            reply = retrying(attempt)
        except _Failure as failure:
            often = f" in {made} attempts" if made > 1 else ""
            error = (TargetError if unknown else Refused)(
                f"target {public_url(request.url)} {failure}{often}: {failure.remedy}"
            )
            error.lost = max(0, unknown - 1) * request.queries
            raise error from None
        except BaseException as interrupt:
            # Of the attempts that may be charged, that under way among them, the first counts as the batch itself.
            note_lost(interrupt, min(unknown, allowed - 1) * request.queries)
            raise
        self._wait_was_said = False
        return replace(reply, lost=unknown * request.queries)

    def _retrying(self, request: Request, may_help: Callable[[BaseException], bool]) -> tenacity.Retrying:
        options = self.options
        attempts = options.attempts if request.queries else min(FREE_ATTEMPTS, options.attempts)

        def enough(state: tenacity.RetryCallState) -> bool:
            waited = state.idle_for + state.upcoming_sleep > options.max_wait
            return waited or state.attempt_number >= attempts

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_help),
            wait=_wait,
            stop=enough,
            sleep=time.sleep if request.stop is None else tenacity.sleep_using_event(request.stop),
            before_sleep=lambda state: self._say(request, attempts, state),
            reraise=True,
        )

    def _say(self, request: Request, attempts: int, state: tenacity.RetryCallState) -> None:
        """Say once what is waited for, and again only after an answer."""
        if self._wait_was_said or state.idle_for < SILENT_SECONDS or state.outcome is None:
            return
        self._wait_was_said = True
        LOG.warning(
            "target %s %s: attempt %d of %d failed, trying again for %g s in all at most",
            public_url(request.url),
            state.outcome.exception(),
            state.attempt_number,
            attempts,
            self.options.max_wait,
        )

    def _attempt(self, request: Request) -> Reply:
        headers = joined(HEADERS, request.headers, self.options.headers or {}, self._headers())
        limits = Limits(time.monotonic() + self.options.timeout, self.options.max_bytes)
        try:
            answer = self._connections.exchange(
                request.method, request.url, headers.items(), request.content or b"", limits
            )
        except FAULT_TYPES as error:
            failure = self._fault(error)
        else:
            if answer.status in COMPLETE or request.any_status:
                return Reply(answer.body, answer.headers, answer.status)
            failure = self._understood(answer)
        raise failure  # from here, so that it does not carry the error along, which quotes the service

    def _fault(self, error: Exception) -> _Failure:
        """Return what an error of an attempt means."""
        reason, remedy, charged, again = next(
            meaning for kinds, meaning in FAULTS if isinstance(error, kinds)
        )
        options, said = self.options, self.hide(str(error) or type(error).__name__)
        reason = reason.format(error=shortened(said, QUOTED), timeout=options.timeout, most=options.max_bytes)
        return _Failure(reason, remedy, charged=charged, again=again)

    def _understood(self, answer: Answer) -> _Failure:
        """Return what an answer without success means."""
        status = answer.status
        said = self.hide(answer.body[:QUOTABLE].decode("utf-8", "replace"))
        message = shortened(said, QUOTED)
        phrase = shortened(self.hide(answer.reason), QUOTED)
        reason = f"answered {status} {phrase}".rstrip() + (f" ({message})" if message else "")
        if answer.success:
            remedy = "it must answer 200 and the whole answer: look at the service and the proxies before it"
            return _Failure(reason, remedy, charged=True, again=False)
        if status in (429, 503):
            wait = retry_after(answer.headers)
            delay = "" if wait is None else f" and asks to wait {wait:.0f} s"
            return _Failure(reason + delay, REMEDIES[status], charged=False, again=True, wait=wait)
        if status in (401, 403):
            variable = self.options.token_env
            remedy = (
                f"put a valid token into the environment variable {variable}"
                if variable
                else "give token_env, the name of an environment variable that holds a token"
            )
            return _Failure(reason, remedy, charged=False, again=False)
        if status >= 500:
            remedy = "look at the service's log; what it failed to answer may be charged"
            return _Failure(reason, remedy, charged=True, again=True)
        if status >= 400:
            remedy = REMEDIES.get(status, "check the address and the options")
            return _Failure(reason, remedy, charged=False, again=status == 408)
        where = shortened(self.hide(public_url(answer.headers.get("location", "another place"))), QUOTED)
        return _Failure(reason, f"give the address that it points to, {where}", charged=False, again=False)

    def _headers(self) -> dict[str, str]:
        """Return the headers that let in; what is secret in them is hidden from now on."""
        login = {}
        if self._login is not None:
            login["Authorization"] = basic(*self._login)
            for secret in (self._login[1] or self._login[0], login["Authorization"].partition(" ")[2]):
                self._secrets.add(secret)
        if self.options.token_env is None:
            return login
        token = os.environ.get(self.options.token_env, "").strip()
        if not token:
            raise TargetError(
                f"environment variable {self.options.token_env} (token_env) is not set: "
                "put the service's token into it"
            )
        if not (token.isascii() and token.isprintable()):
            raise TargetError(
                f"environment variable {self.options.token_env} holds no token: it must be ASCII text"
            )
        self._secrets.add(token)
        name, scheme = self.options.token_header.split(":", 1)
        return login | {name: f"{scheme.strip()} {token}".strip()}

    def hide(self, text: str) -> str:
        """Return a text of the service's own without the token and the password, however they are written in it."""
        return self._secrets.hide(text)

    @contextmanager
    def discreet(self) -> Iterator[None]:
        """Hide the secrets in errors about what the service said; anything but a SurrogateError becomes a TargetError.

        Raises:
            TargetError: One line, or one for each fault of an opening.
        """
        try:
            yield
            return
        except SurrogateError as error:
            lines = getattr(error, "lines", ()) or [str(error)]
            error.args = ("\n".join(shortened(self.hide(line), LONGEST_MESSAGE) for line in lines),)
            error.__cause__ = error.__context__ = None  # they quote the service too
            raise
        except Exception as error:  # what no protocol foresaw
            said = shortened(self.hide(f"{type(error).__name__}: {error}"), QUOTED)
        raise TargetError(f"target's answer cannot be read ({said})")


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as seconds or as a date (RFC 9110, 10.2.3).

    A date is relative to the server's own clock, where the answer has a date.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until, now = _date(value), _date(headers.get("date", ""))
    if until is None:
        return None
    return max(0.0, until - (time.time() if now is None else now))


def client_of(
    url: str, options: dict[str, Any], others: list[str], what: str
) -> tuple[HttpClient, dict[str, Any]]:
    """Return a client with the options of HTTP, and the options that are not of HTTP.

    Args:
        others: The options that this kind of target has besides those of HTTP.
        what: Name of this kind of target, for errors.

    Raises:
        TargetError: An option that it does not have, or what HttpClient raises.
    """
    names = [option.name for option in fields(HttpOptions)]
    check_options(options, others + names, what)
    client = HttpClient(url, HttpOptions(**{name: options[name] for name in names if name in options}))
    return client, {name: value for name, value in options.items() if name not in names}


def _wait(state: tenacity.RetryCallState) -> float:
    """Return the seconds that the service asks for, else exponential backoff with full jitter."""
    failure = None if state.outcome is None else state.outcome.exception()
    if isinstance(failure, _Failure) and failure.wait is not None:
        return failure.wait
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (state.attempt_number - 1))
    return longest * JITTER.uniform(0.5, 1)


def _date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return None
