"""Deterministic splitting noise: exact votes, an l1 radius with no failure probability.

Levine and Feizi 2021. Every pixel value is replaced by the middle of the cell that it falls in, when [0, 1] is
cut at s, s + 2 lambda, s - 2 lambda, ...; the cuts of all pixels move together, s_i = s + offset_i, through
all T = 2 lambda q positions between the q + 1 gray levels. A pixel that changes by m levels crosses its cut in
m of the T positions, so an image that changes by m levels in all (l1) changes at most m of the T votes. The answer
is the class with most votes, of equals the one with the lower index. With c_A votes for it and c_B for a rival,
nothing within m <= (c_A - c_B) / 2 levels makes a rival of higher index win, and nothing within
m < (c_A - c_B) / 2 one of lower index: proven for every image on the same grid of gray levels.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from certify.certificate import Certificate, Certificates, Counts
from certify.errors import CertifyError, check_count, check_positive, with_options
from certify.voting.checks import check_images, check_indices, resolve_device
from certify.voting.engine import VoteEngine


def certify_splitting(
    base: Callable[[torch.Tensor], Any],
    images: Any,
    half_width: float,
    num_classes: int,
    *,
    subject: str = "model",
    levels: int = 255,
    indices: Sequence[int] | None = None,
    on_certificate: Callable[[int, Certificate, float], None] | None = None,
    progress: Any = None,
    **options: Any,
) -> Certificates:
    """Certify images on the grid of gray levels in l1, with alpha = 0; the certificate is about images on the grid.

    Args:
        base, num_classes, subject: As in ``SmoothedClassifier``.
        images: (N, C, H, W) in [0, 1], whole multiples of 1 / ``levels``.
        half_width: lambda in [0, 1] pixel units; 2 * half_width * levels is the (whole) number of votes of an image.
        levels: q.
        indices, on_certificate, progress: As in ``SmoothedClassifier.certify``.
        options: Fields of ``VoteEngine``; ``seed`` draws the offsets of the pixels, once and for all images.

    Raises:
        CertifyError: Values off the grid, a half width that does not fit it, or an unknown option.
    """
    engine = with_options(VoteEngine(), options)
    total = _positions(half_width, levels)
    images = check_images(images)
    indices = check_indices(indices, len(images))
    grid = _gray_levels(images, levels)
    device = resolve_device(base, engine.device)
    generator = torch.Generator().manual_seed(engine.seed)
    offsets = torch.randint(total, images.shape[1:], generator=generator).to(device)

    def draw(image: torch.Tensor, first: int, last: int) -> torch.Tensor:
        shifts = torch.arange(first, last, device=device) % total
        return split(image, offsets, shifts, total, levels)

    engine.check_alone(base, lambda rows: draw(grid[0].to(device), 0, rows), num_classes)
    noise = {
        "law": "splitting",
        "norm": "l1",
        "half_width": half_width,
        "levels": levels,
        "seed": engine.seed,
    }
    certificates = Certificates()
    for index, image in zip(indices, grid.to(device), strict=True):
        start = time.perf_counter()
        counts = np.zeros(num_classes, dtype=np.int64)
        for first in range(0, total, engine.batch_size):
            last = min(first + engine.batch_size, total)
            counts += engine.count_batch(base, draw(image, first, last), num_classes)
            if progress is not None:
                progress.update(last - first)
        certificates.append(_certificate(counts, total, levels, noise, subject))
        if on_certificate is not None:
            on_certificate(index, certificates[-1], time.perf_counter() - start)
    return certificates


def _positions(half_width: float, levels: int) -> int:
    """T = 2 lambda q, or CertifyError unless it is whole."""
    check_positive("half_width", half_width)
    total = round(2 * half_width * check_count("levels", levels))
    if abs(2 * half_width * levels - total) > 1e-9 or total < 1:
        near = max(1, total) / (2 * levels)
        raise CertifyError(
            f"half_width must make 2 * half_width * {levels} whole, got {half_width}: try {near}"
        )
    return total


def _gray_levels(images: torch.Tensor, levels: int) -> torch.Tensor:
    """Images as whole numbers of gray levels, int64; CertifyError where they are not."""
    grid = (images.double() * levels).round()
    if (grid / levels - images.double()).abs().max() > 1e-6:
        raise CertifyError(
            f"images must lie on the grid of multiples of 1/{levels}: round them, or set levels"
        )
    return grid.long()


def split(
    image: torch.Tensor, offsets: torch.Tensor, shifts: torch.Tensor, total: int, levels: int
) -> torch.Tensor:
    """Cell middles (B, C, H, W), float32 in [0, 1], of an integer image (C, H, W) for shifts (B,).

    In units of half a gray level: pixels are even and cuts odd, so no pixel ever lies on a cut.
    """
    cut = 2 * ((shifts.reshape(-1, 1, 1, 1) + offsets) % total) + 1
    period, top = 2 * total, 2 * levels
    below = cut + period * torch.div(2 * image - cut, period, rounding_mode="floor")
    low, high = below.clamp(min=0), (below + period).clamp(max=top)
    return ((low + high).double() / (2 * top)).float()


def _certificate(counts: Counts, total: int, levels: int, noise: dict[str, Any], subject: str) -> Certificate:
    top = int(np.argmax(counts))
    return Certificate(
        prediction=top,
        radius=certified_levels(counts) / levels,
        norm="l1",
        p_lower=float(counts[top] / total),
        counts=tuple(int(count) for count in counts),
        n0=0,
        n=total,
        alpha=0.0,
        method="deterministic",
        noise=noise,
        subject=subject,
        sound=True,
        selected=top,
    )


def certified_levels(counts: Counts) -> int:
    """Gray levels within which the answer to exact votes (K,) stays."""
    top = int(np.argmax(counts))  # of equals the lowest index
    lead = counts[top] - counts
    lead[:top] -= 1  # a tie with one of these is theirs
    return int(np.delete(lead, top).min() // 2)
