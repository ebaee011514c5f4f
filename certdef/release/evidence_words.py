"""Evidence as Markdown, for a repository or a ticket: GitHub's tables, and nothing that HTML or a link could hide in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from certdef.release.document import Absent, AtRadius, Attack, Evidence, Interval, Ledger, Membership, Run
from certdef.release.page import shown
from certdef.release.words import escaped, markdown_table
from certdef.report.formats import percent, radius_down


def as_markdown(document: Evidence) -> str:
    """The whole document but for single images, of groups those that the page shows."""
    chosen = shown(document)
    lines = [
        f"# Evidence: {escaped(chosen['title'])}",
        "",
        f"Written {document.made} by certdef {document.writer['certdef']}, schema `{document.schema}`.",
        "",
        f"**{escaped(chosen['lead'])}**",
        *_section("Model and data", _facts(document)),
        *_section("Certificates", certificates(document)),
        *_section("Clean accuracy", [f"- {clean(document)}"]),
        *_section("Subgroups", _subgroups(document, chosen)),
        *_section("Worst-case attack", _attack(document.attack)),
        *_section("Membership inference", _membership(document.membership)),
        *_section("Queries", _queries(document)),
        *_section(
            "What it does not prove",
            ["Nothing is proven\n", *(f"- {each}" for each in document.does_not_prove)],
        ),
        *_section("Limits", [f"{number}. {each}" for number, each in enumerate(document.limits, start=1)]),
        *_section("How to reproduce", _reproduce(document)),
        *_section("Requirements", _requirements(document)),
    ]
    return "\n".join([*lines, ""])


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def absent(part: Absent) -> str:
    """That something is not there, why, and how to have it."""
    return f"**{part.status}**: {part.why}. To have it: {part.how}"


def of(value: str | Absent) -> str:
    """A text, or that it is not there."""
    return absent(value) if isinstance(value, Absent) else f"`{value.replace('`', '')}`"


def share(value: Interval) -> str:
    """57.5% [51.0, 63.8]."""
    return f"{percent(value.value)} [{100 * value.lower:.1f}, {100 * value.upper:.1f}]"


def _facts(document: Evidence) -> Iterator[str]:
    model, data, run = document.model, document.data, document.run
    yield f"- Model: {of(model.name)}, the {model.role} of its job"
    yield f"- Version: {of(model.version)}"
    yield f"- Digest: {of(model.digest)}" + (f". {model.digest_of}" if isinstance(model.digest, str) else "")
    yield f"- Identity in the ledger: {of(model.identity)}"
    yield f"- Certified images: {data.images}, of {data.classes} classes; digest {of(data.digest)}"
    for name, said in (("Images were", data.prepared), ("Right means", data.right)):
        if said:
            yield f"- {name} {escaped(said)}"
    sets = "; ".join(f"{escaped(each.name)} (`{each.digest}`, {each.use})" for each in data.sets)
    yield f"- Data sets of the job: {sets or '**not known**: a run of MLflow names them, `certdef evidence RUN_ID`'}"
    if isinstance(run, Run):
        yield f"- Run: {escaped(run.name)}, job `{run.job}`, records `{run.records}`, begun {run.started}, store `{run.store}`"
    else:
        yield f"- Run: {absent(run)}"
    votes = ", ".join(f"{name} {version}" for name, version in document.headline.versions.items())
    yield f"- Software of the votes: {votes or '**not known**: these records do not say'}"
    yield f"- Software of this document: {', '.join(f'{name} {version}' for name, version in document.writer.items())}"


def certificates(document: Evidence) -> Iterator[str]:
    """The table of certificates, the headline first."""
    yield "Certified accuracy: images that are right with a certified radius of at least r, in % with the exact 95% interval."
    yield ""
    radii = [f"r = {row.radius:g}" for row in document.headline.radii]
    header = [
        "subject",
        "norm",
        "denoiser",
        *radii,
        "abstained",
        "median r",
        "images",
        "noise, votes, alpha, claim",
    ]
    rows = []
    for each in document.certificates:
        how = [
            each.law,
            f"n0 {each.n0}, n {each.n}",
            f"alpha {each.alpha}",
            each.method or "",
            f"seed {each.seed}",
            each.claim,
        ]
        reach = float("inf") if each.reach is None else each.reach
        cells = [share(row.accuracy) if row.radius <= reach else "n too small" for row in each.radii]
        rows.append(
            [
                f"{each.subject or 'not known'}{' (headline)' if each.headline else ''}",
                (each.norm or "not known").upper(),
                each.denoiser or "not known",
                *cells,
                share(each.abstained),
                radius_down(each.median_radius),
                str(each.images),
                ", ".join(filter(None, how)),
            ]
        )
    yield from markdown_table(header, rows)


def clean(document: Evidence) -> str:
    """The bare target's accuracy."""
    found = document.clean_accuracy
    if isinstance(found, Absent):
        return absent(found)
    images = "" if found.images is None else f" of {found.images:,} images"
    return f"{share(found.accuracy)}{images}, bare target; nothing is proven of it"


