"""The attacks of the ladder one by one, each against something that only it, or that it at least, must break."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from certdef.attacks import gradient, threat_ladder
from certdef.attacks.attacker import Attacker
from certdef.attacks.evaluation import single_attacks
from certdef.attacks.proxies import LowFrequency, learned_proxy
from certdef.attacks.system import Ensemble, KnownNoise, System
from tests.certdef.test_ladder import SETTINGS, Noise
from tests.trained import adversarial_mlp, digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = replace(SETTINGS, square_queries=0, decision_queries=0)


@pytest.fixture(scope="module")
def victim():
    model, images, labels = digits_mlp()
    return model, images[:40], labels[:40]


def test_what_is_always_wrong_is_submitted_as_it_is(victim):
    model, images, labels = victim
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    wrongly = (labels + 1) % 10  # the first ten have another label than the answer
    labels = torch.where(torch.arange(40) < 10, torch.where(right, wrongly, labels), labels)
    few = replace(FEW, steps=3)
    for system in (System(model), System(model, Noise(0.02))):
        attacker = Attacker(system, images, labels, few, torch.device("cpu"))
        assert attacker.attacked.sum() == right[10:].sum()
        for name in ("full_eot", "apgd"):
            adversarial = attacker.attack(name, 0.2, 0)
            moved = (adversarial != images).flatten(1).any(dim=1)
            assert not moved[~attacker.attacked].any()
            assert moved[attacker.attacked].float().mean() > 0.9
    nothing = threat_ladder.evaluate(System(model), images[:5], labels[:5], few)
    assert nothing[-1].robust_accuracy == 0
    assert all(each.gradients == 0 for each in nothing)


class Negative(nn.Module):
    """Black for white, unseen by autograd: the identity's gradient points the wrong way everywhere."""

    def forward(self, images):
        return (1 - images).detach()


def test_a_learned_proxy_breaks_what_has_no_gradient_and_misleads_the_identitys(victim):
    model, images, labels = victim

    class OfNegatives(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, shown):
            return self.model(1 - shown)

    system = System(OfNegatives(), Negative())
    found = {each.name: each for each in threat_ladder.evaluate(system, images, labels, FEW)}
    assert found["full_eot"].accuracy is None
    assert found["bpda_eot"].robust_accuracy > 0.9
    assert found["proxy"].robust_accuracy < 0.2
    assert found["worst_case"].robust_accuracy < 0.2


def test_a_proxy_that_the_purifier_names_is_followed(victim):
    model, images, labels = victim

    class Shuffled(nn.Module):  # no convolution learns this
        def __init__(self, seen):
            super().__init__()
            self.order, self.seen = torch.randperm(64, generator=torch.Generator().manual_seed(0)), seen

        def forward(self, shown):
            pixels = shown.flatten(1)[:, self.order].reshape(shown.shape)
            return pixels if self.seen else pixels.detach()

    class Unshuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.order = model, Shuffled(True).order.argsort()

        def forward(self, shown):
            return self.model(shown.flatten(1)[:, self.order].reshape(shown.shape))

    alone, helped = (
        {each.name: each for each in threat_ladder.evaluate(system, images, labels, FEW)}
        for system in (
            System(Unshuffled(), Shuffled(False)),
            System(Unshuffled(), Shuffled(False), proxies=[Shuffled(True)]),
        )
    )
    assert helped["proxy"].robust_accuracy < alone["proxy"].robust_accuracy - 0.3
    assert helped["proxy"].robust_accuracy < 0.2


def test_the_learned_proxy_does_what_the_purifier_does(victim):
    images, blur = victim[1], nn.AvgPool2d(3, 1, 1)
    state = torch.random.get_rng_state()
    proxy = learned_proxy(blur, images, [], eps=0.1, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    error = (proxy(images) - blur(images)).square().mean()
    assert error < 0.05 * (images - blur(images)).square().mean()
    assert not any(weight.requires_grad for weight in proxy.parameters())


def test_a_low_passed_gradient_is_slow_and_the_answers_stay(victim):
    model, images, labels = victim
    low = LowFrequency(model, 2)
    assert torch.allclose(low(images), model(images), atol=1e-5)
    at = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(low(at), labels), at)
    blocks = slope.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)  # (N, 1, 2, 2, 16)
    assert (blocks.std(dim=4) < 1e-6).all()
    assert (blocks.abs().amax(dim=(1, 2, 3, 4)) > 0).all()


def test_who_knows_the_noise_breaks_more_and_is_no_part_of_the_worst_case(victim):
    model, images, labels = victim
    purifier = Noise(0.25)
    found = threat_ladder.evaluate(System(model, purifier), images, labels, replace(FEW, eps=0.1))
    named = {each.name: each for each in found}
    assert named["dw_box"].robust_accuracy < named["full_eot"].robust_accuracy
    assert "dw_box" not in {each.name for each in single_attacks(found)}
    known = KnownNoise(nn.Sequential(purifier, model), 7)
    assert torch.equal(known(images), known(images))


def test_several_students_are_one_by_their_mean_probability(victim):
    model, images, _ = victim
    other = adversarial_mlp(0.1)
    expected = (model(images).softmax(1) + other(images).softmax(1)) / 2
    assert torch.allclose(Ensemble([model, other])(images).softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize("eot", [1, 3])
def test_autoattack_keeps_to_its_distance_and_breaks_at_least_what_pgd_does(victim, eot):
    model, images, labels = victim
    state = torch.random.get_rng_state()
    options = {"eps": 0.15, "steps": 10, "seed": 0}
    found = gradient.auto_attack(model, images, labels, **options, classes=10, eot=eot, queries=100)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not found.requires_grad
    assert (found - images).abs().max() <= 0.15 + 1e-6
    pgd = gradient.pgd(model, images, labels, **options)
    with torch.no_grad():
        left, of_pgd = (float((model(each).argmax(1) == labels).float().mean()) for each in (found, pgd))
    assert left <= of_pgd
    assert math.isfinite(float(found.sum()))


def test_of_few_classes_autoattack_says_what_it_needs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    images, labels = torch.rand(6, 1, 6, 6), torch.arange(6) % 3
    found = {each.name: each for each in threat_ladder.evaluate(System(model), images, labels, FEW)}
    assert "4 classes" in found["autoattack"].skipped
    assert found["apgd"].accuracy is not None
