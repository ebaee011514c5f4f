"""Diffusion purification: against diffusers' own samplers, an analytic diffusion model, finite differences, and real digits."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits

import certdef
from certdef.config.job import ConfigError
from certdef.models.classifiers import build_classifier
from certdef.purifiers.agdm import AGDM
from certdef.purifiers.base import Plan, TrainingRun
from certdef.purifiers.diffpure import DiffPure, strided
from certdef.purifiers.networks.diffusion import (
    DIFFUSION,
    DiffusionNetwork,
    DiffusionShape,
    inside,
    load_pretrained,
    outside,
    train_diffusion,
)
from certdef.purifiers.networks.robust import ROBUST
from certdef.purifiers.one_step import OneStep, noise_level
from certdef.purifiers.registry import find_purifier
from certdef.purifiers.uad_rs import anls, frechet, purify
from surrogates.distillation.inference import features
from surrogates.distillation.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = DiffusionShape((1, 8, 8), channels=(16, 16))


def make(shape: DiffusionShape = SMALL, seed: int = 0) -> DiffusionNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiffusionNetwork(shape).eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.from_numpy((load_digits().images / 16).astype(np.float32)[:, None])


@pytest.fixture(scope="module")
def trained(digits: torch.Tensor) -> DiffusionNetwork:
    network = make(DiffusionShape((1, 8, 8), channels=(16, 32)))
    history = train_diffusion(network, digits[:1500], Training(10, 64, 5e-3, ema=0.98), longest=400)
    assert history[-1] < 0.5 * history[0]
    return network


class White(DiffusionNetwork):
    """The exact diffusion network of images whose pixels are independent, N(0, variance) in [-1, 1]."""

    variance = 0.04

    def forward(self, z, t):
        keep = self.keep[t].view(-1, 1, 1, 1)
        return (1 - keep).sqrt() * z / (keep * self.variance + 1 - keep)


class TestNetwork:
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 30, 27)])
    def test_any_side(self, shape):
        network = make(DiffusionShape(shape, channels=(16, 16, 16)))
        z = torch.randn(2, *shape, generator=seeded())
        assert network(z, torch.tensor([1, 1000])).shape == z.shape

    def test_images_of_a_batch_do_not_meet(self):
        network, z, t = make(), rand(4, 1, 8, 8), torch.tensor([1, 50, 500, 1000])
        assert torch.allclose(network(z, t)[2], network(z[2:3], t[2:3])[0], atol=1e-5)

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_noise_steps_follow_the_schedule(self, schedule):
        network = make(DiffusionShape((1, 8, 8), (16, 16), schedule=schedule))
        assert network.steps == 1000
        assert network.keep[0] == 1
        assert (network.keep.diff() < 0).all()
        assert network.keep[-1] < 1e-4
        if schedule == "linear":
            betas = np.linspace(1e-4, 0.02, 1000)
            assert np.allclose(network.keep[1:].numpy(), np.cumprod(1 - betas), atol=1e-5)

    def test_weights_and_shape_are_enough_to_build_it_again(self):
        network = make()
        spec = json.loads(json.dumps(vars(network.shape)))
        again = make(DiffusionShape(**spec | {"image_shape": tuple(spec["image_shape"])}), seed=5)
        again.load_state_dict(network.state_dict())
        z, t = rand(2, 1, 8, 8), torch.tensor([3, 30])
        assert torch.equal(network(z, t), again(z, t))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"channels": (16, 20)}, "channels must be multiples of 8"),
            ({"channels": ()}, "channels must be multiples of 8"),
            ({"schedule": "square"}, "unknown noise schedule 'square': use linear or cosine"),
        ],
    )
    def test_bad_shapes(self, settings, message):
        with pytest.raises(ValueError, match=message):
            DiffusionNetwork(DiffusionShape((1, 8, 8), **settings))

    def test_inside_is_minus_one_to_one(self):
        ends = torch.tensor([0.0, 0.5, 1.0])
        assert inside(ends).tolist() == [-1, 0, 1]
        assert torch.equal(outside(inside(ends)), ends)

    def test_training_beyond_the_schedule_is_refused(self, digits):
        with pytest.raises(ValueError, match="longest must be between 1 and 1000"):
            train_diffusion(make(), digits[:8], Training(1, 8, 1e-3), longest=1001)


def foreign(
    folder, prediction_type: str = "epsilon", pipeline: bool = True
) -> tuple[UNet2DModel, DDPMScheduler]:
    """A UNet of diffusers as anyone may have saved it: three levels with attention, 32x32 color."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ).eval()
    schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    (DDPMPipeline(unet, schedule) if pipeline else unet).save_pretrained(folder)
    return unet, schedule


