"""A patch by gradients: one rectangle of each image is anything at all, where that promises most.

Where: the gradient of the margin tells, to first order, what each place gains when its pixels go to the better end of
[0, 1]. The best places, apart from one another, are all tried. What: sign steps from random pixels, long ones first, as
in PGD (Madry et al., ICLR 2018) without a bound but [0, 1]. Kept is what has the highest margin (Brown et al.,
"Adversarial patch", arXiv 1712.09665, without transformations: the attacker knows the image).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from certdef.attacks.candidates import margin
from certdef.attacks.gradient import OnCopies, forked, sign_steps
from certify.threats.fills import Fill
from certify.threats.masks import CoveringMasks
from surrogates.distillation.inference import evaluating, images_at_once

LONG, SHORT = 0.25, 0.05  # sizes of the steps, first half and second half


def patch_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    patch: tuple[int, int],
    steps: int = 40,
    places: int = 4,
    seed: int,
    batch_size: int = 256,
    progress: Callable | None = None,
) -> Tensor:
    """Adversarial images (N, C, H, W) in [0, 1], each equal to its original but for one patch.

    Args:
        model: Images to logits (N, K), with a gradient.
        images: The originals, (N, C, H, W) in [0, 1].
        labels: What the attacker wants to leave, (N,).
        patch: (h, w) in pixels.
        steps: Gradient steps at each place.
        places: How many places of each image are tried.
        seed: Of the first pixels.
        batch_size: Images at once, at most; fewer of large ones.
        progress: Wraps the batches, like tqdm.
    """
    model = OnCopies(model)
    device = next(model.parameters()).device
    size = images_at_once(images.shape[1:], batch_size)
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    attacked = []
    with evaluating(model), forked(seed, device):
        for batch, label in progress(batches, desc=f"patch {patch[0]}x{patch[1]}") if progress else batches:
            attacked.append(_attacked(model, batch.to(device), label.to(device), patch, steps, places).cpu())
    return torch.cat(attacked)


def _attacked(
    model: nn.Module, images: Tensor, labels: Tensor, patch: tuple[int, int], steps: int, places: int
) -> Tensor:
    def loss(at: Tensor) -> Tensor:
        return margin(model(at), labels)

    with torch.no_grad():
        best, highest = images, loss(images)
    for inside in best_places(loss, images, patch, places):
        low, high = images.masked_fill(inside, 0.0), images.masked_fill(inside, 1.0)
        at = torch.where(inside, torch.rand_like(images), images)
        for step in (LONG, SHORT):
            at = sign_steps(loss, at, low, high, step=step, steps=-(-steps // 2))
            with torch.no_grad():
                found = loss(at)
            best = torch.where((found > highest)[:, None, None, None], at, best)
            highest = torch.maximum(found, highest)
    return best


def best_places(
    loss: Callable[[Tensor], Tensor], images: Tensor, patch: tuple[int, int], places: int
) -> list[Tensor]:
    """Where the loss (N,) of images (N, C, H, W) may gain most, to first order: bool (N, 1, H, W) each, the best first."""
    at = images.detach().requires_grad_()
    slope = torch.autograd.grad(loss(at).sum(), at)[0]
    gain = torch.maximum(slope * (1 - images), -slope * images).sum(dim=1, keepdim=True)
    promise = nn.functional.avg_pool2d(gain, patch, stride=1)[:, 0]  # (N, H - h + 1, W - w + 1)
    count, rows, columns = promise.shape
    down, across = torch.arange(rows, device=images.device), torch.arange(columns, device=images.device)
    (h, w), found = patch, []
    for _ in range(min(places, rows * columns)):
        top, left = torch.unravel_index(promise.flatten(1).argmax(dim=1), (rows, columns))
        inside = torch.zeros((count, 1, *images.shape[2:]), dtype=torch.bool, device=images.device)
        for each, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            inside[each, :, y : y + h, x : x + w] = True
        found.append(inside)
        near = ((down - top[:, None]).abs() < (h + 1) // 2)[:, :, None]
        near = near & ((across - left[:, None]).abs() < (w + 1) // 2)[:, None]
        promise = promise.masked_fill(near, -torch.inf)
    return found


class MaskedVote(nn.Module):
    """What an attacker of a masked classifier follows: the mean log-probability (N, K) under every single mask.

    A patch that turns all masks but the one that hides it turns the vote; what is filled in for it has no gradient where
    the fill has none.

    Args:
        base: Images to logits.
        masks: Those of the defense.
        fill: Of the defense.
    """

    hidden: Tensor

    def __init__(self, base: nn.Module, masks: CoveringMasks, fill: Fill):
        super().__init__()
        self.base, self.fill = base, fill
        self.register_buffer("hidden", masks.hidden)

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.zeros(())
        for mask in self.hidden:
            hidden = mask.expand(len(images), *mask.shape)
            filled = self.fill(images.masked_fill(hidden[:, None], 0.0), hidden)
            masked = torch.where(hidden[:, None], filled, images)
            logs = logs + self.base(masked).log_softmax(dim=1)
        return logs / len(self.hidden)
