"""The summary that a finished verb prints in the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import singledispatch
from math import inf
from pathlib import Path
from typing import Any

from certdef.attacks.evaluation import markdown_table
from certdef.config.job import RunConfig
from certdef.report import average_case, udc_page
from certdef.report.budget_curves import as_markdown
from certdef.report.formats import decibels, with_interval
from certdef.report.threats import table_lines
from certdef.report.words import (
    SUBJECT_NAMES,
    behind_in_words,
    of_target_alone,
    purifier_title,
    right_in_words,
    sigma_in_words,
)
from certdef.stages.attack import AttackResult
from certdef.stages.budgets import BudgetsResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.choice import ChoiceResult
from certdef.stages.conditions import largest_radius, subjects
from certdef.stages.ducd.certificates import ComparisonResult, NoiseResult
from certdef.stages.ducd.membership import MembershipResult
from certdef.stages.ladder import LadderResult
from certdef.stages.membership import OwnMembershipResult
from certdef.stages.robustness import RobustnessResult
from certdef.stages.students import CertifiedSurrogateResult
from certdef.stages.summary import Summary
from certdef.stages.surrogate import SurrogateResult
from certdef.stages.target import TargetResult
from certdef.stages.threat import ThreatResult
from certdef.stages.udc.evaluation import UDCResult
from certdef.stages.votes import CertifiedCurve
from certdef.tracking.results import StageResult
from certify.noise.description import open_law


def headline(config: RunConfig, summary: Summary) -> str:
    """The summary of a finished verb, some lines a stage; the configuration is that of the job as it ran."""
    lines: list[str] = []
    for stage in summary.stages.values():
        lines += stage_lines(stage.result, config)
    lines += _purified_lines(summary.purified) if summary.purified else []
    if summary.bill:
        certified = any(
            name in ("certify", "robustness") or name.startswith("threat-") for name in summary.stages
        )
        alone = certified and "surrogate" not in summary.stages
        bill = of_target_alone(summary.bill) if alone else summary.bill
        spent = (
            f"{purpose} {charge.spent:,} of {charge.budget:,}"
            for purpose, charge in bill.charges.items()
            if charge.budget
        )
        lines.append(f"queries     {', '.join(spent)}")
        if lost := bill.total.unknown:
            lines.append(
                f"lost        {lost:,} of these were sent and got no answer: they may have been charged"
            )
        lines.append(f"ledger      {summary.ledger}")
    if summary.reused:
        lines.append(
            "reused      every stage was done before: nothing was trained or paid for; --fresh repeats it"
        )
    if summary.report:
        lines.append(f"report      {summary.report}")
    mlflow = "mlflow" if shutil.which("mlflow") else Path(sys.executable).with_name("mlflow")
    start = f"{mlflow} ui --backend-store-uri {summary.tracking_uri}"
    lines.append(f"runs        {summary.run_page or start}")
    return "\n".join(lines)


@singledispatch
def stage_lines(result: StageResult, config: RunConfig) -> list[str]:
    """The lines of a stage's result; most have none."""
    return []


@stage_lines.register
def _(result: TargetResult, config: RunConfig) -> list[str]:
    prepared = [f"images      {result.params['prepared']}"] if "prepared" in result.params else []
    if result.answers is None:
        return [*prepared, f"target      {with_interval(result.accuracy)} accuracy on held-out images"]
    count = len(result.answers)
    return [
        *prepared,
        f"target      its own clean answers to {count} held-out images without labels count as right",
    ]


@stage_lines.register
def _(result: SurrogateResult, config: RunConfig) -> list[str]:
    clean, noisy = with_interval(result.agreement_clean), with_interval(result.agreement_noisy)
    how = f"{result.queries} queries" if result.queries else "given, nothing was distilled"
    how = f"{result.weights}, nothing was distilled" if result.weights else how
    lines = [f"surrogate   agreement with the target {clean} clean, {noisy} under the noise ({how})"]
    if result.distilled_from:
        lines.append(
            f"            it was distilled from another target ({result.distilled_from}): a guide and a stand-in for this one"
        )
    return lines


