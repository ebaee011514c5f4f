"""Keeps secrets out of texts, however a service has written them."""

import base64
import html
import re
import string
from urllib.parse import unquote

CUT = "…"  # ends what was shortened, and stands in the place of a secret
TELLING = 8  # so many first characters of a secret are one
LAYERS = 4  # as it is, and encoded up to three times over
LOWER = str.maketrans(
    string.ascii_uppercase, string.ascii_lowercase
)  # keeps the length, which str.lower may not
# Ways to write one character: URL-encoded, as in JSON, Python and HTML.
WRITTEN = re.compile(
    r"(?:%[0-9a-f]{2})+|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[\"'/\\]|&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,6});",
    re.IGNORECASE,
)


class Secrets:
    """The secrets of one client; nothing that prints it shows them."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: set[str] = set()

    def __repr__(self) -> str:
        return f"Secrets({CUT})"

    def add(self, secret: str) -> None:
        """Hide a text from now on."""
        if secret:
            self._forms |= {form.translate(LOWER) for form in forms_of(secret)}

    def hide(self, text: str) -> str:
        """Return a text without the secrets, their encoded forms, and beginnings of them."""
        if not self._forms:
            return text
        plain, places = text, list(range(len(text) + 1))
        hidden = []
        for _ in range(LAYERS):
            lower = plain.translate(LOWER)
            spans = [span for form in self._forms for span in _found(lower, form)]
            hidden += [(places[start], places[stop]) for start, stop in spans]
            plain, inner = _decoded(plain)
            places = [places[place] for place in inner]
        shown, end = [], 0
        for first, last in sorted(hidden):
            if first >= end:
                shown.append(text[end:first] + CUT)
            end = max(end, last)
        return "".join(shown) + text[end:]


def forms_of(secret: str) -> set[str]:
    """Return a secret as it is, in hexadecimal and in base64, wherever in a longer text it was encoded."""
    raw = secret.encode()
    forms = {secret}
    if len(raw) >= 4:
        forms.add(raw.hex())
        for before in range(
            3
        ):  # base64 writes three bytes in four characters; those at the ends have neighbors in them
            encoded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
            whole = encoded[(0, 2, 3)[before] : len(encoded) - ((before + len(raw)) % 3 != 0)]
            forms |= {whole, whole.translate(str.maketrans("+/", "-_"))}
    return forms


def shortened(text: str, most: int) -> str:
    """Return the beginning of a text on one line, marked where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + CUT


def _decoded(text: str) -> tuple[str, list[int]]:
    """Return a text with its characters as meant, and where in it each of them begins (one more for the end)."""
    plain: list[str] = []
    places: list[int] = []
    end = 0
    for match in [*WRITTEN.finditer(text), None]:
        start = len(text) if match is None else match.start()
        plain.append(text[end:start])
        places.extend(range(end, start))
        if match is not None:
            meant = _meant(match.group())
            plain.append(meant)
            width = len(match.group()) / len(meant)
            places.extend(start + int(width * each) for each in range(len(meant)))
            end = match.end()
    return "".join(plain), [*places, len(text)]


def _meant(written: str) -> str:
    """Return what a written character stands for."""
    if written[0] == "%":
        return unquote(written, errors="replace")
    if written[0] == "&":
        return html.unescape(written) or "\ufffd"
    return chr(int(written[2:], 16)) if written[1] in "uUxX" else written[1]


def _found(text: str, form: str) -> list[tuple[int, int]]:
    """Return the places of a secret in a text: whole, its telling beginning, or any beginning at a cut."""
    found = []
    least = min(TELLING, len(form))
    start = text.find(form[:least])
    while start >= 0:
        stop = start + least
        while stop < len(text) and stop - start < len(form) and text[stop] == form[stop - start]:
            stop += 1
        found.append((start, stop))
        start = text.find(form[:least], stop)
    for cut in (match.start() for match in re.finditer(CUT, text)):
        longest = next((n for n in range(min(least, cut), 0, -1) if text[:cut].endswith(form[:n])), 0)
        if longest:
            found.append((cut - longest, cut))
    return found
