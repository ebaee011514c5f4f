"""Attacks on a restoration: push its output away from the truth, with the input within eps of what the camera saw.

Every attack takes a module (N, C, H, W) to (N, C, H, W), the degraded images and the truth, all in [0, 1], and returns
images in [0, 1] within eps (L-infinity, same units) of the degraded ones. It maximizes the squared distance of output and
truth, each image for itself. The published evaluation (Song et al., arXiv 2402.13629) names PGD, C&W and SimBA; how each
is carried over from classes to images is unread there and said here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certdef.attacks.gradient import OnCopies, sign_steps


def squared_error(output: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each image, (N,): what the attacks maximize; PSNR is -10 log10 of it."""
    return (output - truth).square().mean(dim=(1, 2, 3))


def pgd(
    model: nn.Module,
    degraded: Tensor,
    truth: Tensor,
    *,
    eps: float,
    steps: int = 20,
    eot: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Projected gradient ascent (Madry et al., ICLR 2018): a random start, then sign steps of 2.5 eps / steps.

    Args:
        model: Degraded images to restored ones.
        degraded: What the camera saw, (N, C, H, W).
        truth: The photographs, of the same shape.
        eps: Largest distance.
        steps: Sign steps.
        eot: Passes whose gradients are averaged in each step, for a model that draws noise.
        seed: Of the start.
        batch_size: Images at once.
    """
    model = OnCopies(model)
    low, high = pixel_range(degraded, truth, eps)
    generator = torch.Generator(degraded.device).manual_seed(seed)
    start = torch.rand(degraded.shape, generator=generator, device=degraded.device) * 2 - 1
    start = (degraded + eps * start).clamp(low, high)

    def attack(images: Tensor, truth: Tensor, low: Tensor, high: Tensor) -> Tensor:
        def distance(images: Tensor) -> Tensor:
            return squared_error(model(images), truth)

        return sign_steps(distance, images, low, high, step=2.5 * eps / steps, steps=steps, eot=eot)

    return _batched(attack, batch_size, start, truth, low, high)


def carlini_wagner(
    model: nn.Module,
    degraded: Tensor,
    truth: Tensor,
    *,
    eps: float,
    steps: int = 40,
    penalty: float = 0.1,
    learning_rate: float = 0.1,
    batch_size: int = 64,
) -> Tensor:
    """C&W-like: Adam on squared error of the output - penalty * squared size of the perturbation, in tanh space.

    As in Carlini & Wagner (S&P 2017) the size is weighed against success and the range costs no projection:
    image = low + (high - low) (1 + tanh w) / 2. The range is that of eps, so that one budget holds for all attacks, and
    the output's distance takes the place of the margin of logits. The best image of all steps is returned. No draws.

    Args:
        model: Degraded images to restored ones.
        degraded: What the camera saw, (N, C, H, W).
        truth: The photographs, of the same shape.
        eps: Largest distance.
        steps: Steps of Adam.
        penalty: Weight of the perturbation's mean square, relative to the output's.
        learning_rate: Of Adam.
        batch_size: Images at once.
    """
    model = OnCopies(model)
    low, high = pixel_range(degraded, truth, eps)

    def attack(images: Tensor, truth: Tensor, low: Tensor, high: Tensor) -> Tensor:
        share = ((images - low) / (high - low)).clamp(0.01, 0.99)  # tanh is flat at the ends of the range
        free = torch.logit(share) / 2  # = atanh(2 share - 1)
        free.requires_grad_()
        optimizer = torch.optim.Adam([free], lr=learning_rate)
        best, reached = images.clone(), torch.full((len(images),), -math.inf, device=images.device)
        for _ in range(steps):
            candidate = low + (high - low) * (1 + free.tanh()) / 2
            distance = squared_error(model(candidate), truth)
            better = (distance > reached).detach()
            best[better], reached[better] = candidate.detach()[better], distance.detach()[better]
            objective = distance - penalty * squared_error(candidate, images)
            (free.grad,) = torch.autograd.grad(-objective.sum(), free)
            optimizer.step()
        return best.clamp(low, high)

    return _batched(attack, batch_size, degraded, truth, low, high)


@torch.no_grad()
def simba(
    model: nn.Module,
    degraded: Tensor,
    truth: Tensor,
    *,
    eps: float,
    queries: int = 300,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """SimBA-like (Guo et al., ICML 2019), by queries alone: try a random basis direction, keep what helps.

    Directions are the two-dimensional cosine basis of one channel, in a random order of each image's own, drawn without
    replacement, as in the published SimBA-DCT but over all frequencies: the camera's blur is undone most at high ones.
    Each is scaled to a peak of eps and added, else subtracted; the sum is cut to the range of eps.

    Args:
        model: Degraded images to restored ones.
        degraded: What the camera saw, (N, C, H, W).
        truth: The photographs, of the same shape.
        eps: Largest distance.
        queries: At most so many passes an image; every direction takes one or two.
        seed: Of the directions.
        batch_size: Images at once.
    """
    model = OnCopies(model)
    low, high = pixel_range(degraded, truth, eps)
    generator = torch.Generator(degraded.device).manual_seed(seed)
    channels, height, width = degraded.shape[1:]
    values = channels * height * width
    shuffled = [torch.randperm(values, generator=generator, device=degraded.device) for _ in degraded]
    order = torch.stack([each[: min(queries, values)] for each in shuffled])  # (N, directions)
    rows, columns = (cosine_basis(length).to(degraded) for length in (height, width))

    def attack(images: Tensor, truth: Tensor, low: Tensor, high: Tensor, order: Tensor) -> Tensor:
        every = torch.arange(len(images), device=images.device)
        distance = squared_error(model(images), truth)
        budget = torch.full((len(images),), queries - 1, device=images.device)
        for direction in order.T:
            place, channel = direction % (height * width), direction // (height * width)
            wave = rows[place // width, :, None] * columns[place % width, None, :]  # (N, H, W)
            step = torch.zeros_like(images)
            step[every, channel] = eps * wave / wave.abs().amax(dim=(1, 2), keepdim=True)
            trying = every
            for sign in (1, -1):
                trying = trying[budget[trying] > 0]
                if not len(trying):
                    break
                candidate = (images[trying] + sign * step[trying]).clamp(low[trying], high[trying])
                reached = squared_error(model(candidate), truth[trying])
                budget[trying] -= 1
                better = reached > distance[trying]
                images[trying[better]], distance[trying[better]] = candidate[better], reached[better]
                trying = trying[~better]  # these try the other way
        return images

    return _batched(attack, batch_size, degraded.clone(), truth, low, high, order)


def cosine_basis(length: int) -> Tensor:
    """The orthonormal cosine basis (DCT-II): (length, length), one vector a row."""
    position = (torch.arange(length) + 0.5) / length
    basis = torch.cos(math.pi * torch.arange(length)[:, None] * position[None])
    return basis / basis.norm(dim=1, keepdim=True)


def pixel_range(degraded: Tensor, truth: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest pixels within eps of the degraded images, each (N, C, H, W).

    Raises:
        ValueError: eps is not positive, or images and truth have different shapes.
    """
    if not 0 < eps < math.inf:
        raise ValueError(
            f"eps must be positive in [0,1] pixel units, got {eps}: 8 8-bit levels are {8 / 255:.4f}"
        )
    if degraded.shape != truth.shape:
        raise ValueError(
            f"degraded images {tuple(degraded.shape)} and truth {tuple(truth.shape)} must have one shape"
        )
    return (degraded - eps).clamp(min=0), (degraded + eps).clamp(max=1)


def _batched(attack: Callable[..., Tensor], batch_size: int, *tensors: Tensor) -> Tensor:
    parts = zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)
    return torch.cat([attack(*part).detach() for part in parts])
