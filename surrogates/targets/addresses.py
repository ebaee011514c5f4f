"""Addresses of services, without the secrets that they may carry."""

import re

import httpx

from surrogates.errors import TargetError

SECRET_NAME = r"key|token|secret|sig|passw|auth|credential"


def public_url(url: str) -> str:
    """Return an address without its user, password and the values of its secret parameters."""
    bare = re.sub(r"//[^/?#]*@", "//", url)
    return re.sub(r"([?&#][^=&#]*(?:" + SECRET_NAME + r")[^=&#]*=)[^&#]*", r"\1…", bare, flags=re.IGNORECASE)


def without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split an address into itself and its user and password.

    Raises:
        TargetError: No address, or a secret in its parameters.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise TargetError(
            f"{public_url(str(url))!r} is no address ({first_line(error)}): give http(s)://host/path"
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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, else the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__
