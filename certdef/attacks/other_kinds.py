"""Attacks of other kinds than pixels within a distance: a patch, brightness, contrast, a shift, a blur. Rows of their own on the ladder.

Each has its own budget, so none is part of the worst case within an L-infinity distance. A transformation's parameter is
found by a grid and by gradients (`transformation`), a patch by gradients (`patch`). What is submitted is what the certificates
of the same threat are about: transformed images are neither clipped nor rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import certify
from certdef.attacks.attacker import Attacker
from certdef.attacks.endpoint import Endpoint
from certdef.attacks.evaluation import AttackEvaluation
from certdef.attacks.gradient import forked
from certdef.attacks.patch import patch_attack
from certdef.attacks.system import System, reseed
from certdef.attacks.transformation import worst_parameters
from certdef.config.attacks import LadderConfig, other_attack
from certify.threats.masks import patch_size
from certify.threats.transformation import Transformation

POINTS, STEPS, PLACES = 17, 10, 4
# Of each threat a law whose transformation is applied (its width is of no account), how far the law's own parameter may go at a
# budget, and the budget in words.
LAWS: dict[str, tuple[Transformation, Callable[[float], float], str]] = {
    "brightness": (certify.Brightness(1), lambda b: b, "every pixel lighter or darker by up to {:g}"),
    "contrast": (
        certify.Contrast(1),
        lambda c: -math.log1p(-c),
        "every pixel times one factor from 1 - {0:g} to 1 / (1 - {0:g})",
    ),
    "translation": (certify.Translation(1), lambda r: r, "rolled by whole pixels, up to {:g} far"),
} | {
    f"blur-{name}": (certify.BlurExponential(1), lambda s: s * s, "a Gaussian blur of up to {:g} pixels")
    for name in ("exponential", "uniform", "folded")
}


@dataclass(frozen=True)
class OtherAttack:
    """An attack of another kind, with its budget.

    Attributes:
        threat: Its name, as certdef certify --threat has it.
        budget: As ladder.threats has it.
        size: (H, W) of the images.
    """

    threat: str
    budget: str
    size: tuple[int, int]

    @classmethod
    def named(cls, text: str, size: tuple[int, int]) -> OtherAttack:
        """The attack that an entry of ladder.threats names.

        Raises:
            ValueError, CertifyError: None does, or a patch is larger than the images.
        """
        attack = cls(*other_attack(text), size)
        if attack.threat == "patch":
            patch_size(attack.budget, size)
        return attack

    @property
    def name(self) -> str:
        """Threat and budget: the name of its row."""
        return f"{self.threat}={self.budget}"

    @property
    def patch(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return patch_size(self.budget, self.size)

    @property
    def knows(self) -> str:
        """What it knows, and may do."""
        if self.threat == "patch":
            may = f"one patch of {self.patch[0]}x{self.patch[1]} pixels shows anything, by gradients at {PLACES} places"
        else:
            may = f"{LAWS[self.threat][2].format(float(self.budget))}, by a grid and gradients"
        return f"every weight, or a surrogate's of a target: {may}"

    def attack(self, model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, seed: int) -> Tensor:
        """Images (N, C, H, W) that the model gets wrong where the attack finds any; transformed ones may leave [0, 1].

        Args:
            model: Images to logits (N, K), with a gradient.
            images: The originals, (N, C, H, W) in [0, 1].
            labels: What the attacker wants to leave, (N,).
            steps: Gradient steps of a patch at each place.
            seed: Of what is drawn.
        """
        if self.threat == "patch":
            return patch_attack(
                model, images, labels, patch=self.patch, steps=steps, places=PLACES, seed=seed
            )
        law, reach, _ = LAWS[self.threat]
        radii = torch.full((len(images),), reach(float(self.budget)))
        worst = worst_parameters(model, law, images, labels, radii, points=POINTS, steps=STEPS, seed=seed)
        return law.apply(images, worst)


class MeanOfPasses(nn.Module):
    """The log of the mean probability (N, K) of several passes of a system that draws noise."""

    def __init__(self, system: nn.Module, passes: int):
        super().__init__()
        self.system, self.passes = system, passes

    def forward(self, images: Tensor) -> Tensor:
        logs = [self.system(images).log_softmax(dim=1) for _ in range(self.passes)]
        return torch.stack(logs).logsumexp(dim=0) - math.log(self.passes)


def evaluate(
    system: System,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[OtherAttack],
    settings: LadderConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable | None = None,
) -> list[AttackEvaluation]:
    """Evaluate a system under each attack: with its weights known, or by transfer from the surrogate, one query an image.

    Args:
        system, images, labels, settings, seed, device, progress: As in the ladder.
        attacks: The rows.
    """
    attacker = Attacker(system, images, labels, settings, torch.device(device))
    endpoint = Endpoint(system.classifier, system.purifier, device=device, bounded=False)
    model = MeanOfPasses(attacker.followed, attacker.eot)
    evaluations = []
    for number, attack in enumerate(progress(attacks, desc="other kinds") if progress else attacks):
        own, followed = seed * len(attacks) + number, attacker.tally.gradients
        reseed(system.purifier, own)
        adversarial = images.clone()
        with forked(own, attacker.device):
            if len(attacker.images):
                found = attack.attack(model, attacker.images, attacker.labels, steps=settings.steps, seed=own)
                adversarial[attacker.attacked] = found.to(adversarial)
            asked = endpoint.queries
            right = tuple((endpoint.query(adversarial)[0] == labels).tolist())
        low, high = certify.binomial_interval(sum(right), len(right))
        evaluations.append(
            AttackEvaluation(
                attack.name,
                attack.knows,
                0.0,
                [sum(right) / len(right), float(low), float(high)],
                right,
                endpoint.queries - asked,
                attacker.tally.gradients - followed,
            )
        )
    return evaluations
