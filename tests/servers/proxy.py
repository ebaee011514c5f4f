"""A forwarding proxy of ours on loopback, and certificates for names of no server."""

import datetime
import ipaddress
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.loopback import Handler, serving


@contextmanager
def proxy_server(behind: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a proxy that leads to `behind` (host:port) whatever name is given, and the requests that it saw."""
    seen: list[str] = []

    class Proxy(Handler):
        def do_CONNECT(self) -> None:
            seen.append(f"{self.requestline} {self.headers.get('Proxy-Authorization')}")
            if "refused" in self.path:
                return self.reply({"error": "no"}, 407)
            with _connected(behind) as there:
                self.send_response(200)
                self.end_headers()
                _relay(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            self.forward()

        def do_POST(self) -> None:
            self.forward()

        def forward(self) -> None:
            seen.append(f"{self.requestline} {self.headers.get('Proxy-Authorization')}")
            parts = urlsplit(self.path)
            body = self.body()
            with _connected(behind) as there:
                head = (
                    f"{self.command} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
                )
                there.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                there.shutdown(socket.SHUT_WR)
                while data := there.recv(65536):
                    self.wfile.write(data)
            self.close_connection = True

    with serving(Proxy) as address:
        yield address, seen


def _connected(behind: str) -> socket.socket:
    host, _, port = behind.partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _relay(here: socket.socket, there: socket.socket) -> None:
    while True:
        for side in select.select([here, there], [], [], 20)[0]:
            data = side.recv(65536)
            if not data:
                return
            (there if side is here else here).sendall(data)


def certificate(folder: Path, *names: str) -> Path:
    """Write a certificate for these names or addresses, signed by itself, with its key; returns the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    known = [
        x509.IPAddress(ipaddress.ip_address(each)) if each[0].isdigit() else x509.DNSName(each)
        for each in names
    ]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(known), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


def tls(path: Path) -> ssl.SSLContext:
    """Return what a server needs to speak TLS with such a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
