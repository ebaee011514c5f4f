"""The masked baseline of De^3: an autoencoder that was trained on masks denoises in the place of the NIM."""

from certdef.purifiers.base import About
from certdef.purifiers.de3 import THREAT, de_cubed
from certdef.purifiers.networks.denoisers import MASKED

PURIFIER = de_cubed(
    MASKED,
    "mim",
    About(
        "the masked baseline of De^3: the same autoencoder, trained on masks in the place of noise",
        "He et al., CVPR 2022, arXiv 2111.06377",
        THREAT,
        papers=("mae",),
    ),
    denoiser="the autoencoder",
)
