"""A blind-spot network: each pixel is predicted from the others, never from itself.

The layers are FBI-Net's (Byun, Cha, Moon, CVPR 2021, arXiv 2105.09967), which NCIS builds on (Cha et al., WACV 2024,
arXiv 2106.11644). A pixel that is not seen can't be copied, so the network learns without clean images:

- NCIS: restore a natural image from what Gaussian smoothing left of it. An attack's pattern is not natural, and stays away.
- Noise2Self (Batson & Royer, ICML 2019): predict the *noisy* pixel from its noisy neighbors. Noise that is independent
  from pixel to pixel can't be predicted, so what is predicted is the clean pixel. The clamped network is then a denoiser
  for smoothed classifiers, a function of the noisy image alone.

RESTORER and DENOISER describe the two as a job's networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.named import data_root
from certdef.data.natural import natural_crops, natural_files
from certdef.purifiers.base import NetworkSpec, Plan, TrainingRun
from certdef.purifiers.gs import GaussianSmoothing
from surrogates.distillation.training import FitOptions, Training, fit

CROP = 32  # side of the crops of natural photographs, at most


@dataclass(frozen=True)
class BlindSpotShape:
    """Everything needed to build a blind-spot network again from its weights. The paper's has 64 filters, 8 to 17 blocks."""

    image_shape: tuple[int, int, int]
    filters: int = 32
    blocks: int = 6


# Which neighbors a layer sees. The first leaves out the center. The others keep it, and move by such steps that no path
# through any number of layers leads back to where it began: knight's moves, then diagonal steps of three pixels.
FIRST = ("111", "101", "111")
SECOND = ("01010", "10001", "00100", "10001", "01010")
FURTHER = ("101", "010", "101")  # dilation 3


class BlindSpotNetwork(nn.Module):
    """Images (N, C, H, W) -> each pixel as its surroundings predict it, (N, C, H, W), clamped to [0, 1].

    d out[i] / d in[i] is exactly 0 at every pixel i, in all channels: borders are padded with zeros, which see nothing
    (mirrored borders would show a pixel to itself). Any image size. Differentiable, without noise.
    """

    def __init__(self, shape: BlindSpotShape):
        super().__init__()
        channels, filters = shape.image_shape[0], shape.filters
        if shape.blocks < 1 or filters < 1:
            raise ValueError(
                f"a blind-spot network needs 1 or more blocks and filters, got {shape.blocks} and {filters}"
            )
        self.shape = shape
        masks = [(FIRST, 1), (SECOND, 1)] + [(FURTHER, 3)] * shape.blocks
        self.layers = nn.ModuleList(
            _Layer(filters if number else channels, filters, mask, dilation)
            for number, (mask, dilation) in enumerate(masks[: shape.blocks])
        )
        self.head = nn.Sequential(_Residual(filters), nn.Conv2d(filters, channels, 1))

    def predict(self, images: Tensor) -> Tensor:
        """The prediction before it is clamped, (N, C, H, W)."""
        hidden = (images - 0.5).contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        total = torch.zeros((), device=images.device)
        for layer in self.layers:
            hidden = layer(hidden)  # (N, filters, H, W)
            total = total + hidden
        return self.head(total / len(self.layers)) + 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(images).clamp(0, 1)