@stage_lines.register
def _(result: CertifiedSurrogateResult, config: RunConfig) -> list[str]:
    """Of the headline's; the others are in MLflow."""
    if not result.headline:
        return []
    clean, under = with_interval(result.agreement_with_clean), f"under {result.law} noise"
    if result.purifier:
        under += f" behind {purifier_title(result.purifier)}"
    same = ""
    if result.agreement_same_input:
        same = f", {with_interval(result.agreement_same_input)} with that to the same input"
    return [f"as certified agreement {under} {clean} with the target's clean answer{same}"]


@stage_lines.register
def _(result: BudgetsResult, config: RunConfig) -> list[str]:
    charged = sum(cell.charged for cell in result.cells)
    queries = sum(cell.queries for cell in result.cells)
    return [
        as_markdown(result.cells),
        f"budgets     {queries:,} queries in all surrogates, {charged:,} charged",
    ]


@stage_lines.register
def _(result: ChoiceResult, config: RunConfig) -> list[str]:
    lines = []
    for subject in sorted({each.subject for each in result.chosen.values()}, reverse=True):
        found = [each for each in result.chosen.values() if each.subject == subject]
        laws = [f"{sigma_in_words(each.law)} {behind_in_words(each.purifier)}" for each in found]
        lines.append(f"noise       {subject:<9} {'; '.join(laws)}")
    how = f"{len(result.candidates)} candidates, on {result.images} further held-out images"
    return [*lines, f"            chosen of {how}, by {result.paid:,} paid votes"]


@stage_lines.register
def _(result: CertifyResult, config: RunConfig) -> list[str]:
    """The headline of each subject; of a target alone, which has few lines, every condition."""
    curves = [curve for curve in result.curves.values() if curve.headline or subjects(config) == ("target",)]
    right = right_in_words(result.params)
    capped = config.certify.stops_early
    alpha = config.certify.alpha
    return [
        _certified_line(
            f"{curve.subject:<9}",
            result.radii,
            curve,
            alpha,
            capped,
            right,
            f"{behind_in_words(config.purifier if curve.denoised else None)}, ",
        )
        for curve in curves
    ]


@stage_lines.register
def _(result: AttackResult, config: RunConfig) -> list[str]:
    behind, right = f", behind {purifier_title(config.purifier)} ", right_in_words(result.params)
    return [
        f"attack      PGD eps {row.eps:g}: target {with_interval(row.target)}"
        + (behind + with_interval(row.target_purified) if row.target_purified else "")
        + right
        for row in result.rows[1:]
    ]


OTHER_KINDS = (
    "Rows as brightness=0.2 are attacks of other kinds, no part of the worst case; certified: of the vote, or of the target under masks\n"
    "(certdef certify --threat), against the same."
)


@stage_lines.register
def _(result: LadderResult, config: RunConfig) -> list[str]:
    """The ladder's tables, the worst case image by image of each system, and the gradient masking checks that fail."""
    lines = []
    for subject, systems in result.attacks_by_subject.items():
        caption = (
            f"{subject}, in % [95% interval], L-infinity eps {result.eps:g}; bold: worst case image by image"
            f"{right_in_words(result.params)}"
        )
        lines += [caption, markdown_table(systems), ""]
        if config.ladder.threats:
            lines += [OTHER_KINDS, ""]
        for name, evaluations in result.systems.items():
            evaluation = evaluations[subject]
            worst = evaluation.headline
            alone = f"; {worst.strongest} alone {with_interval(worst.alone)}" if worst.alone else ""
            control = f"; clean, as often {with_interval(worst.control)}" if worst.control else ""
            lines.append(
                f"ladder      {subject}, {name}: {with_interval(worst.accuracy)} (worst case image by image of {worst.attacks} "
                f"attacks{alone}{control})"
            )
            lines += [f"masking     {subject}, {name}: {alarm}" for alarm in evaluation.alarms]
        lines.append("")
    for row in result.curve:
        certified, attacked = with_interval(row.certified), with_interval(row.attacked)
        lines.append(
            f"smoothed    r={row.radius:g}: certified {certified}, accuracy under PGD on the vote {attacked}"
        )
    return lines


