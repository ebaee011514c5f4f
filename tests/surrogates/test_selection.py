"""Strategies choose as their names promise, the same each time, and never an image that was queried."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surrogates import Selection, SurrogateError
from surrogates.distillation.inference import predict_with_features
from surrogates.distillation.selection import STRATEGIES, boundary_distance, farthest_first, select_random

pytestmark = pytest.mark.filterwarnings("error")


def linear(seed: int = 0, classes: int = 4) -> nn.Module:
    """A linear classifier of 1x3x3 images, of which margins and distances are known exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, classes)).eval()


@pytest.fixture(scope="module")
def pool() -> torch.Tensor:
    return torch.rand((300, 1, 3, 3), generator=torch.Generator().manual_seed(0))


def chosen(strategy: str, pool: torch.Tensor, answered: torch.Tensor, count: int, **options: Any) -> Any:
    return Selection(strategy, **options).select(
        pool, answered, linear(), count, batch_size=64, generator=torch.Generator().manual_seed(3)
    )


def test_random_selection_is_uniform_without_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(2000):
        drawn = select_random(10, 3, generator)
        assert len(set(drawn.tolist())) == 3
        counts[drawn] += 1
    # Each index is a Binomial(2000, 0.3): five standard deviations are 102.
    assert (counts - 600).abs().max() < 102
    with pytest.raises(SurrogateError, match=r"count must be in \[1, 10\].*got 11"):
        select_random(10, 11, generator)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_chooses_new_images_the_same_each_time(strategy: str, pool: torch.Tensor) -> None:
    answered = torch.arange(0, 300, 7)
    before = torch.random.get_rng_state()
    first, again = (chosen(strategy, pool, answered, 40) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was touched"
    assert first.dtype == torch.int64
    assert len(set(first.tolist())) == 40
    assert not set(first.tolist()) & set(answered.tolist())
    everything = chosen(strategy, pool, answered, 300 - len(answered))
    assert set(everything.tolist()) | set(answered.tolist()) == set(range(300))
    with pytest.raises(
        SurrogateError, match=r"count must be in \[1, 257\], the images without an answer, got 258"
    ):
        chosen(strategy, pool, answered, 258)


def test_margin_and_entropy_choose_the_least_certain(pool: torch.Tensor) -> None:
    answered = torch.arange(10)
    with torch.no_grad():
        p = linear()(pool).softmax(dim=1)
    top = p.sort(dim=1, descending=True).values
    for strategy, doubt in (("margin", top[:, 1] - top[:, 0]), ("entropy", -(p * p.log()).sum(dim=1))):
        free = doubt[10:]
        expected = 10 + free.argsort(descending=True)[:20]
        assert set(chosen(strategy, pool, answered, 20).tolist()) == set(expected.tolist()), strategy


def test_equal_scores_are_taken_in_the_order_of_the_pool(pool: torch.Tensor) -> None:
    same = pool[:1].expand(50, -1, -1, -1).contiguous()
    assert chosen("margin", same, torch.tensor([2]), 5).tolist() == [0, 1, 3, 4, 5]


def test_k_center_is_the_greedy_one_and_within_twice_the_best() -> None:
    points = torch.rand((14, 2), generator=torch.Generator().manual_seed(5))
    centers, count = points[:2], 3
    greedy: list[int] = []
    for _ in range(count):  # the definition, without any bookkeeping
        reached = torch.cat([centers, points[greedy]])
        greedy.append(int(torch.cdist(points, reached).amin(dim=1).argmax()))
    assert farthest_first(points, centers, count).tolist() == greedy

    def radius(more: tuple[int, ...]) -> float:
        return float(torch.cdist(points, torch.cat([centers, points[list(more)]])).amin(dim=1).max())

    best = min(radius(subset) for subset in itertools.combinations(range(14), count))
    assert radius(tuple(greedy)) <= 2 * best
    assert farthest_first(points, points[:0], 14).sort().values.tolist() == list(range(14))


def test_k_center_covers_a_cluster_that_random_misses(pool: torch.Tensor) -> None:
    """Three images in three hundred are far from the others: k-center queries one of them at once."""
    images = pool.clone()
    images[[17, 170, 271]] += 5
    flat = {"features": lambda part: part.flatten(1)}
    assert set(chosen("kcenter", images, torch.arange(10), 1, **flat).tolist()) <= {17, 170, 271}


def test_features_are_what_the_last_linear_layer_sees(pool: torch.Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    network.train()
    logits, features = predict_with_features(network, pool, 64)
    with torch.no_grad():
        assert torch.allclose(features, network[:3](pool), atol=1e-6)
        assert torch.allclose(logits, network(pool), atol=1e-6)
    assert network.training
    assert not network[3]._forward_pre_hooks
    convolution = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten())
    logits, features = predict_with_features(convolution, pool, 64)
    assert torch.equal(logits, features)


def test_the_distance_to_a_linear_boundary_is_exact(pool: torch.Tensor) -> None:
    model = linear()
    weight, bias = (value.detach() for value in model[1].parameters())
    logits = pool.flatten(1) @ weight.T + bias
    label = logits.argmax(dim=1)
    gap = logits.gather(1, label[:, None]) - logits
    length = (weight[label][:, None] - weight[None]).norm(dim=2)
    exact = torch.where(length > 0, gap / length, torch.inf).amin(dim=1)
    found = boundary_distance(model, pool, rivals=3)
    # One step over the boundary by 2% ends the way.
    assert torch.allclose(found, 1.02 * exact, rtol=1e-3, atol=1e-5)
    assert model[1].weight.grad is None


def test_dfal_prefers_images_by_distance_not_by_margin() -> None:
    """Steep logits have large margins near the boundary; only the distance sees how near it is."""

    class Steep(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.flatten(1)[:, 0]
            score = torch.where(x > 0.5, 20 * (x - 0.52), 0.5 * x - 0.6)
            return torch.stack([score, -score], dim=1)

    images = torch.zeros((8, 1, 1, 2))
    images[:, 0, 0, 0] = torch.tensor([0.0, 0.1, 0.2, 0.6, 0.62, 0.64, 0.9, 0.95])
    generator = torch.Generator()
    picked = Selection("dfal").select(images, torch.tensor([7]), Steep(), 2, generator=generator)
    assert set(picked.tolist()) == {3, 4}
    by_margin = Selection("margin").select(images, torch.tensor([7]), Steep(), 2, generator=generator)
    assert set(by_margin.tolist()) == {1, 2}


def test_a_mix_narrows_step_by_step(pool: torch.Tensor) -> None:
    answered = torch.arange(10)
    margins = chosen("margin", pool, answered, 3 * 20)
    mixed = chosen("margin_kcenter", pool, answered, 20)
    assert set(mixed.tolist()) < set(margins.tolist())
    assert set(mixed.tolist()) != set(margins[:20].tolist())
    centers = chosen("kcenter", pool, answered, 3 * 20)
    assert set(chosen("kcenter_margin", pool, answered, 20).tolist()) < set(centers.tolist())


def test_rounds_add_up() -> None:
    for strategy, rounds, start, count in itertools.product(
        STRATEGIES, (2, 5, 9), (0.1, 0.5), (5, 100, 1001)
    ):
        sizes = Selection(strategy, rounds=rounds, start=start).sizes(count)
        assert sum(sizes) == count
        assert min(sizes) >= 1
        if strategy == "random":
            assert sizes == [count]
        elif count > 20:
            assert len(sizes) == rounds
            assert sizes[0] == round(start * count)
            assert max(sizes[1:]) - min(sizes[1:]) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of random, kcenter, .*, got 'best'"),
        ({"rounds": 1}, "rounds must be at least 2, a random one and another, got 1"),
        ({"start": 0.0}, r"start must be a share of the budget in \(0, 1\), got 0.0: try 0.2"),
        ({"round_epochs": 0}, "round_epochs must be a positive integer, got 0"),
    ],
)
def test_unusable_selections_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SurrogateError, match=message):
        Selection(**options)


def test_features_of_a_wrong_shape_are_refused(pool: torch.Tensor) -> None:
    with pytest.raises(SurrogateError, match=r"features gave shape \(300, 1, 3, 3\), expected \(300, D\)"):
        chosen("kcenter", pool, torch.arange(10), 5, features=lambda part: part)
    assert np.isfinite(pool.numpy()).all()
