import dataclasses
import inspect

import pytest
import scipy.stats
import timm
import torch
from safetensors.torch import save_file

import certdef
import certify
from certdef.config.checks import check
from certdef.config.job import ConfigError, DataConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.purifiers.base import Plan
from certdef.purifiers.de3 import DeCubed, FillIn, Vote
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.networks.finetuning import finetune
from certdef.purifiers.networks.nim import (
    MIM,
    NIM,
    MIMShape,
    NIMClassifier,
    NIMShape,
    nim_training,
    pretrain_nim,
)
from certdef.purifiers.networks.timm_encoders import encoder_sizes, load_encoder
from surrogates.distillation.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = NIMShape((1, 8, 8), patch_size=4, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1)
LINEAR = dataclasses.replace(SMALL, decoder_depth=0)
MASKED, MASKED_LINEAR = (MIMShape(**dataclasses.asdict(shape)) for shape in (SMALL, LINEAR))
LAWS = {
    "gamma": certify.nim_noise(),
    "constant": certify.Gaussian(75 / 255),
    "uniform": certify.GaussianScaleMixture(scipy.stats.uniform(0, 150 / 255)),
}


def recipe(epochs):
    return nim_training(epochs, batch_size=128, base_learning_rate=1e-2)


def make(shape=SMALL, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MIM(shape) if isinstance(shape, MIMShape) else NIM(shape)


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_data(DataConfig(), 0).pool)


@pytest.mark.parametrize("decoder_depth", [0, 1])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 8, 12)])
def test_shapes_and_range(image_shape, decoder_depth):
    sizes = {"patch_size": 4, "width": 32, "depth": 1, "heads": 2, "decoder_width": 16}
    model = make(NIMShape(image_shape, **sizes, decoder_depth=decoder_depth)).eval()
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


