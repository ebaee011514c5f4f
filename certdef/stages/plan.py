"""The plan of a job: what goes in, what it will take and can reach, and what is likely wrong. Typed, and plain as JSON."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

import surrogates
from certdef.config.candidates import candidate_laws
from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.stages.conditions import choice_queries, target_draws
from certdef.stages.durations import Durations
from certdef.stages.estimates import Reach, expected_queries, foretell, reaches
from certdef.stages.job import Shelf
from certdef.stages.ledger import open_ledger
from certdef.stages.own_target import reopened
from certdef.stages.preflight import Look, Sample, look
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import tracking_uri
from certdef.tracking.results import Share
from surrogates.frames import Framed
from surrogates.ledger.reader import seconds_per_query

if TYPE_CHECKING:
    import pandas

LOG = logging.getLogger("certdef")  # the first lines of a job; the command line shows them
LONG = 3_600  # seconds from which on a part of the job is named
FEW = 2  # answers a class, fewer than which teach a surrogate next to nothing
RESERVE = 0.8  # of the free memory that a batch may take


@dataclass(frozen=True)
class Images:
    """The images of a job."""

    name: str
    shape: tuple[int, int, int]
    heldout: int
    pool: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Taken:
    """What the user's own target takes and answers."""

    identity: str
    takes: str
    answers: str
    classes: int


@dataclass(frozen=True)
class Purpose:
    """Queries of one purpose: how many the job takes at most, its budget, and how many are answered already."""

    expected: int
    budget: int
    answered: int


@dataclass(frozen=True)
class Choosing:
    """How the noise of the headline will be chosen: labels of the candidates, held-out images, and queries at most."""

    candidates: tuple[str, ...]
    images: int
    queries: int


@dataclass(frozen=True)
class Plan(Framed):
    """What is known of a job before it starts.

    Attributes:
        job: Its name.
        images: Its images.
        target: The user's own target; None where one is trained here.
        look: What the first images show; None where nothing was queried.
        queries: By purpose.
        price: USD per 1,000 queries, where it is given.
        seconds: By part of the job.
        choosing: The choice of the noise, whose queries are part of those of certification; None without one.
        alpha: Probability that a certificate is wrong.
        reach: The largest radius under each law.
        radii: Those of the tables.
        foretold: Certified shares at these radii if the target votes as its surrogate does, by its denoiser.
        warnings: One line each.
    """

    job: str
    images: Images
    target: Taken | None = None
    look: Look | None = None
    queries: dict[str, Purpose] = dataclasses.field(default_factory=dict)
    price: float | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    choosing: Choosing | None = None
    alpha: float = 0.0
    reach: tuple[Reach, ...] = ()
    radii: tuple[float, ...] = ()
    foretold: dict[str, tuple[Share, ...]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Plan({self.job!r}, at most {self.total.expected:,} queries, {self.total.answered:,} of them answered, "
            f"{len(self.warnings)} warnings)"
        )

    def to_frame(self) -> pandas.DataFrame:
        """A row a purpose: queries at most, those that are answered already, and the budget."""
        import pandas

        rows = [{"purpose": purpose} | vars(row) for purpose, row in self.queries.items()]
        return pandas.DataFrame(rows, columns=["purpose", "expected", "answered", "budget"])

    def to_json(self) -> dict[str, Any]:
        """As JSON has it; shares are [value, lower, upper]."""
        return dataclasses.asdict(self)

    @property
    def total(self) -> Purpose:
        """All queries but those of preflight's own budget."""
        rows = [row for purpose, row in self.queries.items() if purpose != "preflight"]
        return Purpose(
            *(sum(getattr(row, name) for row in rows) for name in ("expected", "budget", "answered"))
        )


def look_at(
    config: RunConfig, data: Splits, ledger: surrogates.QueryLedger, target: surrogates.Target
) -> Look | None:
    """Query the first held-out images of the user's own target, from the budget ledger.preflight."""
    labels = data.heldout_labels if data.labeled else None
    sample = Sample(data.heldout_images, labels, tuple(map(data.class_name, range(target.num_classes))))
    return look(ledger, target, lambda **changes: reopened(config, data, changes), sample)


def make_plan(
    config: RunConfig,
    data: Splits,
    device: torch.device,
    target: surrogates.Target | None,
    ledger: surrogates.QueryLedger | None,
    *,
    seen: Look | None = None,
    foretold: dict[str, tuple[Share, ...]] | None = None,
    verb: str = "run",
    price: float | None = None,
) -> Plan:
    """What a verb of the job will take, measured and counted; nothing is queried.

    Args:
        config: The job, without problems.
        data: Its images.
        device: Where networks run.
        target: The user's own target, opened.
        ledger: The job's ledger, where there is one.
        seen: What a look at the target has shown.
        foretold: The certified shares that a surrogate foretells, where there is one.
        verb: run, or a part of it.
        price: USD per 1,000 queries.
    """
    expected = expected_queries(config, data, target, verb)
    bill = None if ledger is None else ledger.bill()
    queries = {
        purpose: Purpose(
            count, getattr(config.ledger, purpose), 0 if bill is None else bill[purpose].answered
        )
        for purpose, count in expected.items()
    }
    certifies = "certification" in expected and verb != "robustness"  # an average case has no radius
    reach = tuple(reaches(config)) if certifies else ()
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}
    if verb != "robustness":
        LOG.info("time        a few images go through networks of the job's sizes")
        seconds, memory = _measured(config, data, device, target, ledger, expected)
    classes = len(data.classes) if target is None else target.num_classes
    warnings = [
        *_radii(config, reach),
        *_pool(config, data, expected, classes),
        *_long(seconds),
        *_memory(memory),
    ]
    return Plan(
        job=config.name,
        images=Images(
            data.name, data.image_shape, len(data.heldout_images), len(data.pool), tuple(data.classes)
        ),
        target=None if target is None else _taken(target, data),
        look=seen,
        queries=queries,
        price=price,
        seconds=seconds,
        choosing=_choosing(config) if certifies else None,
        alpha=config.certify.alpha,
        reach=reach,
        radii=config.certify.radii,
        foretold=foretold or {},
        warnings=tuple(warnings),
    )


