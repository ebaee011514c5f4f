"""Requests that end when nobody waits for them: an ASGI application around another one.

Without it a certificate of a minute is computed to its end after its client has left, and a server that receives SIGTERM
waits for it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LONGEST_BODY = 64 * 2**20  # bytes

# Of the request that this thread works for; contexts are copied into worker threads.
_STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


class Stopped(Exception):
    """Nobody waits for this answer any more."""


class Patience:
    """A progress bar that ends the work between two batches once its request is over. Outside a request it never does."""

    def update(self, draws: int = 0) -> None:
        """Called after each batch of draws.

        Raises:
            Stopped: The client has left, the request timed out, or the server stops.
        """
        stop = _STOP.get()
        if stop is not None and stop.is_set():
            raise Stopped


class Watched:
    """Calls an application and watches its clients.

    Args:
        app: An ASGI application that reads the whole body before it answers.
        longest_body: Most bytes of a request's body; a longer one is refused with status 413.
    """

    def __init__(self, app: Any, longest_body: int = LONGEST_BODY) -> None:
        self.app, self.longest_body = app, longest_body
        self.stopping = False
        self._running: set[threading.Event] = set()

    def stop(self) -> None:
        """End the work on every request; later ones are refused with status 503."""
        self.stopping = True
        for stop in tuple(self._running):
            stop.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._body(receive)
        if body is None:
            await _refuse(
                send, 413, f"the request has more than {self.longest_body} bytes: send fewer images"
            )
        elif self.stopping:
            await _refuse(send, 503, "the server is stopping")
        else:
            await self._answer(scope, body, receive, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too long."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.longest_body:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _answer(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        stop, gone = threading.Event(), asyncio.Event()
        waiting = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replayed() -> Message:
            message = next(waiting, None)
            if message is None:
                await gone.wait()
            return message or {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            stop.set()
            gone.set()

        _STOP.set(stop)
        self._running.add(stop)
        watching = asyncio.create_task(watch())
        try:
            await self.app(scope, replayed, send)
        finally:  # also after a time-out, which leaves the worker thread at work
            watching.cancel()
            stop.set()
            self._running.discard(stop)


async def _refuse(send: Send, status: int, message: str) -> None:
    """Answer in the form of MLflow's scoring server."""
    content = json.dumps({"error_code": "BAD_REQUEST", "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
