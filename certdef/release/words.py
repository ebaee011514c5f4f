"""A comparison as a person reads it: in the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from certdef.release.pairing import in_words
from certdef.release.results import Change, Comparison, Gate, Row, Version
from certdef.report.formats import percent, radius_down

LISTED = 10  # images in the terminal
LISTED_IN_MARKDOWN = 50
PARTS_SHOWN = 8  # rows of classes and groups in the terminal, the least sure of being unchanged first
COLUMNS = ("", "images", "OLD", "NEW", "difference", "together 95%", "lost", "won", "p (Holm)", "")


def as_text(comparison: Comparison) -> str:
    """The comparison for a terminal."""
    lines = [
        f"OLD         {_about(comparison.old)}",
        f"NEW         {_about(comparison.new)}",
        f"images      {_images(comparison)}",
        *(f"note        {note}" for note in comparison.notes),
        "",
        *_table(_columns(comparison), [_cells(row) for row in comparison.overall]),
    ]
    parts = [row for row in comparison.rows if row.scope != "all"]
    moved = _most_moved(parts)
    if moved:
        shown = moved[:PARTS_SHOWN]
        left = f", {len(shown)} shown" if len(shown) < len(moved) else ""
        lines += ["", f"classes and groups: {len(moved)} of {len(parts)} rows changed{left}"]
        lines += _table(_columns(comparison), [_cells(row) for row in shown])
    elif parts:
        lines += ["", f"classes and groups: none of {len(parts)} rows changed"]
    lines += ["", f"tests       {_method(comparison)}", f"verdict     {verdict(comparison)}"]
    for name, changes in (("lost", comparison.lost), ("won", comparison.won)):
        lines.append(f"{name:<11} {len(changes)} images{':' if changes else ''}")
        lines += [f"            {_change(each)}" for each in changes[:LISTED]]
        if len(changes) > LISTED:
            lines.append(f"            and {len(changes) - LISTED} more (--json and --markdown list them)")
    lines += [f"gate        {_gate(gate)}" for gate in comparison.gates]
    return "\n".join(lines)


def as_markdown(comparison: Comparison, picture: str | None = None) -> str:
    """The comparison for a pull request: GitHub's Markdown, the long tables folded.

    Args:
        comparison: What is shown.
        picture: Where the picture of the curves is, for a link.
    """
    mark = "" if not comparison.gates else " ✅" if comparison.passed else " ❌"
    lines = [f"## Certified accuracy, NEW against OLD{mark}", "", f"**{verdict(comparison)}**", ""]
    if comparison.gates:
        lines += ["| gate | | measured |", "| --- | --- | --- |"]
        lines += [
            f"| `{gate.rule}` | {'✅ passed' if gate.passed else '❌ failed'} | {escaped(gate.measured)} |"
            for gate in comparison.gates
        ]
        lines.append("")
    lines += [f"- OLD: {escaped(_about(comparison.old))}", f"- NEW: {escaped(_about(comparison.new))}"]
    lines += [f"- {_images(comparison)}", *(f"- {escaped(note)}" for note in comparison.notes), ""]
    lines += markdown_table(_columns(comparison), [_cells(row) for row in comparison.overall])
    if picture:
        lines += ["", f"![Certified accuracy of OLD and NEW against the radius]({picture})"]
    parts = [row for row in comparison.rows if row.scope != "all"]
    if parts:
        moved = _most_moved(parts)
        lines += [
            "",
            f"<details><summary>classes and groups: {len(moved)} of {len(parts)} rows changed</summary>",
            "",
        ]
        lines += markdown_table(_columns(comparison), [_cells(row) for row in moved]) if moved else []
        lines += ["", "</details>"]
    for name, changes in (("lost", comparison.lost), ("won", comparison.won)):
        if changes:
            more = f", {LISTED_IN_MARKDOWN} shown" if len(changes) > LISTED_IN_MARKDOWN else ""
            lines += [
                "",
                f"<details><summary>{len(changes)} images {name} their certificate{more}</summary>",
                "",
            ]
            lines += [f"- {_change(each)}" for each in changes[:LISTED_IN_MARKDOWN]]
            lines += ["", "</details>"]
    return "\n".join([*lines, "", f"<sub>{_method(comparison)}</sub>", ""])


def verdict(comparison: Comparison) -> str:
    """What is proven, in a sentence; and whether every gate holds."""
    worse = list(comparison.worse)
    better = [row for row in comparison.rows if row.verdict == "better"]
    if worse:
        rows = f"{len(worse)} of {comparison.tests} rows"
        first = min(worse, key=lambda row: (row.scope != "all", row.p_holm))
        said = f"NEW is proven to be worse in {rows}, e.g. {_place(first)}"
    elif better:
        said = f"NEW is proven to be better in {len(better)} of {comparison.tests} rows, and worse in none"
    elif comparison.lost or comparison.won:
        said = "no difference is proven"
    else:
        said = "no image lost or won its certificate"
    if not comparison.gates:
        return f"{said}; no gate was set"
    failed = sum(not gate.passed for gate in comparison.gates)
    return f"{said}; {f'{failed} of {len(comparison.gates)} gates failed' if failed else 'every gate passed'}"


def _about(version: Version) -> str:
    how = [version.subject, f"behind {version.denoiser}" if version.denoiser not in (None, "none") else None]
    how += [in_words(version.noise) if version.noise else None, version.norm]
    how += [f"n {version.n:,}" if version.n is not None else None]
    how += [f"alpha {version.alpha:g}" if version.alpha is not None else None]
    known = ", ".join(each for each in how if each)
    where = "" if version.records == version.given else f" ({version.records})"
    reach = f"abstained {percent(version.abstained)}, median radius {radius_down(version.median_radius)}"
    return f"{version.given}{where}: {f'{known}; ' if known else ''}{reach}"


def _images(comparison: Comparison) -> str:
    how = {"image": "by the digest of their pixels", "idx": "by idx and label"}[comparison.paired_by]
    noise = {True: "same noise draws", False: "other noise draws", None: "noise draws unknown"}
    return f"{comparison.images} pairs, {how}; {noise[comparison.same_noise]}"


def _method(comparison: Comparison) -> str:
    level = f"{100 * comparison.alpha:g}%"
    return (
        f"p: exact McNemar, two-sided, Holm over {comparison.tests} rows; intervals: exact, Bonferroni over these rows; each at "
        f"{level} for all rows together; radii in {comparison.old.norm or comparison.new.norm or 'the norm of the records'}, pixels in [0, 1]"
    )


def _columns(comparison: Comparison) -> list[str]:
    level = f"together {100 * (1 - comparison.alpha):g}%"
    return [level if each.startswith("together") else each for each in COLUMNS]


def _cells(row: Row) -> list[str]:
    return [
        _place(row),
        str(row.images),
        percent(row.old),
        percent(row.new),
        f"{100 * row.difference:+.1f}",
        f"[{100 * row.lower:+.1f}, {100 * row.upper:+.1f}]",
        str(row.lost),
        str(row.won),
        f"{row.p_holm:.2g}",
        "" if row.verdict == "unproven" else row.verdict,
    ]


def _place(row: Row) -> str:
    return " ".join(filter(None, ["" if row.scope == "all" else row.scope, row.name, f"r = {row.radius:g}"]))


def _most_moved(rows: Sequence[Row]) -> list[Row]:
    moved = [row for row in rows if row.lost or row.won]
    return sorted(moved, key=lambda row: (row.p, row.difference))


def _change(change: Change) -> str:
    def one(prediction: int, radius: float) -> str:
        if prediction < 0:
            return "abstains"
        right = "right" if prediction == change.label else f"class {prediction}, wrong,"
        return f"{right} to {radius_down(radius)}"

    before, after = (
        one(change.old_prediction, change.old_radius),
        one(change.new_prediction, change.new_radius),
    )
    radii = ", ".join(f"{radius:g}" for radius in change.at)
    return f"idx {change.idx} (class {change.label}): {before} -> {after}; at r = {radii}"


def _gate(gate: Gate) -> str:
    return f"{'passed' if gate.passed else 'FAILED'}  {gate.rule}: {gate.measured}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    every = [header, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    return [
        "  ".join(
            text.ljust(width) if at in (0, len(widths) - 1) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in every
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of plain texts, the first and the last column to the left."""
    lines = [
        header,
        [" --- ", *(" ---: " for _ in header[2:]), " --- "],
        *([escaped(each) for each in row] for row in rows),
    ]
    return ["| " + " | ".join(each.strip() for each in line) + " |" for line in lines]


def escaped(text: str) -> str:
    """Without what a table, a link or HTML would take for its own."""
    for each in ("\\", "|", "`", "*", "_", "<", ">", "[", "]"):
        text = text.replace(each, f"\\{each}")
    return text.replace("\n", " ")
