"""The seven attacks that UAD-RS was measured under on aerial scenes (Yu, Xu & Ghamisi, arXiv 2307.16865).

All are L-infinity, in [0, 1] pixel units, by sign steps; they differ in the loss that they raise:

    fgsm      cross-entropy, one step of eps (Goodfellow et al., ICLR 2015)
    i-fgsm    cross-entropy, many steps (Kurakin et al., ICLR 2017 workshop)
    cw        the best wrong logit minus the right one (the margin of Carlini & Wagner, S&P 2017)
    tpgd      KL of the prediction from the clean one; needs no label (Zhang et al., TRADES, ICML 2019)
    jitter    distance of the scaled and jittered prediction to the label's, over the size of the change where the image is
              lost already (Schwinn et al., "Exploring misclassifications of robust neural networks", 2021)
    mixup     cross-entropy, and nearness of the features to those of a mean of scenes of other classes
    mixcut    the same with a patchwork of such scenes (both: Xu & Ghamisi, "Universal adversarial examples in remote
              sensing", TGRS 2022)

Details that the sources leave open are chosen here: Jitter scales logits to 10 and jitters by 0.1; Mixup and Mixcut compare
the features that the last linear layer is given, by cosine, and mix the scenes `others`, in Mixcut as a 4 x 4 patchwork.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certdef.attacks.gradient import OnCopies, sign_steps, within
from surrogates.distillation.inference import evaluating, features

ATTACKS = ("fgsm", "i-fgsm", "cw", "tpgd", "jitter", "mixup", "mixcut")
RANDOM_START = ("tpgd", "jitter")
BLOCKS = 4


def scene_attack(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    seed: int = 0,
    others: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Attacked images (N, C, H, W) in [0, 1], within eps of the images.

    Args:
        name: One of ATTACKS.
        model: Images to logits (N, K); it ends in a linear layer.
        images: The originals, (N, C, H, W).
        labels: What the attacker wants to leave, (N,).
        eps: Budget, in [0, 1] pixel units; a step is 2.5 eps / steps, for fgsm eps.
        steps: Sign steps; fgsm takes one.
        seed: Of the random start, the jitter and the patchwork.
        others: For mixup and mixcut: scenes to mix, (M, C, H, W) in [0, 1], e.g. one of each class.
        batch_size: Images at once; the draws do not depend on the device, but on this.

    Raises:
        ValueError: An unknown name, or no scenes to mix.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: use one of {', '.join(ATTACKS)}")
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    turns = 1 if name == "fgsm" else steps
    step = eps if name == "fgsm" else 2.5 * eps / steps
    attacked = []
    with evaluating(model):
        mixed = _mixed_features(name, model, others, generator)
        for batch, label in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            batch, label = batch.to(device), label.to(device)
            loss = _loss(name, model, batch, label, generator, mixed)
            start = torch.zeros(batch.shape)
            if name in RANDOM_START:
                start = eps * (2 * torch.rand(batch.shape, generator=generator) - 1)
            low, high = (batch - eps).clamp(min=0), (batch + eps).clamp(max=1)
            start = (batch + start.to(device)).clamp(0, 1)
            attacked.append(sign_steps(loss, start, low, high, step=step, steps=turns).cpu())
    return within(torch.cat(attacked), images, eps)


def patchwork(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """One image (C, H, W) of 4 x 4 blocks, each from a scene of its own, drawn from (M, C, H, W)."""
    height, width = scenes.shape[2:]
    drawn = torch.randint(len(scenes), (BLOCKS, BLOCKS), generator=generator)
    rows, columns = (torch.arange(side) * BLOCKS // side for side in (height, width))
    source = drawn[rows[:, None], columns[None, :]].to(scenes.device)  # (H, W): the scene of each pixel
    return scenes.gather(0, source.expand(1, scenes.shape[1], height, width))[0]


@torch.no_grad()
def _mixed_features(name: str, model: nn.Module, others: Tensor | None, generator: torch.Generator) -> Tensor:
    """Features (1, D) of the mixed scenes that mixup and mixcut draw to; empty for the other attacks."""
    if not name.startswith("mix"):
        return torch.empty(0)
    if others is None or not len(others):
        raise ValueError(f"{name} mixes scenes: give some as others, e.g. one training scene of each class")
    mixed = others.mean(0) if name == "mixup" else patchwork(others, generator)
    return features(model, mixed[None].to(next(model.parameters()).device))


def _loss(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, mixed: Tensor
) -> Callable[[Tensor], Tensor]:
    """Attacked images (N, C, H, W) to what the attack raises, (N,)."""
    predict = OnCopies(model)
    with torch.no_grad():
        clean = predict(images)
    right = F.one_hot(labels, clean.shape[1]).to(images.dtype)  # (N, K)

    def cross_entropy(attacked: Tensor) -> Tensor:
        return F.cross_entropy(predict(attacked), labels, reduction="none")

    def margin(attacked: Tensor) -> Tensor:
        logits = predict(attacked)
        return logits.masked_fill(right.bool(), -torch.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]

    def divergence(attacked: Tensor) -> Tensor:
        return F.kl_div(predict(attacked).log_softmax(1), clean.softmax(1), reduction="none").sum(1)

    def jitter(attacked: Tensor) -> Tensor:
        logits = predict(attacked)
        scores = (10 * logits / logits.abs().amax(1, keepdim=True).clamp_min(1e-12)).softmax(1)
        scores = scores + 0.1 * torch.randn(scores.shape, generator=generator).to(scores)
        distance = (scores - right).norm(dim=1)
        size = (attacked - images).flatten(1).norm(dim=1).clamp_min(1e-6)
        return torch.where(scores.argmax(1) == labels, distance, distance / size)

    def mixture(attacked: Tensor) -> Tensor:
        return cross_entropy(attacked) + F.cosine_similarity(features(model, attacked), mixed, dim=1)

    losses = {"cw": margin, "tpgd": divergence, "jitter": jitter, "mixup": mixture, "mixcut": mixture}
    return losses.get(name, cross_entropy)
