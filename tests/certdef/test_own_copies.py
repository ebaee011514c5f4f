"""A model, a purifier or a surrogate is foreign code: one that writes into its input changes nothing for the others."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certify
import surrogates
from certdef.attacks import gradient, smoothed, threat_ladder
from certdef.attacks.endpoint import Endpoint
from certdef.attacks.threat_ladder import System
from certdef.config.attacks import LadderConfig
from certdef.config.job import RunConfig
from certdef.purifiers.base import Plan, TrainingRun
from certdef.purifiers.de3 import Vote
from certdef.purifiers.uad_rs import purify
from certdef.report.images import denoising_steps
from certdef.stages.purifier import purify_images
from surrogates.distillation.inference import features, predict, predict_with_features
from surrogates.distillation.selection import boundary_distance
from surrogates.membership import label_logits

K, SHAPE = 3, (1, 4, 4)
CPU = torch.device("cpu")
LAW = certify.Gaussian(0.25)


class Classifier(nn.Module):
    """Linear in the distance from middle gray, which it takes in place or on a copy."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place
        self.head = nn.Linear(16, K, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(K, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        moved = images.sub_(0.5).abs_() if self.in_place else (images - 0.5).abs()
        return self.head(moved.flatten(1))


class Purifier(nn.Module):
    """Halves the contrast, in place or on a copy."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(0.5).add_(0.25) if self.in_place else 0.5 * images + 0.25


class OneHot(nn.Module):
    """A classifier's labels as probabilities."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.base = Classifier(in_place)

    def forward(self, images: Tensor) -> Tensor:
        return self.base(images).softmax(1)


def target_of(seed: int = 1) -> surrogates.Target:
    weights = np.random.default_rng(seed).normal(size=(16, K))
    return surrogates.open_target(
        lambda images: (images.reshape(len(images), -1) @ weights).astype(np.float32),
        num_classes=K,
        output_kind="logits",
        identity="linear",
    )


def labels_of(images: Tensor) -> Tensor:
    return Classifier(in_place=False)(images).argmax(1)


def run_ladder(purifier: nn.Module, classifier: nn.Module, images: Tensor):
    settings = LadderConfig(images=4, steps=2, eot=1, square_queries=8, decision_queries=0)
    system = System(classifier, purifier)
    return [each.right for each in threat_ladder.evaluate(system, images, labels_of(images), settings)]


def run_fidelity(model: nn.Module, images: Tensor):
    return [surrogates.fidelity(model, target_of(), images, noise).agreement for noise in (None, LAW)]


def run_guided(surrogate: nn.Module, images: Tensor):
    def target(noisy: Tensor) -> np.ndarray:
        return (noisy.mean(dim=(1, 2, 3)) > 0.5).long().numpy()

    return certify.certify_guided(target, surrogate, images, LAW, K, radii=[0.1], n=100)


def run_distill(in_place: bool, images: Tensor):
    student, member = Classifier(in_place), Classifier(in_place)
    options = {"selection": "dfal_kcenter", "committee": [member], "epochs": 1, "validation": 0.1}
    trained = surrogates.distill(target_of(), images, student, budget=20, query_batch=5, **options)
    return trained.pool_indices, trained.model.head.weight.detach().numpy().tolist()


def run_purify_images(purifier: nn.Module, images: Tensor, path: Path):
    job = SimpleNamespace(device=CPU, config=SimpleNamespace(seed=0), progress=lambda batches, desc: batches)
    held = SimpleNamespace(name="foreign", defense=lambda generator: purifier)
    return purify_images(job, held, images.numpy(), path / "purified.npz")


def run_labels(classifier: nn.Module, images: Tensor):
    plan = Plan(RunConfig(), SHAPE, classifier=classifier)
    return TrainingRun(plan, images, CPU, Path("none"), None, None).labels(images).tolist()


def run_membership(classifier: nn.Module, images: Tensor):
    return label_logits(classifier, images.numpy(), labels_of(images).numpy()).tolist()


def run_smoothed_attack(classifier: nn.Module, images: Tensor):
    radii = torch.full((len(images),), 0.3)
    found = smoothed.attack_smoothed(
        classifier, LAW, images, labels_of(images), radii, steps=2, draws=4, seed=0
    )
    return found.tolist()


CALLS = {
    "predict": lambda own, images, path: predict(Classifier(own), images, 3).tolist(),
    "features": lambda own, images, path: features(Classifier(own), images).tolist(),
    "predict_with_features": lambda own, images, path: predict_with_features(Classifier(own), images, 3)[
        1
    ].tolist(),
    "boundary_distance": lambda own, images, path: boundary_distance(Classifier(own), images).tolist(),
    "fidelity": lambda own, images, path: run_fidelity(Classifier(own), images),
    "membership": lambda own, images, path: run_membership(OneHot(own), images),
    "distill": lambda own, images, path: run_distill(own, images),
    "guide": lambda own, images, path: run_guided(Classifier(own), images),
    "votes": lambda own, images, path: certify.SmoothedClassifier(Classifier(own), LAW, K).certify(
        images, n=100
    ),
    "pgd": lambda own, images, path: gradient.pgd(
        Classifier(own), images, labels_of(images), eps=0.1, steps=2, seed=0
    ).tolist(),
    "attack on the vote": lambda own, images, path: run_smoothed_attack(Classifier(own), images),
    "endpoint": lambda own, images, path: Endpoint(Classifier(own), Purifier(own)).query(images)[1].tolist(),
    "ladder": lambda own, images, path: run_ladder(Purifier(own), Classifier(own), images),
    "vote": lambda own, images, path: Vote(Purifier(own), Classifier(own), 3)(images).tolist(),
    "uad-rs": lambda own, images, path: purify(Purifier(own), images).tolist(),
    "report": lambda own, images, path: [
        each.tolist() for each in denoising_steps(Purifier(own), LAW, images.numpy(), 0)
    ],
    "purify_images": lambda own, images, path: run_purify_images(Purifier(own), images, path),
    "pseudo-labels": lambda own, images, path: run_labels(Classifier(own), images),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_model_that_writes_into_its_input_gives_the_same_result(name, tmp_path):
    images = torch.rand(24 if name == "distill" else 8, *SHAPE, generator=torch.Generator().manual_seed(2))
    kept = images.clone()
    expected = CALLS[name](False, images, tmp_path)
    assert torch.equal(images, kept)
    found = CALLS[name](True, images, tmp_path)
    assert torch.equal(images, kept)  # nobody else sees what it wrote
    assert found == expected


def test_writing_into_the_input_would_be_noticed():
    """The models of the table do write: called without a copy they change the images."""
    images = torch.rand(4, *SHAPE)
    for model in (Classifier(True), Purifier(True), OneHot(True)):
        shared = images.clone()
        with torch.no_grad():
            model(shared)
        assert not torch.equal(shared, images)


def test_a_paid_target_is_not_asked_to_check_whether_labels_follow_the_batch(tmp_path):
    """n0 + n votes an image are all that is paid for, also where the ledger allows no more."""
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    with surrogates.QueryLedger(tmp_path / "ledger.db", {"certification": 2 * 120}) as ledger:
        paid = ledger.attach(target_of(), purpose="certification", experiment="votes")

        def classify(noisy: Tensor) -> np.ndarray:
            return paid.query(noisy, bounded=False).labels

        smoothed_target = certify.SmoothedClassifier(classify, LAW, K, batch_size=64)
        smoothed_target.certify(images, n0=20, n=100)
        assert ledger.bill()["certification"].spent == 240
