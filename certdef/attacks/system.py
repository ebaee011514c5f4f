"""What is attacked, a classifier behind a purifier, and what can be seen of it without asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import surrogates
from certdef.attacks.gradient import OnCopies, forked


@dataclass(frozen=True)
class System:
    """A classifier behind a purifier.

    Args:
        classifier: A module with known weights, images (N, C, H, W) in [0, 1] to logits (N, K); or an opened target,
            which answers queries alone, and pays if it is attached to a ledger.
        purifier: Purifies every image first; unset, none.
        surrogate: A module like the classifier that the attacker has in the place of a target's weights.
        differentiable: Whether a gradient passes through the purifier; unset, autograd is tried.
        students: Further surrogates of the same answers, that transfer together.
        proxies: Modules like the purifier whose gradients an attacker may follow in its place, e.g. the denoiser in it.
    """

    classifier: nn.Module | surrogates.Target
    purifier: nn.Module | None = None
    surrogate: nn.Module | None = None
    differentiable: bool | None = None
    students: Sequence[nn.Module] = ()
    proxies: Sequence[nn.Module] = ()

    @property
    def modules(self) -> list[nn.Module]:
        """All that is a module in it."""
        parts = (self.classifier, self.purifier, self.surrogate, *self.students, *self.proxies)
        return [part for part in parts if isinstance(part, nn.Module)]


class Ensemble(nn.Module):
    """Several classifiers as one: images to the log of their mean probabilities (N, K)."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.stack([member(images.clone()).log_softmax(dim=1) for member in self.members])
        return logs.logsumexp(dim=0)


class KnownNoise(nn.Module):
    """A system whose noise the attacker knows: every pass draws the same again, by a seed."""

    def __init__(self, system: nn.Module, seed: int):
        super().__init__()
        self.system, self.seed = OnCopies(system), seed

    def forward(self, images: Tensor) -> Tensor:
        with forked(self.seed, images.device):
            reseed(self.system, self.seed)
            return self.system(images)


def draws_noise(purifier: nn.Module | None, images: Tensor) -> bool:
    """Whether a purifier answers the same images differently."""
    if purifier is None:
        return False
    with torch.no_grad(), torch.random.fork_rng():
        return not torch.equal(purifier(images.clone()), purifier(images.clone()))


def passes_gradients(purifier: nn.Module | None, image: Tensor) -> bool:
    """Whether autograd has a way from a purifier's output back to its input."""
    if purifier is None:
        return True
    with torch.enable_grad(), torch.random.fork_rng():
        output = purifier(image.clone().requires_grad_().clone())
        return output.requires_grad and output.grad_fn is not None


def reseed(purifier: nn.Module | None, seed: int) -> None:
    """Start every generator that a purifier draws from at `seed`."""
    for module in purifier.modules() if purifier is not None else ():
        if isinstance(source := getattr(module, "generator", None), torch.Generator):
            source.manual_seed(seed)
