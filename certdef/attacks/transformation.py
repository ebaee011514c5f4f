"""The worst parameter of a transformation: a grid over all that is allowed, then gradient steps from its best point.

Brightness, contrast, blur and translation have one number or two, so that a grid sees all of it, as no attack on pixels does. Steps
between its points follow the parameter's own gradient (whole pixels have none, and there are no points between).
Of a smoothed classifier the attacker follows the mean log-probability of its votes, and the draws are his own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from certdef.attacks.candidates import margin
from certdef.attacks.gradient import OnCopies, forked
from certify.threats.transformation import Transformation
from surrogates.distillation.inference import evaluating


def worst_parameters(
    model: nn.Module,
    law: Transformation,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    *,
    points: int = 17,
    steps: int = 10,
    seed: int,
) -> Tensor:
    """Of each image the parameter (N, numbers) within its radius under which the model is most wrong.

    Args:
        model: Images to logits (N, K); ``smoothed.SoftVote`` for a smoothed classifier.
        law: Whose transformation is applied, without clipping.
        images: The originals, (N, C, H, W) in [0, 1].
        labels: What the attacker wants to leave, (N,).
        radii: How far the parameter of each image may go, (N,), in the units of the law's own parameter: for contrast the
            logarithm of the factor, for blur the variance.
        points: Points of the grid, a number.
        steps: Gradient steps afterwards.
        seed: Of what the model draws.
    """
    system = OnCopies(model)
    device = next(model.parameters()).device
    images, labels, radii = images.to(device), labels.to(device), radii.to(device)

    def height(parameters: Tensor) -> Tensor:
        return margin(system(law.apply(images, parameters)), labels)

    with evaluating(system), forked(seed, device):
        best = torch.zeros((len(images), law.numbers), device=device)
        with torch.no_grad():
            highest = height(best)
            for unit in _grid(law, points).to(device):
                found = height(at := radii[:, None] * unit)
                best = torch.where((found > highest)[:, None], at, best)
                highest = torch.maximum(found, highest)
        at = best
        for step in range(steps):
            slope = _slope(height, at)
            if slope is None:
                break
            moved = at + radii[:, None] / points * (1 - step / steps) * slope.sign()
            at = _within(law, moved, radii)
            with torch.no_grad():
                found = height(at)
            best = torch.where((found > highest)[:, None], at, best)
            highest = torch.maximum(found, highest)
    return best.cpu()


def _grid(law: Transformation, points: int) -> Tensor:
    """Directions (P, numbers) of length at most 1; only ever more of a blur."""
    one_sided = law.threat.startswith("blur")
    line = torch.linspace(0.0 if one_sided else -1.0, 1.0, points)
    grid = torch.cartesian_prod(*[line] * law.numbers).reshape(-1, law.numbers)
    return grid[grid.norm(dim=1) <= 1 + 1e-6]


def _slope(height: Callable[[Tensor], Tensor], at: Tensor) -> Tensor | None:
    """The gradient of the margin in the parameter; None where there is none, as of whole pixels."""
    parameters = at.detach().requires_grad_()
    with torch.enable_grad():
        value = height(parameters).sum()
        [slope] = torch.autograd.grad(value, parameters, allow_unused=True)
    return slope


def _within(law: Transformation, parameters: Tensor, radii: Tensor) -> Tensor:
    if law.threat.startswith("blur"):
        parameters = parameters.clamp_min(0)
    length = parameters.norm(dim=1).clamp_min(1e-12)
    return parameters * (radii / length).clamp_max(1)[:, None]
