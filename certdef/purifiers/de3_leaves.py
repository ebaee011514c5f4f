"""De^3 with the denoiser that certdef ships: nothing to train, images of any size from 8x8, gray or color."""

from certdef.purifiers.base import About
from certdef.purifiers.de3 import SOURCE, THREAT, de_cubed
from certdef.purifiers.networks.shipped import LEAVES

PURIFIER = de_cubed(
    LEAVES,
    "de3-leaves",
    About(
        "De^3 with the shipped denoiser, trained on dead-leaves images: nothing to train, images of any size",
        SOURCE,
        THREAT,
        papers=("nim", "dead-leaves", "synthetic-images", "early-convolutions"),
    ),
    denoiser="the shipped denoiser",
    keep=0.05,
)
