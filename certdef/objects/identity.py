"""The identity of an object of the user's own: what it is called, and a digest of all that it does.

A job takes a receipt or a finished stage for that of an object by its identity alone. So an object that behaves otherwise
must have another one, and one whose behavior can't be read off is refused until the user names it.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from certdef.config.job import ConfigError

OURS = ("certdef", "certify", "surrogates")
LIBRARIES = tuple(
    Path(path).resolve()
    for path in {sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")}
)
PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    type(...),
    torch.dtype,
    torch.device,
    np.dtype,
    PurePath,
)
OF_MODULES = (
    "_parameters",
    "_buffers",
    "_modules",
    "training",
)  # read by other ways, or set by whoever uses it
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
HEAP_TYPE = 1 << 9  # of a class that was not written in C
DEEPEST = 60


class _Unreadable(Exception):
    """An object inside whose behavior can't be read off."""


def identity_of(thing: Any, what: str) -> str:
    """`module.name:digest` of a function, a torch module, an estimator or any other object that is plain data and code.

    Code counts by its bytecode, with the values that it reaches: defaults, closures, the globals that it names, and what it
    imports. What an installed package or the standard library defines counts by its name. Files that it reads when it is
    called are not seen.

    Args:
        thing: The object.
        what: What it is given as, for the error, e.g. target.

    Raises:
        ConfigError: It reaches something that has no fingerprint: an open connection, a session, a lock.
    """
    reader = _Reader()
    try:
        reader.read_all(thing)
    except (_Unreadable, RecursionError) as error:
        raise ConfigError(
            f"{what} {_name(thing)} has no identity of its own: it reaches {error}, whose behavior can't be told from "
            "outside. Give it a name that changes when it does: identity='...'"
        ) from error
    return f"{_name(thing)}:{reader.digest.hexdigest()[:16]}"


