"""Restoration under a display: what an attack costs, what purification gives back, what fine-tuning adds.

    python benchmarks/restoration.py

The job of the preset `udc` at a larger size. About 16 minutes on one core the first time; networks and figures are kept
in runs/restoration, so a second call takes seconds. Photographs: crops of 48x48 gray pixels, 4,000 of the 400 training
photographs, 136 of the 68 test photographs, none of which is in both. Everything that is chosen (the step t) or trained
sees training photographs alone.

Rows: the attacker knows the restoration network of that stage and not the purifier (blind, as published); in the column
"transfer" only the network before fine-tuning; in the last rows the purifier too, and follows the
gradient straight through it (BPDA) or the true one through all of it, averaged over its noise (EOT). Every figure is a
mean over the crops with its 95% normal interval; gains are of paired differences.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from certdef import pipeline
from certdef.config.load import load_config
from certdef.report.udc_page import DEFENSE_TITLES, GAIN_TITLES, attack_title
from certdef.stages.udc.evaluation import UDCResult
from certdef.stages.udc.networks import LevelResult

SIZES: dict[str, Any] = {
    "udc__size": 48,
    "udc__crops": 4_000,
    "udc__test_crops": 136,
    "udc__adaptive_crops": 48,
    "diffusion__epochs": 6,
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
    table("PSNR, dB: mean over the crops [95% interval]", result, "psnr", DEFENSE_TITLES, 2)
    table("SSIM: mean over the crops [95% interval]", result, "ssim", DEFENSE_TITLES, 3)
    table(
        "Gains in dB, paired, against the attack on the stage's own network", result, "gains", GAIN_TITLES, 2
    )


def table(title: str, result: UDCResult, kind: str, columns: Mapping[str, str], digits: int) -> None:
    print(f"\n### {title}\n\n| attack | crops x seeds | " + " | ".join(columns.values()) + " |")
    print("| --- | ---: |" + " ---: |" * len(columns))
    for each in result.evaluations:
        means = getattr(each, kind)
        cells = [
            "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*means[name], d=digits) if name in means else ""
            for name in columns
        ]
        print(f"| {attack_title(each)} | {each.crops} x {each.seeds} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