def plan_of_own(
    config: RunConfig,
    data: Splits,
    device: torch.device,
    target: surrogates.Target,
    *,
    ask: bool,
    price: float | None,
) -> Plan:
    """The plan for the user's own target, with a look at it.

    Args:
        config: The job, without problems.
        data: Its images.
        device: Where networks run.
        target: The target, opened.
        ask: Whether it is queried; else the ledger says what it has.
        price: USD per 1,000 queries.
    """
    path = config.ledger_path
    if not ask and not path.is_file():
        return make_plan(config, data, device, target, None, price=price)
    asking = config if ask else replace(config, ledger=replace(config.ledger, preflight=0))
    with open_ledger(asking, path) as ledger:
        seen = look_at(asking, data, ledger, target)
        shelf = Shelf(
            config=config,
            data=data,
            device=device,
            legacy=Legacy(config, device.type, tracking_uri(config)),
        )
        shelf.legacy.target = target.identity
        foretold = {} if config.ducd.enabled else foretell(shelf, target, target_draws(config))
        return make_plan(config, data, device, target, ledger, seen=seen, foretold=foretold, price=price)


def _measured(
    config: RunConfig,
    data: Splits,
    device: torch.device,
    target: surrogates.Target | None,
    ledger: surrogates.QueryLedger | None,
    expected: dict[str, int],
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by part of the job, and bytes by the option that decides them; nothing of the jobs beside the main one."""
    if config.udc.enabled or config.ducd.enabled:
        return {}, {}
    query = None if ledger is None or target is None else seconds_per_query(ledger.path)
    classes = len(data.classes) if target is None else target.num_classes
    with torch.random.fork_rng():
        durations = Durations(config, data, classes, device, query)
        return durations.of(expected), durations.memory()


def _choosing(config: RunConfig) -> Choosing | None:
    laws = () if config.ducd.enabled else candidate_laws(config.certify)
    names = tuple(law.label for law in laws)
    return Choosing(names, config.certify.choice_images, choice_queries(config)) if laws else None


def _taken(target: surrogates.Target, data: Splits) -> Taken:
    return Taken(target.identity, in_words(target, data.image_shape), target.output_kind, target.num_classes)


def in_words(target: surrogates.Target, shape: tuple[int, int, int]) -> str:
    """The form in which a target gets images of a shape (C, H, W): number type, sides, range, normalization."""
    pixels = target.pixels
    channels, height, width = pixels.model_shape(shape)
    rows = channels * height * width
    sides = {
        "chw": f"(N, {channels}, {height}, {width})",
        "hwc": f"(N, {height}, {width}, {channels})",
        "flat": f"(N, {rows})",
        "flat_hwc": f"(N, {rows}), channels last",
    }
    layout = pixels.layout
    own = f"(N, {', '.join(map(str, layout))})" if isinstance(layout, tuple) else sides[layout]
    words = [f"{pixels.dtype} {own}"]
    if pixels.resize is not None:
        words.append(f"resized from {shape[1]}x{shape[2]}")
    if pixels.color is not None:
        words.append(pixels.color)
    for name in ("mean", "std"):
        if getattr(pixels, name) is not None:
            words.append(f"{name} {', '.join(f'{value:g}' for value in getattr(pixels, name))}")
    normalized = pixels.mean is not None or pixels.std is not None
    if not normalized or pixels.ends != (0.0, 1.0):
        words.append(
            f"{'then 0 to 1 becomes' if normalized else 'pixels from'} {pixels.ends[0]:g} to {pixels.ends[1]:g}"
        )
    if pixels.quantize is not None:
        words.append(f"rounded to {pixels.quantize} bits")
    return ", ".join(words)


def _radii(config: RunConfig, reach: tuple[Reach, ...]) -> list[str]:
    """Radii that no vote can prove under the first law, whose rows are the headline, or under the widest candidate."""
    if not reach:
        return []
    first = max(reach[: max(1, len(candidate_laws(config.certify)))], key=lambda each: each.radius)
    beyond = [f"{radius:g}" for radius in config.certify.radii if radius > first.radius]
    if not beyond:
        return []
    return [
        f"certify.radii: {', '.join(beyond)} can't be proven under {first.law} noise by {first.n:,} votes an image, which "
        f"reach {first.radius:.3f} at most: raise ledger.certification or certify.n, or take more noise"
    ]


def _pool(config: RunConfig, data: Splits, expected: dict[str, int], classes: int) -> list[str]:
    """What the pool is too small for: the budget, and a surrogate that is like the target."""
    if not expected.get("training"):
        return []
    lines, budget, pool = [], config.ledger.training, len(data.pool)
    if budget > pool:
        lines.append(f"ledger.training is {budget:,}, and the pool has {pool:,} images: no more are queried")
    if min(budget, pool) < FEW * classes:
        lines.append(
            f"{min(budget, pool):,} answers for {classes:,} classes: a surrogate of so few will hardly agree with the "
            "target; give more images, or certify the target alone (--surrogate.model none)"
        )
    return lines


def _long(seconds: dict[str, float]) -> list[str]:
    mends = {
        "the surrogate's votes": "lower certify.images or certify.n",
        "the target's answers": "lower certify.target_images, certify.n or the budgets, or raise target.concurrency or target.batch_size",
        "attack": "lower attack.images or attack.steps, or take another purifier",
    }
    lines = []
    for part, value in seconds.items():
        if value > LONG:
            mend = mends.get(part, "take a larger nim.patch_size, fewer epochs, or another purifier")
            lines.append(f"{part} will take about {value / 3600:.1f} hours: {mend}")
    return lines


def _memory(needed: dict[str, int]) -> list[str]:
    free = psutil.virtual_memory().available
    return [
        f"{option} takes at least {need / 2**30:.1f} GiB for a batch, and {free / 2**30:.1f} are free: lower it"
        for option, need in needed.items()
        if need > RESERVE * free
    ]
