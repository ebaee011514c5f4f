"""The seven attacks that UAD-RS was measured under on aerial scenes (Yu, Xu & Ghamisi, arXiv 2307.16865), as published.

They are those of Xu & Ghamisi, "Universal adversarial examples in remote sensing" (TGRS 2022, arXiv 2202.07054), whose public
code UAD-RS takes them from. Each step goes up the gradient g of a loss, alpha * g / max|g| for each image by itself: not a sign
step, so that all but the steepest pixels move by less. A step may spend the whole budget, alpha = eps; what is further than eps
from the original (L-infinity) is cut, and the image is clipped and rounded to 8 bits after every step. eps is 1 in units of
ImageNet's standard deviations, some 57/255, and there are 5 steps. None has a random start. The losses:

    fgsm      cross-entropy, in one step (Goodfellow et al., ICLR 2015)
    i-fgsm    cross-entropy (Kurakin et al., ICLR 2017 workshop)
    cw        the best wrong logit minus the right one, the best one at least 0 (Carlini & Wagner, S&P 2017)
    tpgd      KL of the prediction from the clean one; needs no label (Zhang et al., TRADES, ICML 2019)
    jitter    squared distance of the softmax of logits scaled to 10, with noise of 0.1, to the label's; where the image is
              lost already, over the largest change of a pixel (Schwinn et al., "Exploring misclassifications of robust neural
              networks", 2021)
    mixup     nearness of the shallow features to those of a picture that mixes scenes of many classes, and 1e-3 times the
              cross-entropy; summed over 5 copies whose contrast is halved each time, with momentum 1 over steps whose
              gradients are divided by their L1 norm
    mixcut    the same with a patchwork of scenes

The shallow features are what the first layer hands to the second one after normalization, ReLU and pooling. Nearness is minus
the KL distance of their softmax, as torch averages it over the features. The code for scenes leaves the softmax out, which makes
of the distance a mean product of features; with that, mixup and mixcut leave 90% and 88% of 200 digits right, with the
softmax 6% and 12% (57/255, a network of two hidden layers, 98% clean).

Open: which scenes are mixed, and how. The code reads a finished picture of each data set; here mixup takes the mean of the
scenes `others`, mixcut a patchwork of 4 x 4 blocks. TPGD starts where its gradient is 0, and the code follows what rounding
leaves of it: here the clean logits get noise of 1e-3, which gives a direction of the same kind that depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certdef.attacks.gradient import OnCopies, within
from surrogates.distillation.inference import evaluating

ATTACKS = ("fgsm", "i-fgsm", "cw", "tpgd", "jitter", "mixup", "mixcut")
PEAK = 57 / 255
STEPS = 5
COPIES = 5  # of an image in mixup and mixcut, each with half the contrast of the one before
MIDDLE = 0.5  # the pixel that normalization sends to 0
CROSS_ENTROPY = 1e-3  # its weight there
MOMENTUM = 1.0
BLOCKS = 4

Loss = Callable[[Tensor], Tensor]


def scene_attack(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = PEAK,
    steps: int = STEPS,
    seed: int = 0,
    others: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Attacked images (N, C, H, W) of 8 bits, within eps of the images but for that rounding.

    Args:
        name: One of ATTACKS.
        model: Images to logits (N, K).
        images: The originals, (N, C, H, W) in [0, 1].
        labels: What the attacker wants to leave, (N,).
        eps: Budget and peak of a step, in [0, 1] pixel units.
        steps: Gradient steps; fgsm takes one.
        seed: Of the jitter, of tpgd's first direction and of the patchwork.
        others: For mixup and mixcut: scenes to mix, (M, C, H, W) in [0, 1], e.g. one of each class.
        batch_size: Images at once; the draws do not depend on the device, but on this.

    Raises:
        ValueError: An unknown name, no scenes to mix, or no shallow features to mix them by.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: use one of {', '.join(ATTACKS)}")
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    turns, momentum = (1 if name == "fgsm" else steps), (MOMENTUM if name.startswith("mix") else None)
    attacked = []
    with evaluating(model):
        mixed = _mixed_features(name, model, others, generator)
        for batch, label in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            batch, label = batch.to(device), label.to(device)
            loss = _loss(name, model, batch, label, generator, mixed)
            attacked.append(peak_steps(loss, batch, eps=eps, steps=turns, momentum=momentum).cpu())
    return torch.cat(attacked)


def peak_steps(
    loss: Loss, images: Tensor, *, eps: float, steps: int, momentum: float | None = None
) -> Tensor:
    """Images (N, C, H, W) of 8 bits that raise a loss of each image (N,): steps of eps * gradient / its peak, kept within eps.

    With momentum the gradient of a step, divided by its L1 norm, is added to that many times the direction before.
    """
    moved, direction = images, torch.zeros_like(images)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(moved).sum(), moved)
        if momentum is None:
            direction = gradient
        else:
            length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            direction = _divided(gradient, length) + momentum * direction
        step = eps * _divided(direction, direction.abs().amax(dim=(1, 2, 3), keepdim=True))
        moved = (within(moved.detach() + step, images, eps) * 255).round() / 255
    return moved


def shallow_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K), and the input (N, D) of the second layer of weights, differentiable in the images (N, C, H, W).

    Raises:
        ValueError: The model has fewer than two convolutions and linear layers.
    """
    layers = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    if len(layers) < 2:
        raise ValueError("mixup and mixcut compare what a first layer hands to a second: the model has none")
    inputs: list[Tensor] = []
    handle = layers[1].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        logits = model(images.clone())
    finally:
        handle.remove()
    return logits, inputs[-1].flatten(1)


