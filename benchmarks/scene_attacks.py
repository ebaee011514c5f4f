"""The seven attacks that UAD-RS was measured under on aerial scenes (Yu, Xu & Ghamisi, arXiv 2307.16865).

All are L-infinity, in [0, 1] pixel units, and climb by sign steps; they differ in the loss that they raise:

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

from certdef.attacks.gradient import evaluating, sign_steps, within
from certdef.models.classifiers import features

ATTACKS = ("fgsm", "i-fgsm", "cw", "tpgd", "jitter", "mixup", "mixcut")
RANDOM_START = ("tpgd", "jitter")
BLOCKS = 4


def scene_attack(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int = 10, seed: int = 0,
    others: Tensor | None = None, batch_size: int = 128,
) -> Tensor:  # fmt: skip
    """Attacked images (N, C, H, W) in [0, 1], within eps of the images.

    Args:
        name: One of ATTACKS.
        labels: What the attacker wants to leave, (N,).
        eps: Budget, in [0, 1] pixel units; a step is 2.5 eps / steps, for fgsm eps.
        others: For mixup and mixcut: scenes to mix, (M, C, H, W) in [0, 1], e.g. one of each class.
        batch_size: Images at once; the draws do not depend on the device, but on this.

    Raises:
        ValueError: An unknown name, or no scenes to mix.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: use one of {', '.join(ATTACKS)}")
    if name.startswith("mix") and (others is None or not len(others)):
        raise ValueError(f"{name} mixes scenes: give some as others, e.g. one training scene of each class")
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    target = None
    if name.startswith("mix"):
        mixed = others.mean(0) if name == "mixup" else patchwork(others, generator)
        with evaluating(model), torch.no_grad():
            target = features(model, mixed[None].to(device))  # (1, D)
    found = []
    with evaluating(model):
        for batch, label in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            batch, label = batch.to(device), label.to(device)
            loss = _loss(name, model, batch, label, generator, target)
            start = torch.zeros(batch.shape)
            if name in RANDOM_START:
                start = eps * (2 * torch.rand(batch.shape, generator=generator) - 1)
            turns = 1 if name == "fgsm" else steps
            step = eps if name == "fgsm" else 2.5 * eps / steps
            low, high = (batch - eps).clamp(min=0), (batch + eps).clamp(max=1)
            start = (batch + start.to(device)).clamp(0, 1)
            found.append(sign_steps(loss, start, low, high, step=step, steps=turns).cpu())
    return within(torch.cat(found), images, eps)


def patchwork(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """One image (C, H, W) of 4 x 4 blocks, each from a scene of its own, drawn from (M, C, H, W)."""
    height, width = scenes.shape[2:]
    drawn = torch.randint(len(scenes), (BLOCKS, BLOCKS), generator=generator)
    rows, columns = (torch.arange(side) * BLOCKS // side for side in (height, width))
    source = drawn[rows[:, None], columns[None, :]].to(
        scenes.device
    )  # (H, W): which scene each pixel is from
    return scenes.gather(0, source.expand(1, scenes.shape[1], height, width))[0]


def _loss(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, target: Tensor | None
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """Attacked images (N, C, H, W) -> what the attack raises, (N,)."""
    with torch.no_grad():
        logits = model(images)
    right = F.one_hot(labels, logits.shape[1]).to(images.dtype)  # (N, K)

    def cross_entropy(attacked: Tensor) -> Tensor:
        return F.cross_entropy(model(attacked), labels, reduction="none")

    def margin(attacked: Tensor) -> Tensor:
        told = model(attacked)
        return told.masked_fill(right.bool(), -torch.inf).amax(1) - told.gather(1, labels[:, None])[:, 0]

    def divergence(attacked: Tensor) -> Tensor:
        return F.kl_div(model(attacked).log_softmax(1), logits.softmax(1), reduction="none").sum(1)

    def jitter(attacked: Tensor) -> Tensor:
        told = model(attacked)
        told = (10 * told / told.abs().amax(1, keepdim=True).clamp_min(1e-12)).softmax(1)
        told = told + 0.1 * torch.randn(told.shape, generator=generator).to(told)
        distance = (told - right).norm(dim=1)
        size = (attacked - images).flatten(1).norm(dim=1).clamp_min(1e-6)
        return torch.where(told.argmax(1) == labels, distance, distance / size)

    def mixture(attacked: Tensor) -> Tensor:
        return cross_entropy(attacked) + F.cosine_similarity(features(model, attacked), target, dim=1)

    losses = {"cw": margin, "tpgd": divergence, "jitter": jitter, "mixup": mixture, "mixcut": mixture}
    return losses.get(name, cross_entropy)