def other_unet(folder, **settings) -> None:
    """A lone UNet that is unlike a DDPM's in some setting."""
    small = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    with torch.random.fork_rng():
        UNet2DModel(**small, **blocks, **settings).save_pretrained(folder)


class TestPretrained:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_a_saved_pipeline_sees_the_same_clean_image(self, tmp_path, prediction_type):
        unet, schedule = foreign(tmp_path, prediction_type)
        network = load_pretrained(tmp_path, (3, 32, 32))
        z = torch.randn(1, 3, 32, 32, generator=seeded())
        with torch.no_grad():
            output = unet(z, 249).sample
            expected = schedule.step(output, 249, z).pred_original_sample
            assert torch.allclose(network.clean(z, torch.tensor([250])), expected, atol=1e-4)

    def test_a_lone_unet_gets_the_linear_schedule(self, tmp_path):
        unet, _ = foreign(tmp_path, pipeline=False)
        network = load_pretrained(str(tmp_path), (3, 32, 32))
        z = torch.randn(2, 3, 32, 32, generator=seeded())
        with torch.no_grad():
            assert torch.equal(network(z, torch.tensor([7, 7])), unet(z, 6).sample)
        assert torch.allclose(network.keep, make().keep)

    def test_it_is_stored_like_our_own(self, tmp_path):
        foreign(tmp_path)
        network = load_pretrained(tmp_path, (3, 32, 32))
        spec = json.loads(json.dumps(vars(network.shape)))
        again = DiffusionNetwork(DiffusionShape(**spec | {"image_shape": tuple(spec["image_shape"])})).eval()
        again.load_state_dict(network.state_dict())
        z = torch.randn(1, 3, 32, 32, generator=seeded())
        assert torch.equal(network(z, torch.tensor([5])), again(z, torch.tensor([5])))
        assert torch.equal(network.keep, again.keep)

    def test_loading_draws_nothing_from_the_callers_generator(self, tmp_path):
        foreign(tmp_path)
        before = torch.get_rng_state()
        load_pretrained(tmp_path, (3, 32, 32))
        assert torch.equal(torch.get_rng_state(), before)

    def test_gray_images_on_a_color_unet(self, tmp_path):
        foreign(tmp_path)
        with pytest.raises(ValueError, match="the UNet takes 3 channels and the images have 1"):
            load_pretrained(tmp_path, (1, 28, 28))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="holds no DDPM and no UNet2DModel"):
            load_pretrained(tmp_path, (3, 32, 32))

    @pytest.mark.parametrize(
        ("pipeline", "scheduler", "what"),
        [
            (
                "ConsistencyModelPipeline",
                "CMStochasticIterativeScheduler",
                "the pipeline of .* 'ConsistencyM",
            ),
            ("ScoreSdeVePipeline", "ScoreSdeVeScheduler", "the pipeline of .* is 'ScoreSdeVePipeline'"),
            ("DDPMPipeline", "FlowMatchEulerDiscreteScheduler", "the scheduler of .* is 'FlowMatchEuler"),
            ("DDPMPipeline", "EDMEulerScheduler", "the scheduler of .* is 'EDMEulerScheduler'"),
            ("DDPMPipeline", "DPMSolverMultistepScheduler", "the prediction type of .* 'flow_prediction'"),
        ],
    )
    def test_a_model_of_another_family_is_refused(self, tmp_path, pipeline, scheduler, what):
        """Its UNet has the same class and shape, and means something else."""
        foreign(tmp_path)
        flow = {"prediction_type": "flow_prediction"} if "DPMSolver" in scheduler else {}
        getattr(diffusers, scheduler)(**flow).save_pretrained(tmp_path / "scheduler")
        index = json.loads((tmp_path / "model_index.json").read_text())
        index |= {"_class_name": pipeline, "scheduler": ["diffusers", scheduler]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=f"^{what}.*: give a DDPM, whose [^\n]*$"):
            load_pretrained(tmp_path, (3, 32, 32))

    @pytest.mark.parametrize(
        ("settings", "what"),
        [
            (
                {"num_class_embeds": 10},
                r"needs class labels \(num_class_embeds is 10\): give an unconditional",
            ),
            ({"time_embedding_type": "fourier"}, "the time embedding of .* is 'fourier': give a DDPM"),
            ({"out_channels": 4}, "takes 3 channels and answers 4"),
        ],
    )
    def test_a_unet_that_needs_or_means_something_else_is_refused(self, tmp_path, settings, what):
        other_unet(tmp_path / "lone", **settings)
        with pytest.raises(ValueError, match=what):
            load_pretrained(tmp_path / "lone", (3, 32, 32))

    def test_a_unet_of_another_class_is_refused(self, tmp_path):
        foreign(tmp_path, pipeline=False)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
        with pytest.raises(ValueError, match=r"the network of .* is 'UNet2DConditionModel': give a DDPM"):
            load_pretrained(tmp_path, (3, 32, 32))

    def test_images_that_it_cannot_take_are_refused_when_it_is_loaded(self, tmp_path):
        foreign(tmp_path)
        with pytest.raises(ValueError, match=r"does not take images of shape \(3, 1, 1\) \([^\n]*\): give"):
            load_pretrained(tmp_path, (3, 1, 1))

    def test_a_job_refuses_it_before_anything_is_paid(self, tmp_path, store):
        other_unet(tmp_path / "lone", num_class_embeds=10, in_channels=1, out_channels=1)
        config = certdef.load_config(
            purifier="one-step",
            diffusion__pretrained=str(tmp_path / "lone"),
            work_dir=str(tmp_path / "work"),
            tracking__uri=store,
        )
        with pytest.raises(ConfigError, match=r"purifier 'one-step': the UNet of .* needs class labels"):
            certdef.run(config, progress=False)
        assert not (tmp_path / "work").exists()