@stage_lines.register
def _(result: ThreatResult, config: RunConfig) -> list[str]:
    return table_lines(result)


@stage_lines.register
def _(result: NoiseResult, config: RunConfig) -> list[str]:
    return [f"noise       {result.chosen}, chosen on {result.images} further held-out images"]


@stage_lines.register
def _(result: ComparisonResult, config: RunConfig) -> list[str]:
    lines = []
    for overlap, agreement in zip(config.ducd.overlaps, result.agreement.values(), strict=True):
        clean, noisy = (with_interval(agreement[images].agreement) for images in ("clean", "noisy"))
        lines.append(
            f"surrogate   agreement with the target {clean} clean, {noisy} under the noise ({100 * overlap:g}% of its queries "
            "from the target's training set)"
        )
    for subject, key in result.conditions.items():
        curve, capped = result.curves[key], config.certify.stops_early
        lines.append(
            _certified_line(
                f"{SUBJECT_NAMES[subject]:<22}", result.radii, curve, config.certify.alpha, capped
            )
        )
    return lines


@stage_lines.register
def _(result: MembershipResult, config: RunConfig) -> list[str]:
    shares = {name: row[result.headline].auc for name, row in result.attacks.items()}
    return [
        f"membership  {name:<22} AUC {auc.value:.3f} [{auc.lower:.3f}, {auc.upper:.3f}]"
        for name, auc in shares.items()
    ]


@stage_lines.register
def _(result: OwnMembershipResult, config: RunConfig) -> list[str]:
    lines = []
    for name, attack in result.attacks.items():
        auc, rates = attack.auc, (rate for rate in attack.rates if rate.possible)
        powers = "".join(
            f", finds {with_interval(each.found)} at {100 * each.fpr:g}% false" for each in rates
        )
        lines.append(
            f"membership  {name} attack: AUC {auc.value:.3f} [{auc.lower:.3f}, {auc.upper:.3f}]{powers}"
        )
    return [*lines, *(f"            {warning}" for warning in result.warnings)]


@stage_lines.register
def _(result: RobustnessResult, config: RunConfig) -> list[str]:
    return average_case.in_words(result)


@stage_lines.register
def _(result: UDCResult, config: RunConfig) -> list[str]:
    headline, width = result.headline, max(map(len, udc_page.SYSTEM_TITLES.values()))
    lines = [
        f"restoration {headline.crops} crops of {headline.photographs} photographs, that every attack was tried on",
        f"restoration {'no attack':<{width}} {decibels(headline.clean['none'])}",
    ]
    for system, worst in headline.worst.items():
        title, attack = udc_page.SYSTEM_TITLES[system], udc_page.attack_title(result.named(worst.attack))
        lines.append(f"restoration {title:<{width}} {decibels(worst.psnr)} ({attack}, the worst case)")
    return lines


def _certified_line(
    subject: str,
    radii: Sequence[float],
    curve: CertifiedCurve,
    alpha: float,
    capped: bool,
    right: str = "",
    behind: str = "",
) -> str:
    """Certified shares, with the votes that they took: n of every image, or on average where n is a cap."""
    law = open_law(curve.noise)
    reach = inf if law is None else largest_radius(law, curve.n, alpha)
    shares = "  ".join(
        f"r={r:g} {with_interval(share) if r <= reach else 'n too small'}"
        for r, share in zip(radii, curve.accuracy, strict=True)
    )
    votes = f"n={curve.n:,}"
    if capped:
        votes = f"n at most {curve.n:,}, {curve.samples_per_image:,.0f} votes on average"
    return f"certified   {subject} {shares}   ({behind}{curve.images} images, {votes}{right})"


def _purified_lines(purified: dict[str, Any]) -> list[str]:
    mean, largest = purified["mean_change"], purified["largest_change"]
    return [
        f"purified    {purified['images']} images by {purified['purifier']}: {purified['path']}",
        f"            changed by {mean:.4f} a pixel on average, {largest:.3f} at most (pixels in [0, 1])",
    ]
