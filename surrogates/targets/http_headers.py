"""Headers that go out with each request as they stand."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.redaction import shortened

MOST_HEADERS, LONGEST_HEADER = 50, 2_000
# What the client writes itself, and what would change where a request goes or how it is framed.
OWN_HEADERS = re.compile(
    r"host|content-length|transfer-encoding|connection|keep-alive|accept-encoding|expect|upgrade|te|trailer|proxy-.*|inference-header-content-length",
    re.IGNORECASE,
)
SECRET_HEADER = re.compile(  # short words stand alone, long ones anywhere: X-Sig and X-Design, X-UserToken and X-Tokenizer
    r"(.*[-_])?(key|sig|auth|pwd|pass|jwt|sid)([-_].*)?"
    r"|.*((api|access|auth|secret|private|client|session|subscription)[-_]?key|token(?!i[sz])|secret|signature|passw"
    r"|authori[sz]|credential|cookie|session|bearer).*",
    re.IGNORECASE,
)
SECRET_SCHEME = re.compile(
    r"(bearer|basic|token|digest)\s|eyJ[\w-]+\.[\w-]+\.", re.IGNORECASE
)  # or a JSON Web Token


def check_headers(headers: Any) -> None:
    """Check headers that go out as they stand: they are printed and kept, so that no secret may be among them.

    Raises:
        TargetError: It names the header and the remedy.
    """
    if headers is None:
        return
    if not isinstance(headers, Mapping) or len(headers) > MOST_HEADERS:
        raise TargetError(f"headers must map at most {MOST_HEADERS} names to texts, e.g. {{X-Model: v2}}")
    seen = set()
    for name, value in headers.items():
        if (
            not isinstance(name, str)
            or not re.fullmatch("[A-Za-z0-9_-]+", name)
            or len(name) > LONGEST_HEADER
        ):
            raise TargetError(
                f"headers has the name {shortened(repr(name), 60)}: use letters, digits, '-' and '_'"
            )
        if not isinstance(value, str) or not re.fullmatch("[ -~]*", value) or len(value) > LONGEST_HEADER:
            raise TargetError(
                f"header {shortened(name, 60)} must be a text of up to {LONGEST_HEADER:,} ASCII characters: quote it"
            )
        if OWN_HEADERS.fullmatch(name) or name.lower() in seen:
            raise TargetError(
                f"header {name} is written by certdef itself, or stands here twice: leave it out"
            )
        if SECRET_HEADER.fullmatch(name) or SECRET_SCHEME.match(value):
            raise TargetError(
                f"header {name} is a secret, which must be in no file or log: put it into an environment variable "
                f"and give token_env, its name, and token_header, '{name}:'"
            )
        seen.add(name.lower())


def joined(*parts: Mapping[str, str]) -> dict[str, str]:
    """Return headers of which the later win, whatever the case of their names."""
    found = {name.lower(): (name, value) for part in parts for name, value in part.items()}
    return dict(found.values())


def mark(headers: Mapping[str, str] | None) -> str:
    """Return what an identity has besides the address: another header may choose another model."""
    if not headers:
        return ""
    known = sorted((name.lower(), value) for name, value in headers.items())
    return f"#headers-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]}"
