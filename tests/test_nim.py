import inspect

import pytest
import torch

import certify
from certdef.config import DataConfig
from certdef.data import load_data
from certdef.purifiers import NIM, DeCubed, pretrain_nim
from certdef.purifiers.nim import NIMShape

SMALL = NIMShape((1, 8, 8), patch_size=4, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1)
TRAINING = {"batch_size": 128, "base_learning_rate": 3e-3, "seed": 0}


def make(shape=SMALL, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NIM(shape)


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_data(DataConfig(), 0).pool)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 8, 12)])
def test_shapes_and_range(image_shape):
    model = make(
        NIMShape(image_shape, patch_size=4, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1)
    ).eval()
    images = torch.randn(5, *image_shape)
    denoised = model(images)
    assert denoised.shape == images.shape
    assert denoised.min() >= 0
    assert denoised.max() <= 1


def test_patches_come_back_to_their_places():
    # A head whose bias marks each pixel of a patch, and nothing else, must tile the image with that patch.
    model = make().eval()
    torch.nn.init.zeros_(model.head.weight)
    patch = torch.arange(16.0).reshape(4, 4)
    model.head.bias.data = patch.flatten() - 0.5
    assert torch.equal(model.reconstruct(torch.rand(1, 1, 8, 8))[0, 0], patch.repeat(2, 2))


def test_each_patch_sees_its_position():
    model = make().eval()
    image = torch.zeros(1, 1, 8, 8)
    rows = model.encode(image)[0]
    assert not torch.allclose(rows[0], rows[1])


def test_the_denoiser_takes_the_noisy_image_and_nothing_else():
    assert list(inspect.signature(NIM.forward).parameters) == ["self", "noisy"]
    assert list(inspect.signature(NIM.reconstruct).parameters) == ["self", "noisy"]


def test_two_inputs_with_the_same_noisy_image_give_the_same_output():
    model = make().eval()
    noisy = torch.rand(1, 1, 8, 8)
    clean, attacked = torch.rand(2, 1, 1, 8, 8)
    for original in (clean, attacked):  # the noise that leads from each to the same noisy image
        assert torch.allclose(model(original + (noisy - original)), model(noisy), atol=1e-5)


def test_images_of_a_batch_do_not_meet():
    model = make().eval()
    images = torch.rand(4, 1, 8, 8)
    assert torch.allclose(model(images)[2], model(images[2:3])[0], atol=1e-5)


def test_pretraining_denoises_real_digits(digits):
    model = make()
    noise = certify.nim_noise()
    history = pretrain_nim(model, digits, noise, epochs=40, **TRAINING)
    assert len(history) == 40
    assert history[-1] < 0.4 * history[0]
    noisy = digits + noise.sample(digits.shape, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        error = (model(noisy) - digits).square().mean()
    assert error < 0.65 * (noisy.clamp(0, 1) - digits).square().mean()
    # better than the best constant guess for each pixel, so it reads the image
    assert error < 0.7 * (digits - digits.mean(0)).square().mean()


def test_interrupted_pretraining_ends_at_the_same_weights(digits, tmp_path):
    unbroken = make()
    history = pretrain_nim(unbroken, digits, certify.nim_noise(), epochs=6, **TRAINING)

    class Stop(Exception):
        pass

    def stop_at_four(epochs, **_):
        for epoch in epochs:
            if epoch == 4:
                raise Stop
            yield epoch

    path = tmp_path / "nim.pt"
    with pytest.raises(Stop):
        pretrain_nim(
            make(), digits, certify.nim_noise(), epochs=6, checkpoint=path, progress=stop_at_four, **TRAINING
        )
    resumed = make(seed=7)
    assert (
        pretrain_nim(resumed, digits, certify.nim_noise(), epochs=6, checkpoint=path, **TRAINING) == history
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="patch_size 3 does not divide"):
        NIM(NIMShape((1, 8, 8), patch_size=3))


class TestDeCubed:
    def test_sigma_is_the_dial(self):
        images = torch.rand(2, 1, 8, 8)
        still = DeCubed(torch.nn.Identity(), 0.0)
        assert torch.equal(still(images), images)
        wide = DeCubed(torch.nn.Identity(), 0.5, torch.Generator().manual_seed(0))(torch.zeros(4000, 1, 8, 8))
        assert abs(float(wide.std()) - 0.5) < 0.01

    def test_the_same_generator_seed_gives_the_same_purified_image(self):
        model, images = make().eval(), torch.rand(2, 1, 8, 8)
        once, again = (DeCubed(model, 0.3, torch.Generator().manual_seed(4))(images) for _ in range(2))
        assert torch.equal(once, again)

    @pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
    def test_bad_sigma(self, sigma):
        with pytest.raises(ValueError, match="sigma must be 0 or more"):
            DeCubed(torch.nn.Identity(), sigma)
