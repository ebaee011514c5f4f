"""The names of the purifiers, without loading any, and their networks as configured."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "purifiers"
NO_PURIFIERS = ("base", "build", "none", "registry", "trial")  # modules of that folder that hold none
GROUP = "certdef.purifiers"
LEAVES = "leaves"  # as nim.weights: the shipped denoiser
AFTERWARDS = ("keep", "finetune_epochs")  # options of nim that its pre-training does not depend on
FINE_TUNING = ("weights", "epochs", "batch_size", "base_learning_rate", "warmup", "ema", "precision")


def purifier_names() -> list[str]:
    """Every registered name: a module of certdef/purifiers each, and the entry points of other packages."""
    return sorted({*own_names(), *entry_points()})


@cache
def own_names() -> tuple[str, ...]:
    """The purifiers of this package: the names of their files."""
    modules = pkgutil.iter_modules([str(FOLDER)])
    names = [each.name for each in modules if not each.ispkg and not each.name.startswith("_")]
    return tuple(name.replace("_", "-") for name in names if name not in NO_PURIFIERS)


def entry_points() -> dict[str, metadata.EntryPoint]:
    """The purifiers that installed packages register in the group `certdef.purifiers`; ours keep their names."""
    points = metadata.entry_points(group=GROUP)
    return {point.name: point for point in points if point.name not in own_names()}


def is_code(name: str) -> bool:
    """Whether a purifier is a function of the user's own: python:package.module:factory."""
    return re.fullmatch(r"python:[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def plain_name(name: str) -> str:
    """A purifier's name as files, stages and metrics have it: python-package-module-factory for code of the user's own."""
    return re.sub(r"[^\w-]", "-", name)


@dataclass(frozen=True)
class NIMConfig:
    """Noisy image modeling: a masked autoencoder with noise in the place of masks, one for each law of certify.laws.

    Args:
        patch_size: Side of a patch in pixels.
        tile: Side, in pixels, of the tiles that the network sees of a larger image: it is trained on squares of the pool,
            and the tiles lie elsewhere for each draw of noise; unset, it sees the whole image.
        width: Width of the ViT encoder.
        depth: Blocks of the encoder.
        heads: Attention heads of the encoder.
        encoder: Name of a timm ViT whose width, depth and heads are taken in the place of these, e.g. vit_base_patch16_224.
        weights: What the training starts from: leaves, the shipped denoiser (for de3; it has sizes of its own and takes a
            tenth of the rate); or published weights of the encoder: timm (fetched by its name, e.g.
            vit_base_patch16_224.mae), or a file of them; unset, none. Or a network that a job has trained, in the place of
            any training: models:/certdef-nim/3, runs:/RUN/PATH, or a folder with its model.json.
        decoder_width: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder; unset, as the encoder.
        epochs: Passes over the unlabeled pool.
        finetune_epochs: Further passes, at half the rate, under a noise that certify.choose chose: a copy of the network for
            each such noise, which stands behind it and nowhere else. 0: none.
        batch_size: Images a step.
        base_learning_rate: Rate for a batch of 256; scaled with the batch.
        warmup: Share of the steps with a linearly rising rate.
        ema: Decay of averaged weights, e.g. 0.999; unset, none.
        precision: float32, bfloat16, or on CUDA float16.
        keep: Share of the noise that the denoised image keeps, in [0, 1): 0 smooths fine texture away, and a classifier of
            photographs may need it more than it minds some grain. Unset, 0.05 for de3-leaves and 0 for the others.
    """

    patch_size: int = 4
    tile: int | None = None
    width: int = 64
    depth: int = 3
    heads: int = 4
    encoder: str | None = None
    weights: str | None = None
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int | None = None
    epochs: int = 150
    finetune_epochs: int = 0
    batch_size: int = 128
    base_learning_rate: float = 1.6e-2
    warmup: float = 0.05
    ema: float | None = None
    precision: str = "float32"
    keep: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the weights depend on."""
        if self.weights == LEAVES:
            return {name: getattr(self, name) for name in FINE_TUNING}
        values = {name: value for name, value in asdict(self).items() if name not in AFTERWARDS}
        return {name: value for name, value in values.items() if name != "tile" or value is not None}


@dataclass(frozen=True)
class GSConfig:
    """Iterative Gaussian smoothing, of its own and inside NCIS.

    Args:
        kernel: Side of the kernel in pixels.
        sigma: Width of the kernel in pixels.
        passes: How often it is applied.
    """

    kernel: int = 5
    sigma: float = 0.7
    passes: int = 1


@dataclass(frozen=True)
class BlindSpotConfig:
    """The blind-spot network of NCIS, trained by self-supervision.

    Args:
        filters: Channels of the hidden layers.
        blocks: Layers with a blind center; 8 to 17 in the paper.
        images: What it is trained on: pool, or natural (the folder natural of data.root).
        crops: Crops an epoch, from natural images.
        epochs: Passes over the images or crops.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
        iterations: Passes of smoothing and restoring at inference.
    """

    filters: int = 32
    blocks: int = 6
    images: str = "pool"
    crops: int = 2_000
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-3
    iterations: int = 1


@dataclass(frozen=True)
class ReversalConfig:
    """Reversal of an attack by self-supervised tasks on the surrogate's features.

    Args:
        tasks: Which tasks: contrastive, rotation, jigsaw, denoising (by the NIM of the first law).
        eps: The attack that is reversed, L-infinity in [0,1] pixel units; the correction goes up to twice that.
        steps: Sign steps.
        step_255: Size of a step (8-bit levels).
        epochs: Passes over the pool that train the tasks' heads.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
    """

    tasks: tuple[str, ...] = ("contrastive", "rotation", "jigsaw", "denoising")
    eps: float = 0.1
    steps: int = 40
    step_255: float = 2.0
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion model behind DiffPure, UAD-RS, AGDM and one-step denoising.

    Args:
        pretrained: Hub name or folder of a UNet or DDPM of diffusers, or a network that a job has trained
            (models:/certdef-diffusion/3, runs:/RUN/PATH, or a folder with its model.json); unset, one is trained on the pool.
            Also --diffusion.weights.
        channels: Channels of the UNet's levels.
        epochs: Passes over the pool.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
        ema: Decay of the averaged weights.
        t: Step of 1,000 to diffuse to.
        steps: Reverse steps from there; unset, all of them.
        grid: Steps t that UAD-RS chooses among.
        choice_images: Attacked images that it chooses on.
        guidance: Scale of AGDM's guidance; it is felt from hundreds on, 0 is DiffPure.
        robust_epochs: Passes over the pool that train AGDM's auxiliary network against attacks.
        robust_diffused: Every second image of that training is diffused first, by 1 to t steps, as what AGDM guides is.
    """

    pretrained: str | None = None
    channels: tuple[int, ...] = (32, 64)
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    ema: float = 0.995
    t: int = 100
    steps: int | None = 20
    grid: tuple[int, ...] = (20, 40, 60, 80, 100, 150, 200)
    choice_images: int = 200
    guidance: float = 1_000.0
    robust_epochs: int = 4
    robust_diffused: bool = True
