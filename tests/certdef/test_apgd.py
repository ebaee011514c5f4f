"""APGD against what is known exactly: linear classifiers, networks that verifiers have decided, and systems that draw noise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.recall import found
from certdef.attacks import apgd, candidates, gradient, threat_ladder
from certdef.config.attacks import LadderConfig
from tests.certdef.test_ladder import Noise
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def victim():
    model, images, labels = digits_mlp()
    return model, images[:40], labels[:40]


def test_losses_are_those_of_the_papers():
    logits, labels = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.0, 4.0, 1.0, 2.0]]), torch.tensor([0, 3])
    assert candidates.margin(logits, labels).tolist() == [-1.0, 2.0]
    assert apgd.difference_of_logits_ratio(logits, labels).tolist() == pytest.approx([-0.5, 2 / 3])
    scaled = apgd.difference_of_logits_ratio(100 * logits, labels)
    assert scaled.tolist() == pytest.approx([-0.5, 2 / 3])
    two = logits[:, :2]
    assert apgd.difference_of_logits_ratio(two, torch.tensor([0, 1])).tolist() == [-2.0, -4.0]
    # p_1 = 0.22, then steps that shrink by 0.03 down to 0.06: of 100 steps
    assert sorted(apgd.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("loss", apgd.LOSSES.values(), ids=apgd.LOSSES)
@pytest.mark.parametrize("start", apgd.STARTS)
def test_the_optimum_of_a_linear_classifier_is_found(loss, start):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    images, labels = 0.3 + 0.4 * torch.rand(20, 1, 6, 6), torch.arange(20) % 2
    at = images + 0.1 * start(images, labels)
    best = apgd.apgd(model, images, labels, loss, start=at, eps=0.1, steps=30)
    weight = (model[1].weight[1] - model[1].weight[0]).reshape(1, 6, 6)
    toward = torch.where(labels == 0, 1.0, -1.0)[:, None, None, None]
    optimum = images + 0.1 * (toward * weight).sign()
    assert torch.allclose(
        candidates.margin(model(best), labels), candidates.margin(model(optimum), labels), atol=1e-5
    )


def test_adversarial_images_stay_within_eps_and_the_global_generator_as_it_was(victim):
    model, images, labels = victim
    state, before = torch.random.get_rng_state(), images.clone()
    searches = apgd.searches([model], eps=0.1, steps=10)
    adversarial, again = (
        candidates.strongest(searches, model, images, labels, eps=0.1, seed=0) for _ in range(2)
    )
    assert torch.equal(adversarial, again)
    assert torch.equal(images, before)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (adversarial - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    pgd = gradient.pgd(model, images, labels, eps=0.1, steps=10, seed=0)
    with torch.no_grad():
        left, of_pgd = (
            float((model(each).argmax(1) == labels).float().mean()) for each in (adversarial, pgd)
        )
    assert left <= of_pgd


def test_the_candidate_is_the_one_that_is_wrong_most_often(victim):
    model, images, labels = victim
    system = nn.Sequential(Noise(), model)
    torch.manual_seed(0)
    weak = (images + 0.05 * torch.randn_like(images).sign()).clamp(0, 1)
    searches = apgd.searches([system], eps=0.2, steps=10, eot=3)
    strong = candidates.strongest(searches, system, images, labels, eps=0.2, seed=0, passes=10)
    lost_weak, lost_strong = (candidates.wrong(system, each, labels, 40).floor() for each in (weak, strong))
    assert lost_strong.mean() > lost_weak.mean() + 10
    assert (lost_strong >= lost_weak - 8).all(), (
        "no image is submitted where another candidate is clearly better"
    )


def test_it_beats_averaged_pgd_on_a_system_that_draws_noise(victim):
    model, images, labels = victim
    settings = LadderConfig(eps=0.15, steps=15, eot=8, square_queries=0, decision_queries=0, resubmissions=1)
    rungs = {
        each.name: each.robust_accuracy
        for each in threat_ladder.evaluate(threat_ladder.System(model, Noise(0.2)), images, labels, settings)
    }
    assert rungs["apgd"] < rungs["full_eot"]
    assert rungs["worst_case"] <= rungs["apgd"]


@pytest.mark.parametrize("seed", [0, 1])
def test_what_verifiers_disproved_is_found_and_nothing_that_they_proved_is_broken(data_root: Path, seed):
    folder = data_root / "targets/mnistfc"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    settings = replace(LadderConfig(), square_queries=0, decision_queries=0)
    tally = found(folder, settings, seed)
    assert all(proven == 0 for _, proven in tally.values())
    assert tally["worst_case"] == (12, 0)
    assert tally["full_eot"][0] < 12, "a single start along one loss misses some"
