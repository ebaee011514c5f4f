"""All that is wrong with a job and can be known before any query: found together, raised together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

import certify
import surrogates
from certdef.config.checks import failures
from certdef.config.job import ConfigError, RunConfig
from certdef.config.objects import is_object
from certdef.data.lists import Lists
from certdef.data.sets import Splits
from certdef.stages.baseline import open_baseline
from certdef.stages.ledger import check_ledger
from certdef.stages.membership import check_lists
from certdef.stages.own_target import open_own_target
from certdef.stages.parts import check_surrogate
from certdef.tracking.mlflow import check_store, connect, tracking_uri
from surrogates.targets.uris import protocol_of

T = TypeVar("T")

# Errors for a user, one line each; anything else is a bug and keeps its traceback.
EXPECTED = (ConfigError, certify.CertifyError, surrogates.SurrogateError)


class Check(NamedTuple):
    """Refuses what a job can't do: a function of its configuration and its images, and the parts that it reads.

    It is left out where one of these parts is wrong already, because what it would say then follows from that.
    """

    function: Callable[[RunConfig, Any], Any]
    reads: tuple[str, ...]


class Problems:
    """Errors that are collected in the place of being raised one after the other.

    Args:
        found: Lines that are known already, by the part of the configuration that they are of.
    """

    def __init__(self, found: dict[str, list[str]]) -> None:
        self.errors: list[ValueError] = []
        self.wrong = set(found)
        if found:
            self.errors.append(ConfigError("\n".join(line for lines in found.values() for line in lines)))

    def attempt(
        self,
        function: Callable[..., T],
        *arguments: Any,
        reads: Collection[str] = (),
        part: str | None = None,
    ) -> T | None:
        """What a function returns; None where it fails, or reads a part that is wrong already.

        Args:
            reads: The parts of the configuration that it reads.
            part: The part that is wrong where it fails.
        """
        if not self.wrong.isdisjoint(reads):
            self.wrong |= {part} if part else set()
            return None
        try:
            return function(*arguments)
        except EXPECTED as error:
            self.errors.append(error)
            self.wrong |= {part} if part else set()
            return None

    @property
    def lines(self) -> list[str]:
        """Every error once, a line each."""
        every = (line for error in self.errors for line in str(error).splitlines())
        return list(dict.fromkeys(every))

    def raise_all(self) -> None:
        """Raise what was found: a single error as it is, several as one with a line each."""
        if self.errors and len(self.lines) == len(str(self.errors[0]).splitlines()):
            raise self.errors[0]
        if self.errors:
            raise ConfigError("\n".join(self.lines))


@dataclass(frozen=True)
class Inspected:
    """What an inspection has at hand afterwards; None where it is wrong, or the job has none.

    Attributes:
        problems: All that is wrong.
        device: Where networks run.
        data: The images.
        target: The user's own target, opened and not queried.
        lists: Its lists for membership inference.
    """

    problems: Problems
    device: torch.device | None
    data: Splits | None
    target: surrogates.Target | None
    lists: Lists | None = None


def inspect(
    config: RunConfig,
    checks: Sequence[Check],
    load: Callable[[RunConfig], Splits],
    *,
    own_target: bool = True,
    known: dict[str, list[str]] | None = None,
) -> Inspected:
    """Look at all of a job that can be looked at for free: values, images, target, ledger, tracking store.

    Args:
        config: The job; it may hold values that cannot be used.
        checks: Those of its kind.
        load: Loads its images.
        own_target: Whether its own target is opened, where it has one.
        known: Lines on what is wrong already, by section.
    """
    found = failures(config)
    for part, lines in (known or {}).items():
        found[part] = [*lines, *found.get(part, [])]
    problems = Problems(found)
    device = problems.attempt(choose_device, config.device, reads=["device"])
    data = problems.attempt(load, config, reads=["data", "seed"], part="data")
    for check in checks:
        with torch.random.fork_rng():
            problems.attempt(check.function, config, data, reads=check.reads)
    problems.attempt(check_store, tracking_uri(config), reads=["tracking"], part="store")
    target = lists = None
    if own_target and config.target.uri:
        target, data = _own_target(problems, config, data)
        if target is not None and data is not None:
            reads = ("membership", "data", "ledger", "purifier", "surrogate")
            lists = problems.attempt(check_lists, config, data, target, reads=reads)
    return Inspected(problems, device, data, target, lists)


def _own_target(
    problems: Problems, config: RunConfig, data: Splits | None
) -> tuple[surrogates.Target | None, Splits | None]:
    """The user's own target, and the images in its classes; also whether it may pay from the ledger that is there."""
    if _is_of_mlflow(config):
        problems.attempt(connect, config, reads=["tracking", "store"], part="store")
    reads = ["target", "store"] if _is_of_mlflow(config) else ["target"]
    target, matched = problems.attempt(open_own_target, config, data, reads=reads) or (None, None)
    if target is not None and matched is not None:
        problems.attempt(open_baseline, config, matched.image_shape, target, reads=["certify"])
        problems.attempt(
            check_surrogate, config, matched.image_shape, target.num_classes, reads=["surrogate"]
        )
    problems.attempt(check_ledger, config.ledger_path, target.identity if target is not None else None)
    return target, matched or data


def _is_of_mlflow(config: RunConfig) -> bool:
    """Whether the target is looked up in a tracking store."""
    assert config.target.uri is not None
    if is_object(config.target.uri):
        return False
    try:
        return (config.target.protocol or protocol_of(config.target.uri)) == "mlflow"
    except surrogates.TargetError:
        return False  # opening it says why


def choose_device(name: str) -> torch.device:
    """auto takes the GPU where there is one; ConfigError if cuda is configured and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', but torch sees no CUDA device: use --device cpu, or see certdef doctor"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
