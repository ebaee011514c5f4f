"""Sizes and weights of published ViT encoders, by timm's names: vit_tiny_patch16_224 ... vit_base_patch16_224.mae."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from certdef.purifiers.networks.nim import NIM


def encoder_sizes(name: str) -> dict[str, Any]:
    """patch_size, width, depth, heads and class_token of a NIMShape, as timm's model of that name has them.

    The size of the image stays the user's; so does the patch, by overriding it: 16 pixels are much of a small image.

    Raises:
        ValueError: timm has no plain ViT of that name.
    """
    with torch.device("meta"):  # sizes only: nothing is allocated, nothing drawn
        network = _create(name)
    block: Any = network.blocks[0]
    return {
        "patch_size": network.patch_embed.patch_size[0],
        "width": network.embed_dim,
        "depth": len(network.blocks),
        "heads": block.attn.num_heads,
        "class_token": network.cls_token is not None,
    }


def load_encoder(model: NIM, name: str, file: str | os.PathLike[str] | None = None) -> NIM:
    """Put a published encoder, e.g. vit_base_patch16_224.mae, into a NIM in place; its decoder is left as it is.

    timm fetches the weights, or reads them from `file` (safetensors or a state dict in its layout), and resamples
    positions, patches and color channels to those of the model. The mean and standard deviation that the encoder was
    trained with are folded into its first layer: the NIM goes on taking pixels of [0, 1].

    Raises:
        ValueError: Sizes that differ, a network that is no plain ViT, or weights that cannot be had.
    """
    if file is not None and not Path(file).is_file():
        raise ValueError(f"{os.fspath(file)} is no file: give one with the weights of {name}")
    shape = model.shape
    sizes = encoder_sizes(name)
    for size in ("width", "depth", "heads", "class_token"):
        if getattr(shape, size) != sizes[size]:
            raise ValueError(
                f"{name} has {size} {sizes[size]}, the model {getattr(shape, size)}: build it with encoder_sizes({name!r})"
            )
    network = _create(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": os.fspath(file)} if file else {},
        in_chans=shape.image_shape[0],
        img_size=shape.image_shape[1:],
        patch_size=shape.patch_size,
    )
    weights = network.state_dict()
    position = weights["pos_embed"]
    ours = {"position": position}
    if shape.class_token:
        ours = {"class_token": weights["cls_token"] + position[:, :1], "position": position[:, 1:]}
    ours |= _folded(
        weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], network.pretrained_cfg
    )
    for key, value in weights.items():
        if key.startswith("blocks."):
            ours["encoder." + key.removeprefix("blocks.")] = value
        elif key.startswith("norm."):
            ours[f"encoder.{shape.depth}." + key.removeprefix("norm.")] = value
    model.position.copy_(ours.pop("position"))  # not among the weights where there is no class token
    missing, unexpected = model.load_state_dict(ours, strict=False)
    lacking = [key for key in missing if key.startswith(("embed.", "encoder.", "class_token"))]
    if lacking or unexpected:
        raise ValueError(
            f"{name} is not built like a plain ViT ({', '.join([*lacking, *unexpected][:3])}): try vit_base_patch16_224.mae"
        )
    return model


def _create(name: str, **options: Any) -> VisionTransformer:
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}: try vit_tiny_patch16_224 or vit_base_patch16_224.mae")
    try:
        network = timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # whatever the architecture, the file or the network trips over
        raise ValueError(
            f"{name} cannot be loaded ({error}): give a file of its weights, or another name"
        ) from error
    if not isinstance(network, VisionTransformer) or network.num_prefix_tokens > 1:
        raise ValueError(f"{name} is no plain ViT: try vit_tiny_patch16_224 or vit_base_patch16_224.mae")
    return network


def _folded(weight: Tensor, bias: Tensor, config: Any) -> dict[str, Tensor]:
    """The first layer for pixels less 0.5, from one for (pixels - mean) / std; weight (D, C, P, P)."""
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    if weight.shape[1] != len(mean):  # gray: timm has added up the colors' weights
        mean, std = mean.mean().repeat(weight.shape[1]), std.mean().repeat(weight.shape[1])
    scaled = weight / std[:, None, None]
    return {
        "embed.proj.weight": scaled,
        "embed.proj.bias": bias + (scaled * (0.5 - mean)[:, None, None]).sum(dim=(1, 2, 3)),
    }
