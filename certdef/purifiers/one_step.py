"""One-step denoising with a diffusion model (Carlini et al., "(Certified!!) Adversarial Robustness for Free!", ICLR 2023,
arXiv 2206.10550): the only diffusion step that a certificate can pay for.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from certdef.purifiers.base import About, Denoiser, Parts, PurifierSpec
from certdef.purifiers.networks.diffusion import DIFFUSION, DiffusionNetwork, inside, outside


class OneStep(nn.Module):
    """image + sigma * noise, (N, C, H, W), not clamped -> denoised images (N, C, H, W) in [0, 1]. Differentiable.

    The noisy image is scaled down to the step t whose noise level is sigma, and the clean image is read off at once.

    Args:
        network: A trained diffusion network.
        sigma: Noise level in [0,1] pixel units (twice that in [-1, 1]). Unset, it is estimated from each noisy image,
            for noise whose level is drawn at random. The estimate is a function of the noisy image alone, so the whole
            is still a fixed classifier of noisy images and a certificate about it stays sound. Gradients are exact
            almost everywhere, as t is constant between roundings.
    """

    def __init__(self, network: DiffusionNetwork, sigma: float | None = None):
        super().__init__()
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(
                f"sigma must be above 0 in [0,1] pixel units, got {sigma}: 75 8-bit levels are .294"
            )
        self.network, self.sigma = network, sigma

    def forward(self, noisy: Tensor) -> Tensor:
        levels = self.network.sigmas()[1:]
        sigma = (
            noise_level(noisy.detach()) if self.sigma is None else noisy.new_full((len(noisy),), self.sigma)
        )
        t = 1 + (levels - sigma[:, None]).abs().argmin(dim=1)  # (N,)
        z = inside(noisy) * self.network.keep[t].view(-1, 1, 1, 1).sqrt()
        return outside(self.network.clean(z, t))


def noise_level(noisy: Tensor) -> Tensor:
    """Standard deviation of white Gaussian noise in images (N, C, H, W), estimated from each alone, (N,), same units.

    The difference of two Laplacians removes what is smooth and leaves noise of 6 sigma, whose mean modulus is taken
    (Immerkaer, "Fast noise variance estimation", CVIU 64, 1996). Edges count as noise: an image without any is given
    .02 to .03, which no longer matters from sigma .1.
    """
    laplacians = noisy.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    channels = noisy.shape[1]
    noise = F.conv2d(noisy, laplacians.expand(channels, 1, 3, 3), groups=channels)  # (N, C, H - 2, W - 2)
    return noise.abs().mean(dim=(1, 2, 3)) * math.sqrt(math.pi / 2) / 6


def _build(parts: Parts) -> OneStep:
    return OneStep(parts.network("diffusion", DiffusionNetwork))


# The denoiser of every diffusion purifier: one step from the noise level of each image.
ONE_STEP = Denoiser("one diffusion step", _build, "one-step", settings=(), networks=("diffusion",))

PURIFIER = PurifierSpec(
    name="one-step",
    about=About(
        line="one step of a diffusion model at the image's own noise level",
        source="Carlini et al., ICLR 2023, arXiv 2206.10550",
        threat="any L2 attacker, where it is certified",
        papers=("one-step", "ddpm"),
    ),
    build=_build,
    networks=lambda config: (DIFFUSION,),
    denoiser=ONE_STEP,
    differentiable=True,
)
