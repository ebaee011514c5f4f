"""The user's own target: opened before anything is queried, and refused where it can't be what the job needs."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import surrogates
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.objects import OBJECT, is_object, object_named
from certdef.data.matching import match_labels
from certdef.data.sets import Splits
from surrogates.targets.formats import PixelFormat
from surrogates.targets.http_options import HttpOptions

CANARIES = 4


def open_own_target(config: RunConfig, data: Splits | None = None) -> tuple[surrogates.Target, Splits | None]:
    """Open the user's own target; nothing is queried. Returns it, and the images with labels that are its classes.

    Args:
        config: The job.
        data: Its images, which the target must take; unset, where they are not known.

    Raises:
        ConfigError, surrogates.TargetError: It can't be opened, or lacks some of the data's classes.
    """
    assert config.target.uri is not None
    address = without_password(config.target.uri)
    options = config.target.form | config.target.transport
    _check_options(options)
    try:
        target = _opened(config, None if data is None else data.image_shape, options)
    except surrogates.ClassesUnknown as error:
        option = "target__num_classes=10" if is_object(config.target.uri) else "--target.num_classes 10"
        raise ConfigError(
            f"target {address!r} does not tell its number of classes: give it, e.g. {option}"
        ) from error
    if data is None:
        return target, None
    try:
        names = getattr(target, "class_names", None)
        return target, match_labels(data, names, target.num_classes, config.data.labels)
    except ConfigError as error:
        raise ConfigError(f"target {address!r}: {error}") from error


def reopened(config: RunConfig, data: Splits, changes: dict[str, Any]) -> surrogates.Target:
    """The same target, opened with some options changed.

    Raises:
        surrogates.TargetError: It can't be opened so.
    """
    assert config.target.uri is not None
    return _opened(config, data.image_shape, config.target.form | config.target.transport | changes)


def _opened(
    config: RunConfig, shape: tuple[int, int, int] | None, options: dict[str, Any]
) -> surrogates.Target:
    """What the address names, or the object that stands under this name."""
    uri = config.target.uri
    assert uri is not None
    shaped: dict[str, Any] = {} if shape is None else {"input_shape": shape}
    if not is_object(uri):
        return surrogates.open_target(uri, **shaped, **options)
    thing = object_named(uri, "target")
    if isinstance(thing, surrogates.Target):  # open already, in a form of its own
        if shape is not None:
            thing.check_shape(shape)
        return surrogates.open_target(thing, **options)
    return surrogates.open_target(thing, identity=uri.removeprefix(OBJECT), **shaped, **options)


def _check_options(options: dict[str, Any]) -> None:
    """Refuse every option that cannot be used whatever the target is, at once.

    Raises:
        surrogates.TargetError: A line for each.
    """
    lines: list[str] = []
    names = [{field.name for field in fields(kind)} & options.keys() for kind in (PixelFormat, HttpOptions)]
    # a pixel format says all that is wrong with it itself
    given = [(PixelFormat, {name: options[name] for name in names[0]})]
    for kind, values in [*given, *((HttpOptions, {name: options[name]}) for name in sorted(names[1]))]:
        try:
            kind(**values)
        except surrogates.TargetError as error:
            lines += str(error).splitlines()
    variable = options.get("token_env")
    if variable is not None and not os.environ.get(variable):
        lines.append(f"environment variable {variable} (token_env) is not set: set it to the service's token")
    if lines:
        raise surrogates.TargetError("\n".join(lines))


def watch(config: RunConfig, data: Splits, ledger: surrogates.QueryLedger, target: surrogates.Target) -> None:
    """Let the ledger notice a service of the user's own that changes."""
    if target.charged_when_sent and config.target.canary_every:
        images = data.heldout_images[:CANARIES]
        ledger.canaries = surrogates.Canaries(images, every=config.target.canary_every)
