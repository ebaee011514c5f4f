"""Agreement with a black box by queries: every strategy, and KnockoffNets of the Adversarial Robustness Toolbox.

    python benchmarks/distillation.py [--data FOLDER] [--target FOLDER] [--budgets 1000 5000 20000] [--seeds 3 3 1]
        [--rows random margin ...] [--workers 2] [--results distillation.jsonl]

Fashion-MNIST: the target is the CNN of the preset `fashion-mnist` (trained if no folder of a certdef model is given);
the pool is its 60,000 training images without labels, the answers are probabilities, agreement is measured on the
10,000 test images. Every row has the same student, pool, queries, optimizer and number of passes; a row says what it
adds. KnockoffNets trains by cross-entropy on the same answers (random) or, as published, on one-hot labels (adaptive);
adaptive draws by true class, which nobody else is given. Finished cells are kept in the results file: the same command
goes on where it was. Needs `pip install certdef[benchmark]` for the rows `art_*`.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import certify
import surrogates
from certdef.models.classifiers import build_classifier
from surrogates.distillation.inference import predict
from surrogates.distillation.selection import STRATEGIES

SHAPE, CLASSES = (1, 28, 28), 10
# Tuned for random at 1,000 queries, and the same for all. Passes between rounds are half of those at the end.
RECIPE = {"batch_size": 64, "learning_rate": 5e-3, "weight_decay": 0.01, "ema": 0.99}
EPOCHS = {1_000: 120, 5_000: 40, 20_000: 15}
COMMITTEE = 4
ROWS: dict[str, dict[str, Any]] = {
    **{strategy: {"selection": strategy, "loss": "l1"} for strategy in STRATEGIES},
    "random_soft_cross_entropy": {"selection": "random", "loss": "soft_cross_entropy"},
    "margin_soft_cross_entropy": {"selection": "margin", "loss": "soft_cross_entropy"},
    "random_committee": {"selection": "random", "loss": "l1", "committee": COMMITTEE},
    "margin_committee": {"selection": "margin", "loss": "l1", "committee": COMMITTEE},
    "dfal_committee": {"selection": "dfal", "loss": "l1", "committee": COMMITTEE},
    "art_random": {},
    "art_adaptive": {},
}

_data: dict[str, Any] = {}


def prepare(root: str, folder: str, threads: int) -> None:
    """Load images and target once a process, and query the target for the labels that agreement is measured against."""
    from torchvision.datasets import FashionMNIST

    from certdef.models import storage

    torch.set_num_threads(threads)
    for name, train in (("pool", True), ("test", False)):
        part = FashionMNIST(str(Path(root) / "fashion_mnist"), train=train, download=False)
        _data[name] = part.data.numpy()[:, None].astype(np.float32) / 255
        _data[f"{name}_labels"] = part.targets.numpy()
    black_box = nn.Sequential(storage.load_model(folder), nn.Softmax(dim=1)).eval()
    _data["black_box"] = black_box
    _data["target"] = surrogates.open_target(black_box, num_classes=CLASSES, output_kind="probabilities")
    test = torch.from_numpy(_data["test"])
    noise = certify.nim_noise().sample(tuple(test.shape), generator=torch.Generator().manual_seed(0))
    _data["conditions"] = {"clean": test, "noisy": test + noise}
    _data["labels_of_target"] = {
        name: predict(black_box, images, 500).argmax(dim=1) for name, images in _data["conditions"].items()
    }


def student(seed: int, member: int = 0) -> nn.Module:
    """The untrained student; its weights depend on the seed alone, and are not the target's initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1_000_003 * (member + 1) + seed)
        return build_classifier("cnn", SHAPE, CLASSES)


