"""What a finished verb leaves in the terminal. Loads no torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certdef.config.job import RunConfig
from certdef.purifiers.catalogue import CATALOGUE, title

if TYPE_CHECKING:
    from certdef.pipeline import Summary


def headline(config: RunConfig, summary: Summary) -> str:
    """The few lines that a finished verb leaves in the terminal."""
    lines = [""]
    results = summary.results
    if "target" in results:
        lines.append(f"target      {_share(results['target']['accuracy'])} right on held-out images")
    if "surrogate" in results:
        found = results["surrogate"]
        lines.append(
            f"surrogate   agrees with it on {_share(found['agreement_clean'])} clean, {_share(found['agreement_noisy'])} under the noise ({found['queries']} queries)"
        )
    if "budgets" in results:
        charged = sum(cell["charged"] for cell in results["budgets"]["cells"])
        asked = sum(cell["queries"] for cell in results["budgets"]["cells"])
        lines += [results["budgets"]["table"], f"budgets     {asked:,} queries by name, {charged:,} charged"]
    if "certify" in results:
        for curve in results["certify"]["curves"].values():
            if curve["headline"]:
                shares = "  ".join(
                    f"r={r:g} {_share(a)}"
                    for r, a in zip(results["certify"]["radii"], curve["accuracy"], strict=True)
                )
                lines.append(
                    f"certified   {curve['subject']:<9} {shares}   ({curve['images']} images, n={curve['n']:,})"
                )
    if "attack" in results:
        for row in results["attack"]["rows"][1:]:
            lines.append(
                f"attack      PGD eps {row['eps']:g}: target {_share(row['target'])}, behind {title(config.purifier)} {_share(row['target_purified'])}"
            )
    lines += _ladder_lines(results)
    lines += _ducd_lines(results)
    if "purify" in results:
        found = results["purify"]
        lines += [
            f"purified    {found['images']} images by {found['purifier']}: {found['path']}",
            f"            changed by {found['mean_change']:.4f} a pixel on average, {found['largest_change']:.3f} at most (pixels in [0, 1])",
        ]
    if summary.bill:
        lines.append(
            "queries     "
            + ", ".join(
                f"{purpose} {charge.spent:,} of {charge.budget:,}"
                for purpose, charge in summary.bill.charges.items()
                if charge.budget
            )
        )
    if summary.reused:
        lines.append(
            "reused      every stage was done before: nothing trained or paid for; --fresh repeats it"
        )
    if summary.report:
        lines.append(f"report      {summary.report}")
    mlflow = "mlflow" if shutil.which("mlflow") else Path(sys.executable).with_name("mlflow")
    lines.append(f"runs        {mlflow} ui --backend-store-uri {summary.tracking_uri}")
    return "\n".join(lines)


def _ladder_lines(results: dict[str, Any]) -> list[str]:
    """The ladder's tables, its headlines and its alarms; nothing where it was not climbed."""
    if "ladder" not in results:
        return []
    lines, found = [], results["ladder"]
    for subject, shown in found["tables"].items():
        lines += [
            f"{subject}, in % [95% interval], L-infinity eps {found['eps']:g}; bold: the lowest rung",
            shown,
            "",
        ]
        for name, climbed in found["systems"].items():
            least = climbed[subject]["headline"]
            lines.append(f"ladder      {subject}, {name}: {_share(least['accuracy'])} ({least['rung']})")
            lines += [f"alarm       {subject}, {name}: {alarm}" for alarm in climbed[subject]["alarms"]]
        lines.append("")
    for row in found["curve"]:
        lines.append(
            f"smoothed    r={row['radius']:g}: certified {_share(row['certified'])}, right under PGD on the vote {_share(row['attacked'])}"
        )
    return lines


def _ducd_lines(results: dict[str, Any]) -> list[str]:
    """What the DUCD job found; nothing for the main one."""
    if "comparison" not in results:
        return []
    from certdef.stages.ducd.certificates import NAMES

    lines, found = [], results["comparison"]
    for name, each in found["agreement"].items():
        lines.append(
            f"surrogate   agrees with it on {_share(each['clean']['agreement'])} clean, {_share(each['noisy']['agreement'])} under the noise ({100 * results[name]['overlap']:g}% of its queries from the target's training set)"
        )
    lines.append(f"noise       {found['noise']}, chosen on {results['noise']['images']} other images")
    for subject, key in found["conditions"].items():
        curve = found["curves"][key]
        shares = "  ".join(
            f"r={r:g} {_share(a)}" for r, a in zip(found["radii"], curve["accuracy"], strict=True)
        )
        lines.append(
            f"certified   {NAMES[subject]:<22} {shares}   ({curve['images']} images, n={curve['n']:,})"
        )
    for name, row in results.get("membership", {}).get("attacks", {}).items():
        auc, low, high = row[results["membership"]["headline"]]["auc"]
        lines.append(f"membership  {name:<22} AUC {auc:.3f} [{low:.3f}, {high:.3f}]")
    return lines


def _share(triple: list[float]) -> str:
    share, low, high = triple
    return f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def purifiers_listed() -> str:
    """The catalogue, some lines a purifier."""
    lines = []
    for name, entry in CATALOGUE.items():
        lines += [
            f"{name}\n    {entry.line}",
            f"    source     {entry.source}",
            f"    attacker   {entry.threat}",
            f"    certified  {'with ' + entry.denoiser + ' between noise and classifier' if entry.denoiser else 'no: it is no denoiser'}",
        ]
    return "\n".join(
        [*lines, "", "certdef run --purifier NAME puts one in front; certdef attack --ladder tests it."]
    )
