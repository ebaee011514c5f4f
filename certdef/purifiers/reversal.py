"""Self-supervised reversal: the attack undone by an attack of our own (Mao et al., ICCV 2021; Lawhon, Mao, Yang 2022,
arXiv 2204.03714).

An image that was attacked through a classifier's features does self-supervised tasks on these features worse than a
clean one. The purifier searches the correction r, |r|_inf <= 2 eps, under which it does them well again: 40 sign
steps of 2/255 on the summed losses, from a random start. Several tasks at once, so that r over-fits none of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from certdef.config.job import RunConfig
from certdef.purifiers.base import About, NetworkSpec, Parts, PurifierSpec
from certdef.purifiers.gs import THREAT
from certdef.purifiers.networks.tasks import HEADS, TaskNetwork, check_denoiser, required_denoiser

UNROLLED = 5  # steps of the reversal as an attacker follows it


class Reversal(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> corrected images (N, C, H, W) in [0, 1].

    Deterministic: the random start is drawn once from `seed` and shared by all images, as the views of the tasks are,
    so that the result for an image depends on neither the others nor its place among them.

    Not differentiable from end to end: the output carries no gradient (40 sign steps have a useless one). Attack it through
    fewer and softer steps (Unrolled), the denoiser of its task, the map that it is pulled towards (Proxy), or with BPDA,
    the identity in its place backwards.

    Args:
        classifier: The frozen classifier whose features the tasks read; the one that was attacked, or alike.
        network: Trained heads, see train_tasks.
        tasks: Which of the network's tasks are summed.
        eps: The attack to undo, L-infinity in [0,1] pixel units; r goes up to twice that.
        steps: Sign steps.
        step: Size of a step in [0,1] pixel units.
        start: Largest size of the random start, as a share of 2 eps (unread; 0 and 1 did alike on training images).
        seed: Of the start.
        denoiser: For the denoising task, the one that the network was trained with.

    Raises:
        ValueError: A task that the network was not trained for, no denoiser for denoising, or a number out of range.
    """

    start: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        network: TaskNetwork,
        tasks: tuple[str, ...],
        eps: float,
        steps: int = 40,
        step: float = 2 / 255,
        *,
        start: float = 1.0,
        seed: int = 0,
        denoiser: nn.Module | None = None,
    ):
        super().__init__()
        if not tasks or any(task not in network.tasks for task in tasks):
            raise ValueError(
                f"tasks {tuple(tasks)}: name one or more that the network was trained for, "
                f"{', '.join(network.tasks)}"
            )
        if not 0 < eps <= 1:
            raise ValueError(
                f"eps must be in (0, 1] in [0,1] pixel units, got {eps}: 8 8-bit levels are 0.031"
            )
        if steps < 1 or not step > 0:
            raise ValueError(f"steps must be 1 or more and step positive, got {steps} of {step}")
        if not 0 <= start <= 1:
            raise ValueError(
                f"start is a share of 2 eps in [0, 1], got {start}: 0 starts from the image itself"
            )
        check_denoiser(tuple(tasks), denoiser)
        self.classifier, self.network, self.denoiser = classifier, network, denoiser
        self.tasks, self.limit, self.steps, self.step = tuple(tasks), 2 * eps, steps, step
        uniform = torch.rand(network.shape.image_shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("start", start * self.limit * (2 * uniform - 1))  # (C, H, W)
        self.eval()

    def train(self, mode: bool = True) -> Reversal:
        """Stays in eval mode: batch normalization in training mode would mix the images of a batch."""
        return super().train(False)

    def self_supervised_loss(self, images: Tensor) -> Tensor:
        """The sum of the standardized losses (N,): about 0 for clean images, more for attacked ones. Differentiable."""
        return self.network.losses(self.classifier, images, self.tasks, self.denoiser).sum(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        # The caller may forbid gradients; the reversal needs them.
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().clone()
            correction = self.start.expand_as(images)
            for _ in range(self.steps):
                corrected = (images + correction).clamp(0, 1).requires_grad_()
                (slope,) = torch.autograd.grad(self.self_supervised_loss(corrected).sum(), corrected)
                correction = corrected.detach() - images - self.step * slope.sign()
                correction = correction.clamp(-self.limit, self.limit)
            return (images + correction).clamp(0, 1)


class Unrolled(nn.Module):
    """The reversal in few steps without hard signs, (N, C, H, W) -> (N, C, H, W) in [0, 1]: its gradient is of second order.

    Five steps of eight times the size, each the tanh of the slope in units of its mean size.

    Args:
        reversal: What it is like.
    """

    def __init__(self, reversal: Reversal):
        super().__init__()
        self.reversal = reversal

    def forward(self, images: Tensor) -> Tensor:
        reversal, correction = self.reversal, self.reversal.start.expand_as(images)
        step = reversal.step * reversal.steps / UNROLLED
        # the fast kernels of attention have no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for _ in range(UNROLLED):
                corrected = (images + correction).clamp(0, 1)
                if not corrected.requires_grad:
                    corrected.requires_grad_()
                loss = reversal.self_supervised_loss(corrected).sum()
                (slope,) = torch.autograd.grad(loss, corrected, create_graph=True)
                size = slope.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
                correction = corrected - images - step * torch.tanh(slope / size)
                correction = correction.clamp(-reversal.limit, reversal.limit)
            return (images + correction).clamp(0, 1)


class Proxy(nn.Module):
    """What the denoising task pulls an image towards, (N, C, H, W) -> (N, C, H, W) in [0, 1]: the mean of its restorations.

    The reversal has no useful gradient. This map has one, and what an attacker finds through it transfers to the reversal.

    Args:
        network: Heads with the denoising task, whose fixed noise and sigma it takes.
        denoiser: The one of the task.
    """

    def __init__(self, network: TaskNetwork, denoiser: nn.Module):
        super().__init__()
        self.network, self.denoiser = network, denoiser

    def forward(self, images: Tensor) -> Tensor:
        noisy = images + self.network.shape.sigma * self.network.noise[:, None]  # (V, N, C, H, W)
        restored = self.denoiser(noisy.flatten(0, 1)).unflatten(0, noisy.shape[:2])
        return restored.mean(dim=0).clamp(0, 1)


def _settings(config: RunConfig) -> dict[str, Any]:
    chosen = config.reversal
    return {
        "tasks": list(chosen.tasks),
        "eps": chosen.eps,
        "steps": chosen.steps,
        "step": chosen.step_255 / 255,
    }


def _networks(config: RunConfig) -> tuple[NetworkSpec, ...]:
    return (*required_denoiser(config), HEADS)


def _build(parts: Parts) -> Reversal:
    heads, denoiser = parts.network("tasks", TaskNetwork), parts.networks.get("denoiser")
    return Reversal(parts.networks["classifier"], heads, **parts.settings, denoiser=denoiser)


def _proxies(parts: Parts) -> list[nn.Module]:
    unrolled, denoiser = Unrolled(_build(parts)), parts.networks.get("denoiser")
    if denoiser is None:
        return [unrolled]
    return [unrolled, Proxy(parts.network("tasks", TaskNetwork), denoiser)]


PURIFIER = PurifierSpec(
    "reversal",
    About(
        "moves the image until self-supervised tasks on the classifier's features fit again",
        "Lawhon, Mao, Yang 2022, arXiv 2204.03714; Mao et al., ICCV 2021",
        THREAT,
        papers=("reversal", "tasks"),
    ),
    _build,
    _settings,
    networks=_networks,
    differentiable=False,
    sees_classifier=True,
    proxies=_proxies,
)
