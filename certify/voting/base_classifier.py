"""A classifier is foreign code: what it holds, how it is called, and whether it labels each image by itself."""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch

from certify.errors import CertifyError

DEPTH, MOST = 5, 2000  # how far the objects that a function holds are followed
ROUNDED = 2  # of the labels that are compared, so many may differ: ties that rounding breaks
CLOSE = (
    0.05  # scores this close, as a share of their spread, differ by rounding (half precision, other kernels)
)


def held_by(classify: Any) -> list[Any]:
    """What a callable reaches by closures, the globals it names, defaults, partials, attributes and containers.

    Modules and opened targets (with ``query`` and ``identity``) are in the list and are not followed further.
    """
    found: list[Any] = []
    seen: set[int] = set()
    level = [classify]
    for _ in range(DEPTH):
        level = [each for each in level if id(each) not in seen][:MOST]
        seen |= {id(each) for each in level}
        found += level
        level = [part for each in level if not _is_end(each) for part in _parts(each)]
    return found


def held_modules(classify: Any) -> list[torch.nn.Module]:
    """A module and its submodules; of another callable, those of the modules that it holds."""
    tops = [each for each in held_by(classify) if isinstance(each, torch.nn.Module)]
    return list(dict.fromkeys(part for top in tops for part in top.modules()))


def holds_target(classify: Any) -> bool:
    """Whether a callable asks an opened target, whose answers may be paid for."""
    return any(_is_target(each) for each in held_by(classify))


@contextmanager
def eval_mode(classify: Any) -> Iterator[None]:
    """Put a module, or the modules that a function holds, in eval mode, and each back as it was."""
    modules = held_modules(classify)
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def input_dtype(classify: Any) -> torch.dtype:
    """The dtype of a module's first floating-point parameter, to which its input is cast; else float32."""
    if not isinstance(classify, torch.nn.Module):
        return torch.float32
    return next((each.dtype for each in classify.parameters() if each.is_floating_point()), torch.float32)


def check_alone(answer: Callable[[torch.Tensor], torch.Tensor], noisy: torch.Tensor) -> None:
    """Ask noisy images in one batch, and in two halves beside black images: 3 answers an image, or 4.

    A classifier whose answer follows the other images of the batch (batch normalization in training mode) is no
    function of the noisy image, so its votes prove nothing. One that draws afresh for every query is.

    Args:
        answer: Noisy images (B, C, H, W) -> scores (B, K) or labels (B,).
        noisy: (B, C, H, W), B even.

    Raises:
        CertifyError: Answers follow the batch.
    """
    together = answer(noisy)
    if together.shape[:1] != noisy.shape[:1]:
        return  # the vote refuses the shape
    beside = torch.cat(
        [answer(torch.cat([half, torch.zeros_like(half)]))[: len(half)] for half in noisy.chunk(2)]
    )
    differ = _differ(together, beside)
    if differ > ROUNDED and not _differ(together, answer(noisy)):
        raise CertifyError(
            f"the classifier answers {differ} of {len(noisy)} noisy images differently beside other images: put its "
            "modules in eval mode, or let it treat each image by itself (recheck=0 leaves this check out)"
        )


def _differ(answers: torch.Tensor, others: torch.Tensor) -> int:
    """How many rows differ: labels, or scores by more than rounding."""
    if answers.shape != others.shape or not answers.numel():
        return 0  # the vote refuses the shape
    if answers.is_floating_point():
        apart = (answers - others).abs() > CLOSE * answers.std()
    else:
        apart = answers != others
    return int(apart.reshape(len(answers), -1).any(1).sum())


def _is_target(thing: Any) -> bool:
    return callable(getattr(type(thing), "query", None)) and hasattr(thing, "identity")


def _is_end(thing: Any) -> bool:
    leaves = (torch.nn.Module, torch.Tensor, types.ModuleType, type, str, bytes)
    return isinstance(thing, leaves) or _is_target(thing)


def _parts(thing: Any) -> list[Any]:
    """What an object holds directly."""
    if isinstance(thing, types.FunctionType):
        return _parts_of_function(thing)
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, dict):  # other mappings may load what they hold
        return list(islice(thing.values(), MOST))
    if isinstance(thing, list | tuple | set | frozenset):
        return list(islice(thing, MOST))
    called = getattr(type(thing), "__call__", None)  # noqa: B004  the function behind it, not whether there is one
    return [*getattr(thing, "__dict__", {}).values(), *([called] if called else [])]


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return parts + [
        function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__
    ]


def _names(code: types.CodeType) -> set[str]:
    """The names that a function uses, and those of the functions inside it."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*(_names(each) for each in inner))
