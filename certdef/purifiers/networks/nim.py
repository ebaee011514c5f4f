"""Noisy image modelling, the networks and their pre-training (You et al., "Beyond Pretrained Features: Noisy Image
Modeling Provides Adversarial Defense", NeurIPS 2023, arXiv 2302.01056). De^3, which defends with them, is in de3.py.

Pre-training is a masked autoencoder with noise in the place of masks: noisy = x + sigma z with one random sigma an
image, no clipping, every patch through a ViT encoder, a small ViT decoder predicts the clean pixels of all patches
(NIM-MAE). NIM-SimMIM has a linear head on the encoder instead of a decoder. MIM is the baseline: the same network,
trained on masks. denoisers.py describes the three as networks of a job.

Two departures from the published code, both needed by certificates: the targets are raw pixels, and the denoiser is a
function of the noisy image alone. (The published inference un-normalizes each patch with the mean and variance of the
un-noised input, which lets an attack through and voids any certificate.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from surrogates.distillation.training import FitOptions, Training, fit


@dataclass(frozen=True)
class NIMShape:
    """Size of a NIM: everything needed to build it again from its weights.

    Args:
        image_shape: (C, H, W).
        patch_size: Side of a patch in pixels.
        width, depth, heads: Of the ViT encoder; certdef.purifiers.networks.timm_encoders knows them by timm's names.
        decoder_width, decoder_depth, decoder_heads: Of the decoder; decoder_heads unset, as the encoder. No decoder block
            at all (decoder_depth 0) is a linear head on the encoder: NIM-SimMIM.
        class_token: A token beside those of the patches, as published encoders have; the decoder does not see it.
    """

    image_shape: tuple[int, int, int]
    patch_size: int = 4
    width: int = 64
    depth: int = 3
    heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int | None = None
    class_token: bool = False

    def __post_init__(self) -> None:
        _, height, width = self.image_shape
        for name in ("patch_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide the image {height}x{width}: choose one that does"
            )
        parts = [("width", self.width, self.heads)]
        if self.decoder_depth:
            parts.append(("decoder_width", self.decoder_width, self.decoder_heads or self.heads))
        for name, size, heads in parts:
            if size % heads or size % 4:  # 4: sines and cosines of two coordinates
                better = 4 * heads * max(1, round(size / (4 * heads)))
                raise ValueError(
                    f"{name} {size} must be a multiple of 4 and of its {heads} heads: try {better}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_shape[1] // self.patch_size, self.image_shape[2] // self.patch_size


class _Encoder(nn.Module):
    """A ViT without a head: images (N, C, H, W) -> features of every patch."""

    position: Tensor

    def __init__(self, shape: NIMShape):
        from timm.layers import PatchEmbed  # timm takes seconds to import

        super().__init__()
        self.shape = shape
        self.embed = PatchEmbed(shape.image_shape[1:], shape.patch_size, shape.image_shape[0], shape.width)
        self.encoder = nn.Sequential(*_blocks(shape.depth, shape.width, shape.heads))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, shape.width)) if shape.class_token else None
        # Sines and cosines; a published encoder brings its own.
        self.register_buffer("position", _positions(shape.grid, shape.width), persistent=shape.class_token)

    def tokens(self, images: Tensor) -> Tensor:
        """One token a patch, row by row, (N, T, width)."""
        return self.embed(images - 0.5) + self.position

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Features of the patches whose tokens are given, (N, any, width) -> the same shape."""
        if self.class_token is None:
            return self.encoder(tokens)
        return self.encoder(torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1))[:, 1:]

    def encode(self, noisy: Tensor) -> Tensor:
        """Features of every patch, (N, T, width)."""
        return self.encode_tokens(self.tokens(noisy))


class NIM(_Encoder):
    """NIM-MAE, or NIM-SimMIM: noisy images (N, C, H, W) -> denoised images (N, C, H, W), clamped to [0, 1].

    Raises:
        ValueError: The image is not a whole number of patches, or a width not a whole number of heads.
    """

    decoder_position: Tensor

    def __init__(self, shape: NIMShape):
        super().__init__(shape)
        width = shape.decoder_width if shape.decoder_depth else shape.width
        if shape.decoder_depth:
            self.bridge = nn.Linear(shape.width, width)
            self.decoder = nn.Sequential(
                *_blocks(shape.decoder_depth, width, shape.decoder_heads or shape.heads)
            )
            self.register_buffer("decoder_position", _positions(shape.grid, width), persistent=False)
        self.head = nn.Linear(width, shape.patch_size**2 * shape.image_shape[0])
        self.apply(_initialize)

    def decode(self, features: Tensor) -> Tensor:
        """Pixels (N, C, H, W), not clamped, from the bridged features of every patch."""
        if self.shape.decoder_depth:
            features = self.decoder(features + self.decoder_position)
        channels, patch = self.shape.image_shape[0], self.shape.patch_size
        rows, columns = self.shape.grid
        patches = self.head(features).reshape(-1, rows, columns, patch, patch, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch, columns * patch) + 0.5

    def bridged(self, features: Tensor) -> Tensor:
        """Features at the width of the decoder."""
        return self.bridge(features) if self.shape.decoder_depth else features

    def reconstruct(self, noisy: Tensor) -> Tensor:
        """The clean image as predicted, (N, C, H, W), not clamped."""
        return self.decode(self.bridged(self.encode(noisy)))

    def forward(self, noisy: Tensor) -> Tensor:
        return self.reconstruct(noisy).clamp(0, 1)


