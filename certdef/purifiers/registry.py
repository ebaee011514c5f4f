"""The registry: a purifier's record from its name, loaded on demand.

A purifier is a module of this folder, an entry point of the group `certdef.purifiers` (a PurifierSpec, or a module that
holds one as PURIFIER), or a function of the user's own, `python:package.module:factory`.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certdef.config.job import ConfigError, RunConfig, nearest
from certdef.config.objects import is_object, object_named
from certdef.config.own_target import NONE
from certdef.config.purifiers import entry_points, is_code, own_names, purifier_names
from certdef.purifiers.base import About, Denoiser, Parts, PurifierSpec

ALLOW_CODE = "CERTDEF_ALLOW_CODE"
_SPECS: dict[str, PurifierSpec] = {}  # those that this process has used


def find_purifier(name: str) -> PurifierSpec:
    """The record of a purifier.

    Raises:
        ConfigError: No purifier has this name, or its module cannot be imported or holds none.
    """
    if is_object(name):
        return _guarded(_from_module(name))
    if name not in _SPECS:
        _SPECS[name] = _load(name)
    return _SPECS[name]


def is_foreign(name: str) -> bool:
    """Whether a purifier comes from another package, or is the user's own."""
    return name not in (NONE, *own_names())


def needs_work(name: str, config: RunConfig) -> bool:
    """Whether a purifier is trained on the pool or tuned, or sees the classifier that it defends."""
    spec = find_purifier(name)
    trained = any(each.uses_pool(config) or each.sees_classifier for each in spec.networks(config))
    return bool(trained or spec.tuning or spec.sees_classifier)


def is_ready(name: str, config: RunConfig) -> bool:
    """Whether a purifier is used as it is; an unknown one, which is named with all else that is wrong, counts as such."""
    try:
        return not needs_work(name, config)
    except ConfigError:
        return True


def check_code(name: str, code: str | None) -> None:
    """Refuse to run code that a file names and the user did not.

    Args:
        name: The purifier that a saved model names.
        code: The `python:` reference that the caller allows.

    Raises:
        ConfigError: The model needs `python:` code that neither the caller nor this process has named.
    """
    if is_code(name) and name not in {code, *_SPECS} and os.environ.get(ALLOW_CODE) != "1":
        raise ConfigError(
            f"the model runs code of yours, {name!r}: pass code={name!r} to load_model, or set {ALLOW_CODE}=1"
        )


def _load(name: str) -> PurifierSpec:
    if name in (NONE, *own_names()):
        return import_module(f"certdef.purifiers.{name.replace('-', '_')}").PURIFIER
    if is_code(name):
        return _guarded(_from_code(name))
    if name not in entry_points():
        raise ConfigError(
            f"unknown purifier {name!r}: certdef purifiers lists them{nearest(name, purifier_names())}"
        )
    point = entry_points()[name]
    try:
        loaded: Any = point.load()
    except Exception as error:  # whatever a foreign module trips over
        raise ConfigError(
            f"purifier {name!r} ({point.value}) cannot be imported: {one_line(error)}"
        ) from error
    spec = getattr(loaded, "PURIFIER", loaded)
    if not isinstance(spec, PurifierSpec) or spec.name != name:
        raise ConfigError(
            f"purifier {name!r} ({point.value}) is no PurifierSpec of that name: mend its package"
        )
    return _guarded(spec)


def _guarded(spec: PurifierSpec) -> PurifierSpec:
    """A foreign record whose modules are in eval mode, and the same function whenever they are built."""
    part = spec.denoiser
    return replace(
        spec,
        build=partial(_built, spec.name, spec.build),
        denoiser=part and replace(part, build=partial(_built, spec.name, part.build)),
    )


def _built(name: str, build: Callable[[Parts], nn.Module], parts: Parts) -> nn.Module:
    """Foreign code may draw weights: what is certified and what is attacked must be one function."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            module = build(parts)
        except Exception as error:  # whatever a foreign module trips over
            raise ConfigError(f"purifier {name!r} cannot be built: {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"purifier {name!r} is a {type(module).__name__}: return a torch module")
    return module.eval()


def one_line(error: Exception) -> str:
    """An error of foreign code as one line: its class and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _from_module(name: str) -> PurifierSpec:
    """A module of this process: noisy images (N, C, H, W) -> images in [0, 1]; it denoises votes too."""
    module = object_named(name, "purifier")

    def build(parts: Parts) -> nn.Module:
        return copy.deepcopy(module)

    about = About("a module of your own", type(module).__module__, "not stated", title=type(module).__name__)
    return PurifierSpec(name, about, build, denoiser=Denoiser("your own module", build))


def _from_code(name: str) -> PurifierSpec:
    """A user's own: factory() -> module, noisy images (N, C, H, W) -> images in [0, 1]; it denoises votes too."""
    _, module_name, attribute = name.split(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` has it, and a console script has not
    try:
        module = import_module(module_name)
        factory = getattr(module, attribute)
    except Exception as error:  # whatever the user's module trips over
        raise ConfigError(f"purifier {name!r} cannot be imported: {one_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(factory):
        raise ConfigError(
            f"purifier {name!r} is a {type(factory).__name__}: name a function that returns a module"
        )
    defined = sys.modules.get(
        getattr(factory, "func", factory).__module__
    )  # which may have only been imported there
    files = sorted({file for file in (module.__file__, getattr(defined, "__file__", None)) if file})

    def settings(config: RunConfig) -> dict[str, Any]:
        """Other code is another purifier."""
        code = b"".join(Path(file).read_bytes() for file in files)
        return {"code": hashlib.sha256(code).hexdigest()[:16]}

    def build(parts: Parts) -> nn.Module:
        return factory()

    summary = (factory.__doc__ or "").strip().partition("\n")[0]
    about = About(summary or f"your own module, from {attribute}()", module_name, "not stated")
    return PurifierSpec(name, about, build, settings, denoiser=Denoiser("your own module", build))