@pytest.mark.parametrize(
    ("shape", "law"), [(SMALL, "gamma"), (SMALL, "constant"), (SMALL, "uniform"), (LINEAR, "gamma")]
)
def test_pretraining_denoises_real_digits(shape, law, digits):
    model, noise = make(shape), LAWS[law]
    history = pretrain_nim(model, digits, noise, recipe(40))
    assert len(history) == 40
    assert history[-1] < 0.5 * history[0]
    noisy = digits + noise.sample(digits.shape, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        error = (model(noisy) - digits).square().mean()
    assert error < 0.65 * (noisy.clamp(0, 1) - digits).square().mean()
    # better than the best constant guess for each pixel, so it reads the image
    assert error < 0.7 * (digits - digits.mean(0)).square().mean()


def test_simmim_has_a_linear_head_and_no_decoder():
    names = {name.split(".")[0] for name, _ in make(LINEAR).named_parameters()}
    assert names == {"embed", "encoder", "head"}


def test_interrupted_pretraining_ends_at_the_same_weights(digits, tmp_path):
    unbroken = make()
    history = pretrain_nim(unbroken, digits, certify.nim_noise(), recipe(6))

    class Stop(Exception):
        pass

    def stop_at_four(epochs, **_):
        for epoch in epochs:
            if epoch == 4:
                raise Stop
            yield epoch

    path = tmp_path / "nim.pt"
    options = {"checkpoint": path, "progress": stop_at_four}
    with pytest.raises(Stop):
        pretrain_nim(make(), digits, certify.nim_noise(), recipe(6), **options)
    resumed = make(seed=7)
    assert pretrain_nim(resumed, digits, certify.nim_noise(), recipe(6), checkpoint=path) == history
    assert all(
        torch.equal(a, b)
        for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch_size 3 does not divide"):
        NIM(NIMShape((1, 8, 8), patch_size=3))
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        NIM(NIMShape((1, 8, 8), heads=0))
    with pytest.raises(ValueError, match="width 66 must be a multiple of 4 and of its 4 heads: try 64"):
        NIM(NIMShape((1, 8, 8), width=66))
    with pytest.raises(ValueError, match=r"decoder_width 64 .* its 3 heads"):
        NIM(NIMShape((1, 8, 8), decoder_heads=3))
    with pytest.raises(ValueError, match="ratio is the share of hidden patches"):
        MIM(MIMShape((1, 8, 8), ratio=1.0))


def test_a_network_is_built_again_from_its_shape():
    for shape in (SMALL, LINEAR, MASKED, dataclasses.replace(SMALL, class_token=True, decoder_heads=4)):
        model = make(shape)
        again = make(type(shape)(**dataclasses.asdict(shape)), seed=1)
        again.load_state_dict(model.state_dict())
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(model.eval()(images), again.eval()(images))


class TestMIM:
    @pytest.mark.parametrize("shape", [MASKED, MASKED_LINEAR], ids=["mae", "simmim"])
    def test_hidden_pixels_are_hidden_and_the_others_are_seen(self, shape):
        model, images = make(shape).eval(), torch.rand(1, 1, 8, 8, requires_grad=True)
        hidden = torch.tensor([[False, True, True, True]])  # the upper left patch is seen
        model.fill_in(images, hidden).square().sum().backward()
        assert images.grad[..., :4, :4].abs().min() > 0
        images.grad[..., :4, :4] = 0
        assert not images.grad.any()

    @pytest.mark.parametrize("shape", [MASKED, MASKED_LINEAR], ids=["mae", "simmim"])
    def test_with_nothing_hidden_it_reconstructs(self, shape):
        model, images = make(shape).eval(), torch.rand(3, 1, 8, 8)
        nothing = torch.zeros(3, 4, dtype=torch.bool)
        assert torch.allclose(model.fill_in(images, nothing), model.reconstruct(images), atol=1e-6)
        assert torch.equal(FillIn(model, 0.0)(images), model.fill_in(images, nothing).clamp(0, 1))

    def test_masks_hide_their_share_anywhere(self):
        model = make(MIMShape((1, 28, 28), width=32, heads=2, decoder_width=32))
        hidden = model.draw_mask(4000, 0.75, torch.Generator().manual_seed(0), "cpu")
        assert (hidden.sum(1) == 37).all()  # of 49
        # each place 37/49 of the time: within 5 standard errors
        assert (hidden.float().mean(0) - 37 / 49).abs().max() < 5 * (37 * 12 / 49**2 / 4000) ** 0.5
        assert (model.draw_mask(5, 0.999, None, "cpu").sum(1) == 48).all()

    @pytest.mark.parametrize("shape", [MASKED, MASKED_LINEAR], ids=["mae", "simmim"])
    def test_pretraining_fills_in_real_digits(self, shape, digits):
        model = make(dataclasses.replace(shape, ratio=0.5))
        pretrain_nim(model, digits, None, recipe(80))
        hidden = model.draw_mask(len(digits), 0.5, torch.Generator().manual_seed(9), "cpu")
        with torch.inference_mode():
            error = (model.fill_in(digits, hidden) - digits).square()
        pixels = hidden.reshape(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        guess = (digits - digits.mean(0)).square()
        assert error[pixels].mean() < 0.9 * guess[pixels].mean()  # what it does not see
        assert error[~pixels].mean() < 0.5 * guess[~pixels].mean()  # what it sees


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network of timm's with weights of our own, mean and standard deviation of ImageNet, and its file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("deit_tiny_patch16_224", num_classes=0).eval()
        for value in network.parameters():
            value.data += 0.02 * torch.randn_like(value)
    file = tmp_path_factory.mktemp("published") / "deit.safetensors"
    save_file(network.state_dict(), file)
    return network, file


class TestPublished:
    def test_sizes_by_name_are_those_of_the_paper(self):
        assert encoder_sizes("vit_tiny_patch16_224") == {
            "patch_size": 16,
            "width": 192,
            "depth": 12,
            "heads": 3,
            "class_token": True,
        }
        with torch.device("meta"):  # sizes only
            model = NIM(
                NIMShape(
                    (3, 224, 224),
                    **encoder_sizes("vit_base_patch16_224.mae"),
                    decoder_width=512,
                    decoder_depth=8,
                    decoder_heads=16,
                )
            )
        weights = sum(value.numel() for name, value in model.named_parameters() if name.startswith("encoder"))
        assert weights == 12 * 7_087_872 + 2 * 768  # blocks of ViT-B/16, and the last norm
        assert model.decoder[0].attn.num_heads == 16
        # MAE with ViT-B as published has 111,907,840, of which positions 197 * (768 + 512) and a mask token of 512
        assert sum(value.numel() for value in model.parameters()) == 111_907_840 - 197 * 1_280 - 512

    def test_the_encoder_gives_timms_features(self, published):
        network, file = published
        shape = NIMShape((3, 224, 224), **encoder_sizes("deit_tiny_patch16_224"), decoder_width=96)
        model = load_encoder(make(shape), "deit_tiny_patch16_224", file).eval()
        images = torch.rand(1, 3, 224, 224)
        mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
        with torch.inference_mode():
            theirs = network.forward_features((images - mean) / std)[:, 1:]
            assert torch.allclose(model.encode(images), theirs, atol=1e-3)
        again = make(shape, seed=1)
        again.load_state_dict(model.state_dict())  # positions too: what is stored is complete
        assert torch.equal(again.position, model.position)

    def test_another_image_size_patch_and_color(self, published):
        sizes = encoder_sizes("deit_tiny_patch16_224") | {"patch_size": 4}
        model = make(NIMShape((1, 28, 28), **sizes, decoder_width=96))
        before = model.encoder[0].attn.qkv.weight.clone()
        load_encoder(model, "deit_tiny_patch16_224", published[1])
        assert not torch.equal(model.encoder[0].attn.qkv.weight, before)
        assert model(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)

    def test_what_cannot_be_loaded_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="has width 192, the model 32"):
            load_encoder(make(), "vit_tiny_patch16_224")
        with pytest.raises(ValueError, match=r"nowhere.safetensors.* is no file"):
            load_encoder(make(), "vit_tiny_patch16_224", tmp_path / "nowhere.safetensors")
        with pytest.raises(ValueError, match="resnet18 is no plain ViT"):
            encoder_sizes("resnet18")
        with pytest.raises(ValueError, match="timm has no model 'vit_huge'"):
            encoder_sizes("vit_huge")


def test_finetuning_learns_what_the_denoiser_shows(digits):
    data = load_data(DataConfig(), 0)
    images, labels = torch.from_numpy(data.target_images), torch.from_numpy(data.target_labels)
    nim = make()
    pretrain_nim(nim, digits, certify.nim_noise(), recipe(20))
    before = {name: value.clone() for name, value in nim.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = NIMClassifier(nim, 10)
    assert torch.equal(classifier.encoder[0].attn.qkv.weight, nim.encoder[0].attn.qkv.weight)
    history = finetune(classifier, nim, images, labels, Training(25, 50, 5e-3))
    assert history[-1] < 0.3 * history[0]
    assert all(torch.equal(value, before[name]) for name, value in nim.state_dict().items())
    held, truth = torch.from_numpy(data.heldout_images), torch.from_numpy(data.heldout_labels)
    shown = DeCubed(nim, 15 / 255, torch.Generator().manual_seed(1))(held)
    assert (classifier(shown).argmax(1) == truth).float().mean() > 0.8
    with pytest.raises(ValueError, match="sigma must be 0 or more"):
        finetune(classifier, nim, images, labels, Training(1, 100, 1e-3), sigma=-1)


class TestDeCubed:
    def test_sigma_is_the_dial(self):
        images = torch.rand(2, 1, 8, 8)
        still = DeCubed(torch.nn.Identity(), 0.0)
        assert torch.equal(still(images), images)
        grey = torch.full((4000, 1, 8, 8), 0.5)
        noisy = DeCubed(torch.nn.Identity(), 0.1, torch.Generator().manual_seed(0))(grey)
        assert abs(float(noisy.std()) - 0.1) < 0.002
        noisy = DeCubed(torch.nn.Identity(), 1.0)(grey)  # whatever the denoiser, the result is an image
        assert noisy.min() >= 0
        assert noisy.max() <= 1

    def test_the_same_generator_seed_gives_the_same_purified_image(self):
        model, images = make().eval(), torch.rand(2, 1, 8, 8)
        once, again = (DeCubed(model, 0.3, torch.Generator().manual_seed(4))(images) for _ in range(2))
        assert torch.equal(once, again)

    @pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
    def test_bad_sigma(self, sigma):
        with pytest.raises(ValueError, match="sigma must be 0 or more"):
            DeCubed(torch.nn.Identity(), sigma)

    def test_several_draws_are_averaged(self):
        model, images = make().eval(), torch.rand(2, 1, 8, 8)
        single = DeCubed(model, 0.3, torch.Generator().manual_seed(4))
        draws = [single(images) for _ in range(3)]
        three = DeCubed(model, 0.3, torch.Generator().manual_seed(4), draws=3)(images)
        assert torch.allclose(three, sum(draws) / 3)

    def test_gradients_pass(self):
        images = torch.rand(2, 1, 8, 8, requires_grad=True)
        DeCubed(make().eval(), 0.1, torch.Generator().manual_seed(0))(images).sum().backward()
        assert images.grad.abs().sum() > 0

    @pytest.mark.parametrize("draws", [0, 1.5])
    def test_bad_draws(self, draws):
        with pytest.raises(ValueError, match="draws must be a positive whole number"):
            DeCubed(torch.nn.Identity(), 0.1, draws=draws)

    @pytest.mark.parametrize("ratio", [-0.1, 1.0])
    def test_bad_ratio(self, ratio):
        with pytest.raises(ValueError, match="ratio is the share of hidden patches"):
            FillIn(make(MASKED), ratio)


class TestVote:
    def test_shares_are_those_of_the_noise(self):
        # One pixel x, class 1 where x + sigma z > 0: its probability is Phi(x / sigma).
        classifier = lambda x: torch.stack([torch.zeros(len(x)), x.flatten()], dim=1)  # noqa: E731
        noisy = torch.nn.Module()
        noise = torch.Generator().manual_seed(0)
        noisy.forward = lambda x: x + 0.5 * torch.randn(x.shape, generator=noise)
        shares = Vote(noisy, classifier, 10_000)(torch.tensor([-0.5, 0.0, 0.3]).reshape(3, 1, 1, 1))
        assert torch.allclose(shares.sum(1), torch.ones(3))
        expected = torch.tensor(scipy.stats.norm.cdf([-1.0, 0.0, 0.6]), dtype=torch.float32)
        assert (shares[:, 1] - expected).abs().max() < 0.025  # 5 standard errors

    def test_each_vote_has_noise_of_its_own_and_the_seed_repeats_them(self):
        model, images = make().eval(), torch.rand(16, 1, 8, 8)
        classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        shares = [
            Vote(DeCubed(model, 1.0, torch.Generator().manual_seed(4)), classifier, 7)(images)
            for _ in range(2)
        ]
        assert torch.equal(*shares)
        assert ((shares[0] > 0) & (shares[0] < 1)).any()
        with pytest.raises(ValueError, match="draws must be a positive whole number"):
            Vote(model, classifier, 0)


class TestConfigured:
    def test_an_encoder_by_name_in_the_denoiser_and_in_a_surrogate(self):
        config = certdef.load_config(
            nim__encoder="vit_tiny_patch16_224",
            nim__decoder_width=48,
            nim__decoder_heads=4,
            surrogate__model="nim",
        )
        denoiser = NIM_MAE.build(Plan(config, (1, 8, 8)))
        assert denoiser.shape == NIMShape(
            (1, 8, 8), 4, 192, 12, 3, decoder_width=48, decoder_heads=4, class_token=True
        )
        surrogate = build_classifier(surrogate_model(config), (1, 8, 8), 10)
        surrogate.load_state_dict(NIMClassifier(denoiser, 10).state_dict())

    def test_what_cannot_be_built_is_refused(self):
        with pytest.raises(ConfigError, match="timm has no model 'vit_huge'"):
            NIM_MAE.build(Plan(certdef.load_config(nim__encoder="vit_huge"), (1, 8, 8)))
        for name, value in {"weights": "timm", "ema": 1.0, "precision": "half"}.items():
            with pytest.raises(ConfigError, match=f"nim.{name}"):
                check(certdef.load_config(**{f"nim__{name}": value}))

    def test_a_constant_sigma_is_one_gaussian(self):
        law = SigmaLaw("constant", family="constant", shape=(), scale_255=75)
        assert noise_law(law) == certify.Gaussian(75 / 255)
        with pytest.raises(ConfigError, match="a constant sigma is its scale alone"):
            noise_law(SigmaLaw("constant", family="constant", scale_255=75))
