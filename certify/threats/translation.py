"""Translation: the image moves, and what leaves it on one side enters it on the other.

Rolling an image around its borders is a group: rolling by a and then by d is rolling by a + d. No padding of the image
alone has that: what a shift pushed out is gone, and reflected or black pixels that came in are moved as if they had been
seen. Under reflection T_-1(T_1(x)) is not x, and certificates of votes that pad are unsound; a test breaks one. Where the
border is of one color, as wide as the shift, rolling is what a camera that moved would see.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from certify.certificate import Certificate, Certificates
from certify.errors import CertifyError, check_count, with_options
from certify.noise.base import FloatArray
from certify.threats.transformation import Transformation, check_parameter, normal
from certify.voting.checks import check_images, check_indices, resolve_device
from certify.voting.engine import VoteEngine

DISTANCE = "length of the displacement, pixels"
PADDINGS = ("reflect", "edge", "black", "wrap")


@dataclass(frozen=True)
class Translation(Transformation, law="translation", fields=("sigma", "subpixel")):
    """Displacement ~ N(0, sigma^2 I) in pixels, rolled around the borders: radius sigma * Phi^-1(p) of its length.

    Proof: Cohen et al. 2019, Theorem 1, in two dimensions (TSS, Corollary 2), as the displacement is moved by the adversary's.
    Draws are rounded to whole pixels, and the adversary's displacements a are whole: round(d) + a = round(d + a), so the
    image is a function of d + a. With ``subpixel`` both are real, by the Fourier transform: frequency w is turned by e^(-i w a),
    and e^(-i w a) e^(-i w d) = e^(-i w (a + d)); of an even side the highest frequency, which has no real shift, is left out.
    """

    sigma: float
    subpixel: bool = False
    norm = threat = "translation"
    unit = DISTANCE
    numbers = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_parameter("sigma", self.sigma, "pixels", 1))

    def two_sided_radius(self, p_top: float, p_rival: float) -> float | None:
        return float(self.sigma / 2 * (ndtri(p_top) - ndtri(p_rival)))

    def describe(self) -> dict[str, Any]:
        law = {"law": "translation", "norm": self.norm, "unit": self.unit}
        return law | {"sigma": self.sigma, "subpixel": self.subpixel}

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return self.sigma * ndtri(p)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return ndtr(r / self.sigma)

    def draw_parameters(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        return normal(count, 2, generator, device) * self.sigma

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Down by the first number, to the right by the second."""
        if self.subpixel:
            return _turned(images, parameters)
        return shifted(images, parameters.round().long(), "wrap")


