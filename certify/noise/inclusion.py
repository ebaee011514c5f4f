"""Another norm from a proven one: every ball of the new norm lies in a ball of the old."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from certify.errors import CertifyError, check_count
from certify.noise.base import FloatArray, NoiseLaw, Shape

# |x|_old <= d^power |x|_new for x in R^d, so the new radius is the old one / d^power.
POWERS = {("l2", "linf"): 0.5, ("l2", "l1"): 0.0, ("l1", "linf"): 1.0, ("l1", "l2"): 0.5}


@dataclass(frozen=True)
class Inclusion(NoiseLaw):
    """The noise of ``law`` with a radius in ``norm``, by inclusion of balls: sound, seldom the best there is.

    From l2: R / sqrt(d) in linf and R in l1; from l1: R / d in linf and R / sqrt(d) in l2.

    Args:
        law: The noise that is drawn.
        norm: Of the radius: "linf" and "l1" from l2, "linf" and "l2" from l1.
        dimensions: d, the number of pixel values of an image.

    Raises:
        CertifyError: Another pair of norms.
    """

    law: NoiseLaw
    norm: str
    dimensions: int

    def __post_init__(self) -> None:
        if not isinstance(self.law, NoiseLaw):
            raise CertifyError(f"law must be a noise law, got {self.law!r}: try certify.Gaussian(0.25)")
        check_count("dimensions", self.dimensions)
        if (self.law.norm, self.norm) not in POWERS:
            known = ", ".join(new for old, new in POWERS if old == self.law.norm)
            raise CertifyError(f"norm must be one of {known} from {self.law.norm}, got {self.norm!r}")

    @property
    def sound(self) -> bool:
        """Whether the radius of ``law`` is proven."""
        return self.law.sound

    @property
    def is_two_sided(self) -> bool:
        """Whether ``law`` is."""
        return self.law.is_two_sided

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        radius = self.law.two_sided_radius(p_top, p_rival)
        return None if radius is None else radius / self._factor

    @property
    def _factor(self) -> float:
        return math.pow(self.dimensions, POWERS[self.law.norm, self.norm]) * (1 + 4e-16)

    def describe(self) -> dict[str, Any]:
        how = f"by inclusion from {self.law.norm}"
        return {**self.law.describe(), "norm": self.norm, "radius": how, "dimensions": self.dimensions}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return self.law.compute_radius(p) / self._factor

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return self.law.compute_p_required(r * self._factor)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        return self.law.draw(shape, generator, device, dtype)
