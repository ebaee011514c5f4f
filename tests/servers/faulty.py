"""A scoring server that misbehaves on demand and keeps its own, true bill."""

import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from tests.servers.loopback import Handler, serving


class Faults:
    """What the server does with its next requests (`plan`), what it charged (`charged`) and was sent (`seen`)."""

    def __init__(self, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model = model
        self.plan: deque[tuple[str, dict]] = deque()
        self.charged = 0
        self.seen: list[dict[str, str]] = []
        self.most_at_once = 0
        self.open = threading.Event()  # set at the end, so that no answer outlives the test
        self._now = 0
        self._lock = threading.Lock()

    def will(self, behaviour: str, times: int = 1, **details: object) -> "Faults":
        """Behave so for the next `times` requests; without a plan the server answers well."""
        self.plan.extend([(behaviour, details)] * times)
        return self

    def enter(self, headers: dict[str, str]) -> tuple[str, dict]:
        with self._lock:
            self.seen.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self.plan.popleft() if self.plan else ("answer", {})

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def charge(self, count: int) -> None:
        with self._lock:
            self.charged += count


class _Faulty(Handler):
    faults: Faults

    def do_GET(self) -> None:
        self.reply({"status": "ok"})

    def do_POST(self) -> None:
        images = np.asarray(json.loads(self.body())["inputs"], dtype=np.float32)
        behaviour, details = self.faults.enter(dict(self.headers))
        try:
            getattr(self, f"do_{behaviour}")(images, **details)
        finally:
            self.faults.leave()

    def predictions(self, images: np.ndarray) -> bytes:
        """Do the work, which is what gets charged."""
        self.faults.charge(len(images))
        return json.dumps({"predictions": self.faults.model(images).tolist()}).encode()

    def do_answer(self, images: np.ndarray) -> None:
        self.reply(self.predictions(images))

    def do_refuse(self, images: np.ndarray, status: int, headers: dict | None = None, text: str = "") -> None:
        self.reply({"error": text or "no"}, status, headers)

    def do_echo(self, images: np.ndarray, status: int) -> None:
        self.reply({"error": f"bad token {self.headers.get('Authorization')}"}, status)

    def do_fail(self, images: np.ndarray, status: int) -> None:
        self.predictions(images)
        self.reply({"error": "broken after the work was done"}, status)

    def do_hang(self, images: np.ndarray) -> None:
        self.predictions(images)
        self.faults.open.wait(20)
        self.close_connection = True

    def do_slow(self, images: np.ndarray, seconds: float) -> None:
        time.sleep(seconds)
        self.do_answer(images)

    def do_trickle(self, images: np.ndarray) -> None:
        """Send a byte now and then: each comes in time, the whole never does."""
        body = self.predictions(images)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.faults.open.wait(0.05):
                break
        self.close_connection = True

    def do_reset(self, images: np.ndarray) -> None:
        self.predictions(images)
        # Closing with a linger of zero seconds sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def do_truncate(self, images: np.ndarray) -> None:
        body = self.predictions(images)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def do_say(self, images: np.ndarray, body: bytes, headers: dict | None = None) -> None:
        self.predictions(images)
        self.reply(body, headers=headers)

    def do_alter(self, images: np.ndarray, change: Callable[[list], object]) -> None:
        answer = json.loads(self.predictions(images))
        self.reply({"predictions": change(answer["predictions"])})


@contextmanager
def faulty_server(
    model: Callable[[np.ndarray], np.ndarray], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, Faults]]:
    """Yield the address of .../invocations and the faults of a server with this model behind it."""
    faults = Faults(model)
    handler = type("Handler", (_Faulty,), {"faults": faults})
    with serving(handler, tls) as address:
        try:
            yield f"{address}/invocations", faults
        finally:
            faults.open.set()