class TestOneStep:
    def test_a_whole_number_of_steps_is_matched_in_pixel_units(self):
        network = White(SMALL)
        t = 160
        sigma = float(network.sigmas()[t])
        noisy = 0.5 + 0.1 * torch.randn(4, 1, 8, 8, generator=seeded())
        # the best guess of N(0.5, 0.1^2) pixels under noise of sigma
        expected = 0.5 + (noisy - 0.5) * 0.1**2 / (0.1**2 + sigma**2)
        assert torch.allclose(OneStep(network, sigma)(noisy), expected, atol=1e-4)

    def test_the_noise_level_is_read_off_each_image(self):
        sigmas = torch.tensor([0.1, 0.3, 0.6])
        noise = torch.randn(3, 3, 48, 48, generator=seeded())
        ramp = torch.linspace(0, 1, 48).expand(3, 3, 48, 48)  # what is smooth counts for nothing
        noisy = ramp + sigmas.view(-1, 1, 1, 1) * noise
        found = noise_level(noisy)
        assert (found / sigmas - 1).abs().max() < 0.06  # 4 standard errors of 3 x 46 x 46 dependent pixels
        assert torch.allclose(found[1:2], noise_level(noisy[1:2]))

    def test_an_unknown_level_is_as_good_as_the_known_one(self, trained, digits):
        clean = digits[1500:]
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=seeded())
        with torch.inference_mode():
            known = (OneStep(trained, 0.3)(noisy) - clean).square().mean()
            estimated = (OneStep(trained)(noisy) - clean).square().mean()
        before = (noisy.clamp(0, 1) - clean).square().mean()
        assert known < 0.6 * before
        assert estimated < 1.15 * known

    @pytest.mark.parametrize("sigma", [None, 0.3])
    def test_a_function_of_the_noisy_image_alone(self, trained, sigma):
        """Nothing is kept between calls and nothing passes between images."""
        purifier = OneStep(trained, sigma)
        noisy = rand(4, 1, 8, 8) + 0.3 * torch.randn(4, 1, 8, 8, generator=seeded())
        first = purifier(noisy).detach()
        purifier(rand(4, 1, 8, 8, seed=9))
        assert torch.equal(purifier(noisy), first)
        assert torch.allclose(purifier(noisy[2:3])[0], first[2], atol=1e-5)
        assert 0 <= float(first.min()) <= float(first.max()) <= 1

    @pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
    def test_bad_sigma(self, sigma):
        with pytest.raises(ValueError, match="sigma must be above 0"):
            OneStep(make(), sigma)


