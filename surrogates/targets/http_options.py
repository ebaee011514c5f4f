"""How a service is queried over HTTP: tokens, timeouts, retries, and the pace of the requests."""

import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.http_headers import check_headers

LONGEST = 1e9  # seconds; past it the system's clocks overflow
PACING = threading.Lock()  # of all paces: a fork finds it free
os.register_at_fork(before=PACING.acquire, after_in_parent=PACING.release, after_in_child=PACING.release)


@dataclass(frozen=True)
class HttpOptions:
    """How a service is queried.

    Args:
        token_env: Name of an environment variable; its value goes out in token_header and nowhere else.
        token_header: "Name: scheme", or "X-Api-Key:" for a bare value.
        headers: Further headers of each request, by name; none of them a secret.
        timeout: Seconds of one attempt.
        attempts: How often a refused request is tried, in all.
        repeats: How often a request whose outcome is unknown is repeated; every repeat is on the bill.
        max_wait: Seconds that one request waits at most.
        concurrency: Requests at once.
        rate: Images a second.
        max_bytes: Size of the largest answer that is read.
        keep_alive: Whether a connection serves several requests. It is faster, and a service that sends two answers to one
            request is then not always noticed.

    Raises:
        TargetError: A value out of its range.
    """

    token_env: str | None = None
    token_header: str = "Authorization: Bearer"
    headers: Mapping[str, str] | None = None
    timeout: float = 60.0
    attempts: int = 10  # with the pauses between them more than a minute: a model may have to be loaded first
    repeats: int = 1
    max_wait: float = 120.0
    concurrency: int = 1
    rate: float | None = None
    max_bytes: int = 64 * 2**20
    keep_alive: bool = False

    def __post_init__(self) -> None:
        for name in ("timeout", "rate"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value <= LONGEST):
                raise TargetError(f"{name} must be a positive number, got {value!r}")
        if not (_is_number(self.max_wait) and 0 <= self.max_wait <= LONGEST):
            raise TargetError(f"max_wait must be a number of seconds, got {self.max_wait!r}")
        for name, least in (("attempts", 1), ("repeats", 0), ("concurrency", 1), ("max_bytes", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TargetError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not isinstance(self.keep_alive, bool):
            raise TargetError(f"keep_alive must be True or False, got {self.keep_alive!r}")
        check_headers(self.headers)
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ -~]*", self.token_header):
            raise TargetError(
                f"token_header must be 'Name: scheme', got {self.token_header!r}: try 'Authorization: Bearer'"
            )


class Pace:
    """Lets `rate` queries a second through, whatever the number of threads."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0

    def wait(self, queries: int) -> None:
        """Sleep until so many queries may be sent."""
        if self._rate is None or not queries:
            return
        with PACING:
            start = max(time.monotonic(), self._free)
            self._free = start + queries / self._rate
        time.sleep(max(0.0, start - time.monotonic()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