def measure(row: str, budget: int, seed: int, epochs: int) -> dict[str, Any]:
    """One cell: agreement (share, images agreed) clean and under noise, and seconds."""
    start = time.perf_counter()
    if row.startswith("art_"):
        model = knockoff(row.removeprefix("art_"), budget, seed, epochs)
    else:
        options = dict(ROWS[row])
        selection = surrogates.Selection(options.pop("selection"), round_epochs=-(-epochs // 2))
        model = student(seed)
        members = [student(seed, number + 1) for number in range(options.pop("committee", 0))]
        surrogates.distill(
            _data["target"],
            _data["pool"],
            model,
            budget=budget,
            query_batch=min(500, budget),
            selection=selection,
            committee=members,
            seed=seed,
            epochs=epochs,
            **RECIPE,
            **options,
        )
    agreed = {
        name: int((predict(model, images, 500).argmax(dim=1) == _data["labels_of_target"][name]).sum())
        for name, images in _data["conditions"].items()
    }
    seconds = round(time.perf_counter() - start, 1)
    return {
        "row": row,
        "budget": budget,
        "seed": seed,
        "epochs": epochs,
        "agreed": agreed,
        "seconds": seconds,
    }


def knockoff(strategy: str, budget: int, seed: int, epochs: int) -> nn.Module:
    """KnockoffNets with our student, optimizer and passes; its own loop has no schedule and no averaged weights."""
    from art.attacks.extraction import KnockoffNets
    from art.estimators.classification import PyTorchClassifier

    common: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(),
        "input_shape": SHAPE,
        "nb_classes": CLASSES,
        "clip_values": (0, 1),
        "device_type": "cpu",
    }
    model = student(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=RECIPE["weight_decay"])
    attack = KnockoffNets(
        PyTorchClassifier(_data["black_box"], **common),
        batch_size_fit=RECIPE["batch_size"],
        batch_size_query=500,
        nb_epochs=epochs,
        nb_stolen=budget,
        sampling_strategy=strategy,
        use_probability=True,
        verbose=False,
    )
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from the global generator
    try:
        attack.extract(
            _data["pool"],
            _data["pool_labels"] if strategy == "adaptive" else None,
            thieved_classifier=PyTorchClassifier(model, optimizer=optimizer, **common),
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return model.eval()


def train_target(root: str) -> str:
    """The target of the preset, trained and logged by the pipeline itself; the folder of its model."""
    import certdef
    from certdef import pipeline, stages

    config = certdef.load_config(preset="fashion-mnist", data__root=root)
    with pipeline.open_job(config) as job:
        return str(stages.open_target(job)[1].path / "model")


def table(cells: list[dict[str, Any]], condition: str) -> str:
    """Markdown: median % of the seeds (lowest-highest), and the 95% interval of the median seed over images."""
    budgets = sorted({cell["budget"] for cell in cells})
    lines = [f"| agreement, {condition} | " + " | ".join(f"{budget:,} queries" for budget in budgets) + " |"]
    lines.append("| --- |" + " ---: |" * len(budgets))
    for row in ROWS:
        columns = []
        for budget in budgets:
            agreed = sorted(
                cell["agreed"][condition] for cell in cells if (cell["row"], cell["budget"]) == (row, budget)
            )
            if not agreed:
                columns.append("")
                continue
            middle, images = statistics.median_low(agreed), len(_data["test"])
            low, high = certify.binomial_interval(middle, images)
            spread = (
                f" ({100 * agreed[0] / images:.2f}-{100 * agreed[-1] / images:.2f})"
                if len(agreed) > 1
                else ""
            )
            columns.append(
                f"{100 * middle / images:.2f}{spread} [{100 * float(low):.1f}, {100 * float(high):.1f}]"
            )
        if any(columns):
            lines.append(f"| {row} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("CERTDEF_DATA_ROOT", "../shared/data"))
    parser.add_argument("--target", help="folder of a certdef model; unset, the preset's is trained")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[3], help="number for each budget, or for all"
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, help="passes over the answered images; default by budget")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("distillation.jsonl"))
    arguments = parser.parse_args()
    target = arguments.target or train_target(arguments.data)
    seeds = arguments.seeds * (len(arguments.budgets) if len(arguments.seeds) == 1 else 1)
    wanted = [
        (row, budget, seed, arguments.epochs or EPOCHS.get(budget, max(10, 200_000 // budget)))
        for budget, count in zip(arguments.budgets, seeds, strict=True)
        for seed in range(count)
        for row in arguments.rows
    ]
    cells = [json.loads(line) for line in arguments.results.open()] if arguments.results.is_file() else []
    done = {(cell["row"], cell["budget"], cell["seed"], cell["epochs"]) for cell in cells}
    missing = [cell for cell in wanted if cell not in done]
    prepare(arguments.data, target, 1)
    with (
        ProcessPoolExecutor(
            arguments.workers,
            get_context("spawn"),
            prepare,
            (arguments.data, target, max(1, (os.cpu_count() or 1) // arguments.workers)),
        ) as workers,
        arguments.results.open("a") as file,
    ):
        for future in as_completed([workers.submit(measure, *cell) for cell in missing]):
            cells.append(future.result())
            file.write(json.dumps(cells[-1]) + "\n")
            file.flush()
    cells = [
        cell for cell in cells if (cell["row"], cell["budget"], cell["seed"], cell["epochs"]) in set(wanted)
    ]
    print(f"student cnn, {RECIPE}, passes {sorted({(cell[1], cell[3]) for cell in wanted})}\n")
    for condition in ("clean", "noisy"):
        print(table(cells, condition) + "\n")
    print(f"{sum(cell['seconds'] for cell in cells):,.0f} seconds of work")


if __name__ == "__main__":
    main()
