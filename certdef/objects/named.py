"""Objects in the place of names: what a verb takes in Python beside its configuration.

An object gets a name in the configuration, `object:module.name:digest`, which changes when it does (identity.py).
Stages, receipts and the job's folder go by that name, so the same call finds them again and another object does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import surrogates
from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig, nearest
from certdef.config.load import load_config
from certdef.config.objects import is_object, remember
from certdef.data.objects import source_of
from certdef.data.pixels import Form
from certdef.data.source import Source
from certdef.objects.identity import identity_of
from certdef.tracking.checked_json import fingerprint

OPTIONS = ("preset", "seed", "device", "threads", "work_dir")  # of the configuration that stand in no section
NAMES = (
    "target",
    "identity",
    "images",
    "labels",
    "class_names",
    "surrogate",
    "purifier",
    "chosen",
)
IMAGES = "images"  # the name of a data set that was given as an object


@dataclass(frozen=True)
class Objects:
    """What a call was given beside its configuration.

    Attributes:
        source: The images, where they are no file.
        chosen: The options that were set on purpose, dotted; None where only the configuration tells.
        in_words: What follows from the images, for whoever starts the job; empty where nothing does.
    """

    source: Source | None = None
    chosen: frozenset[str] | None = None
    in_words: str = ""
    held: Any = None  # the objects themselves, which live as long as the call


NO_OBJECTS = Objects()


def named(config: RunConfig | None, given: Mapping[str, Any]) -> tuple[RunConfig, Objects]:
    """A configuration in which every object has a name, and the objects.

    Args:
        config: The job; unset, its single values are among `given`, with __ for dots, as for load_config.
        given: `target` (an address, or what surrogates.open_target takes), `identity` (a name for it), `images` (a path, or
            arrays, tensors), `labels` and `class_names`, `surrogate` and `purifier` (modules, or names); `chosen` as in
            Objects.

    Raises:
        ConfigError: An unknown argument, an object that can't be what it is given as, or one without an identity.
    """
    options = {name: value for name, value in given.items() if "__" in name or name in OPTIONS}
    for name in given.keys() - options.keys() - {*NAMES}:
        raise ConfigError(
            f"unknown argument {name!r}{nearest(name, [*NAMES, *OPTIONS])}: options are written certify__n"
        )
    if config is not None and options:
        raise ConfigError(f"{next(iter(options))} is given beside a configuration: set it there")
    chosen = given.get("chosen")
    names = _names(given)
    if config is None:
        config = load_config(**names | options)
        chosen = {name.replace("__", ".") for name in names | options}
    else:
        if chosen is None and config.chosen is not None:
            chosen = config.chosen | {name.replace("__", ".") for name in names}
        for name, value in names.items():
            config = own_target.with_value(config, name.replace("__", "."), value)
    images = given.get("images")
    source = None
    if images is not None and not isinstance(images, str | Path):
        form = Form.of(config.data)
        source = source_of(images, given.get("labels"), given.get("class_names"), form=form, name=IMAGES)
        config = replace(config, data=replace(config.data, name=IMAGES, path=None))
    if is_object(config.target.uri) and config.preset == RunConfig.preset and "preset" not in options:
        config = replace(config, preset=own_target.PRESET)
    kept = None if chosen is None else frozenset(chosen)
    return config, Objects(source, kept, held=given)


def _names(given: Mapping[str, Any]) -> dict[str, str]:
    """The names that the objects have among the options, and those that were given as names."""
    names: dict[str, str] = {}
    if given.get("target") is not None:
        names["target__uri"] = _target_name(given["target"], given.get("identity"))
    elif given.get("identity") is not None:
        raise ConfigError("identity names a target that is an object: give target too")
    if isinstance(given.get("images"), str | Path):
        names["data__path"] = str(given["images"])
    elif given.get("images") is None and (
        given.get("labels") is not None or given.get("class_names") is not None
    ):
        raise ConfigError("labels and class_names are those of images: give images too")
    for part, option in (("surrogate", "surrogate__model"), ("purifier", "purifier")):
        value = given.get(part)
        if isinstance(value, nn.Module):
            names[option] = remember(identity_of(value, part), value)
        elif isinstance(value, str):
            names[option] = value
        elif value is not None:
            raise ConfigError(f"{part} is a {type(value).__name__}: give a torch module, or a name")
    return names


def _form_mark(target: surrogates.Target) -> str:
    """What the name of an open target has besides its identity: in another form it answers otherwise. Empty where it has none."""
    reading, kind = target.reading, target.kind
    form = (
        target.preprocessing,
        kind.key if kind.is_declared else "",
        reading.class_names or (),
        reading.output,
    )
    return f":{fingerprint(*form)[:8]}" if form[0] or any(form[2:]) or reading.output is not None else ""


def _target_name(target: Any, identity: str | None) -> str:
    """An address as it is; an object's name."""
    if isinstance(target, str | Path):
        if identity is not None:
            raise ConfigError(f"identity {identity!r}: an address is its own, leave identity out")
        return str(target)
    if isinstance(target, surrogates.Target):
        if identity not in (None, target.identity) or "<" in target.identity:
            raise ConfigError(
                f"target is open already, as {target.identity!r}: open it with open_target(..., identity='a name that changes "
                "when it does')"
            )
        return remember(target.identity + _form_mark(target), target)
    if type(target).__module__.startswith("mlflow.pyfunc") and identity is None:
        identity = str(getattr(target.metadata, "model_id", None) or target.metadata.model_uuid)
    return remember(identity or identity_of(target, "target"), target)
