"""A scoring server that sends exactly the bytes that it is told to, and keeps its own, true bill."""

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

Answering = Callable[[np.ndarray, dict[str, str]], "Reaction"]


@dataclass(frozen=True)
class Reaction:
    """What the server does once it has read a request.

    Args:
        parts: Bytes to send, and seconds to wait between them.
        charged: Whether it does the work, and charges for it.
        end: What becomes of the connection: keep, close, or reset.
    """

    parts: tuple[bytes | float, ...]
    charged: bool = True
    end: str = "keep"


@dataclass
class Script:
    """What happens next, image by image; without a plan the server answers well."""

    model: Callable[[np.ndarray], np.ndarray]
    plan: deque[Answering] = field(default_factory=deque)
    charged: int = 0
    requests: int = 0
    connections: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def predictions(self, images: np.ndarray) -> bytes:
        return json.dumps({"predictions": self.model(images).tolist()}).encode()

    def well(self, images: np.ndarray, headers: dict[str, str]) -> Reaction:
        return Reaction((response(self.predictions(images)),))

    def will(self, *reactions: Answering) -> "Script":
        self.plan.extend(reactions)
        return self


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an answer as it goes over the wire; headers are lines that end in CRLF."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1") + body


@contextmanager
def raw_server(model: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[str, Script]]:
    """Yield the address of .../invocations and the script of a server with this model behind it."""
    script = Script(model)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=_accept, args=(listener, script), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/invocations", script
        finally:
            script.stopped.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def _accept(listener: socket.socket, script: Script) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            script.connections += 1
            threading.Thread(target=_serve, args=(connection, script), daemon=True).start()


def _serve(connection: socket.socket, script: Script) -> None:
    connection.settimeout(20)
    with connection, suppress(OSError), connection.makefile("rb") as stream:
        while line := stream.readline():
            headers = {}
            while (header := stream.readline().strip()) != b"":
                name, _, value = header.partition(b":")
                headers[name.decode().lower()] = value.strip().decode()
            body = stream.read(int(headers.get("content-length", 0)))
            if not _react(connection, script, line, headers, body):
                return


def _react(
    connection: socket.socket, script: Script, line: bytes, headers: dict[str, str], body: bytes
) -> bool:
    """Do what the script has for a request; returns whether the connection goes on."""
    if line.startswith(b"GET"):
        connection.sendall(response(b"{}"))
        return True
    images = np.asarray(json.loads(body)["inputs"], dtype=np.float32)
    script.requests += 1
    reaction = (script.plan.popleft() if script.plan else script.well)(images, headers)
    if reaction.charged:
        script.charged += len(images)
    for part in reaction.parts:
        if isinstance(part, bytes):
            connection.sendall(part)
        elif script.stopped.wait(part):
            return False
    if reaction.end == "reset":  # a linger of zero seconds sends RST instead of FIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return reaction.end == "keep"
