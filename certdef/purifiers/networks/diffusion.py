"""A diffusion model of clean images (Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv
2006.11239) on Hugging Face diffusers, small ones trained here or any pretrained UNet, and one-step denoising with it.

Units. Images are in [0, 1] outside. A diffusion model lives in [-1, 1], where after t steps of noise

    z_t = sqrt(keep[t]) * (2 image - 1) + sqrt(1 - keep[t]) * noise,   noise ~ N(0, I),   t = 0 (clean) ... T

and the network tells the noise from z_t and t. `inside` and `outside` are the only doors between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surrogates.distillation.training import Training, fit

try:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
except ImportError as error:
    raise ImportError(
        "diffusion purifiers need the package diffusers: pip install 'certdef[diffusion]'"
    ) from error

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
GROUPS = 8  # of every group normalisation


@dataclass(frozen=True)
class DiffusionShape:
    """Everything needed to build a diffusion network again from its weights.

    Args:
        image_shape: (C, H, W) of the images.
        channels: Channels of the UNet's levels, multiples of 8; each level halves the side.
        blocks: Residual blocks a level.
        patch: Side of the squares of pixels that are folded into channels at the door; 2 is 4 times faster than 1.
        schedule: linear (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021), 1,000 steps.
        unet: Configuration of a foreign UNet2DModel, set by load_pretrained; channels and blocks are then not used.
        scheduler: Configuration of its noise schedule; schedule is then not used.
    """

    image_shape: tuple[int, int, int]
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    patch: int = 2
    schedule: str = "linear"
    unet: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


class DiffusionNetwork(nn.Module):
    """A UNet and its noise schedule: (z_t (N, C, H, W) in [-1, 1] units, t (N,)) -> the noise in it (N, C, H, W).

    Sides that the UNet can't halve often enough are mirrored at the edges on the way in and cut on the way out.

    Raises:
        ValueError: An unknown schedule, channels that are no multiples of 8, or a UNet of other channels than the images.
    """

    def __init__(self, shape: DiffusionShape):
        super().__init__()
        self.shape = shape
        self.unet = UNet2DModel.from_config(shape.unet or _small_unet(shape))
        settings = shape.scheduler or {"beta_schedule": _schedule(shape.schedule)}
        schedule = DDPMScheduler.from_config(settings)
        self.predicts = schedule.config.prediction_type
        keep = torch.cat([torch.ones(1), schedule.alphas_cumprod])  # (T + 1,), keep[t] after t steps
        self.register_buffer("keep", keep, persistent=False)
        folded = shape.image_shape[0] * shape.patch**2
        if self.unet.config.in_channels != folded:
            raise ValueError(
                f"the UNet takes {self.unet.config.in_channels} channels and the images have {folded}: "
                "choose a UNet that was trained on such images"
            )
        self.multiple = shape.patch * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def steps(self) -> int:
        """T, the number of noise steps."""
        return len(self.keep) - 1

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        height, width = z.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        folded = F.pixel_unshuffle(F.pad(z, margins, mode="reflect"), self.shape.patch)
        told = self.unet(folded, t - 1).sample[
            :, : folded.shape[1]
        ]  # diffusers counts from 0; any variances are cut
        told = F.pixel_shuffle(told, self.shape.patch).to(z.dtype)
        told = told[..., margins[2] : margins[2] + height, margins[0] : margins[0] + width]
        signal, noise = self._shares(t)
        if self.predicts == "sample":
            return (z - signal * told) / noise
        if self.predicts == "v_prediction":
            return signal * told + noise * z
        return told

    def clean(self, z: Tensor, t: Tensor) -> Tensor:
        """The clean image that z_t was made of, as far as one look tells; (N, C, H, W), clamped to [-1, 1]."""
        signal, noise = self._shares(t)
        return ((z - noise * self(z, t)) / signal).clamp(-1, 1)

    def diffuse(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t of clean images z in [-1, 1], given the noise, both (N, C, H, W)."""
        signal, share = self._shares(t)
        return signal * z + share * noise

    def sigmas(self) -> Tensor:
        """Noise level of z_t once its signal is scaled back to images, in [0, 1] pixel units: (T + 1,)."""
        return ((1 - self.keep) / self.keep).sqrt() / 2

    def _shares(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(keep[t]) and sqrt(1 - keep[t]), each (N, 1, 1, 1)."""
        keep = self.keep[t].view(-1, 1, 1, 1)
        return keep.sqrt(), (1 - keep).sqrt()


def inside(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return 2 * images - 1


def outside(z: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return ((z + 1) / 2).clamp(0, 1)


def train_diffusion(
    network: DiffusionNetwork, images: Tensor, training: Training, *, longest: int | None = None, seed: int = 0,
    device: torch.device | str = "cpu", checkpoint: Any = None, progress: Callable | None = None,
) -> list[float]:  # fmt: skip
    """Train in place on unlabelled images (N, C, H, W) in [0, 1]; returns the mean loss of each epoch.

    The loss is the mean squared error of the told noise at a uniform t (Ho et al., 2020, equation 14).

    Args:
        longest: Largest t that is trained on; unset, all of them. A purifier never goes beyond a few hundred, and
            training time is better spent on what it visits.
        checkpoint: Path of a resumable checkpoint.
        progress: Wraps the epochs, e.g. tqdm.
    """
    last = network.steps if longest is None else longest
    if not 1 <= last <= network.steps:
        raise ValueError(f"longest must be between 1 and {network.steps} noise steps, got {longest}")

    def loss(model: nn.Module, clean: Tensor, *, generator: torch.Generator) -> Tensor:
        t = torch.randint(1, last + 1, (len(clean),), generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        keep = network.keep[t].view(-1, 1, 1, 1)
        return F.mse_loss(model(keep.sqrt() * inside(clean) + (1 - keep).sqrt() * noise, t), noise)

    return fit(
        network, images, loss, training, seed=seed, device=device, checkpoint=checkpoint, progress=progress
    )


def load_pretrained(
    name_or_path: str | PathLike[str], image_shape: tuple[int, int, int], **options: Any
) -> DiffusionNetwork:
    """Any unconditional DDPM or UNet2DModel of diffusers, e.g. google/ddpm-cifar10-32 or a folder, in eval mode.

    A lone UNet says nothing of its noise schedule: the linear one of Ho et al. is then taken. Weights are read from
    safetensors only. `options` go to from_pretrained, e.g. revision, local_files_only, subfolder.

    Raises:
        ValueError: Nothing of the kind is there, or the UNet was trained on images of other channels.
    """
    name = str(name_or_path)
    try:
        try:
            DDPMPipeline.load_config(name, **options)
        except OSError:  # no pipeline, so a lone UNet
            unet, scheduler = UNet2DModel.from_pretrained(name, use_safetensors=True, **options), None
        else:
            pipeline = DDPMPipeline.from_pretrained(name, use_safetensors=True, **options)
            unet, scheduler = pipeline.unet, _plain(pipeline.scheduler.config)
    except OSError as error:
        raise ValueError(
            f"{name!r} holds no DDPM and no UNet2DModel in safetensors: give the hub name or the folder of one"
        ) from error
    scheduler = scheduler or {"beta_schedule": "linear"}
    network = DiffusionNetwork(
        DiffusionShape(image_shape, patch=1, unet=_plain(unet.config), scheduler=scheduler)
    )
    network.unet.load_state_dict(unet.state_dict())
    return network.eval()


class OneStep(nn.Module):
    """One-step denoising for certificates (Carlini et al., "(Certified!!) Adversarial Robustness for Free!", ICLR 2023,
    arXiv 2206.10550): image + sigma * noise, (N, C, H, W), not clamped -> denoised images in [0, 1].

    The noisy image is scaled down to the step t whose noise level is sigma, and the clean image is read off at once.

    Args:
        network: A trained diffusion network.
        sigma: Noise level in [0,1] pixel units (twice that in [-1, 1]). Unset, it is estimated from each noisy image,
            for noise whose level is drawn at random. The estimate is a function of the noisy image alone, so the whole
            is still a fixed classifier of noisy images and a certificate about it stays sound. Gradients are exact
            almost everywhere, as t is constant between roundings.
    """

    def __init__(self, network: DiffusionNetwork, sigma: float | None = None):
        super().__init__()
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(
                f"sigma must be above 0 in [0,1] pixel units, got {sigma}: 75 8-bit levels are .294"
            )
        self.network, self.sigma = network, sigma

    def forward(self, noisy: Tensor) -> Tensor:
        levels = self.network.sigmas()[1:]
        sigma = (
            noise_level(noisy.detach()) if self.sigma is None else noisy.new_full((len(noisy),), self.sigma)
        )
        t = 1 + (levels - sigma[:, None]).abs().argmin(dim=1)  # (N,)
        z = inside(noisy) * self.network.keep[t].view(-1, 1, 1, 1).sqrt()
        return outside(self.network.clean(z, t))


def noise_level(noisy: Tensor) -> Tensor:
    """Standard deviation of white Gaussian noise in images (N, C, H, W), estimated from each alone, (N,), same units.

    The difference of two Laplacians removes what is smooth and leaves noise of 6 sigma, whose mean modulus is taken
    (Immerkaer, "Fast noise variance estimation", CVIU 64, 1996). Edges count as noise: an image without any is given
    .02 to .03, which no longer matters from sigma .1.
    """
    mask = noisy.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    channels = noisy.shape[1]
    left = F.conv2d(noisy, mask.expand(channels, 1, 3, 3), groups=channels)  # (N, C, H - 2, W - 2)
    return left.abs().mean(dim=(1, 2, 3)) * math.sqrt(math.pi / 2) / 6


def _small_unet(shape: DiffusionShape) -> dict[str, Any]:
    if not shape.channels or any(width < 1 or width % GROUPS for width in shape.channels):
        raise ValueError(
            f"channels must be multiples of {GROUPS}, got {tuple(shape.channels)}: e.g. (32, 64)"
        )
    folded, levels = shape.image_shape[0] * shape.patch**2, len(shape.channels)
    return {
        "in_channels": folded,
        "out_channels": folded,
        "block_out_channels": tuple(shape.channels),
        "layers_per_block": shape.blocks,
        "down_block_types": ("DownBlock2D",) * levels,
        "up_block_types": ("UpBlock2D",) * levels,
        "norm_num_groups": GROUPS,
        "add_attention": False,
    }


def _schedule(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {name!r}: use {' or '.join(SCHEDULES)}")
    return SCHEDULES[name]


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of diffusers without its private entries."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
