import pytest
import torch
from torch import nn

from certdef.attacks import gradient as attacks
from certdef.attacks.square import square
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")


def share_right(model, shown, labels):
    with torch.no_grad():
        return float((model(shown).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def victim():
    model, images, labels = digits_mlp()
    return model, images[:100], labels[:100]


@pytest.mark.parametrize("attack", ["pgd", "eot", "square", "l2"])
def test_every_attack_keeps_to_its_distance_breaks_the_model_and_leaves_the_global_generator_alone(
    victim, attack
):
    model, images, labels = victim
    attacked = {
        "pgd": lambda eps: attacks.pgd(model, images, labels, eps=eps, steps=10, seed=1),
        "eot": lambda eps: attacks.pgd(model, images, labels, eps=eps, steps=10, seed=1, eot=3),
        "square": lambda eps: square(model, images, labels, eps=eps, queries=100, seed=1),
        "l2": lambda eps: attacks.pgd_l2(
            model, images, labels, eps=torch.full((100,), 8 * eps), steps=10, seed=1
        ),
    }[attack]
    state = torch.random.get_rng_state()
    near, far = attacked(0.05), attacked(0.3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(near, attacked(0.05))
    assert share_right(model, images, labels) > 0.9
    assert share_right(model, far, labels) < 0.2
    assert (
        share_right(model, far, labels)
        < share_right(model, near, labels)
        < share_right(model, images, labels)
    )
    for eps, adversarial in ((0.05, near), (0.3, far)):
        moved = (adversarial - images).flatten(1)
        assert (moved.norm(dim=1) <= 8 * eps).all() if attack == "l2" else moved.abs().max() <= eps + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_each_image_has_an_l2_distance_of_its_own(victim):
    model, images, labels = victim
    eps = torch.linspace(0, 1, 100)
    moved = (attacks.pgd_l2(model, images, labels, eps=eps, steps=5, seed=0) - images).flatten(1).norm(dim=1)
    assert (moved <= eps).all()
    assert moved[0] == 0
    assert moved[99] > 0.5


def test_what_a_library_returns_is_brought_back():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    wild = images + 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    near = attacks.within(wild, images, 0.1)
    assert (near - images).abs().max() <= 0.1 + 1e-6
    assert near.min() >= 0
    assert near.max() <= 1
    near = attacks.within_l2(wild, images, torch.full((6,), 0.5))
    assert (near - images).flatten(1).norm(dim=1).max() <= 0.5
    assert near.min() >= 0
    assert near.max() <= 1


class Rounding(nn.Module):
    """A purifier without a useful gradient."""

    def forward(self, images):
        return (4 * images).round() / 4


def test_straight_through_gives_the_purifiers_output_and_the_gradient_of_the_identity(victim):
    _, images, _ = victim
    shown = images.clone().requires_grad_()
    output = attacks.StraightThrough(Rounding())(shown)
    assert torch.allclose(output, Rounding()(images), atol=1e-6)
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    (weights * output).sum().backward()
    assert torch.equal(shown.grad, weights)


def test_averaging_over_the_noise_attacks_a_noisy_model_better(victim):
    """At a noise that drowns one draw's gradient; both with the same steps."""
    model, images, labels = victim

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, shown):
            return self.inner(shown + 0.4 * torch.randn_like(shown))

    left = [
        share_right(model, attacks.pgd(Noisy(), images, labels, eps=0.15, steps=5, seed=0, eot=eot), labels)
        for eot in (1, 20)
    ]
    assert left[1] < left[0] - 0.05


class WritesIntoItsInput(nn.Module):
    """A foreign model that blackens the batch that it is given, and hands out a buffer of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        scores = self.inner(images.clone())
        images.zero_()
        return scores


@pytest.mark.parametrize("attack", ["pgd", "eot", "square", "l2"])
def test_a_model_that_writes_into_its_input_changes_no_attack(victim, attack):
    model, images, labels = victim[0], victim[1][:10], victim[2][:10]
    run = {
        "pgd": lambda m: attacks.pgd(m, images, labels, eps=0.1, steps=3, seed=1),
        "eot": lambda m: attacks.pgd(m, images, labels, eps=0.1, steps=3, seed=1, eot=2),
        "square": lambda m: square(m, images, labels, eps=0.1, queries=20, seed=1),
        "l2": lambda m: attacks.pgd_l2(m, images, labels, eps=torch.ones(10), steps=2, seed=1),
    }[attack]
    before = images.clone()
    assert torch.equal(run(WritesIntoItsInput(model)), run(model))
    assert torch.equal(images, before)


def test_a_purifier_that_writes_into_its_input_leaves_the_attackers_images_alone(victim):
    images = victim[1][:4].clone()
    before = images.clone()
    purified = attacks.StraightThrough(WritesIntoItsInput(nn.Identity()))(images)
    assert torch.equal(images, before)
    assert torch.allclose(purified, before, atol=1e-6)
