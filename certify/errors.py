"""The one error of this package, and the checks that several modules share."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


class CertifyError(ValueError):
    """Bad input to a certificate: the message names the value and the remedy."""


def check_alpha(alpha: Any) -> float:
    """Return ``alpha`` as a float, or raise CertifyError unless it lies in (0, 0.5)."""
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if not number or not 0 < alpha < 0.5:
        raise CertifyError(f"alpha must be in (0, 0.5), got {alpha!r}: try alpha=0.001")
    return float(alpha)


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int, or raise CertifyError unless it is an integer >= ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise CertifyError(f"{name} must be an integer >= {minimum}, got {value!r}: try {name}={minimum}")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise CertifyError unless it is finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise CertifyError(
            f"{name} must be finite and above 0 in [0, 1] pixel units, got {value!r}: try {name}=0.25"
        )
    return float(value)


def with_options(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """Frozen ``settings`` with ``options`` in place of their fields, or raise CertifyError for an unknown one."""
    known = [field.name for field in fields(settings)]
    for name in options:
        if name not in known:
            raise CertifyError(f"{name!r} is not an option: choose from {', '.join(known)}")
    return replace(settings, **options)
