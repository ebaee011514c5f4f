"""Restoration under a display: what an attack costs, and how much of the defense is the purifier's and how much training's.

    python benchmarks/restoration.py

The job of the preset `udc`, measured on more crops. About 15 to 20 minutes on one core the first time; networks and figures
are kept in runs/restoration, so a second call takes seconds, and an interrupted one goes on. Photographs: crops of 32x32 gray
pixels, 2,000 of the 400 training photographs, 136 of the 68 test photographs, none of which is in both. All that is chosen
(the step t) or trained sees training photographs alone.

Systems: the restoration alone; behind the purifier; fine-tuned on purified inputs of which half are attacked (the defense);
and two controls, fine-tuned on purified clean inputs, and on the same attacked inputs unpurified (adversarial training).
Each with and without the purifier in front. Rows: the attacker knows the network of that system and not the purifier (blind,
as published); in the column "transfer" only the network before fine-tuning; in the rows with EOT the purifier too, and follows
the gradient straight through it (BPDA) or the true one through all of it, averaged over 20 draws of its noise a step (EOT).

Every figure is a mean over photographs, the two crops of each averaged first, with its 95% interval; gains are of paired
differences. The headline is the worst case over attacks, on the crops that all of them were tried on.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from certdef import pipeline
from certdef.config.load import load_config
from certdef.report.udc_page import GAIN_TITLES, SYSTEM_TITLES, attack_title
from certdef.stages.udc.evaluation import UDCResult
from certdef.stages.udc.intervals import Mean
from certdef.stages.udc.networks import LevelResult

SIZES: dict[str, Any] = {
    "udc__test_crops": 136,
    "udc__adaptive_crops": 12,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("CERTDEF_DATA_ROOT", "../shared/data")
    parser.add_argument("--data-root", default=root, help="Folder of the data sets.")
    parser.add_argument("--work-dir", default="runs/restoration", help="Where networks and figures are kept.")
    arguments = parser.parse_args()
    folders = {"work_dir": arguments.work_dir, "data__root": arguments.data_root}
    summary = pipeline.run(load_config(preset="udc", threads=1, **folders, **SIZES))
    report(summary.stages["udc"].result, summary.stages["udc-level"].result)
    print(f"\npicture: {summary.stages['udc'].path / 'strip.png'}\npage: {summary.report}")


def report(result: UDCResult, level: LevelResult) -> None:
    print(f"\nt = {level.t} of 1,000, chosen on training images; mean PSNR by t:")
    for kind, means in (("clean", level.clean), ("attacked", level.attacked)):
        print(f"  {kind}: " + ", ".join(f"{t}: {mean:.2f}" for t, mean in means.items()))
    table("PSNR, dB: mean over photographs [95% interval]", result, "psnr", SYSTEM_TITLES, 2)
    table("SSIM: mean over photographs [95% interval]", result, "ssim", SYSTEM_TITLES, 3)
    table(
        "Gains in dB, paired, each system under the attack on its own network",
        result,
        "gains",
        GAIN_TITLES,
        2,
    )
    headline(result)


def headline(result: UDCResult) -> None:
    each = result.headline
    print(f"\n### Worst case over attacks, on {each.crops} crops of {each.photographs} photographs\n")
    print("| system | clean, dB | worst case, dB | SSIM there | attack |\n| --- | ---: | ---: | ---: | --- |")
    for system, worst in each.worst.items():
        figures = f"{cell(each.clean[system], 2)} | {cell(worst.psnr, 2)} | {cell(worst.ssim, 3)}"
        print(f"| {SYSTEM_TITLES[system]} | {figures} | {attack_title(result.named(worst.attack))} |")
    print("\n" + "\n".join(f"{GAIN_TITLES[name]}: {cell(mean, 2)} dB" for name, mean in each.gains.items()))


def table(title: str, result: UDCResult, kind: str, columns: Mapping[str, str], digits: int) -> None:
    print(f"\n### {title}\n\n| attack | crops x seeds | " + " | ".join(columns.values()) + " |")
    print("| --- | ---: |" + " ---: |" * len(columns))
    for each in result.evaluations:
        means = getattr(each, kind)
        cells = [cell(means[name], digits) if name in means else "" for name in columns]
        print(f"| {attack_title(each)} | {each.crops} x {each.seeds} | " + " | ".join(cells) + " |")


def cell(mean: Mean, digits: int) -> str:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*mean, d=digits)


if __name__ == "__main__":
    main()
