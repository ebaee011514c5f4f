import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from certdef.attacks import gradient as attacks
from certdef.attacks.threat_ladder import System, evaluate
from certdef.config.attacks import LadderConfig
from certdef.config.job import DataConfig
from certdef.data.sets import load_data
from certdef.models import storage
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers import Reversal, TaskNetwork, TaskShape, Training, train_tasks
from certdef.purifiers.base import Parts
from certdef.purifiers.networks.tasks import TASKS, draw_views, permutations, rotate, shuffle, view
from certdef.purifiers.reversal import PURIFIER, Proxy, Unrolled
from surrogates.distillation.inference import features

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = ("contrastive", "rotation", "jigsaw")
SHAPE = (1, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(), 0)


@pytest.fixture(scope="module")
def classifier(data):
    model = seeded(lambda: build_classifier("cnn", SHAPE, 10))
    images, labels = data.target_images, data.target_labels
    return train_classifier(model, images, labels, epochs=10, seed=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def pool(data):
    return torch.from_numpy(data.pool)


@pytest.fixture(scope="module")
def unseen(data):
    return torch.from_numpy(data.heldout_images)


@pytest.fixture(scope="module")
def attacked(classifier, data, unseen):
    labels = torch.from_numpy(data.heldout_labels)
    return attacks.pgd(classifier, unseen, labels, eps=0.2, steps=10, seed=0)


class Blur(nn.Module):
    """A denoiser without weights."""

    def forward(self, noisy):
        return functional.avg_pool2d(noisy, 3, 1, 1, count_include_pad=False).clamp(0, 1)


def made(classifier, images, **shape):
    settings = {"tasks": TASKS, "bank": 64} | shape
    network = seeded(lambda: TaskNetwork(TaskShape(SHAPE, 128, **settings)))
    history = train_tasks(network, classifier, images, Training(12, 64, 3e-3), denoiser=Blur())
    return network, history


@pytest.fixture(scope="module")
def trained(classifier, pool):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    network, history = made(classifier, pool)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items()), (
        "not frozen"
    )
    return network, history


@pytest.fixture(scope="module")
def network(trained):
    return trained[0]


def doubled(module):
    """A copy in float64, in which two orders of summation do not flip the sign of a gradient."""
    copy = (
        type(module)(module.shape) if isinstance(module, TaskNetwork) else build_classifier("cnn", SHAPE, 10)
    )
    copy.load_state_dict(module.state_dict())
    return copy.double().eval()


class TestPictures:
    def test_each_image_takes_its_own_turn(self):
        images, turns = torch.rand(6, 3, 5, 5), torch.tensor([0, 1, 2, 3, 1, 0])
        expected = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, turns, strict=True)])
        assert torch.equal(rotate(images, turns), expected)

    @pytest.mark.parametrize("grid", [2, 3])
    def test_pieces_are_moved_whole_and_come_back(self, grid):
        images = torch.rand(4, 2, 6, 12)
        order = torch.stack([torch.randperm(grid**2, generator=generator(k)) for k in range(4)])
        shuffled, height, width = shuffle(images, order, grid), 6 // grid, 12 // grid
        for n, place in itertools.product(range(4), range(grid**2)):
            source = int(order[n, place])
            (r, c), (sr, sc) = divmod(place, grid), divmod(source, grid)
            got = shuffled[n, :, r * height : (r + 1) * height, c * width : (c + 1) * width]
            assert torch.equal(
                got, images[n, :, sr * height : (sr + 1) * height, sc * width : (sc + 1) * width]
            )
        assert torch.equal(shuffle(shuffled, order.argsort(dim=1), grid), images)

    @pytest.mark.parametrize(("grid", "apart"), [(2, 2), (3, 6)])
    def test_puzzles_are_24_orders_apart_and_the_same_for_a_seed(self, grid, apart):
        puzzles = permutations(grid, generator())
        assert torch.equal(puzzles.sort(dim=1).values, torch.arange(grid**2).repeat(24, 1))
        distance = (puzzles[:, None] != puzzles).sum(dim=2) + grid**2 * torch.eye(24, dtype=torch.long)
        assert distance.min() >= apart
        assert torch.equal(puzzles, permutations(grid, generator()))

    def test_views_look_inside_the_image(self):
        placement, gain = draw_views(500, generator())
        ones = torch.ones(500, 1, 8, 8)
        seen = view(ones, placement, gain)
        inside = seen[:, :, 1:-1, 1:-1]  # the border blends with what is around the image
        assert torch.allclose(inside, gain[:, None, None, None].expand_as(inside), atol=1e-5)
        assert 0.6 <= gain.min() < 0.65
        assert 1.35 < gain.max() <= 1.4

    def test_the_whole_image_and_its_mirror_image_are_views(self):
        images, whole = torch.rand(2, 1, 8, 8), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        mirrored = whole * torch.tensor([[-1.0, 1, 1], [1, 1, 1]])
        seen = view(images, torch.stack([whole, mirrored]), torch.ones(2))
        assert torch.allclose(seen, torch.stack([images[0], images[1].flip(2)]), atol=1e-5)


