"""HTTP/1.1 with one service: one answer a request, all of it within one deadline and no larger than allowed.

Parser (h11) and sockets (httpcore) are those of httpx. Its client limits the wait for each piece, not for the whole; it
takes what came behind one answer for the next one; it unpacks whatever is packed, in any depth; and it logs what a
service sends.
"""

import contextlib
import os
import ssl
import time
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from socket import SOCK_STREAM, getaddrinfo
from urllib.request import getproxies, proxy_bypass

import h11
import httpcore
import httpx

from surrogates.errors import TargetError
from surrogates.targets.addresses import public_url

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 5.0  # a connection that is idle for longer may be gone without a word
READ_BYTES = 65_536
WRITE_BYTES = 16_384
PORTS = {"http": 80, "https": 443}


class Unreachable(Exception):
    """No connection, so nothing was sent."""


class TooLarge(Exception):
    """An answer with more bytes than allowed, as sent or unpacked."""


class Unreadable(Exception):
    """An answer that is packed as nobody asked for, or badly."""


class Surplus(Exception):
    """More than one answer came to one request."""


@dataclass(frozen=True)
class Answer:
    """A complete answer; an unreadable body of one without success is left out."""

    status: int
    reason: str
    headers: httpx.Headers
    body: bytes

    @property
    def success(self) -> bool:
        """Whether the service says that it did the work."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Limits:
    """Of one exchange: when it must be over (time.monotonic()) and the most bytes of a body."""

    deadline: float
    max_bytes: int

    @property
    def left(self) -> float:
        """The seconds that are left.

        Raises:
            httpcore.ReadTimeout: None are.
        """
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the time is over")
        return seconds


class Connections:
    """Connections to one service, through the proxy that the environment names; threads and forked children may share it.

    HTTP/1.1 has no number on an answer: on a kept connection a late second answer to one request cannot be told from the
    answer to the next. So each request has a connection of its own, unless the caller trusts the service.

    Args:
        url: Where the service is.
        keep_alive: Whether one connection serves several requests. What comes unasked while it rests is noticed, what comes
            when the next request is under way is not.
    """

    def __init__(self, url: str, keep_alive: bool = False) -> None:
        self.url = httpx.URL(url)
        self._keep_alive = keep_alive
        self._proxy = proxy_of(self.url)
        # A deque's operations are atomic: there is no lock that a fork could leave held.
        self._idle: deque[_Connection] = deque()

    def exchange(
        self, method: str, url: str, headers: Iterable[tuple[str, str]], content: bytes, limits: Limits
    ) -> Answer:
        """Send a request and return its answer; nothing is tried twice and no redirect is followed.

        Raises:
            Unreachable, TooLarge, Unreadable, Surplus: As they say.
            httpcore.TimeoutException: The deadline came first.
            httpcore.NetworkError, h11.ProtocolError: The connection broke, or what came is not HTTP.
        """
        target = httpx.URL(url).raw_path
        head = [("Host", self.url.netloc.decode("ascii")), *headers]
        if not self._keep_alive:
            head.append(("Connection", "close"))
        if content:
            head.append(("Content-Length", str(len(content))))
        if self._proxy is not None and self.url.scheme == "http":
            target = f"http://{self.url.netloc.decode('ascii')}".encode() + target
            head += _proxy_login(self._proxy)
        connection = self._rested() or self._connected(limits)
        try:
            answer = connection.exchange(
                h11.Request(method=method, target=target, headers=head), content, limits
            )
        except BaseException:
            connection.close()
            raise
        if self._keep_alive and connection.reusable and answer.success:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _rested(self) -> "_Connection | None":
        """Return a kept connection that nothing came from since."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.fresh:
                return connection
            connection.close()

    def _connected(self, limits: Limits) -> "_Connection":
        first = self._proxy or self.url
        limits = Limits(min(limits.deadline, time.monotonic() + CONNECT_SECONDS), limits.max_bytes)
        try:
            stream = _tcp_stream(first, limits)
            if first.scheme == "https":
                stream = stream.start_tls(self._tls, first.host, limits.left)
            if self._proxy is not None and self.url.scheme == "https":
                _open_tunnel(stream, self.url, self._proxy, limits)
                stream = stream.start_tls(self._tls, self.url.host, limits.left)
        except (
            httpcore.TimeoutException,
            httpcore.NetworkError,
            h11.ProtocolError,
            OSError,
            ValueError,
        ) as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        return _Connection(stream)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()


