"""Restoration under a display: the optics against theory, attacks against known optima, the defence on toys."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from torch import nn

from certdef.config.job import ConfigError
from certdef.data.natural import natural_crops
from certdef.restoration import (
    Display,
    RestorationNetwork,
    RestorationShape,
    apply,
    carlini_wagner,
    choose_level,
    finetune_restoration,
    pgd,
    point_spread,
    psnr,
    purify_varied,
    restoration_loss,
    simba,
    ssim,
    train_restoration,
    under_display,
)
from certdef.restoration.display import blur
from surrogates.distillation.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 8 / 255
SMALL = RestorationShape((1, 16, 16), width=8, depth=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Pictures of a dark and a bright half with a slanted border, (count, 1, size, size) in [0.1, 0.9]."""
    random = seeded(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    angle = 6.3 * torch.rand(count, 1, 1, generator=random)
    offset = torch.rand(count, 1, 1, generator=random) - 0.5
    bright = x * angle.cos() + y * angle.sin() > offset
    return (0.1 + 0.8 * bright.float())[:, None]


def build(shape: RestorationShape = SMALL, seed: int = 0) -> RestorationNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RestorationNetwork(shape)
        nn.init.normal_(network.leave.weight, std=0.05)  # as if trained: it changes something
    return network.eval()


class TestDisplay:
    def test_without_a_panel_the_blur_is_that_of_a_round_lens(self):
        display = Display(openings=1, open_width=1.0, airy=2.0, wavelengths=(1.0,), kernel=9)
        kernel = point_spread(display, samples=400)
        y, x = np.mgrid[-4:5, -4:5]
        reach = np.pi * np.hypot(x, y) / 2.0
        with np.errstate(invalid="ignore"):
            airy = np.where(reach == 0, 1, (2 * special.j1(reach) / reach) ** 2)
        np.testing.assert_allclose(kernel / kernel[4, 4], airy, atol=2e-3)

    def test_the_panel_throws_ghosts_at_the_distance_of_its_grid(self):
        row = point_spread(Display(openings=5, wavelengths=(1.0,)))[7]  # through the centre, pixel 7
        assert row[12] > 10 * max(row[9], row[10]), row
        assert row[7] > row[12] > 0.2 * row[7]

    def test_the_kernel_keeps_the_light_and_has_no_direction(self):
        kernel = point_spread(Display())
        assert abs(float(kernel.sum()) - 1) < 1e-5
        for turned in (kernel.T, kernel.flip(0), kernel.flip(1)):
            torch.testing.assert_close(kernel, turned)

    def test_blur_is_a_mirrored_convolution(self):
        images, kernel = torch.rand(2, 3, 12, 10, generator=seeded()), torch.rand(5, 5, generator=seeded(1))
        expected = ndimage.convolve(images.numpy(), kernel.numpy()[None, None], mode="mirror")
        np.testing.assert_allclose(blur(images, kernel), expected, atol=1e-5)

    @pytest.mark.parametrize("level", [0.1, 0.8])
    def test_noise_has_the_documented_mean_and_variance(self, level):
        display = Display(transmission=0.1, full_well=2000.0, read_noise=5.0)
        seen = under_display(torch.full((1, 1, 300, 300), level), seeded(), display)
        variance = level / 200 + (5 / 200) ** 2
        assert abs(float(seen.mean()) - level) < 5 * (variance / seen.numel()) ** 0.5
        assert abs(float(seen.var()) / variance - 1) < 0.05  # cut-off at 1 costs less than that

    def test_the_generator_alone_decides(self):
        before = torch.random.get_rng_state()
        images = scenes(3)
        first, again, other = (under_display(images, seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kernel": 4}, "odd number of sensor pixels, got 4"),
            ({"transmission": 0.0}, "transmission is a share"),
            ({"open_width": 1.2}, "open_width is a share"),
            ({"wavelengths": ()}, "must be positive"),
            ({"read_noise": -1.0}, "0 electrons or more"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Display(**settings)

    def test_images_smaller_than_the_blur_are_refused(self):
        with pytest.raises(ValueError, match="too small for a blur kernel of 15"):
            under_display(torch.zeros(1, 1, 6, 6), seeded())


class TestNetwork:
    def test_untrained_it_changes_nothing(self):
        images = torch.rand(2, 3, 8, 8, generator=seeded())
        assert torch.equal(RestorationNetwork(RestorationShape((3, 8, 8), 8, 1))(images), images)

    def test_each_image_is_restored_for_itself(self):
        images, network = torch.rand(5, 1, 16, 16, generator=seeded()), build()
        restored = apply(network, images)
        torch.testing.assert_close(restored[2:3], apply(network, images[2:3]), atol=1e-6, rtol=0)
        assert restored.min() >= 0
        assert restored.max() <= 1
        assert not torch.equal(restored, images)

    def test_weights_and_shape_rebuild_it(self):
        network, images = build(), scenes(2)
        shape = json.loads(json.dumps(asdict(network.shape)))
        other = RestorationNetwork(RestorationShape(**shape | {"image_shape": tuple(shape["image_shape"])}))
        other.load_state_dict(network.state_dict())
        assert torch.equal(apply(other, images), apply(network, images))

    def test_odd_sizes_are_refused(self):
        with pytest.raises(ValueError, match="15x16 do not fold"):
            RestorationNetwork(RestorationShape((1, 15, 16)))
        with pytest.raises(ValueError, match="16x17 do not fold"):
            build()(torch.zeros(1, 1, 16, 17))

    def test_loss_is_l2_and_gradients_at_every_scale(self):
        restored, truth = (torch.rand(2, 1, 8, 8, generator=seeded(seed)) for seed in (0, 1))
        expected, error = float(((restored - truth) ** 2).mean()), (restored - truth).double().numpy()
        for _ in range(3):
            expected += 0.3 / 3 * sum(np.abs(np.diff(error, axis=axis)).mean() for axis in (2, 3))
            error = error.reshape(2, 1, error.shape[2] // 2, 2, -1, 2).mean(axis=(3, 5))
        assert float(restoration_loss(restored, truth, gradient=0.3)) == pytest.approx(expected, rel=1e-5)
        assert float(restoration_loss(truth, truth)) == 0

    def test_training_undoes_the_display(self):
        network, fresh = build(), scenes(32, seed=5)
        history = train_restoration(network, scenes(64), Training(15, 8, 5e-3), seed=1)
        assert history[-1] < history[0]
        seen = under_display(fresh, seeded(7))
        assert psnr(apply(network, seen), fresh).mean() > psnr(seen, fresh).mean() + 1


ATTACKS = {"pgd": pgd, "carlini_wagner": carlini_wagner, "simba": simba}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
class TestAttacks:
    def test_what_leaves_is_within_eps_and_worse_than_noise(self, attack):
        truth, network = scenes(6), build()
        seen = under_display(truth, seeded())
        found = attack(network, seen, truth, eps=EPS)
        assert (found - seen).abs().max() <= EPS + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
        noise = EPS * (torch.rand(seen.shape, generator=seeded(1)) * 2 - 1).sign()
        noisy = apply(network, (seen + noise).clamp(0, 1))
        assert (psnr(apply(network, found), truth) < psnr(noisy, truth)).all()

    def test_the_rest_of_the_batch_changes_nothing(self, attack):
        truth, network = scenes(5), build()
        seen = under_display(truth, seeded())
        whole, split = (attack(network, seen, truth, eps=EPS, batch_size=size) for size in (5, 2))
        assert (whole - split).abs().mean() < 1e-3  # rounding turns a sign here and there

    def test_nothing_is_left_behind(self, attack):
        truth, network = scenes(2), build()
        seen, before = under_display(truth, seeded()), torch.random.get_rng_state()
        copy = seen.clone()
        first, again = (attack(network, seen, truth, eps=EPS) for _ in range(2))
        assert torch.equal(first, again)
        assert torch.equal(seen, copy)
        assert torch.equal(before, torch.random.get_rng_state())
        assert all(weight.grad is None for weight in network.parameters())

    def test_a_network_that_writes_into_its_input_changes_no_attack(self, attack):
        class Blackens(nn.Module):
            def forward(self, images):
                restored = (1.1 * images).clamp(0, 1)
                images.zero_()
                return restored

        class Brightens(nn.Module):
            def forward(self, images):
                return (1.1 * images).clamp(0, 1)

        truth = scenes(3)
        seen = under_display(truth, seeded())
        found, expected = (attack(network, seen, truth, eps=EPS) for network in (Blackens(), Brightens()))
        assert torch.equal(found, expected)
        assert torch.equal(apply(Blackens(), seen), apply(Brightens(), seen))

    @pytest.mark.parametrize("eps", [0, -1, float("nan"), float("inf")])
    def test_bad_eps(self, attack, eps):
        with pytest.raises(ValueError, match="eps must be positive"):
            attack(nn.Identity(), scenes(1), scenes(1), eps=eps)

    def test_another_shape_of_truth(self, attack):
        with pytest.raises(ValueError, match="must have one shape"):
            attack(nn.Identity(), scenes(1), scenes(2), eps=EPS)


def test_gradient_attacks_reach_the_optimum_where_it_is_known():
    """On the identity every pixel goes eps away from the truth: the squared error is (|seen - truth| + eps)^2."""
    truth = torch.full((2, 1, 8, 8), 0.5)
    seen = truth + 0.1 * torch.randn(truth.shape, generator=seeded()).clamp(-2, 2)
    optimum = ((seen - truth).abs() + EPS).square().mean(dim=(1, 2, 3))
    for attack in (pgd, carlini_wagner):
        reached = (attack(nn.Identity(), seen, truth, eps=EPS) - truth).square().mean(dim=(1, 2, 3))
        assert (reached > 0.97 * optimum).all(), attack
        assert (reached <= optimum + 1e-6).all(), attack


class Counting(nn.Module):
    """Counts the images that it is queried with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.queried = model, 0

    def forward(self, images):
        assert not images.requires_grad
        self.queried += len(images)
        return self.model(images)


def test_simba_takes_no_gradient_and_no_more_than_its_queries():
    truth = scenes(4)
    seen, distances = under_display(truth, seeded()), []
    for queries in (1, 2, 25, 100):
        model = Counting(build())
        found = simba(model, seen, truth, eps=EPS, queries=queries)
        assert 4 <= model.queried <= 4 * queries
        distances.append(float((apply(build(), found) - truth).square().mean()))
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]


def test_simba_stops_when_every_direction_was_tried():
    truth = scenes(1, size=4)
    model = Counting(nn.Identity())
    simba(model, truth, truth, eps=EPS, queries=10_000)
    assert model.queried <= 1 + 2 * 16


def test_several_draws_average_the_gradient_of_a_random_model():
    """The derivative is 0.2 in two draws of three and -1 in the third: most draws say up, their mean says down."""

    class Flips(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = seeded(3)

        def forward(self, images):
            flip = torch.rand(images.shape, generator=self.generator) < 1 / 3
            return torch.where(flip, 1 - images, images)

    truth = torch.full((1, 1, 16, 16), 0.2)
    seen = truth + 0.1
    up, down = (float(pgd(Flips(), seen, truth, eps=EPS, steps=10, eot=eot).mean()) for eot in (1, 15))
    assert down < float(seen.mean()) < up


class Shift(nn.Module):
    """A purifier that goes wrong by t hundredths."""

    def __init__(self, t: int):
        super().__init__()
        self.t = t

    def forward(self, images):
        return (images + self.t / 100).clamp(0, 1)


class TestDefense:
    def test_the_level_is_the_one_that_restores_attacked_images_best(self):
        truth = 0.3 + 0.3 * torch.rand(4, 1, 8, 8, generator=seeded())
        attacked = [truth - 0.08, truth - 0.12]
        chosen = choose_level(
            Shift, nn.Identity(), truth, attacked, truth, [20, 10, 0, 5], loss=200.0, batch_size=3
        )
        assert chosen.t == 10
        assert list(chosen.clean) == list(chosen.attacked) == [0, 5, 10, 20]
        assert chosen.clean[20] == pytest.approx(-20 * np.log10(0.2), abs=1e-3)
        assert chosen.attacked[20] == pytest.approx(-10 * np.log10(0.12 * 0.08), abs=1e-3)

    @pytest.mark.parametrize(("loss", "t"), [(21.0, 10), (14.5, 4), (13.0, 3), (0.1, 1)])
    def test_clean_images_set_a_limit(self, loss, t):
        """The clean error of .01 grows to .02, .04, .05, .11: losses of 6.0, 12.0, 14.0 and 20.8 dB."""
        truth = torch.full((2, 1, 4, 4), 0.5)
        seen = truth + 0.01
        chosen = choose_level(Shift, nn.Identity(), seen, [truth - 0.1], truth, [1, 3, 4, 10], loss=loss)
        assert chosen.t == t

    def test_of_equals_the_smallest(self):
        same = choose_level(
            lambda t: nn.Identity(), nn.Identity(), scenes(2), [scenes(2)], scenes(2), [9, 3, 6]
        )
        assert same.t == 3

    def test_an_empty_grid(self):
        with pytest.raises(ValueError, match="grid of t is empty"):
            choose_level(Shift, nn.Identity(), scenes(1), [scenes(1)], scenes(1), [])

    def test_every_image_is_purified_at_a_level_of_its_own(self):
        images = torch.full((40, 1, 4, 4), 0.2)
        purified = purify_varied(Shift, images, [5, 10, 30], seed=1)
        shifts = (purified - images).mean(dim=(1, 2, 3))
        assert {round(float(shift), 2) for shift in shifts} == {0.05, 0.1, 0.3}
        assert torch.equal(purified, purify_varied(Shift, images, [5, 10, 30], seed=1))
        assert not torch.equal(purified, purify_varied(Shift, images, [5, 10, 30], seed=2))

    def test_finetuning_learns_what_the_purifier_does(self):
        truth, network, purifier = scenes(64), build(), Shift(10)
        purified = apply(purifier, under_display(truth, seeded()))
        fresh = scenes(16, seed=9)
        seen = under_display(fresh, seeded(4))
        defended = nn.Sequential(purifier, network)
        before = psnr(apply(defended, seen), fresh).mean()
        finetune_restoration(network, purified, truth, Training(12, 8, 5e-3))
        assert psnr(apply(defended, seen), fresh).mean() > before + 3


class TestMetrics:
    def test_psnr_of_each_image(self):
        restored, truth = (torch.rand(3, 1, 16, 16, generator=seeded(seed)) for seed in (0, 1))
        expected = -10 * np.log10(((restored - truth) ** 2).numpy().mean(axis=(1, 2, 3)))
        np.testing.assert_allclose(psnr(restored, truth), expected, rtol=1e-5)

    def test_ssim_of_each_image(self):
        truth = scenes(3, size=24)
        noisy = (truth + 0.2 * torch.randn(truth.shape, generator=seeded())).clamp(0, 1)
        torch.testing.assert_close(ssim(truth, truth), torch.ones(3), atol=1e-3, rtol=0)
        assert ssim(noisy, truth).shape == (3,)
        assert (ssim(noisy, truth) < 0.7).all()

    def test_without_torchmetrics_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
        with pytest.raises(ConfigError, match=r"pip install 'certdef\[restoration\]'"):
            psnr(scenes(1), scenes(1))


def test_restoration_and_attack_on_photographs(data_root):
    truth, fresh = natural_crops(data_root, 1, 32, 160, 0), natural_crops(data_root, 1, 32, 40, 1)
    network = build(RestorationShape((1, 32, 32), 16, 1))
    train_restoration(network, truth, Training(8, 16, 3e-3))
    seen = under_display(fresh, seeded(3))
    attacked = pgd(network, seen, fresh, eps=EPS, steps=10)
    degraded, clean, broken = (
        float(psnr(images, fresh).mean()) for images in (seen, apply(network, seen), apply(network, attacked))
    )
    assert clean > degraded + 0.3
    assert broken < clean - 3
