"""One way to talk HTTP to a paid service: retries that know what they may cost, pacing, and no secret in sight.

Every attempt ends in one of three ways. It was answered. It was refused: no connection, or a 4xx status, 429 and 503
(taken at their word) among them, so surely nothing was charged. Or its outcome is unknown: a timeout or a reset after
sending, another 5xx, a body cut short; the service may have done the work and charged for it.
"""

import base64
import email.utils
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import httpx
import tenacity

from surrogates.errors import Refused, TargetError, note_lost
from surrogates.targets.addresses import first_line, public_url, without_login
from surrogates.targets.declared import check_options
from surrogates.targets.http_options import HttpOptions, Pace

FREE_ATTEMPTS = 3  # for health and metadata
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
CONNECT_SECONDS = 10.0
JITTER = random.Random()  # needs no seed: it changes when a request is sent, never its content
REMEDIES = {
    400: "check input_shape, layout, dtype and pixel_range",
    404: "check the address",
    408: "try again, or lower batch_size",
    413: "lower batch_size",
    415: "check the address and the protocol",
    422: "check input_shape, layout, dtype and pixel_range",
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


# What an error of the connection means: reason, remedy, whether it may be charged, whether to try again.
FAULTS: list[tuple[tuple[type[Exception], ...], tuple[str, str, bool, bool]]] = [
    (
        (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError),
        ("cannot be reached ({error})", "check the address and that the service runs", False, True),
    ),
    (
        (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError),
        ("cannot be queried ({error})", "check the address", False, False),
    ),
    (
        (httpx.DecodingError,),
        ("sent a body that cannot be unpacked ({error})", "look at the service's compression", True, False),
    ),
    (
        (httpx.TimeoutException,),
        ("gave no answer within {timeout:g} s", "raise timeout or lower batch_size", True, True),
    ),
    (
        (httpx.TransportError,),
        ("broke off before its answer was complete ({error})", "look at the service's log", True, True),
    ),
]


class HttpClient:
    """Sends requests to one service; threads may share it, and a forked child gets connections of its own.

    Raises:
        TargetError: No address, a secret in the address, or a missing token.
    """

    def __init__(self, url: str, options: HttpOptions) -> None:
        self.url, self._login = without_login(url)
        self.options = options
        self._pace = Pace(options.rate)
        self._lock = threading.Lock()
        self._owner: int | None = None
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
        unknown = 0  # attempts that may have been charged

        def attempt() -> Reply:
            nonlocal unknown
            self._pace.wait(request.queries)
            if request.stop is not None and request.stop.is_set():
                raise _Failure("was interrupted", "query again", charged=False, again=False)
            try:
                return self._attempt(request)
            except _Failure as failure:
                unknown += failure.charged
                raise

        def may_help(error: BaseException) -> bool:
            if not isinstance(error, _Failure) or not error.again:
                return False
            return not error.charged or unknown <= self.options.repeats

        retrying = self._retrying(request, may_help)
        try:
            reply = retrying(attempt)
        except _Failure as failure:
            tries = retrying.statistics["attempt_number"]
            often = f" in {tries} attempts" if tries > 1 else ""
            error = (TargetError if unknown else Refused)(
                f"target {public_url(request.url)} {failure}{often}: {failure.remedy}"
            )
            error.lost = max(0, unknown - 1) * request.queries
            raise error from None
        except BaseException as interrupt:  # the attempt under way counts as the batch itself
            note_lost(interrupt, unknown * request.queries)
            raise
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
            reraise=True,
        )

    def _attempt(self, request: Request) -> Reply:
        deadline = time.monotonic() + self.options.timeout
        try:
            with self._connection().stream(
                request.method,
                request.url,
                content=request.content,
                headers={**request.headers, **self._headers()},
                auth=self._login,
            ) as response:
                body = self._read(response, deadline)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            for kinds, (reason, remedy, charged, again) in FAULTS:
                if isinstance(error, kinds):
                    reason = reason.format(error=first_line(error), timeout=self.options.timeout)
                    raise _Failure(reason, remedy, charged=charged, again=again) from None
            raise
        if response.is_success or request.any_status:
            return Reply(body, response.headers, response.status_code)
        raise self._understood(response, body)

    def _read(self, response: httpx.Response, deadline: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self.options.max_bytes:
                raise _Failure(
                    f"answered with more than {self.options.max_bytes} bytes",
                    "raise max_bytes or lower batch_size",
                    charged=response.is_success,
                    again=False,
                )
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("")  # each piece came in time, the whole did not
        return bytes(body)

    def _understood(self, response: httpx.Response, body: bytes) -> _Failure:
        """Return what an answer without success means."""
        status = response.status_code
        message = self._hide(" ".join(body[:2000].decode("utf-8", "replace").split())[:200])
        reason = f"answered {status} {response.reason_phrase}".rstrip() + (f" ({message})" if message else "")
        if status in (429, 503):
            wait = retry_after(response.headers)
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
        where = public_url(str(response.headers.get("location", "another place")))
        return _Failure(reason, f"give the address that it points to, {where}", charged=False, again=False)

    def _headers(self) -> dict[str, str]:
        if self.options.token_env is None:
            return {}
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
        name, scheme = self.options.token_header.split(":", 1)
        return {name: f"{scheme.strip()} {token}".strip()}

    def _hide(self, text: str) -> str:
        """Remove the token from a text of the service's own."""
        secrets = [os.environ.get(self.options.token_env or "", "").strip()]
        if self._login:
            secrets += [self._login[1], base64.b64encode(":".join(self._login).encode()).decode()]
        for secret in filter(None, secrets):
            text = text.replace(secret, "…")
        return text

    def _connection(self) -> httpx.Client:
        with self._lock:
            if self._owner != os.getpid():
                self._owner = os.getpid()
                many = self.options.concurrency
                self._client = httpx.Client(
                    timeout=httpx.Timeout(
                        self.options.timeout, connect=min(CONNECT_SECONDS, self.options.timeout)
                    ),
                    limits=httpx.Limits(max_connections=many, max_keepalive_connections=many),
                    follow_redirects=False,
                )
            return self._client


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
    except (TypeError, ValueError):
        return None
