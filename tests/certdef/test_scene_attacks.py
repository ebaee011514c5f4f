"""The seven attacks on scenes, on a small network that tells real digits."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.scene_attacks import (
    ATTACKS,
    BLOCKS,
    PEAK,
    patchwork,
    peak_steps,
    scene_attack,
    shallow_features,
)
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return digits_mlp()[0]


@pytest.fixture(scope="module")
def shown() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Held-out digits, their labels, and one other digit of each class to mix."""
    _, images, labels = digits_mlp()
    others = torch.stack([images[200:][labels[200:] == label][0] for label in range(10)])
    return images[:200], labels[:200], others


@torch.no_grad()
def accuracy(model, images, labels) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_stays_within_eps_and_beats_noise_of_its_size(name, classifier, shown):
    images, labels, others = shown
    attacked = scene_attack(name, classifier, images, labels, others=others)
    assert attacked.shape == images.shape
    assert (attacked - images).abs().max() <= PEAK + 0.5 / 255 + 1e-6
    assert torch.equal(attacked, (attacked * 255).round() / 255)
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    # The same changes of each pixel, with signs that mean nothing.
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = accuracy(classifier, (images + signs * (attacked - images)).clamp(0, 1), labels)
    assert accuracy(classifier, images, labels) > 0.9
    assert accuracy(classifier, attacked, labels) < noisy - 0.2
    assert torch.equal(attacked, scene_attack(name, classifier, images, labels, others=others))


def gradient_of(loss, images) -> torch.Tensor:
    x = images.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def one_step(images, gradient, eps=PEAK) -> torch.Tensor:
    """Of alpha * grad / max|grad| for each image, rounded to 8 bits."""
    peaks = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    return ((images + eps * gradient / peaks).clamp(0, 1) * 255).round() / 255


def test_fgsm_is_one_step_along_the_gradient_over_its_peak(classifier, shown):
    images, labels, _ = shown
    gradient = gradient_of(lambda x: F.cross_entropy(classifier(x), labels, reduction="sum"), images)
    assert torch.equal(scene_attack("fgsm", classifier, images, labels), one_step(images, gradient))
    signs = ((images + PEAK * gradient.sign()).clamp(0, 1) * 255).round() / 255
    assert not torch.allclose(one_step(images, gradient), signs, atol=0.05)


def test_more_steps_start_from_the_rounded_image_and_are_cut_to_eps(classifier, shown):
    images, labels, _ = shown
    once = scene_attack("i-fgsm", classifier, images, labels, steps=1)
    gradient = gradient_of(lambda x: F.cross_entropy(classifier(x), labels, reduction="sum"), once)
    peaks = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    moved = torch.minimum(torch.maximum(once + PEAK * gradient / peaks, images - PEAK), images + PEAK)
    expected = (moved.clamp(0, 1) * 255).round() / 255
    assert torch.equal(scene_attack("i-fgsm", classifier, images, labels, steps=2), expected)


def test_mixup_sums_five_copies_of_halved_contrast(classifier, shown):
    """The first step by hand: momentum and the L1 norm do not change the direction of one step."""
    images, labels, others = shown
    hidden = classifier.network[:4]  # flatten, linear, batch norm, ReLU

    def shallow(x: torch.Tensor) -> torch.Tensor:
        return hidden((x - 0.5) / 0.5)

    target = shallow(others.mean(0)[None]).detach().softmax(1).expand(len(images), -1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        copies = [0.5 + (x - 0.5) * share for share in (1, 0.5, 0.25, 0.125, 0.0625)]
        wrong = sum(F.cross_entropy(classifier(copy), labels, reduction="sum") for copy in copies)
        apart = sum((target * (target.log() - shallow(copy).log_softmax(1))).mean(1).sum() for copy in copies)
        return 1e-3 * wrong - apart

    expected = one_step(images, gradient_of(loss, images))
    attacked = scene_attack("mixup", classifier, images, labels, steps=1, others=others)
    assert (
        attacked - expected
    ).abs().max() <= 1 / 255 + 1e-6  # sums in another order may round the other way
    assert (attacked == expected).float().mean() > 0.99


def test_momentum_adds_the_direction_before():
    """A loss whose gradients are known: the second step goes along the sum of both, each over its L1 norm."""
    image = torch.full((1, 1, 1, 2), 128 / 255)
    gradients = iter([[1.0, 0.0], [1.0, 3.0]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten() * torch.tensor(next(gradients))).sum()[None]

    moved = peak_steps(loss, image, eps=0.2, steps=2, momentum=1.0)  # [1.25, 0.75] over 1.25
    assert torch.allclose(moved - image, torch.tensor([0.2, 0.12]), atol=1 / 255)


def test_tpgd_needs_no_label(classifier, shown):
    images, labels, _ = shown
    first = scene_attack("tpgd", classifier, images, labels)
    assert torch.equal(first, scene_attack("tpgd", classifier, images, torch.zeros_like(labels)))


def test_mixup_draws_shallow_features_to_the_mean_scene(classifier, shown):
    images, labels, others = shown
    target = shallow_features(classifier, others.mean(0)[None])[1].softmax(1)

    def distance(name: str) -> float:
        attacked = scene_attack(name, classifier, images, labels, others=others)
        found = shallow_features(classifier, attacked)[1].log_softmax(1)
        return F.kl_div(found, target.expand_as(found), reduction="batchmean").item()

    assert distance("mixup") < 0.9 * distance("i-fgsm")


def test_a_patchwork_has_each_block_from_one_scene():
    scenes = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 24)
    image = patchwork(scenes, torch.Generator().manual_seed(1))
    blocks = image.unfold(1, 16 // BLOCKS, 16 // BLOCKS).unfold(2, 24 // BLOCKS, 24 // BLOCKS).flatten(-2)
    assert image.shape == (3, 16, 24)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))
    assert len(image.unique()) > 1


def test_the_model_is_left_as_it_was(classifier, shown):
    images, labels, _ = shown
    classifier.train().zero_grad()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    try:
        scene_attack("i-fgsm", classifier, images[:8], labels[:8])
        assert classifier.training
        assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
        assert all(weight.grad is None for weight in classifier.parameters())
    finally:
        classifier.eval()


@pytest.mark.parametrize(
    ("name", "message"), [("pgd", "unknown attack 'pgd': use one of fgsm"), ("mixup", "mixup mixes scenes")]
)
def test_bad_input(name, message, classifier, shown):
    with pytest.raises(ValueError, match=message):
        scene_attack(name, classifier, *shown[:2])
