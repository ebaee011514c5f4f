"""The files that a stage's folder holds for people: pictures and tables, drawn from the stage's result."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

import numpy as np

import certify
from certdef.attacks.evaluation import markdown_table
from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.report import average_case, budget_curves, figures, udc_page
from certdef.report.threats import draw_threat
from certdef.report.words import SUBJECT_NAMES, behind_in_words, condition_title, right_in_words
from certdef.stages.budgets import BudgetsResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.conditions import conditions, subjects
from certdef.stages.ducd.certificates import ComparisonResult
from certdef.stages.ducd.membership import MembershipResult
from certdef.stages.ducd.surrogates import student_name
from certdef.stages.ladder import LadderResult
from certdef.stages.robustness import RobustnessResult
from certdef.stages.threat import ThreatResult
from certdef.stages.udc.evaluation import UDCResult
from certdef.tracking.results import StageResult


@singledispatch
def draw(result: StageResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    """Draw a result into its folder. Most results have nothing to draw."""


@draw.register
def _(result: CertifyResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    """The headline of both subjects in one picture, and every condition of each subject in its own."""
    every = conditions(config, result.chosen)
    lines = {each: _curve(folder, each.key) for each in every}
    purifier = next(each.purifier for each in every if each.headline)
    words = behind_in_words(purifier)
    headline = {each.subject: line for each, line in lines.items() if each.headline}
    title, right = f"{data.name}: certified accuracy", right_in_words(data.remarks)
    certify.curves.plot(headline, folder / "certified_accuracy.png", title=f"{title} {words}{right}")
    for subject in subjects(config):
        named = {condition_title(each): line for each, line in lines.items() if each.subject == subject}
        path = folder / f"certified_accuracy_{subject}.png"
        certify.curves.plot(named, path, title=f"{title} of the {subject}{right}")


@draw.register
def _(result: ComparisonResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    """All subjects in one picture."""
    lines = {SUBJECT_NAMES[subject]: _curve(folder, key) for subject, key in result.conditions.items()}
    title = f"{data.name}: certified accuracy, no denoiser"
    certify.curves.plot(lines, folder / "certified_accuracy.png", title=title)


@draw.register
def _(result: MembershipResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    with np.load(folder / "scores.npz") as scores:
        groups = {
            model: [scores[f"{model}/{result.headline}/{group}"] for group in ("member", "nonmember")]
            for model in result.attacks
        }
    curves = {_model_title(config, model): figures.roc(*group) for model, group in groups.items()}
    (folder / "membership_roc.png").write_bytes(figures.membership_plot(curves, result.candidates).to_png())


@draw.register
def _(result: LadderResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    right = right_in_words(data.remarks)
    picture = figures.ladder_plot(result.attacks_by_subject, result.curve, result.eps, right)
    (folder / "ladder.png").write_bytes(picture.to_png())
    tables = {subject: markdown_table(systems) for subject, systems in result.attacks_by_subject.items()}
    (folder / "ladder.md").write_text(
        "\n\n".join(f"{k}{right}\n\n{v}" for k, v in tables.items()) + "\n",
        encoding="utf-8",
    )


@draw.register
def _(result: RobustnessResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    (folder / average_case.PICTURE).write_bytes(average_case.bars(result, data.name).to_png())


@draw.register
def _(result: UDCResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    with np.load(folder / "examples.npz") as examples:
        (folder / "strip.png").write_bytes(udc_page.strip(examples))


@draw.register
def _(result: BudgetsResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    (folder / "budgets.csv").write_text(budget_curves.as_csv(result.cells), encoding="utf-8")
    (folder / "budgets.md").write_text(budget_curves.as_markdown(result.cells) + "\n", encoding="utf-8")
    (folder / "budgets.png").write_bytes(budget_curves.plot(result.cells).to_png())


@draw.register
def _(result: ThreatResult, folder: Path, *, config: RunConfig, data: Splits) -> None:
    draw_threat(result, folder, data)


def _curve(folder: Path, key: str) -> certify.curves.Curve:
    """Certified accuracy of a condition from its records, finely."""
    records = certify.read_records(folder / "records" / f"{key}.jsonl")
    furthest = max(0.25, 1.1 * float(records.radius.max(initial=0.0)))
    return certify.curves.certified_accuracy(records, np.linspace(0, furthest, 400))


def _model_title(config: RunConfig, model: str) -> str:
    overlaps = {student_name(overlap): overlap for overlap in config.ducd.overlaps}
    return f"surrogate, {100 * overlaps[model]:g}% overlap" if model in overlaps else model
