"""The denoiser that certdef ships: its weights are files of the package, read once, and refused where they were changed.

leaves.py trains it again. A job keeps a copy among its networks, so that a registered model carries its own weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from certdef.config.job import ConfigError
from certdef.purifiers.base import NetworkSpec, Plan
from certdef.purifiers.networks.multiscale import MultiscaleNIM, MultiscaleShape, check_images
from certdef.tracking.checked_json import check_digests, read_json

FOLDER = Path(__file__).parents[1] / "weights" / "leaves"
WEIGHTS = FOLDER / "network.safetensors"
MEND = "install certdef again, or train the weights again with certdef pretrain --leaves FOLDER"


def shipped_denoiser() -> MultiscaleNIM:
    """The network with its weights, in eval mode; each call builds another one.

    Raises:
        ConfigError: A file of the package is missing, or was changed.
    """
    shape, weights = _read(FOLDER)
    with torch.random.fork_rng(devices=[]):  # untrained weights are drawn first
        network = MultiscaleNIM(MultiscaleShape(**shape))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{str(WEIGHTS)!r} is of another network: {MEND}") from error
    return network.eval()


@cache
def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Shape and weights of the network in a folder, as certdef.models.storage writes it."""
    spec = read_json(folder / "model.json", MEND)
    check_digests(folder, spec["files"], MEND)
    shape = {key: value for key, value in spec["networks"]["network"].items() if key != "type"}
    return shape, load((folder / WEIGHTS.name).read_bytes())


def _build(plan: Plan) -> MultiscaleNIM:
    check_images(plan.image_shape)
    return shipped_denoiser()


# Its weights are those of the file: neither pool, law nor seed decides them, and nothing is left to train.
LEAVES = NetworkSpec(
    "leaves",
    "leaves",
    _build,
    lambda network, run: [],
    lambda config: {},
    uses_pool=lambda config: False,
    files=lambda config, channels: [WEIGHTS],
    served=True,
)