def shifted(images: torch.Tensor, pixels: torch.Tensor, padding: str = "reflect") -> torch.Tensor:
    """Images (B, C, H, W), each moved down and to the right by its own whole pixels (B, 2).

    Args:
        images: Not changed.
        pixels: int64.
        padding: What comes in: reflect (the border's pixels mirrored, each once), edge (repeated), black, or wrap.

    Raises:
        CertifyError: An unknown padding.
    """
    if padding not in PADDINGS:
        known = ", ".join(PADDINGS)
        raise CertifyError(f"padding must be one of {known}, got {padding!r}: try padding='reflect'")
    count, _, height, width = images.shape
    rows, inside_rows = _sources(pixels[:, 0], height, padding)
    columns, inside_columns = _sources(pixels[:, 1], width, padding)
    image = torch.arange(count, device=images.device)[:, None, None]
    moved = images[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    if padding == "black":
        inside = inside_rows[:, :, None] & inside_columns[:, None, :]
        return moved * inside[:, None]
    return moved


def _sources(pixels: torch.Tensor, side: int, padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each row or column (B, side) comes from, and whether that is inside."""
    source = torch.arange(side, device=pixels.device) - pixels[:, None]
    inside = (source >= 0) & (source < side)
    if padding == "wrap":
        return source % side, inside
    if padding == "reflect":
        source = source % (2 * side)
        return torch.where(source < side, source, 2 * side - 1 - source), inside
    return source.clamp(0, side - 1), inside


def _turned(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Images moved by real displacements (B, 2) on the torus."""
    height, width = images.shape[-2:]
    spectrum = torch.fft.fft2(images.double())
    for axis, side in ((2, height), (3, width)):
        frequency = torch.fft.fftfreq(side, device=images.device, dtype=torch.float64)
        turn = torch.polar(
            torch.ones_like(parameters[:, :1].double() * frequency),
            -2 * math.pi * parameters[:, axis - 2 : axis - 1].double() * frequency,
        )
        if side % 2 == 0:  # a product, so that a gradient in the displacement passes
            turn = turn * (torch.arange(side, device=images.device) != side // 2)
        spectrum = spectrum * (turn[:, None, :, None] if axis == 2 else turn[:, None, None, :])
    return torch.fft.ifft2(spectrum).real.to(images.dtype)


def certify_pixel_shifts(
    base: Callable[[torch.Tensor], Any],
    images: Any,
    most: int,
    num_classes: int,
    *,
    padding: str = "reflect",
    subject: str = "model",
    indices: Sequence[int] | None = None,
    on_certificate: Callable[[int, Certificate, float], None] | None = None,
    **options: Any,
) -> Certificates:
    """Certify the bare classifier against every shift of up to ``most`` whole pixels, by trying all of them: alpha = 0.

    The prediction is the answer to the image itself. The radius k says that each of the (2 k + 1)^2 shifts by at most k rows and
    k columns gets that answer. The shifts are tried ring by ring, and an image is done at the first ring with another
    answer. Nothing is drawn, so the composition law is not needed and any padding will do. It holds of a deterministic
    classifier: one that answers anew each time has been seen once at each shift.

    Args:
        base, num_classes, subject: As in ``SmoothedClassifier``.
        images: (N, C, H, W) in [0, 1].
        most: The largest shift in rows and columns.
        padding: As for ``shifted``.
        indices, on_certificate: As in ``SmoothedClassifier.certify``.
        options: Fields of ``VoteEngine``.

    Raises:
        CertifyError: Bad arguments, before the first answer, or answers that are none.
    """
    from time import perf_counter

    engine = with_options(VoteEngine(), options)
    check_count("most", most, 0)
    images = check_images(images)
    names = check_indices(indices, len(images))
    device = resolve_device(base, engine.device)
    rings = [_ring(size).to(device) for size in range(most + 1)]
    shifted(images[:1], rings[0].cpu(), padding)  # refuses an unknown padding
    noise = {"law": "pixel_shift", "norm": "pixel_shift", "unit": SHIFT, "most": most, "padding": padding}
    certificates = Certificates()
    for index, image in zip(names, images, strict=True):
        start = perf_counter()
        counts, radius, prediction = np.zeros(num_classes, dtype=np.int64), 0, -1
        for size, ring in enumerate(rings):
            moved = shifted(image.to(device).expand(len(ring), *image.shape), ring, padding)
            for part in moved.split(engine.batch_size):
                counts += engine.count_batch(base, part, num_classes)
            if size == 0:
                prediction = int(np.argmax(counts))
            if counts[prediction] < counts.sum():
                break
            radius = size
        certificates.append(_exact(counts, prediction, radius, noise, subject))
        if on_certificate is not None:
            on_certificate(index, certificates[-1], perf_counter() - start)
    return certificates


SHIFT = "rows and columns, whole pixels"


def _ring(size: int) -> torch.Tensor:
    """The shifts (8 size, 2) whose larger number is ``size``; the one (1, 2) of size 0."""
    side = torch.arange(-size, size + 1)
    box = torch.cartesian_prod(side, side).reshape(-1, 2)
    return box[box.abs().amax(dim=1) == size]


def _exact(
    counts: np.ndarray, prediction: int, radius: int, noise: dict[str, Any], subject: str
) -> Certificate:
    return Certificate(
        prediction=prediction,
        radius=float(radius),
        norm="pixel_shift",
        p_lower=float(counts[prediction] / counts.sum()),
        counts=tuple(int(count) for count in counts),
        n0=0,
        n=int(counts.sum()),
        alpha=0.0,
        method="deterministic",
        noise=noise,
        subject=subject,
        sound=True,
        selected=prediction,
        threat="pixel_shift",
        unit=SHIFT,
    )
