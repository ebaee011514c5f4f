"""A deployed endpoint under ensemble-transfer attack, with and without a purifier in front.

    python benchmarks/endpoint.py --data-root FOLDER

The target of the CIFAR-10 preset answers over HTTP, behind MLflow's own scoring server on loopback. The attacker knows
neither it nor the purifier: he attacks three models of his own at once, by their mean logits (Liu et al., "Delving into
transferable adversarial examples and black-box attacks", ICLR 2017; Dong et al., "Boosting adversarial attacks with
momentum", CVPR 2018), trained on the target's training data, which is more than most attackers have.
Every question is paid through a query ledger. The purifiers are Gaussian smoothing and NCIS, as
benchmarks/ncis.py chose them on pool images: run that first, it trains the network as well.

About 2 minutes of one core the first time, seconds after that. Figures are kept in MLflow.
"""

import argparse
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from kept import Figures, kept, trained
from ncis import add_folders, color_network, open_job, smoothing
from torch import Tensor, nn

import surrogates
from certdef import stages
from certdef.attacks import gradient as attacks
from certdef.models import serving
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers.ncis import NCIS
from certdef.tracking.results import Share
from certdef.tracking.workspace import Stage

# The attacker's models and their epochs; two have the target's architecture.
MODELS = {"cnn-1": 8, "cnn-2": 8, "mlp": 6}
GS, NCIS_SETTING = 1.0, (1.0, 3)  # sigma; sigma and iterations: as benchmarks/ncis.py chose them


class Ensemble(nn.Module):
    """The mean of several models' logits, which fools unknown models better than the mean of their losses (Dong et al., 2018)."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def attackers_models(job: stages.Job) -> list[nn.Module]:
    """Trained once; neither their first weights nor the order of their images are the target's."""
    return [
        attackers_model(job, name, epochs, number) for number, (name, epochs) in enumerate(MODELS.items(), 1)
    ]


def attackers_model(job: stages.Job, name: str, epochs: int, number: int) -> nn.Module:
    data, seed, kind = job.data, job.config.seed + number, name.split("-")[0]

    def build() -> nn.Module:
        return job.seeded(lambda: build_classifier(kind, data.image_shape, len(data.classes)), seed)

    def train(model: nn.Module, _: Stage) -> list[float]:
        train_classifier(
            model,
            data.target_images,
            data.target_labels,
            epochs=epochs,
            seed=seed,
            device=job.device,
            augment=True,
            progress=partial(job.progress, desc="train the attacker's model"),
        )
        return []

    return trained(job, f"attackers-{name}", [epochs, number], build, train)[0]


@contextmanager
def endpoint(model_uri: str) -> Iterator[str]:
    """MLflow's scoring server for a logged model, on a free port of loopback, while the block lasts."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(serving.scoring_app(model_uri), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/invocations"
    finally:
        server.should_exit = True
        thread.join()


def measure(job: stages.Job, stage: Stage, target_stage: Stage, network: nn.Module, arguments) -> dict:
    data, eps = job.data, arguments.eps_255 / 255
    images, labels = (
        torch.from_numpy(array[: arguments.images]) for array in (data.heldout_images, data.heldout_labels)
    )
    ensemble = Ensemble(attackers_models(job)).to(job.device)
    members = {
        kind: Share.of(int((guesses(member, images) == labels).sum()), len(labels))
        for kind, member in zip(MODELS, ensemble.members, strict=True)
    }
    moved = attacks.pgd(
        ensemble, images, labels, eps=eps, steps=arguments.steps, seed=0, progress=job.progress
    )
    sigma, iterations = NCIS_SETTING
    purifiers = {
        "none": nn.Identity(),
        f"GS {GS:g}": smoothing(GS),
        f"NCIS {sigma:g} x{iterations}": NCIS(network.cpu(), smoothing(sigma), iterations),
    }
    rows = {}
    budget = {"attack": 2 * len(purifiers) * len(images)}
    with (
        endpoint(target_stage.result.uri) as address,
        surrogates.QueryLedger(stage.path / "ledger.db", budget) as ledger,
    ):
        # The port changes with every start; the ledger knows the target by what is behind it.
        target = surrogates.open_target(
            address,
            num_classes=len(data.classes),
            output_kind="probabilities",
            input_shape=data.image_shape,
            identity=f"endpoint:{target_stage.result.identity}",
        )
        paid = ledger.attach(target, purpose="attack", experiment=stage.fingerprint)
        for name, purifier in purifiers.items():
            with torch.inference_mode():
                inputs = {"clean": purifier(images), "attacked": purifier(moved)}
            rows[name] = {
                key: Share.of(int((paid.query(each.numpy()).labels == labels.numpy()).sum()), len(labels))
                for key, each in inputs.items()
            }
        charge = ledger.bill()["attack"]
    return {
        "images": len(images),
        "members": members,
        "rows": rows,
        "spent": charge.spent,
        "budget": charge.budget,
    }


@torch.inference_mode()
def guesses(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch).argmax(1).cpu() for batch in images.split(100)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_folders(parser)
    parser.add_argument("--images", type=int, default=200, help="Test images.")
    parser.add_argument("--eps-255", type=float, default=8.0, help="L-infinity budget in 8-bit levels.")
    parser.add_argument("--steps", type=int, default=20, help="PGD steps.")
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("images", "eps_255", "steps")}
    network = color_network(arguments)
    with open_job("cifar10", arguments) as job:
        _, target_stage = stages.open_target(job)

        def compute(stage: Stage) -> Figures:
            result = measure(job, stage, target_stage, network, arguments)
            metrics = {
                f"endpoint/{name}/{key}": share[0]
                for name, row in result["rows"].items()
                for key, share in row.items()
            }
            metrics["endpoint/queries"] = result["spent"]
            return Figures(figures=result, params=settings, metrics=metrics)

        key = [target_stage.fingerprint, settings, MODELS, GS, NCIS_SETTING]
        result = kept(job, "endpoint", key, compute).result.figures
    print(
        f"\n### CIFAR-10 part over HTTP, {result['images']} test images, PGD {arguments.eps_255:g}/255 on three models\n"
    )
    print("| purifier | clean | attacked |\n| --- | ---: | ---: |")
    for name, row in result["rows"].items():
        cells = [
            f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for share, low, high in row.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(
        "\nthe attacker's models, clean: "
        + ", ".join(f"{kind} {100 * share[0]:.1f}%" for kind, share in result["members"].items())
    )
    print(f"queries paid: {result['spent']:,} of {result['budget']:,}")


if __name__ == "__main__":
    main()
