"""The average case of the bare target wherever it is shown: its table, its picture, and what a work directory has of it.

The words "average case" stand at every figure, and no radius stands beside one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certdef.report import images
from certdef.report.canvas import canvas, color, percentages, tidy
from certdef.report.formats import percent, percent_up
from certdef.stages.robustness import CorruptionRow, RobustnessResult
from certdef.tracking.checked_json import read_json
from certdef.tracking.workspace import FINGERPRINT, RESULT

if TYPE_CHECKING:
    from certify.records.picture import Picture

PICTURE = "robustness.png"
COLUMNS = (
    "corruption",
    "average case: proven",
    "at least",
    "mean change at most",
    "changed at all",
    "labels an image",
)


def shown(result: RobustnessResult, picture: bytes) -> dict[str, Any]:
    """What a page shows of a result."""
    return {"result": result, "bars": images.data_uri(picture)}


def found_average_case(workspace: Path, identity: str, images_digest: str) -> dict[str, Any] | None:
    """The latest result in a work directory, of this target and these images; None where there is none.

    Raises:
        ConfigError: It was changed after it was written.
    """
    paths = workspace.glob(f"robustness-{FINGERPRINT}/{RESULT}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        result = RobustnessResult.from_json(read_json(path))
        if result.identity == identity and result.images_digest == images_digest:
            return shown(result, (path.parent / PICTURE).read_bytes())
    return None


def bars(result: RobustnessResult, name: str) -> Picture:
    """A bar a corruption: the share of images that are proven, average case, and in how many any draw changed the answer."""
    rows = result.rows
    figure, (axes,) = canvas(7.2, 1.3 + 0.42 * len(rows))
    places = np.arange(len(rows))[::-1]
    axes.barh(
        places,
        [row.share for row in rows],
        height=0.62,
        color=color(0),
        alpha=0.85,
        label="proven, image by image",
    )
    axes.plot(
        [row.least_proven / row.images for row in rows],
        places,
        "|",
        color="black",
        markersize=14,
        label="at least, all together",
    )
    axes.plot(
        [1 - row.changed / row.images for row in rows],
        places,
        "D",
        color=color(1),
        markersize=5,
        label="no draw changed the answer",
    )
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_xlim(0, 1.02)
    percentages(axes.xaxis)
    axes.set_xlabel(f"images with P(the answer changes) ≤ {result.q:g}, average case, α = {result.alpha:g}")
    axes.set_title(f"{name}: the bare target, average case, {result.images} images", loc="left", fontsize=11)
    tidy(axes)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return figure


def in_words(result: RobustnessResult) -> list[str]:
    """The table for the terminal."""
    rows = [COLUMNS, *(_cells(row) for row in result.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    once = [
        "            * one label an image: each draw is the same image, and the target answers it alike every time"
    ]
    return [
        f"average case of the bare target, {result.images} images: P(the answer changes) <= {result.q:g} under the corruption, "
        f"alpha {result.alpha:g}",
        *lines,
        *(once if any(row.once for row in result.rows) else []),
        "            average case: nothing is said of the worst that a corruption can do, nor of an adversary; see 'changed at all'",
    ]


def _cells(row: CorruptionRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{percent(row.share)} ({row.proven} of {row.images})",
        f"{row.least_proven} of {row.images}",
        percent_up(row.mean_upper),
        f"{row.changed} of {row.images}",
        f"{row.labels_per_image:.0f}{'*' if row.once else ''}",
    )
