"""Attacks: by gradients, by queries alone, on the smoothed vote, and all of them on one threat ladder."""

from certdef.attacks.gradient import pgd, pgd_l2
from certdef.attacks.query import hop_skip_jump
from certdef.attacks.square import square

__all__ = ["hop_skip_jump", "pgd", "pgd_l2", "square"]