class _Connection:
    """One connection, one exchange after the other."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._state = h11.Connection(h11.CLIENT)
        self._owner = os.getpid()  # a forked child must not share it
        self._since = time.monotonic()

    @property
    def reusable(self) -> bool:
        """Whether both sides are ready for another exchange."""
        return self._state.our_state is h11.IDLE

    @property
    def fresh(self) -> bool:
        """Whether it is this process's own and nothing came unasked: no farewell and no second answer."""
        idle = time.monotonic() - self._since
        own = self._owner == os.getpid()
        return own and idle < IDLE_SECONDS and not self._stream.get_extra_info("is_readable")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()

    def exchange(self, request: h11.Request, content: bytes, limits: Limits) -> Answer:
        state = self._state
        sent = state.send(request) or b""
        sent += (state.send(h11.Data(data=content)) or b"") + (state.send(h11.EndOfMessage()) or b"")
        with contextlib.suppress(
            httpcore.WriteError
        ):  # who refuses early may hang up and still have said why
            for start in range(0, len(sent), WRITE_BYTES):
                self._stream.write(sent[start : start + WRITE_BYTES], limits.left)
        head, body = self._received(limits)
        if state.trailing_data[0]:
            raise Surplus
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
            self._since = time.monotonic()
        reason = bytes(head.reason).decode("latin-1")
        return Answer(head.status_code, reason, httpx.Headers(list(head.headers.raw_items())), body)

    def _received(self, limits: Limits) -> tuple[h11.Response, bytes]:
        head: h11.Response | None = None
        body: _Body | None = None
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                data = self._stream.read(READ_BYTES, limits.left)
                if not data and head is None:
                    raise httpcore.ReadError("the connection ended without an answer")
                self._state.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
                coding = dict(event.headers).get(b"content-encoding", b"").decode("latin-1")
                body = _Body(coding, limits.max_bytes, strict=200 <= head.status_code < 300)
            elif isinstance(event, h11.Data) and body is not None:
                body.add(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage) and head is not None and body is not None:
                return head, body.whole()
            elif not isinstance(event, h11.InformationalResponse):
                raise httpcore.ReadError("the connection turned into something else")


class _Body:
    """The body of an answer, unpacked once at most, and never larger than allowed.

    Args:
        coding: Its Content-Encoding.
        max_bytes: The most, as sent and unpacked.
        strict: Whether what cannot be had is an error; else it is cut, or left out.
    """

    def __init__(self, coding: str, max_bytes: int, strict: bool) -> None:
        self._max_bytes, self._strict = max_bytes, strict
        self._sent, self._bytes, self._over = 0, bytearray(), False
        packed = coding.lower() in ("gzip", "x-gzip", "deflate")
        self._unpack = zlib.decompressobj(47) if packed else None
        if not packed and coding.lower() not in ("", "identity"):
            self._fail(Unreadable(f"it is packed as {coding}, gzip was asked for"))

    def add(self, data: bytes) -> None:
        if self._over:
            return
        self._sent += len(data)
        if self._unpack is not None:
            try:
                data = self._unpack.decompress(data, self._max_bytes + 1 - len(self._bytes))
            except zlib.error as error:
                return self._fail(Unreadable(str(error)))
            if self._unpack.unused_data:
                return self._fail(Unreadable("more follows behind its end"))
        self._bytes += data
        if max(self._sent, len(self._bytes)) > self._max_bytes:
            self._fail(TooLarge())

    def whole(self) -> bytes:
        if self._unpack is not None and self._sent and not self._unpack.eof and not self._over:
            self._fail(Unreadable("its end is missing"))
        return bytes(self._bytes)

    def _fail(self, error: Exception) -> None:
        if self._strict:
            raise error
        self._over = True


def proxy_of(url: httpx.URL) -> httpx.URL | None:
    """Return the proxy that the environment names for an address (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY).

    Raises:
        TargetError: It is none that can be used.
    """
    if proxy_bypass(url.netloc.decode("ascii")):
        return None
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address:
        return None
    try:
        proxy = httpx.URL(address if "://" in address else f"http://{address}")
    except httpx.InvalidURL:
        proxy = httpx.URL()
    if proxy.scheme not in PORTS or not proxy.host:
        raise TargetError(
            f"the environment names the proxy {public_url(address)!r} for {url.scheme}, "
            "expected http(s)://host:port: correct it, or list the service's host in NO_PROXY"
        )
    return proxy


def _tcp_stream(url: httpx.URL, limits: Limits) -> httpcore.NetworkStream:
    """Connect to the first address that answers; all of them have one deadline."""
    error: Exception = OSError("the name has no address")
    for *_, address in getaddrinfo(url.host, url.port or PORTS[url.scheme], type=SOCK_STREAM):
        try:
            return httpcore.SyncBackend().connect_tcp(str(address[0]), int(address[1]), limits.left)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
            error = failure
    raise error


def _open_tunnel(stream: httpcore.NetworkStream, url: httpx.URL, proxy: httpx.URL, limits: Limits) -> None:
    """Have a proxy connect to a service, so that TLS reaches from here to there."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    place = f"{host}:{url.port or PORTS[url.scheme]}"
    head = [("Host", place), *_proxy_login(proxy)]
    state = h11.Connection(h11.CLIENT)
    request = state.send(h11.Request(method="CONNECT", target=place, headers=head)) or b""
    stream.write(request + (state.send(h11.EndOfMessage()) or b""), limits.left)
    while not isinstance(event := state.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            state.receive_data(stream.read(READ_BYTES, limits.left))
        elif not isinstance(event, h11.InformationalResponse):
            raise OSError("the proxy hung up")
    if not 200 <= event.status_code < 300 or state.trailing_data[0]:
        stream.close()
        raise OSError(f"the proxy answered {event.status_code}")


def _proxy_login(proxy: httpx.URL) -> list[tuple[str, str]]:
    if not proxy.userinfo:
        return []
    return [("Proxy-Authorization", basic(proxy.username, proxy.password))]


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