@dataclass(frozen=True)
class MIMShape(NIMShape):
    """Size of a MIM.

    Args:
        ratio: Share of the patches that pre-training hides.
    """

    ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is the share of hidden patches in (0, 1), got {self.ratio}: try 0.75")


class MIM(NIM):
    """The masked baseline: a NIM that learns to fill in hidden patches (He et al., CVPR 2022, arXiv 2111.06377).

    Hidden patches are dropped before the encoder and a learned token stands for them in the decoder, as in MAE; without a
    decoder the token stands for them in the encoder, as in SimMIM. Unlike both, all patches are predicted, not only the
    hidden ones: the classifier's input then copies no pixel of an attacked image. As a denoiser it sees every patch.
    """

    def __init__(self, shape: MIMShape):
        super().__init__(shape)
        self.ratio = shape.ratio
        width = shape.decoder_width if shape.decoder_depth else shape.width
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def fill_in(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The image as predicted, (N, C, H, W), not clamped, with patches (N, T) hidden, as many in each image."""
        count, patches = hidden.shape
        if not self.shape.decoder_depth:
            seen = self.embed(images - 0.5)
            seen = torch.where(hidden[..., None], self.mask_token.to(seen.dtype), seen)
            return self.decode(self.encode_tokens(seen + self.position))
        tokens = self.tokens(images)
        seen = tokens[~hidden].reshape(count, -1, self.shape.width)  # (N, visible, width)
        features = self.bridged(self.encode_tokens(seen))
        every = self.mask_token.to(features.dtype).repeat(count, patches, 1)
        every[~hidden] = features.flatten(0, 1)
        return self.decode(every)

    def draw_mask(self, count: int, ratio: float, generator: torch.Generator | None, device: Any) -> Tensor:
        """Which patches to hide: (N, T) bool, a share `ratio` of each image, at least one visible."""
        rows, columns = self.shape.grid
        order = torch.rand(count, rows * columns, generator=generator, device=device).argsort(dim=1)
        return order < min(round(ratio * rows * columns), rows * columns - 1)


class NIMClassifier(_Encoder):
    """A NIM's encoder, copied, with a linear head: (N, C, H, W) in [0, 1] -> logits (N, K)."""

    built: dict[str, Any]  # how to build it again, for whoever saves its weights

    def __init__(self, nim: NIM, num_classes: int):
        super().__init__(nim.shape)
        own = self.state_dict()
        self.load_state_dict({name: value for name, value in nim.state_dict().items() if name in own})
        self.head = nn.Linear(nim.shape.width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The mean over all patches, (N, width)."""
        return self.encode(images).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def nim_training(epochs: int, batch_size: int, base_learning_rate: float, **options: Any) -> Training:
    """The published recipe: AdamW (0.9, 0.95), weight decay 0.05, rate base_learning_rate * batch / 256.

    (There: 1.5e-4, and 40 of 800 epochs with a rising rate.) `options` are those of Training: warmup, ema, precision.
    """
    return Training(epochs, batch_size, base_learning_rate * batch_size / 256, **options)


class PretrainOptions(TypedDict, total=False):
    """Options of `pretrain_nim` beside those of `fit`."""

    squares: Callable[[Tensor, torch.Generator], Tensor] | None
    distance: Callable[[Tensor, Tensor], Tensor]


def pretrain_nim(
    model: Any,
    images: Tensor,
    noise: Any,
    training: Training,
    *,
    squares: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    **options: Unpack[FitOptions],
) -> list[float]:
    """Pre-train in place on unlabeled images; returns the mean loss of each epoch.

    The loss is the mean squared error over all patches, raw pixels. A MIM sees masks of its own ratio, and needs no noise.

    Args:
        model: A NIM, or another network with `reconstruct`; left in eval mode on the device.
        images: (N, C, H, W) in [0, 1].
        noise: A law with sample(shape, generator=, device=), e.g. certify.nim_noise() (one sigma an image from
            Gamma(25, 3)/255), certify.Gaussian(75 / 255), or certify.GaussianScaleMixture(scipy.stats.uniform(0, 150 / 255)).
        training: See nim_training.
        squares: The parts of a batch that are trained on, drawn anew each time; unset, whole images.
        distance: Another loss: distance(denoised, clean), a scalar.
        options: Seed, device, checkpoint and progress, as for fit.
    """

    def denoising(model: Any, clean: Tensor, *, generator: torch.Generator) -> Tensor:
        clean = squares(clean, generator) if squares else clean
        noisy = clean + noise.sample(tuple(clean.shape), generator=generator, device=clean.device)
        return distance(model.reconstruct(noisy).float(), clean)

    def filling_in(model: MIM, clean: Tensor, *, generator: torch.Generator) -> Tensor:
        hidden = model.draw_mask(len(clean), model.ratio, generator, clean.device)
        return nn.functional.mse_loss(model.fill_in(clean, hidden).float(), clean)

    loss: Callable[..., Tensor] = filling_in if isinstance(model, MIM) else denoising
    return fit(model, images, loss, training, **options)


def _blocks(depth: int, width: int, heads: int) -> list[nn.Module]:
    from timm.models.vision_transformer import Block

    return [*[Block(width, heads, qkv_bias=True) for _ in range(depth)], nn.LayerNorm(width, eps=1e-6)]


def _positions(grid: tuple[int, int], width: int) -> Tensor:
    from timm.layers import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed(list(grid), width)[None]  # (1, T, D)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
