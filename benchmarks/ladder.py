"""Every purifier on one threat ladder: purifier x attack, with the worst case image by image before and after.

    python benchmarks/ladder.py [--preset digits] [--eps 0.2] [--purifiers all] [--seeds 0] [--images 200]
    python benchmarks/ladder.py --preset digits --eps 0.2 --purifiers de3,blind-spot,one-step --seeds 0,1,2
    python benchmarks/ladder.py --preset fashion-mnist --eps 0.1 --data-root FOLDER

The surrogate stands in the target's place with its weights known, so no query is paid for its 200 images; the target is
attacked on 20. Each seed is a job of its own: another target, surrogate and purifier. "lowest before" is the lowest accuracy of a
single attack of those that the ladder had first; "worst case" counts an image as right if every attack that submits it once
leaves it right. Jobs go on where they were interrupted. On two cores a purifier of the digits takes about five minutes, a
diffusion chain several times that.
"""

import argparse
from collections.abc import Sequence
from statistics import mean
from typing import Any

import certdef
from certdef.attacks.evaluation import THREAT_MODELS, AttackEvaluation
from certdef.config.purifiers import own_names
from certdef.stages.ladder import LadderResult

FIRST = (
    "blind",
    "surrogate_transfer",
    "surrogate_transfer_eot",
    "square",
    "hop_skip_jump",
    "bpda_eot",
    "full_eot",
    "one_draw",
)
LOWEST = "lowest before"
WITHOUT = ("one_draw", "large_eps", "queries_large_eps")  # controls, which the alarms read


def climbed(options: argparse.Namespace, purifiers: Sequence[str], seed: int) -> LadderResult:
    """The job of a seed, with the ladder of every purifier."""
    config = certdef.load_config(
        options.preset,
        seed=seed,
        data__root=options.data_root,
        ladder__enabled=True,
        ladder__systems=tuple(purifiers),
        ladder__eps=options.eps,
        ladder__images=options.images,
        ladder__target_images=options.target_images,
        ladder__square_queries=options.square,
        ladder__decision_queries=options.decisions,
        ledger__attack=50_000_000,  # the preset's target costs nothing
        ledger__evaluation=1_000_000,
    )
    result = certdef.attack(config).stages["ladder"].result
    assert isinstance(result, LadderResult)
    return result


def row(attacks: Sequence[AttackEvaluation]) -> dict[str, float]:
    """Accuracies of one system, in %, by attack."""
    shown = {
        each.name: 100 * each.accuracy[0] for each in attacks if each.accuracy and each.name not in WITHOUT
    }
    first = [shown[name] for name in FIRST if name in shown]
    return shown | ({LOWEST: min(first)} if first else {})


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Purifier x attack: the figure of one seed, or the mean of several with the lowest and the highest."""
    order = [
        *[name for name in THREAT_MODELS if "worst" not in name],
        LOWEST,
        "worst_case",
        "worst_case_clean",
    ]
    names = [name for name in order if any(name in each for many in rows.values() for each in many)]
    lines = ["| purifier | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for purifier, many in rows.items():
        cells = [_cell([each[name] for each in many if name in each]) for name in names]
        lines.append(f"| {purifier} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):.0f}–{max(values):.0f})" if len(values) > 1 else ""
    return f"{mean(values):.0f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--data-root", help="Folder of the data sets, where the preset needs one.")
    parser.add_argument("--eps", type=float, default=0.2, help="L-infinity, in [0, 1] pixel units.")
    parser.add_argument("--purifiers", default="all", help="Names with commas between them.")
    parser.add_argument("--seeds", default="0", help="Numbers with commas between them.")
    parser.add_argument("--images", type=int, default=200, help="Of the surrogate, which costs nothing.")
    parser.add_argument("--target-images", type=int, default=20)
    parser.add_argument("--square", type=int, default=5_000, help="Queries of Square and of NES, an image.")
    parser.add_argument("--decisions", type=int, default=0, help="Queries of HopSkipJump, an image.")
    options = parser.parse_args()
    purifiers = own_names() if options.purifiers == "all" else options.purifiers.split(",")
    found: dict[str, dict[str, list[Any]]] = {"surrogate": {}, "target": {}}
    alarms: dict[str, None] = {}
    for seed in options.seeds.split(","):
        result = climbed(options, purifiers, int(seed))
        for system, subjects in result.systems.items():
            for subject, evaluation in subjects.items():
                found[subject].setdefault(system, []).append(row(evaluation.rungs))
                alarms |= dict.fromkeys(
                    f"{system}, {subject}, seed {seed}: {each}" for each in evaluation.alarms
                )
    for subject, rows in found.items():
        print(f"\n{subject}, L-infinity {options.eps:g}, accuracy in %\n\n{table(rows)}")
    print("\n" + "\n".join(["Alarms:", *alarms] if alarms else ["No alarm."]))


if __name__ == "__main__":
    main()
