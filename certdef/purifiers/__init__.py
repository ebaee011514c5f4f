"""Purifiers: torch modules (N, C, H, W) -> (N, C, H, W) in [0, 1] that accept the noisy or attacked image and nothing else.

Each module is one purifier, registered by its file; base.py says what it states of itself, registry.py finds it by name,
build.py builds it, trial.py tries a foreign one, and networks/ holds the networks that purifiers share.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "surrogates.distillation.training": ("Training", "fit"),
    "certdef.purifiers.networks.nim": ("MIM", "NIM", "MIMShape", "NIMShape", "pretrain_nim"),
    "certdef.purifiers.de3": ("DeCubed", "FillIn", "Vote"),
    "certdef.purifiers.gs": ("GaussianSmoothing",),
    "certdef.purifiers.networks.blind_spot": ("BlindSpotNetwork", "BlindSpotShape", "train_blind_spot"),
    "certdef.purifiers.ncis": ("NCIS",),
    "certdef.purifiers.networks.tasks": ("TaskNetwork", "TaskShape", "train_tasks"),
    "certdef.purifiers.reversal": ("Reversal",),
    "certdef.purifiers.networks.diffusion": (
        "DiffusionNetwork",
        "DiffusionShape",
        "load_pretrained",
        "train_diffusion",
    ),
    "certdef.purifiers.one_step": ("OneStep",),
    "certdef.purifiers.diffpure": ("DiffPure",),
    "certdef.purifiers.agdm": ("AGDM",),
    "certdef.purifiers.uad_rs": ("anls",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used: `import certdef.purifiers` needs no torch."""
    if name in _MODULE:
        return getattr(import_module(_MODULE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