def _name(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


class _Reader:
    """Feeds an object, and all that it reaches, to a digest."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # alive, so that no id is used twice
        self._depth = 0
        self._modules: dict[str, types.ModuleType] = {}  # that code reaches, by name
        self._entries: dict[str, None] = {}  # names of attributes that code asks for

    def read_all(self, thing: Any) -> None:
        """Feed an object, and of the modules that its code reaches all that it asks for."""
        self.read(thing)
        done: set[tuple[str, str]] = set()
        while new := [
            (module, entry)
            for module in self._modules
            for entry in self._entries
            if (module, entry) not in done
        ]:
            for module, entry in new:
                done.add((module, entry))
                self._entry(self._modules[module], entry)

    def _entry(self, module: types.ModuleType, entry: str) -> None:
        """An entry of a module; of a library's only what somebody else has put there."""
        if entry not in vars(module):
            return
        value = vars(module)[entry]
        if not _is_library(module) or isinstance(value, types.ModuleType) or _is_own_function(value):
            self._several(f"{module.__name__}.{entry}", value)

    def read(self, thing: Any) -> None:
        """Feed one object; of one that came before, where it came."""
        if isinstance(thing, PLAIN) and _is_library(type(thing)):
            return self._note(type(thing).__name__, repr(thing))
        if id(thing) in self._seen:
            return self._note("again", str(self._seen[id(thing)]))
        self._seen[id(thing)] = len(self._seen)
        self._kept.append(thing)
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Unreadable("objects that are nested without an end")
        self._read(thing)
        self._depth -= 1

    def _read(self, thing: Any) -> None:
        if not _is_library(type(thing)):
            self._class(type(thing))
            self._attributes(thing)
        if isinstance(thing, PLAIN):  # of a class of the user's own
            plain: Any = next(kind for kind in PLAIN if isinstance(thing, kind))
            self._note(plain.__repr__(thing))
        elif isinstance(thing, np.ndarray | np.generic):
            self._array(np.asarray(thing))
        elif isinstance(thing, torch.Tensor):
            self._tensor(thing)
        elif isinstance(thing, dict | types.MappingProxyType):
            self._mapping(thing)
        elif isinstance(thing, list | tuple | deque):
            self._note(type(thing).__name__, str(len(thing)))
            for each in thing:
                self.read(each)
        elif isinstance(thing, set | frozenset):
            self._unordered(thing)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        else:
            self._object(thing)

    def _object(self, thing: Any) -> None:
        if isinstance(thing, types.MethodType):
            self._several("method", thing.__func__, thing.__self__)
        elif isinstance(thing, partial):
            self._several("partial", thing.func, thing.args, thing.keywords)
        elif isinstance(thing, staticmethod | classmethod):
            self._several(type(thing).__name__, thing.__func__)
        elif isinstance(thing, property):
            self._several("property", thing.fget, thing.fset)
        elif isinstance(thing, functools.cached_property):
            self._several("property", thing.func)
        elif isinstance(thing, types.ModuleType):
            self._note("module", thing.__name__)
            self._modules.setdefault(thing.__name__, thing)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(
            thing, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
        ):
            self._note("builtin", _name(thing))
            owner = getattr(thing, "__self__", None)
            if owner is not None and not isinstance(owner, types.ModuleType):
                self.read(owner)
        elif (
            isinstance(thing, np.ufunc)
            and getattr(np, name := str(getattr(thing, "__name__", "")), None) is thing
        ):
            self._note("ufunc", name)
        elif isinstance(thing, nn.Module):
            self._module(thing)
        else:
            self._instance(thing)

    def _note(self, *texts: str) -> None:
        for text in texts:
            data = text.encode()
            self.digest.update(len(data).to_bytes(8) + data)

    def _several(self, kind: str, *parts: Any) -> None:
        self._note(kind)
        for part in parts:
            self.read(part)

    def _tensor(self, tensor: torch.Tensor) -> None:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise _Unreadable("a tensor that is sparse, quantized or without values")
        self._note("tensor", str(tensor.dtype), str(tuple(tensor.shape)))
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        self.digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)

    def _array(self, array: np.ndarray) -> None:
        self._note("array", array.dtype.str, str(array.shape))
        if array.dtype.hasobject:
            self.read(array.tolist())
        else:
            self.digest.update(np.ascontiguousarray(array).data)

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self._note("mapping", str(len(mapping)))
        for key, value in mapping.items():
            self.read(key)
            self.read(value)

    def _unordered(self, things: set[Any] | frozenset[Any]) -> None:
        if not all(isinstance(each, PLAIN) for each in things):
            raise _Unreadable("a set of objects")
        self._note("set", *sorted(f"{type(each).__name__} {each!r}" for each in things))

    def _code(self, code: types.CodeType) -> None:
        self._note("code", " ".join(code.co_names), " ".join(code.co_freevars), str(code.co_flags))
        self.digest.update(code.co_code)
        self.read(code.co_consts)

    def _function(self, function: types.FunctionType) -> None:
        """Code, and what it reaches; of a library's function its name, and what it closes over."""
        self._note("function", _name(function))
        self._several("defaults", function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.read(cell.cell_contents)
            except ValueError:  # not filled yet
                self._note("empty")
        if not _in_library(function.__module__, function.__code__.co_filename):
            self.read(function.__code__)
            self._globals(function)

    def _globals(self, function: types.FunctionType) -> None:
        """The globals that a function's code names, and the modules that it imports."""
        known = function.__globals__
        self._entries |= dict.fromkeys(_names(function.__code__, ATTRIBUTE))
        for name in _names(function.__code__, GLOBAL):
            if name in known:
                self._several(name, known[name])
        for name in _imports(function.__code__):
            if (module := _imported(name, known.get("__package__"))) is not None:
                self.read(module)

    def _class(self, kind: type) -> None:
        self._note("class", _name(kind))
        for each in kind.__mro__:
            if _is_library(each):
                continue
            for name, value in vars(each).items():
                if name not in (
                    "__dict__",
                    "__weakref__",
                    "__module__",
                    "__doc__",
                    "__firstlineno__",
                    "__static_attributes__",
                    "__slots__",
                ) and not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
                    self._several(name, value)

    def _attributes(self, thing: Any) -> None:
        """What an object of a class of the user's own holds, beside what a class of Python's keeps for it."""
        if isinstance(thing, type | nn.Module):
            return
        if hasattr(thing, "__dict__"):  # without what is only kept so as not to be computed twice
            kept = {name for name in vars(thing) if _is_cached(getattr(type(thing), name, None))}
            self.read({name: value for name, value in vars(thing).items() if name not in kept})
        for each in type(thing).__mro__:
            for name, value in vars(each).items():
                if isinstance(value, types.MemberDescriptorType) and not _is_library(each):
                    with suppress(AttributeError):  # not set
                        self._several(name, value.__get__(thing))

    def _module(self, module: nn.Module) -> None:
        """A network: classes, weights, and every setting that is no weight."""
        self._note("network")
        for name, value in sorted(module.state_dict().items()):
            self._several(name, value)
        for name, part in module.named_modules(remove_duplicate=False):
            self._several(name, type(part))
            self.read({key: value for key, value in vars(part).items() if key not in OF_MODULES})
        for name, value in sorted(module.named_buffers()):  # also those that are never saved
            self._several(name, value)

    def _instance(self, thing: Any) -> None:
        """Any other object: what would be kept of it if it were saved; one of a class of the user's own is read already."""
        if not _is_library(type(thing)) and all(
            each is object or each.__flags__ & HEAP_TYPE for each in type(thing).__mro__
        ):
            return
        self._class(type(thing))
        wrapped = getattr(thing, "__wrapped__", None)
        if wrapped is not None:  # a cache around a function
            self._several("wrapped", wrapped)
        try:
            state = thing.__reduce_ex__(4)
        except Exception as error:  # whatever a foreign class trips over
            raise _Unreadable(f"a {type(thing).__module__}.{type(thing).__qualname__}") from error
        if isinstance(state, str):
            if isinstance(thing, np.ufunc) and "vectorized" in state:
                raise _Unreadable("a function that numpy.frompyfunc made")
            return self._note("name", state)
        rebuild, arguments, *rest = state
        self._several(
            "state", rebuild, arguments, *(list(part) if _is_iterator(part) else part for part in rest)
        )


def _is_iterator(part: Any) -> bool:
    return hasattr(part, "__next__")


def _names(code: types.CodeType, by: tuple[str, ...]) -> list[str]:
    """The names that code, and the code inside it, looks up by these instructions."""
    own = (each.argval for each in dis.get_instructions(code) if each.opname in by)
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return list(dict.fromkeys([*own, *(name for each in inner for name in _names(each, by))]))


def _imports(code: types.CodeType) -> Iterator[str]:
    """The modules that code, and the code inside it, imports; relative ones with their dots."""
    before: list[Any] = []
    name = ""
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            level = before[-2] if len(before) > 1 and type(before[-2]) is int else 0
            name = "." * level + each.argval
            yield name
        elif each.opname == "IMPORT_FROM":
            yield f"{name}{'' if name.endswith('.') else '.'}{each.argval}"
        before = [*before[-1:], each.argval]
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _imports(const)


def _imported(name: str, package: str | None) -> types.ModuleType | None:
    """The module of this name, imported where it is the user's own; None where there is none, or code has not reached it."""
    try:
        name = importlib.util.resolve_name(name, package)
        if name in sys.modules:
            return sys.modules[name]
        found = importlib.util.find_spec(name)
        if found is None or _in_library(name, found.origin):
            return None
        return importlib.import_module(name)
    except Exception:  # nothing of that name, or whatever a module of the user's trips over: calling the function will say so
        return None


def _is_cached(attribute: Any) -> bool:
    return isinstance(attribute, functools.cached_property)


def _is_own_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and not _in_library(
        value.__module__, value.__code__.co_filename
    )


def _is_library(thing: types.ModuleType | type) -> bool:
    """Whether a module or a class is of Python, of an installed package, or ours."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
    if name == "__main__":  # the user's, also where a notebook's or a test runner's own file was started
        return False
    return _in_library(name, getattr(sys.modules.get(name), "__file__", None))


def _in_library(module: str | None, file: str | None) -> bool:
    if module and module.partition(".")[0] in OURS:
        return True
    if file is None:
        return module != "__main__"
    path = Path(file)
    if file.startswith("<frozen"):
        return True
    return path.is_absolute() and any(path.resolve().is_relative_to(each) for each in LIBRARIES)