def _subgroups(document: Evidence, chosen: dict[str, Any]) -> Iterator[str]:
    found = document.subgroups
    if isinstance(found, Absent):
        yield f"- {absent(found)}"
        return
    if isinstance(found.columns, Absent):
        yield f"- Groups of your own: {absent(found.columns)}"
        yield ""
    yield chosen["groups_caption"]
    yield ""
    radii = [f"r = {row.radius:g}" for row in document.headline.radii]
    rows = [
        [f"{each.column} {each.name}", str(each.images), *_cells(each.radii)] for each in chosen["groups"]
    ]
    yield from markdown_table(["group", "images", *radii], rows)


def _cells(radii: Sequence[AtRadius]) -> list[str]:
    return [share(row.accuracy) for row in radii]


def _attack(found: Attack | Absent) -> Iterator[str]:
    if isinstance(found, Absent):
        yield f"- {absent(found)}"
        return
    yield f"What survives every attack that submits an image once, image by image, L-infinity {found.eps:g}. A measurement, no proof."
    yield ""
    header = [
        "subject",
        "purifier",
        "worst case",
        "strongest alone",
        "clean, as often",
        "attacks",
        "images",
        "queries",
    ]
    rows = [
        [
            each.subject,
            f"{each.system}{' (the job)' if each.own else ''}",
            share(each.accuracy),
            f"{each.strongest}: {share(each.alone)}" if each.alone else each.strongest,
            share(each.control) if each.control else "no noise is drawn",
            str(each.attacks),
            str(each.images),
            f"{each.queries:,}",
        ]
        for each in found.systems
    ]
    yield from markdown_table(header, rows)
    for each in found.systems:
        yield from (f"\n- {each.subject}, {each.system}: {escaped(alarm)}" for alarm in each.alarms)


def _membership(found: Membership | Absent) -> Iterator[str]:
    if isinstance(found, Absent):
        yield f"- {absent(found)}"
        return
    yield f"{found.members:,} members, {found.nonmembers:,} others; an AUC of 0.5 is a coin."
    yield ""
    header = [
        "subject",
        "attack",
        "AUC",
        *(f"found at {100 * rate.fpr:g}% false" for rate in found.attacks[0].rates),
    ]
    rows = [
        [
            each.subject,
            each.attack,
            area(each.auc),
            *(share(rate.found) if rate.possible else "too few non-members" for rate in each.rates),
        ]
        for each in found.attacks
    ]
    yield from markdown_table(header, rows)
    yield ""
    lists = found.lists
    if isinstance(lists, Absent):
        yield f"- Lists alike? {absent(lists)}"
    else:
        said = "they are not of one distribution" if lists.differ else "no difference was found"
        yield f"- Images and labels alone tell the lists apart with AUC {area(lists.auc)}, p = {lists.p:.2g}: {said}"
    yield from (f"- {escaped(warning)}" for warning in found.warnings)


def area(value: Interval) -> str:
    """0.704 [0.661, 0.744]."""
    return f"{value.value:.3f} [{value.lower:.3f}, {value.upper:.3f}]"


def _queries(document: Evidence) -> Iterator[str]:
    found = document.queries
    if isinstance(found, Absent):
        yield f"- {absent(found)}"
        return

    def known(value: int | None) -> str:
        return "not known" if value is None else f"{value:,}"

    rows = [
        [each.purpose, f"{each.spent:,}", known(each.unknown), known(each.budget)] for each in found.purposes
    ]
    yield from markdown_table(["purpose", "spent", "of these, answer lost", "budget"], rows)
    yield ""
    if isinstance(found.ledger, Ledger):
        ledger = found.ledger
        yield f"- Hash of the ledger: `sha256:{ledger.sha256}`, up to batch {ledger.upto} ({ledger.queries:,} queries)"
        yield f"- Compute it again, offline: `{ledger.recompute}`"
        if ledger.in_flight:
            yield f"- {ledger.in_flight} of them were not settled: the hash changes once more"
    else:
        yield f"- Hash of the ledger: {absent(found.ledger)}"


def _reproduce(document: Evidence) -> Iterator[str]:
    redo = document.reproduce
    if isinstance(redo.command, Absent):
        yield f"- {absent(redo.command)}"
        yield ""
    else:
        yield from ("```bash", redo.command, "```", "", f"{redo.note[:1].upper()}{redo.note[1:]}.", "")
    yield from (
        "Without a query, every radius from the votes in the records:",
        "",
        "```bash",
        redo.offline,
        "```",
    )


def _requirements(document: Evidence) -> Iterator[str]:
    yield "What the headings ask for is told in our own words. No compliance is claimed."
    yield ""
    rows = [
        [
            f"{each.source}, {each.section}",
            each.asks,
            ", ".join(
                f"{part.replace('_', ' ')}{' (absent)' if part in each.absent else ''}" for part in each.here
            )
            or "nothing",
            each.yours,
        ]
        for each in document.requirements
    ]
    yield from markdown_table(["heading", "asks for", "here", "still yours"], rows)
