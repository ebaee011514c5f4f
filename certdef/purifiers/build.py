"""A purifier from its name, its settings and its networks: as a defense of its own, and as denoiser of the vote.

The same two functions serve the pipeline, the ladder, a notebook and a model read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from certdef.config.job import RunConfig
from certdef.purifiers.base import Networks, Parts
from certdef.purifiers.registry import find_purifier


def settings(name: str, config: RunConfig) -> dict[str, Any]:
    """A purifier's settings as configured, as plain values in [0, 1] pixel units."""
    return find_purifier(name).settings(config)


def purifier(
    name: str, settings: Mapping[str, Any], networks: Networks, generator: torch.Generator | None = None
) -> nn.Module:
    """The purifier as a defense of its own: images (N, C, H, W) in [0, 1] -> the same, noise from `generator`."""
    return find_purifier(name).build(Parts(settings, networks, generator))


def denoiser(name: str, settings: Mapping[str, Any], networks: Networks) -> nn.Module | None:
    """What stands between the noise and the classifier of a smoothed vote; None where the purifier has no such part."""
    part = find_purifier(name).denoiser
    return part.build(Parts(settings, networks)) if part else None
