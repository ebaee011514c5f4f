"""Gaussian smoothing, the blind-spot network, and NCIS made of the two."""

import inspect

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.datasets import load_digits

import certify
from certdef.config.job import ConfigError
from certdef.data.natural import natural_crops
from certdef.purifiers.gs import GaussianSmoothing
from certdef.purifiers.ncis import NCIS
from certdef.purifiers.networks.blind_spot import BlindSpotNetwork, BlindSpotShape, train_blind_spot
from surrogates.distillation.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")


def make(channels: int = 1, filters: int = 8, blocks: int = 4, seed: int = 0) -> BlindSpotNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BlindSpotNetwork(BlindSpotShape((channels, 8, 8), filters, blocks))


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Real images of 8x8, to train on and to judge by."""
    images = torch.from_numpy((load_digits().images / 16).astype(np.float32))[:, None]
    return images[:500], images[1200:]


class TestGaussianSmoothing:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_against_scipy(self, channels):
        images = random_images(2, channels, 16, 12)
        expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, 1.3, 1.3), mode="mirror", radius=4)
        assert np.allclose(GaussianSmoothing(9, 1.3)(images).numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("passes", [2, 4])
    def test_passes_are_one_wider_smoothing(self, passes):
        images = random_images(1, 1, 64, 64)
        often = GaussianSmoothing(15, 1.5, passes)(images)
        once = GaussianSmoothing(31, 1.5 * passes**0.5)(images)
        assert torch.allclose(often, once, atol=2e-4)
        assert not torch.allclose(often, GaussianSmoothing(31, 1.5 * passes)(images), atol=1e-2)

    def test_a_constant_image_stays(self):
        for value in (0.0, 0.3, 1.0):
            assert torch.allclose(
                GaussianSmoothing(5, 0.7, 3)(torch.full((1, 3, 8, 8), value)), torch.tensor(value)
            )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kernel": 4}, "odd number of pixels from 3, got 4"),
            ({"kernel": 1}, "odd number of pixels from 3, got 1"),
            ({"sigma": 0.0}, "sigma of the smoothing must be above 0"),
            ({"sigma": float("nan")}, "sigma of the smoothing must be above 0"),
            ({"passes": 0}, "passes must be 1 or more"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            GaussianSmoothing(**settings)

    def test_a_kernel_over_the_whole_image(self):
        assert GaussianSmoothing(15, 2.0)(random_images(1, 1, 8, 8)).shape == (1, 1, 8, 8)
        with pytest.raises(ValueError, match="kernel 17 is too large for images of 8 pixels: use 15 at most"):
            GaussianSmoothing(17, 2.0)(random_images(1, 1, 8, 8))


def seen_of_itself(network: torch.nn.Module, channels: int, height: int, width: int) -> float:
    """Largest |d out[i] / d in[i]| over all pixels i and pairs of channels; float64, so that nothing rounds to 0."""
    network = network.double()
    images = random_images(1, channels, height, width).double().requires_grad_()
    out = network.predict(images)
    worst = 0.0
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                (slope,) = torch.autograd.grad(out[0, channel, row, column], images, retain_graph=True)
                worst = max(worst, slope[0, :, row, column].abs().max().item())
                assert slope.abs().max() > 0  # it does look somewhere
    return worst


class TestBlindSpot:
    @pytest.mark.parametrize(("channels", "blocks"), [(1, 1), (1, 2), (3, 3), (1, 9)])
    def test_no_pixel_sees_itself(self, channels, blocks):
        assert seen_of_itself(make(channels, 4, blocks), channels, 11, 10) == 0

    def test_at_the_size_of_the_paper(self):
        network = make(1, 64, 17).double()
        images = random_images(1, 1, 33, 33).double().requires_grad_()
        (slope,) = torch.autograd.grad(network.predict(images)[0, 0, 16, 16], images)
        assert slope[0, 0, 16, 16] == 0
        assert (slope != 0).sum() > 300

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_a_leak_in_any_layer_is_caught(self, layer):
        network = make(1, 4, 4)
        network.layers[layer][0].mask.fill_(1.0)
        assert seen_of_itself(network, 1, 9, 9) > 0

    def test_mirrored_borders_would_leak(self):
        network = make(1, 4, 4)
        convolution = network.layers[1][0]
        convolution.forward = lambda hidden: torch.nn.functional.conv2d(
            torch.nn.functional.pad(hidden, [2] * 4, mode="reflect"), convolution.weight * convolution.mask
        )
        assert seen_of_itself(network, 1, 9, 9) > 0

    def test_any_image_size_and_values_in_range(self):
        for height, width in ((8, 8), (20, 13)):
            out = make(3)(3 * random_images(2, 3, height, width) - 1)
            assert out.shape == (2, 3, height, width)
            assert out.min() >= 0
            assert out.max() <= 1

    def test_images_of_a_batch_do_not_meet(self):
        network, images = make().eval(), random_images(4, 1, 8, 8)
        assert torch.allclose(network(images)[2], network(images[2:3])[0], atol=1e-6)

    def test_it_takes_the_image_and_nothing_else(self):
        assert list(inspect.signature(BlindSpotNetwork.forward).parameters) == ["self", "images"]

    def test_a_network_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="1 or more blocks and filters, got 0 and 8"):
            make(blocks=0)


class TestTraining:
    RECIPE = Training(epochs=12, batch_size=32, learning_rate=1e-2)

    def test_it_restores_what_smoothing_took(self, digits):
        train, test = digits
        network, smoothing = make(filters=12), GaussianSmoothing(5, 0.8)
        history = train_blind_spot(network, train, self.RECIPE, smoothing=smoothing)
        assert len(history) == 12
        with torch.inference_mode():
            restored = NCIS(network, smoothing)(test)
        assert (restored - test).square().mean() < 0.5 * (smoothing(test) - test).square().mean()

    def test_it_denoises_without_clean_images(self, digits):
        train, test = digits
        network, noise = make(filters=12), certify.Gaussian(0.5)
        history = train_blind_spot(network, train, self.RECIPE, noise=noise)
        # What is left of the loss is mostly noise that nobody can predict.
        assert 0.25 < history[-1] < 0.45
        noisy = test + noise.sample(test.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            error = (network(noisy) - test).square().mean()
        assert error < 0.6 * (noisy.clamp(0, 1) - test).square().mean()
        assert error < 0.85 * (train.mean(0) - test).square().mean()  # it reads the image

    def test_the_same_seed_gives_the_same_network(self, digits):
        recipe = Training(epochs=1, batch_size=32, learning_rate=1e-2)
        made = []
        for seed in (3, 3, 4):
            network = make()
            train_blind_spot(network, digits[0][:64], recipe, noise=certify.nim_noise(), seed=seed)
            made.append(torch.cat([weights.flatten() for weights in network.parameters()]))
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])

    @pytest.mark.parametrize(
        "given", [{}, {"smoothing": GaussianSmoothing(), "noise": certify.Gaussian(0.1)}]
    )
    def test_smoothing_or_noise(self, digits, given):
        with pytest.raises(ValueError, match="either smoothing"):
            train_blind_spot(make(), digits[0], self.RECIPE, **given)


class TestNCIS:
    def test_each_iteration_smooths_and_restores(self):
        network, smoothing, images = make().eval(), GaussianSmoothing(), random_images(2, 1, 8, 8)
        once = network(smoothing(images))
        assert torch.equal(NCIS(network, smoothing)(images), once)
        assert torch.equal(NCIS(network, smoothing, 2)(images), network(smoothing(once)))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_gradients_pass_through(self, channels):
        images = random_images(2, channels, 8, 8).requires_grad_()
        NCIS(make(channels).eval(), GaussianSmoothing(), 2)(images).sum().backward()
        assert images.grad.abs().sum() > 0

    def test_images_of_a_batch_do_not_meet(self):
        purifier, images = NCIS(make().eval(), GaussianSmoothing(), 2), random_images(4, 1, 8, 8)
        assert torch.allclose(purifier(images)[2], purifier(images[2:3])[0], atol=1e-6)

    def test_no_iteration_is_refused(self):
        with pytest.raises(ValueError, match="iterations must be 1 or more, got 0"):
            NCIS(make(), GaussianSmoothing(), 0)


class TestNaturalCrops:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_crops_of_real_images(self, data_root, channels):
        crops = natural_crops(data_root, channels, 24, 6, seed=0, scales=(1, 3))
        assert crops.shape == (6, channels, 24, 24)
        assert crops.min() >= 0
        assert crops.max() <= 1
        assert crops.std() > 0.05
        again, other = (
            natural_crops(data_root, channels, 24, 6, seed=seed, scales=(1, 3)) for seed in (0, 1)
        )
        assert torch.equal(crops, again)
        assert not torch.equal(crops, other)

    def test_shrunken_photographs_have_more_detail(self, data_root):
        detail = [
            natural_crops(data_root, 3, 24, 40, seed=0, scales=(scale,)).diff(dim=-1).square().mean()
            for scale in (1, 3)
        ]
        assert detail[1] > 1.2 * detail[0]

    def test_crops_larger_than_a_shrunken_photograph(self, data_root):
        with pytest.raises(
            ConfigError, match="61 pixels do not fit: train400 has photographs of 60, shrunk by 3"
        ):
            natural_crops(data_root, 1, 61, 1, seed=0, scales=(1, 3))