class TestTasks:
    def test_heads_learn_and_their_losses_are_standardised(self, trained, classifier, unseen):
        network, history = trained
        assert history[-1] < 0.7 * history[0]
        with torch.inference_mode():
            losses = network.losses(classifier, unseen, TASKS, Blur())
        assert losses.shape == (len(unseen), 4)
        # Unseen clean images: a mean of 0 and an sd of 1, as far as heads generalise and a sample says.
        assert losses.mean(dim=0).abs().max() < 0.5
        assert (losses.std(dim=0).log().abs() < np.log(2)).all()

    def test_the_rotation_head_reads_turns_of_unseen_images(self, network, classifier, unseen):
        turns = torch.arange(len(unseen)) % 4
        with torch.inference_mode():
            answers = network({"rotation": features(classifier, rotate(unseen, turns))})["rotation"]
        assert (answers.argmax(1) == turns).float().mean() > 0.6  # chance is 0.25

    def test_info_nce_against_its_definition(self, network, classifier, unseen):
        images = unseen[:3]
        with torch.inference_mode():
            found = network.losses(classifier, images, ("contrastive",))[:, 0]
            z = []
            for placement, gain in zip(network.placement, network.gain, strict=True):
                shown = view(images, placement.expand(3, 2, 3), gain.expand(3))
                z.append(network({"contrastive": features(classifier, shown)})["contrastive"])
            for n in range(3):
                terms = []
                for i, j in itertools.permutations(range(4), 2):
                    positive = torch.exp(z[i][n] @ z[j][n] / 0.2)
                    negatives = sum(torch.exp(z[i][n] @ other / 0.2) for other in network.bank)
                    terms.append(-torch.log(positive / (positive + negatives)))
                expected = (torch.stack(terms).mean() - network.mean[0]) / network.sd[0]
                assert found[n] == pytest.approx(float(expected), abs=1e-3)

    def test_denoising_against_its_definition(self, network, classifier, unseen):
        image, denoiser = unseen[:1], Blur()
        raw = torch.stack(
            [(denoiser(image + network.shape.sigma * z) - image).square().mean() for z in network.noise]
        )
        found = network.losses(classifier, image, ("denoising",), denoiser)
        assert float(found) == pytest.approx(float((raw.mean() - network.mean[3]) / network.sd[3]), abs=1e-4)

    def test_the_bank_is_of_unit_embeddings_of_training_images(self, network):
        assert torch.allclose(network.bank.norm(dim=1), torch.ones(64), atol=1e-5)
        assert network.bank.std(dim=0).min() > 0.01

    def test_the_loss_is_differentiable(self, network, classifier, unseen):
        reversal = Reversal(doubled(classifier), doubled(network), TASKS, 0.1, denoiser=Blur())
        image = (0.8 * unseen[:1].double() + 0.1).requires_grad_()
        loss = reversal.self_supervised_loss(image)
        (slope,) = torch.autograd.grad(loss.sum(), image)
        direction = 1e-6 * slope / slope.norm()
        there, back = (reversal.self_supervised_loss(image.detach() + sign * direction) for sign in (1, -1))
        assert (there - back).item() == pytest.approx(2e-6 * float(slope.norm()), rel=1e-3)

    def test_weights_and_shape_rebuild_it(self, network, classifier, unseen, tmp_path):
        storage.save_network(tmp_path / "tasks", network)
        shape = json.loads(json.dumps(vars(network.shape)))
        again = TaskNetwork(TaskShape(**shape | {"image_shape": tuple(shape["image_shape"])}))
        storage.load_weights(tmp_path / "tasks", again)
        with torch.inference_mode():
            one, two = (each.eval().losses(classifier, unseen[:5], HEADS) for each in (network, again))
        assert torch.equal(one, two)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ({"tasks": ("color",)}, "name one or more of contrastive"),
            ({"tasks": ()}, "name one or more of contrastive"),
            ({"image_shape": (1, 8, 10)}, "quarter turns need square images, got 8x10"),
            ({"image_shape": (1, 9, 9)}, "2 pieces on a side do not divide the image 9x9"),
            ({"grid": 4}, "grid is 4"),
            ({"views": 1}, "views is 1"),
        ],
    )
    def test_bad_shape(self, shape, message):
        with pytest.raises(ValueError, match=message):
            TaskNetwork(TaskShape(**{"image_shape": SHAPE, "features": 128} | shape))

    def test_bad_training(self, classifier, pool):
        network = TaskNetwork(TaskShape(SHAPE, 128, tasks=TASKS, bank=64))
        with pytest.raises(ValueError, match="50 images do not fill a bank of 64"):
            train_tasks(network, classifier, pool[:50], Training(1, 64, 1e-3), denoiser=Blur())
        with pytest.raises(ValueError, match="denoising needs a denoiser"):
            train_tasks(network, classifier, pool, Training(1, 64, 1e-3))