class _MaskedConv(nn.Conv2d):
    """A convolution that sees only the neighbors marked 1."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: tuple[str, ...], dilation: int):
        side = len(mask)
        super().__init__(inputs, outputs, side, padding=dilation * (side // 2), dilation=dilation)
        marked = torch.tensor([[float(mark) for mark in row] for row in mask])
        self.register_buffer("mask", marked, persistent=False)  # (side, side)
        with torch.no_grad():
            self.weight *= (marked.numel() / marked.sum()).sqrt()  # as if all neighbors were seen

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.conv2d(
            hidden, self.weight * self.mask, self.bias, padding=self.padding, dilation=self.dilation
        )


class _Residual(nn.Module):
    """Two 1x1 convolutions beside the identity: each pixel for itself, so the blind spot stays."""

    def __init__(self, filters: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(filters, filters, 1), nn.PReLU(), nn.Conv2d(filters, filters, 1))
        self.last = nn.PReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.last(hidden + self.inner(hidden))


class _Layer(nn.Sequential):
    def __init__(self, inputs: int, filters: int, mask: tuple[str, ...], dilation: int):
        super().__init__(_MaskedConv(inputs, filters, mask, dilation), nn.PReLU(), _Residual(filters))


def train_blind_spot(
    network: BlindSpotNetwork,
    images: Tensor,
    training: Training,
    *,
    smoothing: nn.Module | None = None,
    noise: Any = None,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Train in place by self-supervision; returns the mean loss of each epoch.

    Args:
        network: Left in eval mode on the device.
        images: (N, C, H, W) in [0, 1]: natural crops or the unlabeled pool.
        training: Epochs, batch, rate.
        smoothing: For NCIS: the network learns to restore what this purifier, e.g. GaussianSmoothing, took away.
        noise: For a denoiser: a law with sample(shape, generator=, device=), e.g. certify.nim_noise(). The noise is drawn
            anew for every image and epoch, and the loss compares with the noisy pixel itself; clean ones are not used.
        options: Seed, device, checkpoint and progress, as for fit.

    Raises:
        ValueError: Both of smoothing and noise, or neither.
    """
    if (smoothing is None) == (noise is None):
        raise ValueError("train_blind_spot takes either smoothing (for NCIS) or noise (for a denoiser)")
    smooth = smoothing.to(options.get("device", "cpu")).eval() if smoothing is not None else nn.Identity()

    def restore(model: BlindSpotNetwork, clean: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            smoothed = smooth(clean)
        return functional.mse_loss(model.predict(smoothed), clean)

    def predict_itself(model: BlindSpotNetwork, clean: Tensor, generator: torch.Generator) -> Tensor:
        noisy = clean + noise.sample(clean.shape, generator=generator, device=clean.device)
        return functional.mse_loss(model.predict(noisy), noisy)

    loss = restore if noise is None else predict_itself
    return fit(network, images, loss, training, **options)


def _build(plan: Plan) -> BlindSpotNetwork:
    config = plan.config.blind_spot
    return BlindSpotNetwork(BlindSpotShape(plan.image_shape, config.filters, config.blocks))


def _train(network: BlindSpotNetwork, run: TrainingRun) -> list[float]:
    config, (channels, height, width) = run.config.blind_spot, run.plan.image_shape
    images = run.pool
    if config.images == "natural":
        root, side = data_root(run.config.data), min(CROP, height, width)
        # Photographs shrunk too: the images of most data sets have more detail in a pixel.
        images = natural_crops(root, channels, side, config.crops, run.config.seed, scales=(1, 2, 3))
    task: dict[str, Any] = {"smoothing": GaussianSmoothing(**asdict(run.config.gs))}
    if run.plan.law is not None:
        task = {"noise": noise_law(run.plan.law)}
    return train_blind_spot(network, images, _training(run.config), **task, **run.options)


def _training(config: RunConfig) -> Training:
    chosen = config.blind_spot
    return Training(chosen.epochs, chosen.batch_size, chosen.learning_rate)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What decides the weights of both networks: neither the iterations of NCIS nor crops that are not taken."""
    unused = {"iterations"} if config.blind_spot.images == "natural" else {"iterations", "crops"}
    return {key: value for key, value in asdict(config.blind_spot).items() if key not in unused}


def _check(config: RunConfig) -> None:
    if config.blind_spot.images == "natural":
        folder = data_root(config.data) / "natural"
        if not folder.is_dir():
            raise ConfigError(f"no {str(folder)!r}: use --blind_spot.images pool, or another --data.root")
    _training(config)


def _uses_pool(config: RunConfig) -> bool:
    return config.blind_spot.images != "natural"


def _files(config: RunConfig, channels: int) -> list[Path]:
    """The photographs that it is trained on, where it is not the pool."""
    return natural_files(data_root(config.data), channels) if config.blind_spot.images == "natural" else []


RESTORER = NetworkSpec(
    "blind_spot",
    "blind-spot",
    _build,
    _train,
    lambda config: _settings(config) | asdict(config.gs),
    uses_pool=_uses_pool,
    files=_files,
    check=_check,
)
DENOISER = NetworkSpec(
    "blind_spot_noisy",
    "blind-spot",
    _build,
    _train,
    _settings,
    laws="each",
    every_label=True,
    uses_pool=_uses_pool,
    files=_files,
    check=_check,
)
