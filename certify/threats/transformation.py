"""What a law of a transformation's parameter is: the image is transformed by a random parameter, and then voted on.

T_a is a transformation with parameter a, and it composes on its parameter: T_d(T_a(x)) = T_(d + a)(x) (a *resolvable*
transformation: Li et al., TSS, arXiv 2002.12398, Definition 1). The smoothed classifier answers the class that the base
classifier f most probably answers to T_d(x), d drawn from the law. An adversary who shows T_a(x) in the place of x
changes f(T_d(x)) to f(T_(d + a)(x)): the law of d is moved by a, and nothing else. So what is proven of moved laws holds
of transformed images, whatever f is (their Theorem 1), and the vote engine counts as it does for noise on pixels.

The composition must hold for what f sees. Clipping to [0, 1], rounding to 8 bits, padding that invents or loses pixels
between T_a and T_d break it: nothing here clips, and f does it inside where it needs to.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from certify.errors import CertifyError
from certify.noise.base import FloatArray, NoiseLaw, Shape
from certify.noise.description import OPENERS


class Transformation(NoiseLaw):
    """A law of the parameter of a resolvable transformation, with a certified radius in that parameter.

    A law of your own is a frozen dataclass with ``norm``, ``threat``, ``unit``, ``numbers``, ``describe``,
    ``compute_radius``, ``compute_p_required``, ``draw_parameters`` and ``apply``, whose composition law is proven.

    Attributes:
        numbers: How many numbers a parameter has.
    """

    numbers: int = 1

    def __init_subclass__(cls, *, law: str = "", fields: Sequence[str] = (), **options: Any) -> None:
        """Let ``open_law`` find the law again by its description, which has these fields under their names."""
        super().__init_subclass__(**options)
        if law:
            OPENERS[law] = lambda description: cls(**{name: description[name] for name in fields})

    def sample(
        self,
        shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Draw parameters (draws, numbers).

        Args:
            shape: Number of draws; or (draws, C, H, W) of the images, of which the first counts.
            generator, device, dtype: As for every law.

        Raises:
            CertifyError: As for every law.
        """
        return super().sample((shape,) if isinstance(shape, int) else shape, generator, device, dtype)

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        return self.draw_parameters(shape[0], generator, device).to(dtype)

    def perturb(
        self,
        images: torch.Tensor,
        generator: torch.Generator | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        transformed = self.apply(images, self.sample(len(images), generator, images.device))
        return transformed if out is None else out.copy_(transformed)

    @abstractmethod
    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Each image (B, C, H, W) transformed by its own parameter (B, numbers); never clipped."""

    @abstractmethod
    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        """Parameters (count, numbers), float32 or float64."""


def check_parameter(name: str, value: Any, unit: str, example: float) -> float:
    """Return ``value`` as a float, or raise CertifyError unless it is finite and above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise CertifyError(
            f"{name} must be finite and above 0 ({unit}), got {value!r}: try {name}={example:g}"
        )
    return float(value)


def normal(count: int, numbers: int, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Standard normal numbers (count, numbers)."""
    return torch.randn((count, numbers), generator=generator, device=device, dtype=torch.float32)


def standard_exponential(count: int, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Exponential numbers (count, 1) of mean 1, by inversion in float64."""
    uniform = torch.rand((count, 1), generator=generator, device=device, dtype=torch.float64)
    return -torch.log1p(-uniform)  # rand is below 1


def squares(r: FloatArray) -> FloatArray:
    """r^2, rounded up: of a blur's radius, its variance."""
    return np.nextafter(r * r, np.inf)
