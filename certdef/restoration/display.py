"""A camera under a display, simulated: diffraction at the display's pixel grid, little light, noise.

A camera that looks through a lit panel sees three things (Zhou et al., "Image Restoration for Under-Display Camera",
CVPR 2021, arXiv 2003.04857): the openings between the display's pixels diffract, most of the light is lost, and the rest is
noisy. Their panels and lens were measured; the numbers here are a documented choice of the same kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Display:
    """The panel, the lens behind it and the sensor.

    Attributes:
        openings: Openings of the panel across the lens. Ghost images stand `openings * airy` sensor pixels apart.
        open_width: Width of an opening over the width of a display pixel; its square is the share of open area.
        airy: Wavelength times f-number in sensor pixels, for green: the scale of the lens's own blur.
        wavelengths: Relative to green; a gray sensor adds them up.
        kernel: Width of the blur kernel in sensor pixels, odd.
        transmission: Share of the light that passes; about 0.2 for a transparent, 0.03 for a PenTile OLED panel.
        full_well: Electrons of a white pixel without the panel, at the same exposure.
        read_noise: Standard deviation of the read-out, in electrons.
    """

    openings: int = 3
    open_width: float = 0.5
    airy: float = 1.0
    wavelengths: tuple[float, ...] = (0.85, 1.0, 1.15)
    kernel: int = 15
    transmission: float = 0.03
    full_well: float = 10_000.0
    read_noise: float = 3.0

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of sensor pixels, got {self.kernel}: try 15")
        for name in ("open_width", "transmission"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in (0, 1], got {getattr(self, name)}")
        if (
            self.openings < 1
            or not self.wavelengths
            or min(self.airy, self.full_well, *self.wavelengths) <= 0
        ):
            raise ValueError(
                f"openings, airy, wavelengths and full_well must be positive, got {self.openings}, {self.airy}, "
                f"{self.wavelengths}, {self.full_well}"
            )
        if not 0 <= self.read_noise < math.inf:
            raise ValueError(f"read_noise must be 0 electrons or more, got {self.read_noise}")


def point_spread(display: Display = Display(), samples: int = 32) -> Tensor:
    """What the sensor sees of a far point, (kernel, kernel), summing to 1.

    Fraunhofer diffraction: the intensity is the squared modulus of the aperture's Fourier transform, taken at the sensor
    pixels' centers. The aperture is a round lens behind square openings on a square grid, `samples` points an opening.
    Wavelengths have patterns of other widths and add up without interference.
    """
    points = display.openings * samples
    place = (torch.arange(points, dtype=torch.float64) + 0.5) / points  # across the lens, 0 .. 1
    clear = ((place * display.openings % 1 - 0.5).abs() < display.open_width / 2).double()
    lens = ((place[:, None] - 0.5) ** 2 + (place[None] - 0.5) ** 2 < 0.25).double()
    aperture = (lens * clear[:, None] * clear[None]).to(torch.complex128)  # (P, P)
    pixels = torch.arange(display.kernel, dtype=torch.float64) - display.kernel // 2
    total = torch.zeros(display.kernel, display.kernel, dtype=torch.float64)
    for wavelength in display.wavelengths:
        wave = torch.exp(
            -2j * math.pi * pixels[:, None] * place[None] / (display.airy * wavelength)
        )  # (K, P)
        total += (wave @ aperture @ wave.T).abs() ** 2 / wavelength**2
    return (total / total.sum()).float()


def under_display(images: Tensor, generator: torch.Generator, display: Display = Display()) -> Tensor:
    """The images as the camera under the display takes them: (N, C, H, W) in [0, 1] -> the same.

    Blur by `point_spread` with mirrored borders; electrons = transmission * full_well * pixel; Poisson shot noise and
    Gaussian read noise; divided by transmission * full_well, so that white is 1 again; cut to [0, 1]. Pixel values count
    as linear light. As set, white is 300 electrons: noise of 5.9% of white at white, of 2.1% at a tenth of it.

    Args:
        generator: Source of the noise, on the images' device.
    """
    blurred = blur(images, point_spread(display).to(images))
    white = display.transmission * display.full_well
    electrons = torch.poisson(white * blurred.clamp(min=0), generator=generator)
    read = torch.randn(images.shape, generator=generator, device=images.device)
    return ((electrons + display.read_noise * read) / white).clamp(0, 1)


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel of (N, C, H, W) with a kernel (K, K), mirrored at the borders.

    Raises:
        ValueError: The images are not larger than half the kernel.
    """
    channels, margin = images.shape[1], kernel.shape[-1] // 2
    if min(images.shape[-2:]) <= margin:
        raise ValueError(
            f"images of {tuple(images.shape[-2:])} are too small for a blur kernel of {kernel.shape[-1]} pixels: "
            f"take more than {margin} pixels a side, or a smaller Display.kernel"
        )
    padded = nn.functional.pad(images, (margin,) * 4, mode="reflect")
    return nn.functional.conv2d(padded, kernel.flip(0, 1).expand(channels, 1, -1, -1), groups=channels)
