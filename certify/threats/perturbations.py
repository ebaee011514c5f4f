"""What may happen to an image by chance: a law of perturbations, one of your own, and several one after the other.

A perturbation takes images in [0, 1] to images in [0, 1]. It is drawn at random, unlike an adversary's, which is chosen:
what is proven under it (``population``) is an average case.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from certify.errors import CertifyError


class Perturbation(ABC):
    """A law of perturbations of images. One of your own is a function: ``perturbation``.

    Attributes:
        name: Short, unique among those of a table: what tables, records and metrics call it.
        in_words: The law with its support, for a reader.
        fixed: Whether every draw of an image is the same.
    """

    fixed: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """The law with its support, in words."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON-able dict that identifies the law completely."""

    @abstractmethod
    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1], each with a draw of its own; ``sample`` checks and clips what it returns."""

    def sample(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Perturb images, each by an independent draw.

        Args:
            images: (B, C, H, W) float32 in [0, 1], on the CPU; not changed.
            generator: Source of all that is random, on the CPU.

        Returns:
            A new tensor (B, C, H, W) float32, clipped to [0, 1].

        Raises:
            CertifyError: The law returns another shape, values that are not finite, or fits no such image.
        """
        perturbed = self.perturb(images, generator)
        if not isinstance(perturbed, torch.Tensor) or perturbed.shape != images.shape:
            got = tuple(perturbed.shape) if isinstance(perturbed, torch.Tensor) else type(perturbed).__name__
            raise CertifyError(
                f"perturbation {self.name!r} returned {got} for images {tuple(images.shape)}: return a tensor of their shape"
            )
        if not bool(torch.isfinite(perturbed).all()):
            raise CertifyError(
                f"perturbation {self.name!r} returned values that are not finite: check its formula"
            )
        return perturbed.detach().to(torch.float32).clamp(0, 1)

    def __add__(self, other: "Perturbation") -> "Perturbation":
        """This one, and then the other."""
        if not isinstance(other, Perturbation):
            return NotImplemented
        return Composed((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Composed(Perturbation):
    """Several perturbations, one after the other, each with draws of its own."""

    parts: tuple[Perturbation, ...]

    @property
    def fixed(self) -> bool:  # type: ignore[override]
        return all(part.fixed for part in self.parts)

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def in_words(self) -> str:
        return ", then ".join(part.in_words for part in self.parts)

    def describe(self) -> dict[str, Any]:
        return {"law": "composed", "parts": [part.describe() for part in self.parts]}

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for part in self.parts:
            images = part.sample(images, generator)
        return images


@dataclass(frozen=True)
class Own(Perturbation):
    """A function as a law, called for one image at a time, so that no two draws share a random number."""

    label: str
    function: Callable[[torch.Tensor, torch.Generator], torch.Tensor]

    @property
    def name(self) -> str:
        return self.label

    @property
    def in_words(self) -> str:
        return f"{self.label} (a law of your own)"

    def describe(self) -> dict[str, Any]:
        """The name is all that is known of a function: another one deserves another name."""
        return {"law": "own", "name": self.label}

    def perturb(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn = [self.function(image[None].clone(), generator) for image in images]
        for each in drawn:
            if not isinstance(each, torch.Tensor):
                raise CertifyError(
                    f"perturbation {self.label!r} returned {type(each).__name__}: return a tensor (1, C, H, W)"
                )
        return torch.cat(drawn)


def perturbation(
    name: str, function: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
) -> Perturbation:
    """A law of your own.

    Args:
        name: What it is called, and what identifies it: change the name with the function.
        function: ``function(images, generator)`` perturbs images (1, C, H, W) in [0, 1] and takes everything random from
            the generator. It gets one image at a time. What it returns is clipped to [0, 1].

    Raises:
        CertifyError: No name, or no function.
    """
    if not isinstance(name, str) or not name.strip() or not callable(function):
        raise CertifyError(
            f"a perturbation needs a name and a function, got {name!r} and {function!r}: perturbation('fog', add_fog)"
        )
    return Own(name.strip(), function)


def compose(*parts: Perturbation) -> Perturbation:
    """Several perturbations, one after the other; the same as adding them.

    Raises:
        CertifyError: None is given, or one is no perturbation.
    """
    wrong = next((part for part in parts if not isinstance(part, Perturbation)), None)
    if not parts or wrong is not None:
        raise CertifyError(
            f"compose takes perturbations, got {wrong!r}: compose(Gamma(0.2), JPEG(70)), for example"
        )
    return parts[0] if len(parts) == 1 else Composed(tuple(each for part in parts for each in _parts(part)))


def _parts(law: Perturbation) -> tuple[Perturbation, ...]:
    return law.parts if isinstance(law, Composed) else (law,)
