"""All threats in one place: what is proven against what, by how many answers. The section of the pages, its own page, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.report import images
from certdef.report.average_case import found_average_case
from certdef.report.canvas import canvas, color, line_with_band, percentages, style, tidy
from certdef.report.formats import with_interval
from certdef.report.template import papers, template
from certdef.report.words import of_target_alone, right_in_words
from certdef.stages.threat import AVERAGE_CASE, EXACT, SOUND, ThreatResult, latest_results
from certdef.tracking.workspace import Stage
from surrogates import Bill

if TYPE_CHECKING:
    from certify.records.picture import Picture

PICTURE = "threat.png"
CLAIMS = {
    SOUND: "sound: holds for every change up to the parameter, with probability 1 - α over the draws",
    EXACT: "α = 0: every change was tried, of a target that answers alike each time",
    AVERAGE_CASE: "average case: a share of changes alters the answer at most so often; no claim about the worst one",
}


@dataclass(frozen=True)
class FoundThreat:
    """A threat that something was proven against, and its picture."""

    result: ThreatResult
    picture: Path


def found_threats(workspace: Path, identity: str, images_digest: str) -> list[FoundThreat]:
    """The latest result of each threat in a work directory, of this target and these images, by name.

    Raises:
        ConfigError: One was changed after it was written.
    """
    latest = latest_results(workspace, identity, images_digest)
    return [FoundThreat(result, folder / PICTURE) for folder, result in latest.values()]


def section(found: Iterable[FoundThreat]) -> list[dict[str, Any]]:
    """What the section of a page shows of each threat."""
    return [
        {
            "result": each.result,
            "claim": CLAIMS[each.result.kind],
            "plot": images.data_uri(each.picture.read_bytes()) if each.picture.is_file() else "",
        }
        for each in found
    ]


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The page of all threats, as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages; target is among them.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    target = next(each.result for each in done if each.name == "target")
    found = found_threats(config.workspace, target.identity, data.heldout_digest)
    sources = dict.fromkeys(paper for each in found for paper in each.result.papers)
    return template("threats_page.html").render(
        config=config,
        data=data,
        target=target,
        threats=section(found),
        average=found_average_case(config.workspace, target.identity, data.heldout_digest),
        bill=of_target_alone(bill) if config.surrogate.model == "none" else bill,
        papers=papers("smoothing", "bound", *sources),
        run_id=run_id,
        device=device,
    )


def threat_plot(result: ThreatResult, title: str, right: str = "") -> Picture:
    """Certified accuracy against the parameter of a threat, a line a subject, with 95% bands."""
    figure, (axes,) = canvas(6.4, 4.2)
    names = {"target": "target, by paid queries", "surrogate": "surrogate, free"}
    for number, (subject, curve) in enumerate(result.curves.items()):
        line_with_band(
            axes,
            np.array([0.0, *result.grid]),
            [curve.right, *curve.accuracy],
            color=color(number),
            linestyle=style(number),
            label=names.get(subject, subject),
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, None)
    percentages(axes.yaxis)
    unit = f" ({result.unit})" if result.unit else ""
    axes.set_xlabel(f"{result.parameter}{unit}")
    axes.set_ylabel(f"right, and proven ({result.kind}){right}")
    axes.set_title(title, loc="left", fontsize=11)
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_threat(result: ThreatResult, folder: Path, data: Splits) -> None:
    """The picture of a threat, in the folder of its stage."""
    right = right_in_words(data.remarks)
    (folder / PICTURE).write_bytes(threat_plot(result, f"{data.name}: {result.title}", right).to_png())


def table_lines(result: ThreatResult) -> list[str]:
    """A threat in the terminal: what is proven, then a line a subject and parameter."""
    error = f", alpha {result.alpha:g} an image" if result.alpha else ""
    lines = [
        f"threat      {result.title}: {result.kind}{error}{right_in_words(result.params)}",
        f"proven      {result.statement}",
        f"not proven  {result.limits}",
    ]
    for subject, curve in result.curves.items():
        paid = "paid" if curve.paid else "free"
        how = f"{curve.images} images, {curve.queries_per_image:,.0f} {paid} answers an image of at most {curve.n:,}"
        how += ", trained for it" if curve.trained_for else ""
        lines.append(f"{subject:<11} {how}")
        lines.append(f"            {'unchanged':>14}  {with_interval(curve.right)}")
        for value, share in zip(result.grid, curve.accuracy, strict=True):
            lines.append(f"            {'up to ' + format(value, 'g'):>14}  {with_interval(share)}")
    lines.append(f"            up to: {result.parameter}" + (f", {result.unit}" if result.unit else ""))
    return lines
