"""The body of a request to a service: a template with the images in their place, as JSON, a form, or the picture itself."""

import hashlib
import json
from base64 import b64encode
from typing import Any
from urllib.parse import urlencode

from surrogates.targets.pictures import SUFFIXES, TYPES

PLACE = "$images"
FORM = "application/x-www-form-urlencoded"


def places(template: Any) -> int:
    """Return how many places a template has for the images: values of their own, else within its texts."""
    return _count(template, lambda text: int(text == PLACE)) or _count(
        template, lambda text: text.count(PLACE)
    )


def stands_alone(template: Any) -> bool:
    """Whether the images stand in a value of their own, not within a text."""
    return _count(template, lambda text: int(text == PLACE)) > 0


def json_body(template: Any, images: list[Any], one: bool) -> tuple[bytes, str]:
    """Return a template as JSON, and its content type.

    Args:
        images: Arrays as nested lists, or pictures as bytes, which become base64.
        one: Whether the place gets the only image itself, not a list.
    """
    values = [as_text(image) if isinstance(image, bytes) else image for image in images]
    value = values[0] if one else values
    return json.dumps(_filled(template, value, stands_alone(template))).encode(), "application/json"


def form_body(template: dict[str, Any], pictures: list[bytes]) -> tuple[bytes, str]:
    """Return a template as an HTML form without files: pictures are base64, one field each; lists and maps are JSON."""
    return urlencode([(name, text) for name, text, _ in _fields(template, pictures)]).encode(), FORM


def multipart_body(
    template: dict[str, Any], pictures: list[bytes], kind: str, filename: str | None
) -> tuple[bytes, str]:
    """Return a template as an HTML form with files (RFC 7578): a field that is the place alone is a file, one a picture.

    The boundary follows from the content, so that the same image is the same request.
    """
    parts = []
    for name, text, raw in _fields(template, pictures):
        head = f'Content-Disposition: form-data; name="{_escaped(name)}"'
        if raw is not None:
            file = filename or f"image.{SUFFIXES[kind]}"
            head += f'; filename="{_escaped(file)}"\r\nContent-Type: {TYPES[kind]}'
        parts.append(head.encode() + b"\r\n\r\n" + (text.encode() if raw is None else raw) + b"\r\n")
    boundary = f"certdef-{hashlib.sha256(b''.join(parts)).hexdigest()[:40]}"
    body = b"".join(f"--{boundary}\r\n".encode() + part for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def as_text(picture: bytes) -> str:
    """Return a picture in base64."""
    return b64encode(picture).decode("ascii")


def _fields(template: dict[str, Any], pictures: list[bytes]) -> list[tuple[str, str, bytes | None]]:
    """Return name, text and, where it is a picture, bytes of each field of a form."""
    fields: list[tuple[str, str, bytes | None]] = []
    alone = stands_alone(template)
    for name, part in template.items():
        if part == PLACE:
            fields += [(name, as_text(picture), picture) for picture in pictures]
            continue
        value = _filled(part, as_text(pictures[0]), alone)
        fields.append((name, value if isinstance(value, str) else json.dumps(value), None))
    return fields


def _filled(template: Any, value: Any, alone: bool) -> Any:
    """Return a template with a value in its place, which stands alone or within a text."""
    if isinstance(template, dict):
        return {key: _filled(part, value, alone) for key, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, value, alone) for part in template]
    if template == PLACE:
        return value
    return template.replace(PLACE, value) if isinstance(template, str) and not alone else template


def _count(template: Any, of_text: Any) -> int:
    if isinstance(template, dict | list):
        parts = template.values() if isinstance(template, dict) else template
        return sum(_count(part, of_text) for part in parts)
    return int(of_text(template)) if isinstance(template, str) else 0


def _escaped(name: str) -> str:
    """Return a name as a form's header has it (HTML, section 4.10.21.8)."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