class TestReversal:
    def test_the_loss_tells_attacked_from_clean_and_the_reversal_lowers_it(
        self, network, classifier, unseen, attacked
    ):
        reversal = Reversal(classifier, network, ("rotation", "jigsaw"), 0.2, steps=10)
        with torch.inference_mode():
            clean, moved = reversal.self_supervised_loss(unseen), reversal.self_supervised_loss(attacked)
            purified = reversal.self_supervised_loss(reversal(attacked[:50]))
        above = (moved[:, None] > clean).float().mean()  # the area under the ROC curve
        assert above > 0.7
        assert (purified < moved[:50]).float().mean() > 0.75  # half would be a coin

    @pytest.mark.parametrize("eps", [0.02, 0.2])
    def test_the_correction_is_bounded_and_the_image_too(self, network, classifier, attacked, eps):
        purified = Reversal(classifier, network, HEADS, eps, steps=10, step=0.1)(attacked[:5])
        moved = (purified - attacked[:5]).abs().max()
        assert eps < moved <= 2 * eps + 1e-6
        assert purified.min() >= 0
        assert purified.max() <= 1

    @pytest.mark.parametrize("tasks", [(task,) for task in TASKS] + [TASKS])
    def test_a_result_depends_on_neither_the_batch_nor_the_place_in_it(
        self, network, classifier, attacked, tasks
    ):
        reversal = Reversal(
            doubled(classifier), doubled(network), tasks, 0.1, steps=4, denoiser=Blur()
        ).double()
        images = attacked[:6].double()
        together = reversal(images)
        reversal.train()  # as a caller may: it must not start to mix the images
        for n in range(6):
            assert torch.allclose(reversal(images[n : n + 1])[0], together[n], atol=1e-9)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        assert torch.allclose(reversal(images[order]), together[order], atol=1e-9)
        others = torch.cat([images[:1], 1 - images[1:]])
        assert torch.allclose(reversal(others)[0], together[0], atol=1e-9)

    def test_it_works_where_the_caller_forbids_gradients(self, network, classifier, attacked):
        reversal = Reversal(classifier, network, HEADS, 0.1, steps=3)
        plain = reversal(attacked[:3])
        with torch.no_grad():
            assert torch.equal(reversal(attacked[:3]), plain)
        with torch.inference_mode():
            assert torch.equal(reversal(attacked[:3].clone()), plain)
        assert not torch.equal(plain, attacked[:3])

    def test_the_seed_alone_draws_the_start(self, network, classifier, attacked):
        state = torch.random.get_rng_state()
        one, again, other = (
            Reversal(classifier, network, ("rotation",), 0.1, steps=2, seed=seed)(attacked[:2])
            for seed in (0, 0, 1)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_no_gradient_leaves_it_and_bpda_has_the_identitys(self, network, classifier, attacked):
        reversal = Reversal(classifier, network, ("rotation",), 0.1, steps=2)
        reversal.zero_grad()
        image = attacked[:1].clone().requires_grad_()
        assert not reversal(image).requires_grad
        straight = attacks.StraightThrough(reversal)(image)
        assert torch.allclose(straight, reversal(image), atol=1e-6)
        assert torch.equal(torch.autograd.grad(straight.sum(), image)[0], torch.ones_like(image))
        assert all(weight.grad is None for weight in reversal.parameters())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tasks": ("color",)}, "that the network was trained for, contrastive"),
            ({"tasks": ()}, "name one or more"),
            ({"tasks": ("denoising",)}, "denoising needs a denoiser"),
            ({"eps": 0}, "eps must be in"),
            ({"eps": 8}, "eps must be in"),
            ({"steps": 0}, "steps must be 1 or more"),
            ({"step": -0.1}, "steps must be 1 or more"),
            ({"start": 1.5}, "start is a share"),
        ],
    )
    def test_bad_settings(self, network, classifier, settings, message):
        with pytest.raises(ValueError, match=message):
            Reversal(classifier, network, **{"tasks": HEADS, "eps": 0.1} | settings)


