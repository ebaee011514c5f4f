"""The seven attacks on scenes, on a small network that tells real digits."""

import pytest
import torch

from benchmarks.scene_attacks import ATTACKS, BLOCKS, patchwork, scene_attack
from surrogates.distillation.inference import features
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 0.2


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
    attacked = scene_attack(name, classifier, images, labels, eps=EPS, others=others)
    assert attacked.shape == images.shape
    assert (attacked - images).abs().max() <= EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    noise = EPS * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = accuracy(classifier, (images + noise).clamp(0, 1), labels)
    assert accuracy(classifier, images, labels) > 0.9
    assert accuracy(classifier, attacked, labels) < noisy - 0.2
    assert torch.equal(attacked, scene_attack(name, classifier, images, labels, eps=EPS, others=others))


def test_fgsm_is_one_step_up_the_cross_entropy(classifier, shown):
    images, labels, _ = shown
    x = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(classifier(x), labels, reduction="sum").backward()
    expected = (images + EPS * x.grad.sign()).clamp(0, 1)
    assert torch.allclose(scene_attack("fgsm", classifier, images, labels, eps=EPS), expected, atol=1e-6)


def test_tpgd_needs_no_label(classifier, shown):
    images, labels, _ = shown
    first = scene_attack("tpgd", classifier, images, labels, eps=EPS)
    assert torch.equal(first, scene_attack("tpgd", classifier, images, torch.zeros_like(labels), eps=EPS))


def test_mixup_draws_features_to_the_mean_scene(classifier, shown):
    images, labels, others = shown
    target = features(classifier, others.mean(0)[None])

    def nearness(name: str) -> float:
        attacked = scene_attack(name, classifier, images, labels, eps=EPS, others=others)
        return torch.cosine_similarity(features(classifier, attacked), target).mean().item()

    assert nearness("mixup") > nearness("i-fgsm") + 0.01


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
        scene_attack("i-fgsm", classifier, images[:8], labels[:8], eps=EPS)
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
        scene_attack(name, classifier, *shown[:2], eps=EPS)
