"""Gradients to follow in the place of a system's own: learned ones, and low-passed ones.

A purifier may have no useful gradient: rounding, a search, a long random chain. An attacker who has it can still make as many
examples of what it does as he likes, and learn a network that does alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certdef.attacks.gradient import OnCopies, forked
from surrogates.distillation.inference import images_at_once

WIDTH = 32  # channels of the learned proxy
COPIES = 8  # changed copies of each image that it learns from
STEPS = 600  # of training
BATCH = 64


class LowFrequency(nn.Module):
    """A model whose gradient is low-passed (after Guo, Frank and Weinberger, "Low frequency adversarial perturbation", UAI 2019).

    Args:
        model: Images (N, C, H, W) to logits.
        side: Points a side that the gradient is averaged to.
    """

    def __init__(self, model: nn.Module, side: int):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        coarse = F.interpolate(
            F.adaptive_avg_pool2d(images, self.side), size=images.shape[2:], mode="bicubic"
        )
        return self.model(coarse + (images - coarse).detach())


class Regressor(nn.Module):
    """A small residual network, images (N, C, H, W) to images of the same range; its convolutions compute in bfloat16."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(WIDTH, channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            change = self.body(images)
        return images + change.float()


def learned_proxy(
    purifier: nn.Module, images: Tensor, changed: list[Tensor], *, eps: float, seed: int
) -> nn.Module:
    """A network that does on average what the purifier does near these images: a regression with squared error.

    Args:
        purifier: Images to images; it is asked for COPIES changed copies of each image.
        images: (N, C, H, W) in [0, 1].
        changed: Adversarial images of other attacks, of the same shape: half of the copies lie on the way to them.
        eps: The other half are this far away, L-infinity, in a random direction.
        seed: Of the copies, the weights and the batches.
    """
    device = images.device
    with forked(seed, device), torch.enable_grad():
        inputs = torch.cat([_copy(images, changed, eps, number) for number in range(COPIES)])
        outputs = purified(purifier, inputs)
        network = Regressor(images.shape[1]).to(device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(inputs), (BATCH,), device=device)
            loss = F.mse_loss(network(inputs[rows]), outputs[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def purified(purifier: nn.Module, images: Tensor) -> Tensor:
    """Images through a purifier, in batches of copies."""
    purifier = OnCopies(purifier)
    return torch.cat(
        [purifier(batch).detach() for batch in images.split(images_at_once(images.shape[1:], 256))]
    )


def _copy(images: Tensor, changed: list[Tensor], eps: float, number: int) -> Tensor:
    share = torch.rand(len(images), 1, 1, 1, device=images.device)
    if changed and number % 2:
        return images + share * (changed[number // 2 % len(changed)].to(images) - images)
    return (images + share * eps * torch.randint_like(images, 2).mul(2).sub(1)).clamp(0, 1)
