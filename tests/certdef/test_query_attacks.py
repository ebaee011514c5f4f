import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import surrogates
from certdef.attacks import query as query_attacks
from certdef.attacks.endpoint import Endpoint
from certdef.attacks.nes import nes, probe_size
from certdef.attacks.square import size_at, square
from certdef.config.job import ConfigError
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 0.25


@pytest.fixture(scope="module")
def victim():
    model, images, labels = digits_mlp()
    return model, images[:20], labels[:20]


def target(model, kind):
    """The classifier as an opened target that answers in one kind only."""

    def answer(pixels):
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels))
        if kind == "labels":
            return logits.argmax(1).numpy()
        if kind == "top_k":
            best = logits.softmax(1).topk(3)
            return best.indices.numpy(), best.values.numpy()
        return (logits.softmax(1) if kind == "probabilities" else logits).numpy()

    return surrogates.open_target(answer, num_classes=10, output_kind=kind, identity=kind)


@pytest.mark.parametrize("kind", ["probabilities", "logits", "top_k"])
def test_scores_are_log_probabilities_whatever_the_target_answers(victim, kind):
    model, images, _ = victim
    with torch.no_grad():
        expected = model(images).log_softmax(1)
    labels, scores = Endpoint(target(model, kind)).query(images)
    assert torch.equal(labels, expected.argmax(1))
    named = expected.topk(3 if kind == "top_k" else 10).indices
    assert torch.allclose(scores.gather(1, named).exp(), expected.gather(1, named).exp(), atol=1e-4)
    assert torch.allclose(scores.exp().sum(1), torch.ones(20), atol=1e-3)
    assert torch.equal(scores.argmax(1), labels)


def test_labels_alone_give_no_scores(victim):
    model, images, _ = victim
    endpoint = Endpoint(target(model, "labels"))
    assert not endpoint.scored
    assert endpoint.query(images)[1] is None


def test_repeated_queries_are_averaged_and_each_is_counted(victim):
    model, images, labels = victim

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, shown):
            return (shown + 0.5 * torch.randn(shown.shape, generator=self.generator)).clamp(0, 1)

    single, many = (Endpoint(model, Noise(), repeats=repeats) for repeats in (1, 25))
    right = [float((each.query(images)[0] == labels).float().mean()) for each in (single, many)]
    assert right[1] > right[0]
    assert (single.queries, many.queries) == (20, 500)
    silent = Endpoint(target(model, "labels"), Noise(), repeats=25)
    assert float((silent.query(images)[0] == labels).float().mean()) > right[0]


def by_scores(attack):
    def attacked(endpoint, images, labels, **options):
        return attack(lambda shown: endpoint.query(shown)[1], images, labels, **options)

    return attacked


