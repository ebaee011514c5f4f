"""The network of the shipped denoiser: any size, gray and color, a function of the noisy image alone."""

import inspect

import pytest
import torch

from certdef.purifiers.networks.leaves import LeavesTraining, luminance, pretrain_multiscale, random_crops
from certdef.purifiers.networks.multiscale import MultiscaleNIM, MultiscaleShape, check_images

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = MultiscaleShape(fine=8, half=12, width=16, depth=1, heads=2, blocks=1)


def make(seed=0, shape=SMALL) -> MultiscaleNIM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MultiscaleNIM(shape).eval()


def noisy_images(count, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.3 * torch.randn(count, *shape, generator=generator)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 32), (3, 45, 71), (1, 9, 100)]
)
def test_any_size_comes_back_and_the_batch_has_no_say(shape):
    model, noisy = make(), noisy_images(3, shape)
    with torch.inference_mode():
        denoised = model(noisy)
        alone = torch.cat([model(one[None]) for one in noisy])
        assert torch.equal(model(noisy), denoised)
    assert denoised.shape == noisy.shape
    assert 0 <= denoised.min() <= denoised.max() <= 1
    assert torch.allclose(denoised, alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 16), (4, 16, 16), (3, 7, 16), (1, 16, 7)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"1 or 3 channels and at least 8x8 pixels, got \d channels of"):
        check_images(shape)
    with pytest.raises(ValueError, match="train one on your pool"):
        make()(torch.rand(1, *shape))


def test_it_takes_the_noisy_image_and_nothing_else():
    for method in (MultiscaleNIM.forward, MultiscaleNIM.reconstruct):
        assert list(inspect.signature(method).parameters) == ["self", "noisy"]
    random = torch.Generator().manual_seed(3)
    clean, attacked, noise = (torch.randint(0, 257, (1, 3, 40, 44), generator=random) / 256 for _ in range(3))
    other = (clean - attacked) + noise  # steps of 1/256 add exactly
    assert torch.equal(clean + noise, attacked + other)
    model = make()
    assert torch.equal(model(clean + noise), model(attacked + other))


def test_gray_is_color_of_three_equal_channels():
    model, gray = make(), noisy_images(2, (1, 32, 32))  # one tile: no offset to differ
    color = model.reconstruct(gray.expand(-1, 3, -1, -1))
    assert torch.allclose(model.reconstruct(gray), color.mean(dim=1, keepdim=True), atol=1e-6)


def test_gradients_pass_to_the_image_and_to_every_weight():
    model, noisy = make().train(), noisy_images(2, (3, 16, 20)).requires_grad_()
    (model(noisy) - 0.3).square().sum().backward()
    assert noisy.grad is not None
    assert (noisy.grad != 0).float().mean() > 0.9
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_a_token_sees_its_tile_and_no_other():
    encoder, features = make().encoder, torch.rand(1, 16, 16, 16)
    other = features.clone()
    other[..., 5, 5] = 5 * torch.rand(16)

    def changed(offset: int) -> torch.Tensor:
        offsets = torch.full((1, 2), offset)
        return (encoder(features, offsets) != encoder(other, offsets)).any(dim=1)[0]

    for offset, tile in {0: slice(0, 8), 4: slice(4, 12)}.items():
        felt = changed(offset)
        assert felt[tile, tile].all()
        assert felt.sum() == 64


@pytest.mark.parametrize("field", ["fine", "half", "width", "depth", "heads", "blocks"])
def test_sizes_that_do_not_fit_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        MultiscaleShape(**{field: 0})
    with pytest.raises(ValueError, match="width 128 must be a multiple of its 3 heads"):
        MultiscaleShape(heads=3)


def test_crops_are_parts_of_their_images_turned_mirrored_and_recolored():
    ramp = torch.arange(40 * 40).reshape(1, 40, 40).float() / 1600 * 60
    images = torch.cat([ramp, ramp + 60, ramp + 120]).to(torch.uint8).expand(200, -1, -1, -1)
    crops = random_crops(images, torch.Generator().manual_seed(0), 32) * 255
    assert crops.shape == (200, 3, 32, 32)
    firsts = {int(each) // 60 for each in crops[:, 0, 0, 0].round()}
    assert firsts == {0, 1, 2}  # any channel comes first
    down = crops.diff(dim=2).mean(dim=(1, 2, 3)).round(decimals=2)
    assert (down > 0.5).any()
    assert (down < -0.5).any()
    assert (down.abs() < 0.2).any()  # turned by a right angle


def test_luminance_is_gray_and_keeps_white():
    images = torch.rand(2, 3, 4, 4)
    gray = luminance(images)
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.allclose(luminance(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))
    assert torch.allclose(gray[:, 0], 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])


def test_training_denoises_and_a_seed_decides_it():
    from certdef.data.dead_leaves import dead_leaves

    images = torch.from_numpy(dead_leaves(48, 40, seed=1))
    recipe = LeavesTraining(
        images=48, side=40, epochs=30, batch_size=16, learning_rate=4e-3, precision="float32"
    )
    one, two = make(), make()
    history = pretrain_multiscale(one, images, recipe)
    assert history[-1] < 0.7 * history[0]
    pretrain_multiscale(two, images, recipe)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    clean = torch.from_numpy(dead_leaves(8, 40, seed=2)) / 255
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        error = (one(noisy) - clean).square().mean()
    assert error < 0.5 * (noisy.clamp(0, 1) - clean).square().mean()
