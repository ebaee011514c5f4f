"""Purifiers: torch modules (N, C, H, W) -> (N, C, H, W) in [0, 1] that accept the noisy or attacked image and nothing else."""

from certdef.purifiers.de3 import DeCubed
from certdef.purifiers.nim import NIM, pretrain_nim

__all__ = ["NIM", "DeCubed", "pretrain_nim"]
