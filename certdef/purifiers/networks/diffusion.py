"""A diffusion model of clean images (Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv
2006.11239) on Hugging Face diffusers: small ones trained here, or any pretrained UNet. DIFFUSION describes a job's.

Units. Images are in [0, 1] outside. A diffusion model lives in [-1, 1], where after t steps of noise

    z_t = sqrt(keep[t]) * (2 image - 1) + sqrt(1 - keep[t]) * noise,   noise ~ N(0, I),   t = 0 (clean) ... T

and the network predicts the noise from z_t and t. `inside` and `outside` convert between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certdef.config.job import ConfigError, RunConfig
from certdef.config.parts import is_part
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.tracking.parts import part_key
from surrogates.distillation.training import FitOptions, Training, fit

# What a foreign network may be part of: noise is added in discrete steps by betas, as in DDPM. Score SDEs, EDM, consistency
# and flow matching models have UNets of the same class that mean something else.
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
FOREIGN_SCHEDULES = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    "UniPCMultistepScheduler",
)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
GROUPS = 8  # of every group normalization


@dataclass(frozen=True)
class DiffusionShape:
    """Everything needed to build a diffusion network again from its weights.

    Args:
        image_shape: (C, H, W) of the images.
        channels: Channels of the UNet's levels, multiples of 8; each level halves the side.
        blocks: Residual blocks a level.
        patch: Side of the squares of pixels that are folded into channels on the way in; 2 is 4 times faster than 1.
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
        ConfigError: The package diffusers is missing.
    """

    keep: Tensor

    def __init__(self, shape: DiffusionShape):
        check_diffusers()
        from diffusers import DDPMScheduler, UNet2DModel  # an optional package, which takes seconds to import

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
        output = self.unet(folded, t - 1).sample  # diffusers counts from 0
        output = output[:, : folded.shape[1]]  # without predicted variances
        output = F.pixel_shuffle(output, self.shape.patch).to(z.dtype)
        output = output[..., margins[2] : margins[2] + height, margins[0] : margins[0] + width]
        signal, noise = self._shares(t)
        if self.predicts == "sample":
            return (z - signal * output) / noise
        if self.predicts == "v_prediction":
            return signal * output + noise * z
        return output

    def clean(self, z: Tensor, t: Tensor) -> Tensor:
        """The clean image behind z_t as predicted at once; (N, C, H, W), clamped to [-1, 1]."""
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
    network: DiffusionNetwork,
    images: Tensor,
    training: Training,
    *,
    longest: int | None = None,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Train in place on unlabeled images (N, C, H, W) in [0, 1]; returns the mean loss of each epoch.

    The loss is the mean squared error of the predicted noise at a uniform t (Ho et al., 2020, equation 14).

    Args:
        network: Left in eval mode on the device.
        images: Clean images.
        training: Epochs, batch, rate.
        longest: Largest t that is trained on; unset, all of them. A purifier never goes beyond a few hundred, and
            training time is better spent on what it visits.
        options: Seed, device, checkpoint and progress, as for fit.
    """
    last = network.steps if longest is None else longest
    if not 1 <= last <= network.steps:
        raise ValueError(f"longest must be between 1 and {network.steps} noise steps, got {longest}")

    def loss(model: nn.Module, clean: Tensor, *, generator: torch.Generator) -> Tensor:
        t = torch.randint(1, last + 1, (len(clean),), generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        keep = network.keep[t].view(-1, 1, 1, 1)
        return F.mse_loss(model(keep.sqrt() * inside(clean) + (1 - keep).sqrt() * noise, t), noise)

    return fit(network, images, loss, training, **options)


def load_pretrained(
    name_or_path: str | PathLike[str], image_shape: tuple[int, int, int], **options: Any
) -> DiffusionNetwork:
    """Any unconditional DDPM or UNet2DModel of diffusers, e.g. google/ddpm-cifar10-32 or a folder, in eval mode.

    A lone UNet says nothing of its noise schedule: the linear one of Ho et al. is then taken. Weights are read from
    safetensors only. `options` go to from_pretrained, e.g. revision, local_files_only, subfolder.

    Raises:
        ValueError: Nothing of the kind is there; a model of another family (score SDE, EDM, consistency, flow matching), one
            that needs class labels, or one that does not take such images.
        ConfigError: The package diffusers is missing.
    """
    check_diffusers()
    name = str(name_or_path)
    with (
        torch.random.fork_rng()
    ):  # networks are built with random weights, which are the caller's generator's
        unet, scheduler = _read_pretrained(name, options)
        _check_unet(name, unet.config)
        network = DiffusionNetwork(
            DiffusionShape(image_shape, patch=1, unet=_plain(unet.config), scheduler=scheduler)
        )
    network.unet.load_state_dict(unet.state_dict())
    _check_pass(name, network.eval())
    return network


def _read_pretrained(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read a UNet and the configuration of its noise schedule."""
    from diffusers import DDPMPipeline, UNet2DModel

    try:
        try:
            parts = DDPMPipeline.load_config(name, **options)
        except OSError:  # no pipeline, so a lone UNet
            kind = UNet2DModel.load_config(name, **options).get("_class_name")
            _check_class(name, "network", kind, ("UNet2DModel",))
            return UNet2DModel.from_pretrained(name, use_safetensors=True, **options), {
                "beta_schedule": "linear"
            }
        _check_class(name, "pipeline", parts.get("_class_name"), PIPELINES)
        _check_class(name, "network", (parts.get("unet") or [None])[-1], ("UNet2DModel",))
        _check_class(name, "scheduler", (parts.get("scheduler") or [None])[-1], FOREIGN_SCHEDULES)
        pipeline = DDPMPipeline.from_pretrained(name, use_safetensors=True, **options)
    except OSError as error:
        raise ValueError(
            f"{name!r} holds no DDPM and no UNet2DModel in safetensors: give the hub name or the folder of one"
        ) from error
    scheduler = _plain(pipeline.scheduler.config)
    _check_class(name, "prediction type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS)
    return pipeline.unet, scheduler


def _check_class(name: str, what: str, found: object, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(
            f"the {what} of {name!r} is {found!r}: give a DDPM, whose {what} is {' or '.join(known)}"
        )


def _check_unet(name: str, config: Any) -> None:
    """Refuse a UNet that needs more than an image and its noise step."""
    labels = [key for key in ("class_embed_type", "num_class_embeds") if config.get(key) is not None]
    if labels:
        raise ValueError(
            f"the UNet of {name!r} needs class labels ({labels[0]} is {config[labels[0]]!r}): give an unconditional one"
        )
    _check_class(name, "time embedding", config.time_embedding_type, ("positional",))
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(
            f"the UNet of {name!r} takes {config.in_channels} channels and answers {config.out_channels}: give one that "
            "predicts noise, with or without its variance"
        )


@torch.no_grad()
def _check_pass(name: str, network: DiffusionNetwork) -> None:
    """Refuse a network that does not take images of the job's shape: one forward pass on zeros."""
    shape = network.shape.image_shape
    try:
        output = network(torch.zeros(1, *shape), torch.tensor([1]))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the UNet of {name!r} does not take images of shape {shape} ({reason}): give one that was trained on such images"
        ) from error
    if output.shape != (1, *shape) or not output.isfinite().all():
        raise ValueError(
            f"the UNet of {name!r} answers no finite image of shape {shape}: give one that was trained on such images"
        )


def check_diffusers() -> None:
    """Raise ConfigError where the package diffusers is missing."""
    if find_spec("diffusers") is None:
        raise ConfigError(
            "a diffusion model needs diffusers, which is missing: pip install 'certdef[diffusion]'"
        )


def _build(plan: Plan) -> DiffusionNetwork:
    config = plan.config.diffusion
    if config.pretrained:
        return load_pretrained(config.pretrained, plan.image_shape)
    return DiffusionNetwork(DiffusionShape(plan.image_shape, channels=config.channels))


def _train(network: DiffusionNetwork, run: TrainingRun) -> list[float]:
    if run.config.diffusion.pretrained:
        return []
    return train_diffusion(network, run.pool, _training(run.config), **run.options)


def _training(config: RunConfig) -> Training:
    chosen = config.diffusion
    return Training(chosen.epochs, chosen.batch_size, chosen.learning_rate, ema=chosen.ema)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What decides the weights: a pretrained network's are those of its name."""
    given = config.diffusion.pretrained
    if given:
        return part_key(config, given) if is_part(given) else {"pretrained": given}
    names = ("channels", "epochs", "batch_size", "learning_rate", "ema")
    return {name: getattr(config.diffusion, name) for name in names}


def _files(config: RunConfig, channels: int) -> list[Path]:
    """The files of a pretrained network that lies in a folder: its weights and what says how to read them."""
    if not config.diffusion.pretrained or is_part(config.diffusion.pretrained):
        return []
    files = sorted(Path(config.diffusion.pretrained).rglob("*"))
    return [path for path in files if path.suffix in (".safetensors", ".json")]


def _check(config: RunConfig) -> None:
    check_diffusers()
    _training(config)


DIFFUSION = NetworkSpec(
    "diffusion",
    "diffusion",
    _build,
    _train,
    _settings,
    uses_pool=lambda config: not config.diffusion.pretrained,
    files=_files,
    check=_check,
    weights="diffusion.pretrained",
)


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
