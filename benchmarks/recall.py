"""The ladder's attacks on a network whose answers are known: what complete verifiers have proven and disproven.

    python benchmarks/recall.py [--data-root FOLDER] [--steps 100] [--restarts 1] [--square 5000] [--decisions 0] [--seed 0]

mnist-net_256x2 of the verification competitions: 15 digits at two L-infinity distances, of which complete verifiers prove 18
and disprove 12. An attack that breaks a proven one is wrong; the share of the disproven ones that it finds is its recall.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from certdef.attacks import threat_ladder
from certdef.attacks.evaluation import CONTROLS
from certdef.config.attacks import LadderConfig

ROOT = "../shared/data"


def network(path: Path) -> nn.Sequential:
    """The fully connected network of an ONNX file, as a module with gradients: (N, 1, 28, 28) in [0, 1] -> logits."""
    import onnx

    graph = onnx.load(path).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    layers: list[nn.Module] = [nn.Flatten()]
    for node in graph.node:
        if node.op_type == "Gemm":
            weight, bias = (torch.tensor(arrays[name]) for name in node.input[1:])
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
        elif node.op_type == "Relu":
            layers.append(nn.ReLU())
    return nn.Sequential(*layers).eval()


def found(folder: Path, settings: LadderConfig, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Disproven instances that each attack finds, and proven ones that it breaks, by its name."""
    kept = np.load(folder / "images.npz")
    images = torch.from_numpy((kept["images"] / 255).astype(np.float32))[:, None]
    labels = torch.from_numpy(kept["labels"])
    model = network(folder / "mnist-net_256x2.onnx")
    with open(folder / "verdicts_256x2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    tally: dict[str, tuple[int, int]] = {}
    for eps in sorted({float(row["linf_eps"]) for row in rows}):
        own = [row for row in rows if float(row["linf_eps"]) == eps]
        index = torch.tensor([int(row["image"]) for row in own])
        assert [int(row["label"]) for row in own] == labels[index].tolist()
        for each in threat_ladder.evaluate(
            threat_ladder.System(model), images[index], labels[index], replace(settings, eps=eps), seed=seed
        ):
            if each.name in CONTROLS or each.accuracy is None:
                continue
            broken = [row["verdict"] for row, right in zip(own, each.right, strict=True) if not right]
            before = tally.get(each.name, (0, 0))
            tally[each.name] = (before[0] + broken.count("disproven"), before[1] + broken.count("proven"))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", default=ROOT, help="Folder of the data sets.")
    parser.add_argument("--steps", type=int, default=100, help="Of every attack by gradients.")
    parser.add_argument("--square", type=int, default=5_000, help="Queries of Square, an image.")
    parser.add_argument("--decisions", type=int, default=0, help="Queries of HopSkipJump, an image.")
    parser.add_argument("--restarts", type=int, default=1, help="Of APGD with each loss.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = LadderConfig(
        steps=options.steps,
        restarts=options.restarts,
        square_queries=options.square,
        decision_queries=options.decisions,
    )
    tally = found(Path(options.data_root) / "targets/mnistfc", settings, options.seed)
    print("| attack | of 12 disproven, found | of 18 proven, broken |\n| --- | ---: | ---: |")
    for name, (disproven, proven) in tally.items():
        print(f"| {name} | {disproven} | {proven} |")


if __name__ == "__main__":
    main()