class TestDiffPure:
    def test_all_steps_are_ancestral_sampling(self):
        """Against DDPMScheduler, fed with the same noise."""
        network, images, t = make(), rand(2, 1, 8, 8), 12
        schedule, generator = DDPMScheduler(), seeded(3)
        with torch.no_grad():
            noise = torch.randn(images.shape, generator=generator)
            z = schedule.add_noise(inside(images), noise, torch.tensor(t - 1))
            for step in range(t - 1, -1, -1):
                z = schedule.step(
                    network(z, torch.full((2,), step + 1)), step, z, generator=generator
                ).prev_sample
            assert torch.allclose(DiffPure(network, t, generator=seeded(3))(images), outside(z), atol=1e-4)

    def test_strided_steps_are_ddim_with_eta_one(self):
        """Against DDIMScheduler, whose leading time steps at 20 of 1,000 are ours at t = 951."""
        network, images = make(), rand(2, 1, 8, 8)
        schedule, generator = DDIMScheduler(clip_sample=True, set_alpha_to_one=False), seeded(3)
        schedule.set_timesteps(20)
        purifier = DiffPure(network, 951, 20, seeded(3))
        purifier.times = [
            int(step) + 1 for step in schedule.timesteps
        ]  # 951, 901 ... 1: it ends at our step 1
        with torch.no_grad():
            z = schedule.add_noise(
                inside(images), torch.randn(images.shape, generator=generator), torch.tensor(950)
            )
            for step in schedule.timesteps[:-1]:
                output = network(z, torch.full((2,), int(step) + 1))
                z = schedule.step(
                    output, step, z, eta=1.0, use_clipped_model_output=True, generator=generator
                ).prev_sample
            assert torch.allclose(purifier(images), outside(z), atol=1e-4)

    def test_the_exact_model_draws_from_the_posterior(self):
        """N(0, v) pixels come back as N(0, v), and as near to where they were as z_t tells."""
        network, t, v = White(SMALL), 100, White.variance
        images = outside(v**0.5 * torch.randn(100, 1, 8, 8, generator=seeded()))
        purified = inside(purify(DiffPure(network, t, generator=seeded(1)), images))
        assert abs(float(purified.mean())) < 4 * (v / 6400) ** 0.5
        assert float(purified.var()) == pytest.approx(
            v, rel=4 * (2 / 6400) ** 0.5 + 0.01
        )  # 0.01 for finite steps
        together = torch.corrcoef(torch.stack([purified.flatten(), inside(images).flatten()]))
        keep = float(network.keep[t])
        assert float(together[0, 1]) == pytest.approx(keep * v / (keep * v + 1 - keep), abs=4 / 6400**0.5)

    def test_purifies_noise(self, trained, digits):
        clean = digits[1500:]
        attacked = (clean + 0.25 * torch.randn(clean.shape, generator=seeded()).sign()).clamp(0, 1)
        purified = purify(DiffPure(trained, 40, 20, seeded()), attacked)
        assert (purified - clean).square().mean() < 0.9 * (attacked - clean).square().mean()

    def test_gradients_through_the_chain_equal_those_of_the_stored_chain(self):
        network, images = make(), rand(2, 1, 8, 8).requires_grad_()
        calls = []
        network.unet.register_forward_hook(lambda *_: calls.append(1))
        purifier = DiffPure(network, 40, 4, seeded(2))
        (gradient,) = torch.autograd.grad(purifier(images).square().sum(), images)
        assert len(calls) == 2 * 4  # every step was done again in the backward pass, not kept
        draws = seeded(2)
        z = network.diffuse(inside(images), torch.full((2,), 40), torch.randn(images.shape, generator=draws))
        for now, then in zip([40, 30, 20, 10], [30, 20, 10, 0], strict=True):
            noise = torch.randn(images.shape, generator=draws) if then else torch.zeros_like(images)
            z = purifier.step(z, images, noise, now, then)
        (stored,) = torch.autograd.grad(outside(z).square().sum(), images)
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, stored, atol=1e-6)

    def test_images_of_a_batch_do_not_meet(self):
        """Given the same noise, an image is purified the same way whoever is beside it."""
        network, images = make(), rand(3, 1, 8, 8)
        first = DiffPure(network, 20, 4, seeded())(images)
        beside = torch.cat([images[:1], rand(2, 1, 8, 8, seed=8)])
        assert torch.allclose(DiffPure(network, 20, 4, seeded())(beside)[0], first[0], atol=1e-5)

    def test_steps_visited(self):
        assert strided(100, 4) == [100, 75, 50, 25, 0]
        assert strided(3, None) == strided(3, 50) == [3, 2, 1, 0]
        assert strided(50, 1) == [50, 0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"t": 0}, "t must be between 1 and 1000"),
            ({"t": 1001}, "t must be between 1 and 1000"),
            ({"t": 10, "steps": 0}, "steps must be 1 or more"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            DiffPure(make(), **settings)


def classifier() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return build_classifier("cnn", (1, 8, 8), 10).eval()


class TestAGDM:
    def test_no_guidance_is_diffpure(self):
        network, images = make(), rand(2, 1, 8, 8)
        plain = DiffPure(network, 30, 3, seeded())(images)
        assert torch.equal(AGDM(network, classifier(), 30, 0.0, steps=3, generator=seeded())(images), plain)

    @pytest.mark.parametrize("distance", ["cosine", "l2"])
    def test_guidance_brings_the_latents_nearer(self, trained, digits, distance):
        images, auxiliary = digits[1500:1532], classifier()

        def apart(scale: float) -> torch.Tensor:
            purifier = AGDM(trained, auxiliary, 200, scale, distance=distance, steps=20, generator=seeded())
            return purifier.latent_distance(
                features(auxiliary, purify(purifier, images)), features(auxiliary, images)
            )

        assert apart(100.0).mean() < 0.8 * apart(0.0).mean()

    def test_grad_mode_and_inference_mode_give_the_same_images(self):
        images, settings = rand(2, 1, 8, 8), {"t": 30, "scale": 50.0, "steps": 3}
        differentiable = AGDM(make(), classifier(), **settings, generator=seeded())(
            images.clone().requires_grad_()
        )
        assert torch.allclose(
            purify(AGDM(make(), classifier(), **settings, generator=seeded()), images),
            differentiable,
            atol=1e-5,
        )

    def test_gradients_hold_the_guidance(self):
        """Against central differences in float64: the guidance's own gradient is differentiated too."""
        network, auxiliary = make().double(), classifier().double()
        image, direction = rand(1, 1, 8, 8).double(), torch.randn(1, 1, 8, 8, generator=seeded(4)).double()

        def value(images: torch.Tensor, scale: float = 5000.0) -> torch.Tensor:
            purifier = AGDM(network, auxiliary, 30, scale, steps=2, generator=seeded())
            return (purifier(images) * direction).sum()

        (gradient,) = torch.autograd.grad(value(image.requires_grad_()), image)
        (unguided,) = torch.autograd.grad(value(image, 0.0), image)
        along = float((gradient * direction).sum())
        step = 1e-5
        with torch.no_grad():
            difference = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
        assert along == pytest.approx(float(difference), rel=1e-3)
        assert (gradient - unguided).abs().max() > 0.05 * unguided.abs().max()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"scale": -1.0}, "scale must be 0 or more"),
            ({"scale": 1.0, "distance": "l1"}, "unknown distance 'l1'"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AGDM(make(), classifier(), 10, **settings)


class TestAuxiliaryNetwork:
    def perturbed(self, networks, t=40, eps=2 / 255):
        """What the training is given of a batch of 64 gray images, which the classifier calls anything."""
        seen = []

        def train(network, images, labels, *, perturb, **_):
            seen.append(perturb(network, torch.from_numpy(images), torch.from_numpy(labels)))

        config = certdef.load_config(attack__eps=[eps], diffusion__t=t)
        plan = Plan(config, (1, 8, 8), classifier=classifier(), networks=networks)
        pool = torch.full((64, 1, 8, 8), 0.5)
        ROBUST.train(classifier(), TrainingRun(plan, pool, torch.device("cpu"), Path(), lambda x: x, train))
        return (seen[0] - pool).flatten(1).abs()

    def test_half_of_its_images_are_diffused_and_all_are_attacked_there(self):
        eps, network = 2 / 255, White(SMALL)
        moved = self.perturbed({"diffusion": network})
        assert moved[::2].amax() <= eps + 1e-6  # attacked as they were
        assert moved[::2].amax(1).min() > 0
        sigma = moved[1::2].square().mean(1).sqrt()
        levels = (1 - network.keep).sqrt() / 2  # of noise in [0, 1] units after each step
        assert 0.7 * levels[1] < sigma.min()
        assert sigma.max() < 1.4 * levels[40] + eps
        assert sigma.max() > 2 * sigma.min()  # of many steps, not of one
        assert self.perturbed({}).amax() <= eps + 1e-6  # without the option it needs no diffusion network

    def test_it_needs_the_diffusion_network_only_where_it_sees_diffused_images(self):
        plain = certdef.load_config(diffusion__robust_diffused=False)
        assert ROBUST.needs(plain) == ()
        assert ROBUST.needs(certdef.load_config()) == (DIFFUSION,)
        for config in (plain, certdef.load_config()):  # what is needed is trained first
            roles = [each.role for each in find_purifier("agdm").networks(config)]
            assert set(roles) == {"robust", "diffusion"}
            assert all(roles.index(each.role) < roles.index("robust") for each in ROBUST.needs(config))

    def test_the_last_reverse_step_is_not_guided(self):
        """Its variance is 0: with one step, guidance does nothing."""
        network, images = make(), rand(2, 1, 8, 8)
        plain = DiffPure(network, 30, 1, seeded())(images)
        guided = AGDM(network, classifier(), 30, 1e6, steps=1, generator=seeded())(images)
        assert torch.allclose(guided, plain, atol=1e-6)
        plain = DiffPure(network, 30, 2, seeded())(images)
        guided = AGDM(network, classifier(), 30, 1e6, steps=2, generator=seeded())(images)
        assert not torch.allclose(guided, plain, atol=1e-3)


class TestANLS:
    def test_frechet_against_the_matrix_square_root(self):
        first = (
            torch.randn(200, 6, generator=seeded()).double() @ torch.randn(6, 6, generator=seeded(1)).double()
        )
        second = 0.5 + torch.randn(150, 6, generator=seeded(2)).double()
        s1, s2 = (np.cov(part.numpy().T) for part in (first, second))
        means = (first.mean(0) - second.mean(0)).square().sum().item()
        expected = means + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
        assert frechet(first, second, shrinkage=0) == pytest.approx(expected, rel=1e-6)

    def test_frechet_with_fewer_images_than_features(self):
        first, second = torch.randn(20, 50, generator=seeded()), torch.randn(20, 50, generator=seeded(1))
        assert frechet(first, first) == pytest.approx(0, abs=1e-6)
        assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-6)
        assert frechet(first, second) < frechet(first, second + 1)

    def test_more_noise_wants_a_larger_step(self, trained, digits):
        clean, others, auxiliary = digits[:300], digits[1300:1500], classifier()
        noise = torch.randn(others.shape, generator=seeded())
        grid = (1, 25, 100, 200)
        little, much = (
            anls(trained, auxiliary, clean, (others + sigma * noise).clamp(0, 1), grid, steps=8)
            for sigma in (0.0, 0.3)
        )
        assert little.t < much.t
        assert much.t == min(much.distances, key=much.distances.get)
        assert list(much.distances) == list(grid)
        purified = {}
        attacked = (others + 0.3 * noise).clamp(0, 1)
        again = anls(trained, auxiliary, clean, attacked, grid[:2], steps=8, seen=purified.__setitem__)
        assert torch.equal(purified[25], purify(DiffPure(trained, 25, 8, seeded()), attacked))
        assert again.distances[25] == much.distances[25]  # the same draws, whatever else is tried

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: frechet(torch.rand(5, 3), torch.rand(5, 4)), "features have shapes"),
            (lambda: frechet(torch.rand(1, 3), torch.rand(5, 3)), "have no covariance"),
            (lambda: frechet(torch.rand(5, 3), torch.rand(5, 3), 2.0), "shrinkage must be between"),
            (lambda: anls(make(), classifier(), rand(4, 1, 8, 8), rand(4, 1, 8, 8), ()), "grid has no step"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
