"""The plan of a job in words: at most a screen in the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

import surrogates
from certdef.config.job import RunConfig, without_password
from certdef.report.formats import with_interval
from certdef.report.words import behind_in_words
from certdef.stages.inspection import EXPECTED
from certdef.stages.job import Job
from certdef.stages.own_target import watch
from certdef.stages.plan import Images, Plan, Purpose, look_at, make_plan
from certdef.stages.preflight import Look
from certdef.stages.target import target_stage

LOG = logging.getLogger("certdef")  # the first lines of a job; the command line shows them
WIDTH = 12  # of what a line is about
MOST_CLASSES = 4  # that are listed
MOST_TRIED = 6
COLUMNS = ("purpose", "at most", "answered", "budget")


def show_first_lines(job: Job, target: surrogates.Target, verb: str, *, planned: bool = True) -> None:
    """Before anything else is paid: a look at the user's own target, and what the job will take; both are logged.

    Not for a report: it pays for nothing, also where the job that it is to show was never done.
    """
    watch(job.config, job.data, job.ledger, target)
    if job.prepared or job.finished or target_stage(job).done:
        return
    seen = look_at(job.config, job.data, job.ledger, target)
    if planned and LOG.isEnabledFor(logging.INFO):
        made = make_plan(
            job.config, job.data, seen=seen, verb=verb, device=job.device, target=target, ledger=job.ledger
        )
        LOG.info(render(made))
    elif seen is not None:
        for line in look_warnings(seen):
            LOG.warning(line)


def render(plan: Plan) -> str:
    """The plan, a line or a table for each part."""
    lines = [f"job         {plan.job}", f"images      {_images(plan.images)}"]
    if plan.target:
        taken = plan.target
        lines += [f"target      {without_password(taken.identity)}", f"            takes {taken.takes}"]
        lines.append(f"            answers {taken.answers} of {taken.classes} classes")
    if plan.look:
        lines.append(f"accuracy    {accuracy(plan.look)}")
    if plan.queries:
        lines += [f"{'queries' if not at else '':<11} {row}" for at, row in enumerate(_table(plan))]
    if plan.price is not None:
        lines.append(
            f"cost        {plan.total.expected * plan.price / 1000:,.2f} USD at most, {plan.price:g} USD per 1,000"
        )
    if plan.choosing:
        choosing = plan.choosing
        lines.append(
            f"noise       chosen of {', '.join(choosing.candidates)} on {choosing.images} held-out images that are not certified: at most "
            f"{choosing.queries:,} of the queries of certification"
        )
    if plan.seconds:
        parts = ", ".join(f"{part} {duration(value)}" for part, value in plan.seconds.items())
        lines.append(f"time        about {duration(sum(plan.seconds.values()))}: {parts}")
    if plan.reach:
        reached = ", ".join(f"{each.radius:.3f} under {each.law}" for each in plan.reach)
        votes = f"n={plan.reach[0].n:,}, alpha {plan.alpha:g}"
        lines.append(f"radius      at most {reached} noise ({votes})")
    for behind, shares in plan.foretold.items():
        title = behind_in_words(None if behind == "none" else behind)
        each = "  ".join(f"r={r:g} {with_interval(s)}" for r, s in zip(plan.radii, shares, strict=True))
        lines.append(f"foretold    {each}  ({title}, if the target votes as its surrogate does)")
    return "\n".join([*lines, *(f"warning     {line}" for line in warnings(plan))])


def show(
    make: Callable[..., Plan],
    config: RunConfig,
    price: float | None,
    *,
    as_json: bool,
    unread: dict[str, list[str]] | None = None,
) -> int:
    """Print the plan of a job, or all that is wrong with it.

    Args:
        make: certdef.plan.
        config: The job, perhaps with values that cannot be used.
        price: USD per 1,000 queries.
        as_json: Print {"plan": ..., "warnings": [...]}, or {"errors": [...]}.
        unread: Lines on options that could not be read, by section.

    Returns:
        0, or 2 where something is wrong.
    """
    try:
        made = make(config, price=price, known=unread)
    except EXPECTED as error:
        if not as_json:
            raise
        print(json.dumps({"errors": str(error).splitlines()}, indent=2))
        return 2
    if as_json:
        print(json.dumps({"plan": made.to_json(), "warnings": warnings(made)}, indent=2))
    else:
        print(render(made))
    return 0


def warnings(plan: Plan) -> list[str]:
    """Every warning of a plan, those of the look first."""
    return [*(look_warnings(plan.look) if plan.look else []), *plan.warnings]


def accuracy(look: Look) -> str:
    """What the first images show."""
    if look.labeled:
        return f"{with_interval(look.share)} of {look.images} held-out images"
    return (
        f"not known without labels: {with_interval(look.share)} of {look.images} held-out images are answered as before "
        "after a mild blur, and not by one answer for most of them"
    )


def look_warnings(look: Look) -> list[str]:
    """What is likely wrong with a target of poor accuracy; nothing where it is good."""
    if not look.poor:
        return []
    kind = "accuracy" if look.labeled else "steadiness"
    what = f"{kind} {_share(round(look.share.value * look.images), look.images)} of {look.images}"
    if look.fault is not None:
        fault = look.fault
        better = f"{_share(fault.right, fault.images)} of {fault.images} in place of {_share(fault.instead, fault.images)}"
        return [f"{what}: likely {fault.words}: {fault.mend}: {better}"]
    more = f" and {len(look.tried) - MOST_TRIED} more" if len(look.tried) > MOST_TRIED else ""
    tried = f" ({', '.join(look.tried[:MOST_TRIED])}{more})" if look.tried else ""
    rest = "; ledger.preflight ended before all were tried" if look.cut else ""
    return [
        f"{what}: no other pixel format and no other order of labels is clearly better{tried}{rest}: look at the images and "
        "labels, or the target may be no better"
    ]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def _images(images: Images) -> str:
    names = images.classes
    listed = ", ".join(names[:MOST_CLASSES]) + (f" ... {names[-1]}" if len(names) > MOST_CLASSES else "")
    shape = "x".join(map(str, images.shape))
    return f"{images.name}: {images.heldout:,} held out, {images.pool:,} in the pool, {shape}; {len(names)} classes: {listed}"


def _table(plan: Plan) -> list[str]:
    """Queries by purpose, with their total."""
    rows: list[Sequence[str]] = [COLUMNS]
    rows += [_row(purpose, each) for purpose, each in plan.queries.items()]
    if len(plan.queries) > 1:
        rows.append(_row("total", plan.total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _row(name: str, purpose: Purpose) -> Sequence[str]:
    return (name, *(f"{value:,}" for value in (purpose.expected, purpose.answered, purpose.budget)))


def _share(right: int, images: int) -> str:
    return f"{100 * right / images:.0f}%"
