"""Purifiers: torch modules (N, C, H, W) -> (N, C, H, W) in [0, 1] that accept the noisy or attacked image and nothing else.

catalogue.py lists them, build.py makes one from its name, the other modules are one idea each.
"""

from importlib import import_module

_HOME = {
    "surrogates.distillation.training": ("Training", "fit"),
    "networks.nim": ("MIM", "NIM", "MIMShape", "NIMShape", "pretrain_nim"),
    "de3": ("DeCubed", "FillIn", "Vote"),
    "gaussian": ("GaussianSmoothing",),
    "networks.blind_spot": ("BlindSpotNetwork", "BlindSpotShape", "train_blind_spot"),
    "ncis": ("NCIS",),
    "networks.tasks": ("TaskNetwork", "TaskShape", "train_tasks"),
    "reversal": ("Reversal",),
    "networks.diffusion": (
        "DiffusionNetwork",
        "DiffusionShape",
        "OneStep",
        "load_pretrained",
        "train_diffusion",
    ),
    "diffpure": ("DiffPure",),
    "agdm": ("AGDM",),
    "anls": ("anls",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str):
    """Load what is asked for: the catalogue alone needs no torch, and only the diffusion purifiers need diffusers."""
    if name in _MODULE:
        module = _MODULE[name]
        path = module if module.startswith("surrogates.") else f"certdef.purifiers.{module}"
        return getattr(import_module(path), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
