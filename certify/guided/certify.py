"""Certify a set of images with a surrogate as guide, with or without a budget.

Without a budget every image is decided. With one, the votes of the whole set are given: they go, batch after batch,
to the image whose claim is likeliest for what it is expected to cost. Bets are fixed before their votes, whichever
image is paid for, so each certificate has its full alpha.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray

from certify.certificate import Certificate, Certificates
from certify.errors import check_alpha, check_count, with_options
from certify.guided.calibration import Calibration
from certify.guided.image import Guide, GuidedImage, reachable_radii
from certify.noise.base import NoiseLaw
from certify.voting.base_classifier import eval_mode, input_dtype
from certify.voting.checks import check_images, check_indices, resolve_device
from certify.voting.chunks import hash32
from certify.voting.tally import as_tensor


@dataclass(frozen=True)
class GuidedOptions:
    """Options of ``certify_guided``.

    Attributes:
        subject: Whose votes they are.
        seed: Of the noise and the picks, together with the index of the image.
        device: To draw on; default: the surrogate's, else the CPU.
        indices: Names of the images (default 0, 1, ...).
        calibration: Beliefs from earlier images; updated by these.
        free_draws: Surrogate's answers for each paid vote.
        pilot: Surrogate's answers before the first paid vote of an image.
        on_certificate: Called as ``on_certificate(index, certificate)`` as images finish.
        progress: Anything with ``update(paid votes)``.
    """

    subject: str = "target"
    seed: int = 0
    device: torch.device | str | None = None
    indices: Sequence[int] | None = None
    calibration: Calibration | None = None
    free_draws: int = 32
    pilot: int = 256
    on_certificate: Callable[[int, Certificate], None] | None = None
    progress: Any = None


def certify_guided(
    target: Callable[[torch.Tensor], ArrayLike],
    surrogate: Callable[[torch.Tensor], torch.Tensor],
    images: Any,
    noise: NoiseLaw,
    num_classes: int,
    *,
    radii: Sequence[float],
    n: int = 10_000,
    alpha: float = 0.001,
    budget: int | None = None,
    **options: Any,
) -> Certificates:
    """Certify images for a paid ``target`` with a free ``surrogate`` as guide, in order.

    The same ``seed`` and ``indices`` give the same votes, so that a ledger pays for none of them twice.

    Args:
        target: Noisy images (B, C, H, W) float32 -> integer labels (B,), of each image by itself. It may be paid, so it
            is not asked twice to check that; modules that it holds run in eval mode.
        surrogate: The same -> logits (B, num_classes); it sees them through the same denoiser as the target.
        images: (N, C, H, W) in [0, 1].
        noise: Added to the images.
        num_classes: Labels are in [0, num_classes).
        radii: One of them is tested on each image, the one that is worth it.
        n: Most paid votes of an image, those that choose its class included.
        alpha: Probability that a certificate is wrong, in (0, 0.5).
        budget: Most paid votes of the set; None: decide every image.
        options: Fields of ``GuidedOptions``.

    Raises:
        CertifyError: Bad arguments or an unknown option, before the first vote; bad labels or logits.
    """
    chosen = with_options(GuidedOptions(), options)
    if budget is not None:
        check_count("budget", budget)
    check_count("num_classes", num_classes, 2)
    check_count("seed", chosen.seed, 0)
    images = check_images(images)
    names = check_indices(chosen.indices, len(images))
    reachable_radii(noise, radii, n, check_alpha(alpha))
    device = resolve_device(surrogate, chosen.device)
    calibration = chosen.calibration or Calibration()

    def draw(noisy: torch.Tensor) -> ArrayLike:
        with torch.no_grad(), eval_mode(target):
            return target(noisy)

    def start(position: int) -> GuidedImage:
        own_seed = hash32(f"{chosen.seed}:{names[position]}:guided")
        propose = _proposals(surrogate, images[position].to(device), noise, own_seed)
        guide = Guide(propose, calibration, chosen.free_draws, chosen.pilot, own_seed)
        about = chosen.subject
        return GuidedImage(draw, guide, noise, num_classes, radii=radii, n=n, alpha=alpha, subject=about)

    def finish(position: int, certificate: Certificate) -> None:
        if chosen.on_certificate is not None:
            chosen.on_certificate(names[position], certificate)

    return certify_set(start, len(images), budget, on_certificate=finish, progress=chosen.progress)


def _proposals(
    surrogate: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, noise: NoiseLaw, seed: int
) -> Callable[[int], tuple[torch.Tensor, NDArray]]:
    """Fresh noisy copies of an image (C, H, W), and the surrogate's logits on them."""
    generator = torch.Generator(image.device).manual_seed(seed)

    def propose(count: int) -> tuple[torch.Tensor, NDArray]:
        noisy = noise.perturb(image.expand(count, *image.shape), generator)
        with torch.no_grad(), eval_mode(surrogate):
            # A copy: what a surrogate writes into its input must not reach the target.
            logits = surrogate(noisy.to(input_dtype(surrogate), copy=True))
            return noisy, as_tensor(logits, count).float().cpu().numpy()

    return propose


def certify_set(
    start: Callable[[int], GuidedImage],
    count: int,
    budget: int | None = None,
    *,
    on_certificate: Callable[[int, Certificate], None] | None = None,
    progress: Any = None,
) -> Certificates:
    """Certify the images ``start(0)`` to ``start(count - 1)``, each started once, in order.

    Args:
        start: Called once for each position, in order; with a budget all are started before the first vote.
        count: Number of images.
        budget: Most paid votes of the set; None: decide every image.
        on_certificate: Called as ``on_certificate(position, certificate)`` as images finish.
        progress: Anything with ``update(paid votes)``.
    """
    certificates: dict[int, Certificate] = {}

    def finish(position: int, image: GuidedImage) -> bool:
        certificates[position] = image.certificate()
        if on_certificate is not None:
            on_certificate(position, certificates[position])
        return image.update_calibration()

    def pay(image: GuidedImage, limit: int | None = None) -> int:
        paid = image.pay(limit)
        if progress is not None:
            progress.update(paid)
        return paid

    if budget is None:
        for position in range(count):
            image = start(position)
            while not image.done:
                pay(image)
            finish(position, image)
    else:
        waiting = {position: start(position) for position in range(count)}
        remaining = budget
        while remaining > 0 and (undecided := [p for p, image in waiting.items() if not image.done]):
            position = max(undecided, key=lambda each: waiting[each].chance / waiting[each].cost)
            remaining -= pay(waiting[position], remaining)
            if waiting[position].done and finish(position, waiting.pop(position)):
                for image in waiting.values():
                    if image.test.paid == 0:
                        image.plan()  # by the updated calibration
        for position, image in waiting.items():
            finish(position, image)
    return Certificates(certificates[position] for position in range(count))
