"""The bare target, average case: its page, its picture, and its table in the terminal. No radius stands anywhere here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.report import images
from certdef.report.canvas import as_png, canvas, color, percentages, tidy
from certdef.report.formats import percent, percent_up
from certdef.report.template import papers, template, uris
from certdef.report.words import of_target_alone
from certdef.stages.robustness import CorruptionRow, RobustnessResult, laws_of
from certdef.tracking.workspace import Stage
from certify.threats.population import perturbed_draws
from surrogates import Bill

FILE = "robustness.html"
COLUMNS = (
    "corruption",
    "average case: proven",
    "at least",
    "mean change at most",
    "changed at all",
    "labels an image",
)


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages target and robustness.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    result = {each.name: each.result for each in done}
    stage = next(each for each in done if each.name == "robustness")
    return template("robustness.html").render(
        config=config,
        config_json=json.dumps(config.public_dict(), indent=2),
        data=data,
        bill=of_target_alone(bill),
        target=result["target"],
        uris=uris(result),
        result=stage.result,
        worst=min(stage.result.rows, key=lambda row: (row.share, -row.mean_upper)),
        bars=images.data_uri((stage.path / "robustness.png").read_bytes()),
        strip=_strip(config, data),
        papers=papers("bound", "pooled", "corruptions"),
        run_id=run_id,
        device=device,
    )


def bars(result: RobustnessResult, name: str) -> bytes:
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
    return as_png(figure)


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


def _strip(config: RunConfig, data: Splits) -> list[dict[str, Any]]:
    """The first held-out image as it is, and the first draw of it under every corruption: as the target got them."""
    image = torch.from_numpy(data.heldout_images[0])
    shown = [{"name": "unchanged", "image": images.data_uri(images.png(image))}]
    for law in laws_of(config, data.image_shape[0]):
        drawn = perturbed_draws(law, image, 0, 0, 1, config.seed)[0]
        shown.append({"name": law.name, "image": images.data_uri(images.png(drawn))})
    return shown
