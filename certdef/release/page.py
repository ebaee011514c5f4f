"""Evidence as a page: one HTML file that opens in any browser and loads nothing."""

from __future__ import annotations

from typing import Any

from certdef.release.document import Absent, AtRadius, Evidence, Group
from certdef.report.template import PURPOSES, template

MOST_GROUPS = 40  # rows of the page; the JSON has all
ANCHORS = {
    "model": "model",
    "run": "model",
    "writer": "model",
    "data": "model",
    "certificates": "certificates",
    "proves": "certificates",
    "clean_accuracy": "result",
    "subgroups": "subgroups",
    "attack": "attack",
    "membership": "membership",
    "queries": "queries",
    "does_not_prove": "limits",
    "limits": "limits",
    "reproduce": "reproduce",
}


def as_html(document: Evidence) -> str:
    """The whole page; styles are inside."""
    return template("evidence.html").render(
        **shown(document), document=document, anchors=ANCHORS, purposes=PURPOSES
    )


def shown(document: Evidence) -> dict[str, Any]:
    """What page and Markdown choose to show, of the same document."""
    at = headline_radius(document)
    groups, caption = shown_groups(document, at.radius)
    return {
        "title": title_of(document),
        "lead": lead_of(document, at),
        "shown": at,
        "groups": groups,
        "groups_caption": caption,
        "proves": document.proves,
    }


def title_of(document: Evidence) -> str:
    """Name and version, as far as they are known."""
    model = document.model
    name = document.given if isinstance(model.name, Absent) else model.name
    return name if isinstance(model.version, Absent) else f"{name}, version {model.version}"


def headline_radius(document: Evidence) -> AtRadius:
    """The smallest radius above 0, or 0 where there is no other."""
    rows = document.headline.radii
    return next((row for row in rows if row.radius > 0), rows[0])


def lead_of(document: Evidence, at: AtRadius) -> str:
    """The headline in a sentence, with all that the claim is of."""
    first = document.headline
    behind = "" if first.denoiser in (None, "none") else f" behind {first.denoiser}"
    right = "keep the target's own clean answer" if document.data.right else "are classified right"
    norm = (first.norm or "norm not known").upper()
    proven = "provably" if first.claim == "sound" else "approximately (not proven)"
    subject = first.subject or "model"
    of_target = (
        ""
        if subject != "surrogate"
        else " It says nothing about the target that the surrogate stands in for."
    )
    return (
        f"{100 * at.accuracy.value:.1f}% of {first.images} images {right} by the smoothed {subject}{behind} under noise ({first.law}), {proven}, "
        f"whatever is done to them within an {norm} distance of {at.radius:g}.{of_target}"
    )


def shown_groups(document: Evidence, radius: float) -> tuple[tuple[Group, ...], str]:
    """The groups that a page has room for, and a caption that says which."""
    if isinstance(document.subgroups, Absent):
        return (), ""
    groups = document.subgroups.groups
    note = "Certified accuracy of each group, with its 95% Clopper-Pearson interval in percent"
    if len(groups) <= MOST_GROUPS:
        return groups, f"{note}."

    def least(group: Group) -> float:
        return next(row.accuracy.upper for row in group.radii if row.radius == radius)

    chosen = sorted(groups, key=least)[:MOST_GROUPS]
    return (
        tuple(chosen),
        f"{note}: the {MOST_GROUPS} of {len(groups)} with the lowest upper bound at r = {radius:g}; the JSON has all.",
    )
