"""De^3 on NIM-SimMIM: an encoder with a linear head in the place of a decoder (Xie et al., CVPR 2022, arXiv 2111.09886)."""

from certdef.purifiers.base import About
from certdef.purifiers.de3 import SOURCE, THREAT, de_cubed
from certdef.purifiers.networks.denoisers import NIM_SIMMIM

PURIFIER = de_cubed(
    NIM_SIMMIM,
    "de3-simmim",
    About("De^3 on an encoder with a linear head (NIM-SimMIM)", SOURCE, THREAT, papers=("nim", "simmim")),
    denoiser="the NIM",
)