class TestProxy:
    """The map that the reversal is pulled towards, whose gradient it has not."""

    def test_it_is_the_mean_of_what_the_denoising_task_restores(self, network, unseen):
        restored = [Blur()(unseen[:1] + network.shape.sigma * z) for z in network.noise]
        with torch.inference_mode():
            found = Proxy(network, Blur())(unseen[:3])
        assert torch.allclose(found[:1], torch.stack(restored).mean(dim=0), atol=1e-5)

    def test_an_attack_through_it_leaves_less_of_the_reversal_than_bpda(
        self, network, classifier, unseen, data
    ):
        """The ladder judges its candidates by the reversal itself."""
        images, labels = unseen[:40], torch.from_numpy(data.heldout_labels)[:40]
        reversal = Reversal(classifier, network, ("denoising",), 0.1, steps=20, step=0.02, denoiser=Blur())
        settings = LadderConfig(
            eps=0.2, steps=20, eot=4, square_queries=0, decision_queries=0, resubmissions=1
        )

        system = System(classifier, reversal, differentiable=False, proxies=[Proxy(network, Blur())])
        left = {
            each.name: each.robust_accuracy
            for each in evaluate(system, images, labels, settings)
            if each.accuracy
        }
        assert left["proxy"] < left["bpda_eot"] - 0.05

    def test_what_an_attacker_follows_in_its_place(self, network, classifier):
        parts = Parts({"tasks": HEADS, "eps": 0.1}, {"tasks": network, "classifier": classifier})
        assert [type(each) for each in PURIFIER.proxies(parts)] == [Unrolled]
        networks = {**parts.networks, "denoiser": Blur()}
        found = PURIFIER.proxies(Parts({"tasks": ("denoising",), "eps": 0.1}, networks))
        assert [type(each) for each in found] == [Unrolled, Proxy]

    def test_the_unrolled_reversal_is_like_it_and_has_a_gradient(self, network, classifier, unseen):
        reversal = Reversal(classifier, network, HEADS, 0.05, steps=20, step=0.01)
        images, unrolled = unseen[:8], Unrolled(reversal)
        with torch.no_grad():
            purified, alike = reversal(images), unrolled(images)
            far, near = (
                reversal.self_supervised_loss(each).mean() for each in (images + reversal.start, alike)
            )
        assert near < far
        moved = images + reversal.start
        cosine = torch.nn.functional.cosine_similarity
        assert cosine((alike - moved).flatten(1), (purified - moved).flatten(1)).median() > 0.5
        # by central differences so close that no ReLU switches between
        double = copy.deepcopy(unrolled).double()
        at, way = images.double().requires_grad_(), torch.randn_like(images).double()
        weights = torch.randn_like(way)
        (slope,) = torch.autograd.grad((double(at) * weights).sum(), at)
        with torch.no_grad():
            ahead, behind = ((double(at + sign * 1e-9 * way) * weights).sum() for sign in (1, -1))
        assert (slope * way).sum() == pytest.approx((ahead - behind).item() / 2e-9, rel=1e-2)