def patchwork(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """One image (C, H, W) of 4 x 4 blocks, each from a scene of its own, drawn from (M, C, H, W)."""
    height, width = scenes.shape[2:]
    drawn = torch.randint(len(scenes), (BLOCKS, BLOCKS), generator=generator)
    rows, columns = (torch.arange(side) * BLOCKS // side for side in (height, width))
    source = drawn[rows[:, None], columns[None, :]].to(scenes.device)  # (H, W): the scene of each pixel
    return scenes.gather(0, source.expand(1, scenes.shape[1], height, width))[0]


def _divided(direction: Tensor, by: Tensor) -> Tensor:
    """A direction over its size; 0 where the loss is flat."""
    return direction / by.clamp_min(torch.finfo(direction.dtype).tiny)


@torch.no_grad()
def _mixed_features(name: str, model: nn.Module, others: Tensor | None, generator: torch.Generator) -> Tensor:
    """Features (1, D) of the mixed scenes that mixup and mixcut draw to; empty for the other attacks."""
    if not name.startswith("mix"):
        return torch.empty(0)
    if others is None or not len(others):
        raise ValueError(f"{name} mixes scenes: give some as others, e.g. one training scene of each class")
    mixed = others.mean(0) if name == "mixup" else patchwork(others, generator)
    return shallow_features(model, mixed[None].to(next(model.parameters()).device))[1]


def _loss(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, mixed: Tensor
) -> Loss:
    """Attacked images (N, C, H, W) to what the attack raises, (N,)."""
    predict = OnCopies(model)
    with torch.no_grad():
        clean = predict(images)
    right = F.one_hot(labels, clean.shape[1]).to(images.dtype)  # (N, K)

    def noise() -> Tensor:
        return torch.randn(clean.shape, generator=generator).to(clean)

    def cross_entropy(attacked: Tensor) -> Tensor:
        return F.cross_entropy(predict(attacked), labels, reduction="none")

    def margin(attacked: Tensor) -> Tensor:
        logits = predict(attacked)
        return ((1 - right) * logits).amax(1) - (right * logits).sum(1)

    def divergence() -> Loss:
        target = (clean + 1e-3 * noise()).softmax(1)
        return lambda attacked: F.kl_div(predict(attacked).log_softmax(1), target, reduction="none").sum(1)

    def jitter(attacked: Tensor) -> Tensor:
        logits = predict(attacked)
        scores = (10 * logits / logits.abs().amax(1, keepdim=True).clamp_min(1e-12)).softmax(
            1
        ) + 0.1 * noise()
        distance = (scores - right).square().mean(1)
        size = (attacked - images).flatten(1).abs().amax(1)
        lost = (logits.argmax(1) != labels) & (size > 0)
        return torch.where(lost, distance / size.clamp_min(1e-12), distance)

    def mixture(attacked: Tensor) -> Tensor:
        total = torch.zeros(len(attacked), device=attacked.device)
        for halvings in range(COPIES):
            logits, shallow = shallow_features(model, MIDDLE + (attacked - MIDDLE) / 2**halvings)
            distance = F.kl_div(shallow.log_softmax(1), mixed.softmax(1), reduction="none").mean(1)
            total = total + CROSS_ENTROPY * F.cross_entropy(logits, labels, reduction="none") - distance
        return total

    if name == "tpgd":
        return divergence()
    losses: dict[str, Loss] = {"cw": margin, "jitter": jitter, "mixup": mixture, "mixcut": mixture}
    return losses.get(name, cross_entropy)