ATTACKS = {
    "square": by_scores(square),
    "square, averaged": by_scores(partial(square, looks=2)),
    "nes": by_scores(nes),
    "hop_skip_jump": query_attacks.hop_skip_jump,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_by_answers_alone_break_the_model_within_eps_and_their_queries(victim, name):
    model, images, labels = victim
    attack, kind = ATTACKS[name], "labels" if name == "hop_skip_jump" else "probabilities"
    before, state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    endpoint = Endpoint(target(model, kind))
    found = attack(endpoint, images, labels, eps=EPS, queries=400, seed=3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(state, torch.random.get_rng_state())
    assert 0 < endpoint.queries <= 400 * 20
    assert (found - images).abs().max() <= EPS + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    right = [(endpoint.query(shown)[0] == labels).float().mean() for shown in (images, found)]
    assert right[0] > 0.9
    assert right[1] < 0.4
    again = attack(Endpoint(target(model, kind)), images, labels, eps=EPS, queries=400, seed=3)
    assert torch.equal(found, again)


def test_no_image_is_queried_more_often_than_allowed(victim):
    """One image at a time, so that the count is the image's."""
    model, images, labels = victim
    counts = []
    for row in range(4):
        endpoint = Endpoint(model)
        others = torch.cat([images[row : row + 1], images[-2:]])
        truth = torch.cat([labels[row : row + 1], labels[-2:] * 0 - 1])  # the others are wrong from the start
        query_attacks.hop_skip_jump(endpoint, others, truth, eps=1e-4, queries=60, seed=0)
        counts.append(endpoint.queries - 2)  # each of the others is queried once
    assert counts == [60] * 4


def test_without_the_toolbox_one_line_says_what_to_install(victim, monkeypatch):
    model, images, labels = victim
    monkeypatch.setitem(sys.modules, "art", None)
    endpoint = Endpoint(model)
    with pytest.raises(ConfigError, match=r"certdef\[attacks\]"):
        query_attacks.hop_skip_jump(endpoint, images, labels, eps=EPS, queries=60, seed=0)
    assert endpoint.queries == 0


def test_a_purifier_that_writes_into_its_input_leaves_the_attackers_images_alone(victim):
    model, images, _ = victim

    class Blackens(nn.Module):
        def forward(self, batch):
            purified = batch.clone()
            batch.zero_()
            return purified

    before = images.clone()
    labels, _ = Endpoint(model, Blackens()).query(images)
    assert torch.equal(images, before)
    assert torch.equal(labels, Endpoint(model).query(images)[0])


# --- scores that noise blurs ----------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A classifier behind noise of its own."""

    def __init__(self, model, sigma):
        super().__init__()
        self.model, self.sigma, self.generator = model, sigma, torch.Generator().manual_seed(0)

    def forward(self, images):
        noise = torch.randn(images.shape, generator=self.generator)
        with torch.no_grad():
            return self.model((images + self.sigma * noise).clamp(0, 1)).log_softmax(1)


def share_right(system, images, labels):
    return float(torch.stack([system(images).argmax(1) == labels for _ in range(20)]).float().mean())


def test_an_estimated_gradient_sees_through_noise(victim):
    model, images, labels = victim
    system = Noisy(model, 0.4)
    clean = share_right(system, images, labels)
    found = nes(system, images, labels, eps=0.2, queries=2_000, seed=0)
    assert share_right(system, found, labels) < clean - 0.4
    assert (found - images).abs().max() <= 0.2 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1


def test_probes_grow_with_the_noise():
    images = torch.full((30, 1, 6, 6), 0.5)
    weight, generator = (
        torch.randn(36, generator=torch.Generator().manual_seed(0)),
        torch.Generator().manual_seed(1),
    )

    def sized(noise):
        def rise(at, pattern):
            exact = 2 * (pattern.flatten(1) @ weight)
            return exact + noise * torch.randn(len(at), generator=generator)

        def signs():
            return torch.randint(2, images.shape, generator=generator) * 2.0 - 1

        return probe_size(rise, images, signs, 0.2, 5_000)

    assert sized(0.0)[0] == pytest.approx(0.05)
    assert sized(1.0)[0] == pytest.approx(0.1)
    size, spent = sized(100.0)
    assert size == pytest.approx(0.2)
    assert spent == 64


def test_square_keeps_asking_where_noise_is_drawn_and_stops_where_all_is_lost(victim):
    model, images, labels = victim
    counted = Endpoint(model)
    found = square(lambda shown: counted.query(shown)[1], images, labels, eps=0.5, queries=2_000, seed=0)
    assert (counted.query(found)[0] != labels).all()
    assert counted.queries < 2_000 * 20 / 4
    system = Endpoint(Noisy(model, 0.2))
    square(lambda shown: system.query(shown)[1], images, labels, eps=0.5, queries=1_000, seed=0, looks=4)
    assert 990 * 20 <= system.queries <= 1_000 * 20


def test_squares_shrink_as_published():
    assert size_at(0.0) == 0.8
    assert [size_at(each / 10_000) for each in (11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)] == [
        0.8 / 2**power for power in range(1, 10)
    ]
