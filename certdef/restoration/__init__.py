"""Restoration of photographs taken through a display, attacks on it, and its defense by purification."""

from certdef.restoration.attacks import carlini_wagner, pgd, simba
from certdef.restoration.defense import Level, apply, choose_level, finetune_restoration, purify_varied
from certdef.restoration.display import Display, point_spread, under_display
from certdef.restoration.metrics import psnr, ssim
from certdef.restoration.network import (
    RestorationNetwork,
    RestorationShape,
    restoration_loss,
    train_restoration,
)

__all__ = [
    "Display",
    "Level",
    "RestorationNetwork",
    "RestorationShape",
    "apply",
    "carlini_wagner",
    "choose_level",
    "finetune_restoration",
    "pgd",
    "point_spread",
    "psnr",
    "purify_varied",
    "restoration_loss",
    "simba",
    "ssim",
    "train_restoration",
    "under_display",
]
