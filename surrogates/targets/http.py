"""One way to talk HTTP to a paid service: retries that know what they may cost, pacing, and no secret in sight.

Every attempt ends in one of three ways. It was answered. It was refused: no connection, or a 4xx status, 429
and 503 (taken at their word) among them, so surely nothing was charged. Or its outcome is unknown: a timeout or a reset after
sending, another 5xx, a body cut short; the service may have done the work and charged for it.
"""

import base64
import email.utils
import os
import random
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity

from surrogates.errors import Refused, TargetError

FREE_ATTEMPTS = 3  # for health and metadata
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
CONNECT_SECONDS = 10.0
JITTER = random.Random()  # needs no seed: it changes when a request is made, never what it asks
SECRET_NAME = r"key|token|secret|sig|passw|auth|credential"
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
class HttpOptions:
    """How a service is asked.

    token_env is the name of an environment variable; its value goes out in token_header ("Name: scheme",
    "X-Api-Key:" for a bare value) and nowhere else. timeout is in seconds for one attempt. A refused request
    is tried `attempts` times in all; one whose outcome is unknown is repeated `repeats` times, and every
    repeat is on the bill. max_wait bounds the waiting of one request in seconds. rate is in images a second,
    concurrency in requests at once, max_bytes the largest answer that is read. Raises TargetError.
    """

    token_env: str | None = None
    token_header: str = "Authorization: Bearer"
    timeout: float = 60.0
    attempts: int = 6
    repeats: int = 1
    max_wait: float = 120.0
    concurrency: int = 1
    rate: float | None = None
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("timeout", "rate"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise TargetError(f"{name} must be a positive number, got {value!r}")
        if not (_is_number(self.max_wait) and self.max_wait >= 0):
            raise TargetError(f"max_wait must be a number of seconds, got {self.max_wait!r}")
        for name, least in (("attempts", 1), ("repeats", 0), ("concurrency", 1), ("max_bytes", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TargetError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ -~]*", self.token_header):
            raise TargetError(
                f"token_header must be 'Name: scheme', got {self.token_header!r}: try 'Authorization: Bearer'"
            )


@dataclass(frozen=True)
class Reply:
    """A complete answer, and the number of queries of lost attempts that may have been charged besides."""

    body: bytes
    headers: httpx.Headers
    status: int = 200
    lost: int = 0


class _Failure(Exception):
    """One attempt that brought no answer: may it have been charged, may it be made again, and when."""

    def __init__(self, reason: str, remedy: str, *, charged: bool, again: bool, wait: float | None = None):
        super().__init__(reason)
        self.remedy, self.charged, self.again, self.wait = remedy, charged, again, wait


class HttpClient:
    """Sends requests to one service; threads may share it, and a forked child gets connections of its own."""

    def __init__(self, url: str, options: HttpOptions) -> None:
        self.url, self._login = _without_login(url)
        self.options = options
        self._pace = _Pace(options.rate)
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._headers()  # a missing token is found before anything is sent

    def __repr__(self) -> str:
        return f"HttpClient({self.url})"

    def get(self, url: str) -> Reply:
        """Return what a free resource (health, metadata) says; raises TargetError."""
        return self._persist("GET", url, None, {}, queries=0)

    def reach(self, url: str) -> None:
        """Raise TargetError unless something answers there, with whatever status."""
        self._persist("GET", url, None, {}, queries=0, any_status=True)

    def post(
        self,
        url: str,
        content: bytes,
        headers: dict[str, str],
        queries: int,
        stop: threading.Event | None = None,
    ) -> Reply:
        """Send a batch of `queries` images, again where that may help; no retry begins once `stop` is set.

        Raises Refused where surely nothing was charged, else TargetError with the queries in `lost` that may
        have been charged besides the batch itself.
        """
        return self._persist("POST", url, content, headers, queries=queries, stop=stop)

    def _persist(
        self,
        method: str,
        url: str,
        content: bytes | None,
        headers: dict[str, str],
        *,
        queries: int,
        stop: threading.Event | None = None,
        any_status: bool = False,
    ) -> Reply:
        unknown = 0
        attempts = self.options.attempts if queries else min(FREE_ATTEMPTS, self.options.attempts)

        def attempt() -> Reply:
            nonlocal unknown
            self._pace.wait(queries)
            if stop is not None and stop.is_set():
                raise _Failure("was interrupted", "ask again", charged=False, again=False)
            try:
                return self._attempt(method, url, content, headers, any_status)
            except _Failure as failure:
                unknown += failure.charged
                raise

        def may_help(error: BaseException) -> bool:
            if not isinstance(error, _Failure) or not error.again:
                return False
            return not error.charged or unknown <= self.options.repeats

        def waited_enough(state: tenacity.RetryCallState) -> bool:
            return state.idle_for + state.upcoming_sleep > self.options.max_wait

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_help),
            wait=_wait,
            stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), waited_enough),
            sleep=time.sleep if stop is None else tenacity.sleep_using_event(stop),
            reraise=True,
        )
        try:
            reply = retrying(attempt)
        except _Failure as failure:
            tries = retrying.statistics["attempt_number"]
            often = f" in {tries} attempts" if tries > 1 else ""
            error = (TargetError if unknown else Refused)(
                f"target {public_url(url)} {failure}{often}: {failure.remedy}"
            )
            error.lost = max(0, unknown - 1) * queries
            raise error from None
        except BaseException as error:  # an interrupt: the attempt under way counts as the batch itself
            error.lost = unknown * queries
            raise
        return Reply(reply.body, reply.headers, reply.status, lost=unknown * queries)

    def _attempt(
        self, method: str, url: str, content: bytes | None, headers: dict[str, str], any_status: bool
    ) -> Reply:
        deadline = time.monotonic() + self.options.timeout
        try:
            with self._connection().stream(
                method, url, content=content, headers=headers | self._headers(), auth=self._login
            ) as response:
                body = self._read(response, deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            raise _Failure(
                f"cannot be reached ({_line(error)})",
                "check the address and that the service runs",
                charged=False,
                again=True,
            ) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise _Failure(
                f"cannot be asked ({_line(error)})", "check the address", charged=False, again=False
            ) from None
        except httpx.DecodingError as error:
            raise _Failure(
                f"sent a body that cannot be unpacked ({_line(error)})",
                "look at the service's compression",
                charged=True,
                again=False,
            ) from None
        except httpx.TimeoutException:
            raise _Failure(
                f"gave no answer within {self.options.timeout:g} s",
                "raise timeout or lower batch_size",
                charged=True,
                again=True,
            ) from None
        except httpx.TransportError as error:
            raise _Failure(
                f"broke off before its answer was complete ({_line(error)})",
                "look at the service's log",
                charged=True,
                again=True,
            ) from None
        if response.is_success or any_status:
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
        said = self._hide(" ".join(body[:2000].decode("utf-8", "replace").split())[:200])
        reason = f"answered {status} {response.reason_phrase}".rstrip() + (f" ({said})" if said else "")
        if status in (429, 503):
            wait = retry_after(response.headers)
            asked = "" if wait is None else f" and asks to wait {wait:.0f} s"
            return _Failure(reason + asked, REMEDIES[status], charged=False, again=True, wait=wait)
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


class _Pace:
    """Lets `rate` queries a second through, whatever the number of threads."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, queries: int) -> None:
        if self._rate is None or not queries:
            return
        with self._lock:
            start = max(time.monotonic(), self._free)
            self._free = start + queries / self._rate
        time.sleep(max(0.0, start - time.monotonic()))


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as seconds or as a date (RFC 9110, 10.2.3).

    A date is taken against the server's own clock where it tells the time.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until, now = _date(value), _date(headers.get("date", ""))
    if until is None:
        return None
    return max(0.0, until - (time.time() if now is None else now))


def public_url(url: str) -> str:
    """Return an address without its user, password and the values of its secret parameters."""
    bare = re.sub(r"//[^/?#]*@", "//", url)
    return re.sub(r"([?&][^=&#]*(?:" + SECRET_NAME + r")[^=&#]*=)[^&#]*", r"\1…", bare, flags=re.IGNORECASE)


def _without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split an address into itself and its user and password; secrets in parameters are refused."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise TargetError(
            f"{public_url(str(url))!r} is no address ({_line(error)}): give http(s)://host/path"
        ) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise TargetError(f"{public_url(str(url))!r} is no address: give http(s)://host/path")
    for name in parsed.params:
        if re.search(SECRET_NAME, name, re.IGNORECASE):
            raise TargetError(
                f"address {public_url(url)} carries a secret in {name!r}, which services and libraries log: "
                "put it into an environment variable and give token_env and token_header"
            )
    login = (parsed.username, parsed.password) if parsed.userinfo else None
    return str(parsed.copy_with(userinfo=b"")), login


def _wait(state: tenacity.RetryCallState) -> float:
    """Return what the service asked for, else exponential backoff with full jitter."""
    failure = state.outcome.exception()
    if isinstance(failure, _Failure) and failure.wait is not None:
        return failure.wait
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (state.attempt_number - 1))
    return longest * JITTER.uniform(0.5, 1)


def _date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
