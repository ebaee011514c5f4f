"""Certify with a guide: one image (``certify_votes(..., guide=...)``), or a set of them, with or without a budget.

Decide: every image gets one radius, chosen by the guide before any vote is paid for, and as few paid votes as
decide it. Budgeted: the votes of a whole set are given; they go, look after look, to the image whose claim is
likeliest for what it is expected to cost. Every bet is fixed before the votes that it is about, whichever image
it was paid for, so each certificate has its full alpha. Where the votes contradict the class that the guide named,
the target's own is tested by fresh votes, at a small share of alpha that was kept for it: at most two tests, whose
errors add up to alpha.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.certificate import ABSTAIN, Certificate
from certify.errors import CertifyError, check_alpha, check_count
from certify.guided.bets import MARGIN, GuidedTest, pick_draws
from certify.guided.calibration import Calibration, strata_of
from certify.noise.base import NoiseLaw
from certify.voting.engine import _eval_mode, check_images, check_indices, resolve_device

WORTH = 0.5  # chance of a claim from which a larger radius is preferred
SECOND = 0.05  # of alpha, kept for the class that the target prefers where that is not the guide's
CHOICE = 32  # paid votes that choose the class where the guide's own choice is not trusted
JUDGED = 8  # paid votes from which the guide's choice is judged
CHUNK = 4096  # free draws made at a time


@dataclass
class Guide:
    """Fresh noise draws of one image and what the surrogate says of them.

    ``propose(count)`` returns (inputs, logits): ``count`` noisy inputs, indexable by an integer array, and the
    surrogate's logits (count, num_classes) on them. ``calibration`` is shared by the images of a target;
    ``free_draws`` are made for each paid one (B), ``pilot`` before the first.
    """

    propose: Callable[[int], tuple[Any, ArrayLike]]
    calibration: Calibration = field(default_factory=Calibration)
    free_draws: int = 32
    pilot: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("free_draws", self.free_draws)
        check_count("pilot", self.pilot)


class GuidedImage:
    """One image on its way to a certificate: its guide, its class, its radius, its paid votes."""

    def __init__(
        self,
        draw: Callable[[Any], ArrayLike],
        guide: Guide,
        noise: NoiseLaw,
        num_classes: int,
        *,
        radii: Sequence[float],
        n: int,
        alpha: float,
        subject: str,
    ) -> None:
        self.guide, self.subject = guide, subject
        self._draw, self._noise, self._n, self._alpha = draw, noise, n, alpha
        self._radii = reachable_radii(noise, radii, n, alpha)
        self._random = np.random.default_rng(guide.seed)
        self._votes = np.zeros(num_classes, dtype=np.int64)
        logits = np.asarray(guide.propose(guide.pilot)[1])
        if logits.shape != (guide.pilot, num_classes):
            raise CertifyError(
                f"the guide gave logits of shape {logits.shape} for {guide.pilot} draws, expected "
                f"({guide.pilot}, {num_classes}): check its number of classes"
            )
        self._pilot = logits
        self._selection, self._again = np.zeros(num_classes, dtype=np.int64), False
        self.top = self._named = int(np.bincount(logits.argmax(axis=1), minlength=num_classes).argmax())
        self.plan()

    def plan(self) -> None:
        """Choose the radius by what the guide predicts, anew until the first paid vote: that costs no alpha."""
        strata = strata_of(self._pilot, self.top)
        level = self._alpha * (SECOND if self._again else 1 - SECOND)
        for radius in reversed(self._radii):
            self.radius, p = radius, self._noise.p_required(radius)
            left = self._n - int(self._selection.sum()) if self._again else self._n
            self.test = GuidedTest(p, level, left, self.guide.calibration, strata)
            self.chance, self.cost = self.test.outlook()
            if self.chance >= WORTH:
                break
        self._finish()

    def look(self, limit: int | None = None) -> int:
        """Pay for one look, at most ``limit`` votes; returns how many."""
        if not (self.guide.calibration.trusts_class or self._selection.any() or self.test.paid):
            return self._select(CHOICE if limit is None else min(CHOICE, limit))
        bets = self.test.bets()
        if bets is None:
            self.done = True
            return 0
        size = self.test.look_size(bets)
        size = size if limit is None else min(size, limit)
        each = self.guide.free_draws
        for start in range(0, size, max(1, CHUNK // each)):
            rounds = min(size - start, max(1, CHUNK // each))
            inputs, logits = self.guide.propose(rounds * each)
            strata = strata_of(logits, self.top).reshape(rounds, each)
            picks = pick_draws(strata, bets.tilt, self._random)
            labels = _checked_labels(
                self._draw(inputs[np.arange(rounds) * each + picks]), rounds, len(self._votes)
            )
            self._votes += np.bincount(labels, minlength=len(self._votes))
            self.test.settle(bets, strata, picks, labels == self.top)
        self.chance, self.cost = self.test.outlook()
        self._finish()
        return size

    def _select(self, count: int) -> int:
        """Choose the class by paid votes that the bound does not see: the guide has named it badly before."""
        labels = _checked_labels(self._draw(self.guide.propose(count)[0]), count, len(self._votes))
        self._selection = np.bincount(labels, minlength=len(self._votes))
        self.top = int(self._selection.argmax())
        self.plan()
        return count

    def teach(self) -> bool:
        """Let the calibration learn what was paid for here; returns whether beliefs changed."""
        votes = self._votes + self._selection
        named = bool(votes.argmax() == self._named) if votes.sum() >= JUDGED else None
        return self.guide.calibration.observe(self.test.successes, self.test.trials, named)

    def certificate(self) -> Certificate:
        """What the votes so far prove."""
        claimed = self.test.claimed
        return Certificate(
            prediction=self.top if claimed else ABSTAIN,
            radius=self.radius if claimed else 0.0,
            norm=self._noise.norm,
            p_lower=self.test.p if claimed else 0.0,
            counts=tuple(int(count) for count in self._votes),
            n0=int(self._selection.sum()),
            n=int(self._votes.sum()),
            alpha=self._alpha,
            method="guided",
            noise=self._noise.describe(),
            subject=self.subject,
            sound=self._noise.sound,
            selected=self.top,
        )

    def _finish(self) -> None:
        self.done = self.test.claimed or self.test.paid >= self.test.n or self.chance == 0
        rival, paid = int(self._votes.argmax()), int(self._votes.sum())
        preferred = rival != self.top and paid >= JUDGED and 2 * self._votes[rival] > paid
        if self.done and preferred and not self.test.claimed and not self._again:
            self._try_again(rival)

    def _try_again(self, rival: int) -> None:
        """Test the class that the target prefers, by votes of its own and the share of alpha kept for this."""
        self.guide.calibration.observe(self.test.successes, self.test.trials)
        self._again, self.top = True, rival
        self._selection, self._votes = self._selection + self._votes, np.zeros_like(self._votes)
        self.plan()


def decide(image: GuidedImage) -> Certificate:
    """Pay for votes until the image is decided; ``certify_votes(..., guide=...)`` is the public form."""
    while not image.done:
        image.look()
    image.teach()
    return image.certificate()


def reachable_radii(noise: NoiseLaw, radii: Sequence[float] | None, n: int, alpha: float) -> list[float]:
    """The increasing radii that n unbroken votes could certify; CertifyError if there are none."""
    check_count("n", n)
    alpha = check_alpha(alpha)
    values = np.unique(np.asarray([] if radii is None else radii, dtype=np.float64))
    if len(values) == 0 or not np.all(np.isfinite(values)) or values[0] < 0:
        raise CertifyError(f"a guide needs finite radii >= 0, got {radii!r}: try radii=[0.5]")
    levels = np.array([noise.p_required(radius) for radius in values])
    with np.errstate(divide="ignore"):
        least = (-np.log(alpha * (1 - SECOND)) + MARGIN) / -np.log(np.minimum(levels, 1.0))
    within = values[least <= n]
    if len(within) == 0:
        remedy = f"use n >= {int(np.ceil(least[0]))}" if least[0] < 1e12 else "ask for a smaller radius"
        raise CertifyError(f"n={n} is too small to certify radius {values[0]:g} at alpha={alpha:g}: {remedy}")
    return within.tolist()


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
    calibration: Calibration | None = None,
    subject: str = "target",
    seed: int = 0,
    indices: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    free_draws: int = 32,
    pilot: int = 256,
    on_certificate: Callable[[int, Certificate], None] | None = None,
    progress: Any = None,
) -> list[Certificate]:
    """Certify (N, C, H, W) images in [0, 1] for a paid ``target`` with a free ``surrogate`` as guide, in order.

    ``target``: noisy images (B, C, H, W) float32 -> integer labels (B,); ``surrogate``: the same -> logits
    (B, num_classes). Put the same denoiser in front of both. ``n`` caps the paid votes of an image, ``budget``
    those of the set (None: decide every image). ``radii``: the one that is worth it is tested. ``calibration``
    carries on what earlier images taught, and learns these. Same ``seed`` and ``indices``, same votes: a
    ledger that keeps receipts makes an interrupted run resume for free. ``on_certificate(index, certificate)``
    is called as images finish; ``progress``: anything with ``update(paid votes)``. Raises CertifyError for bad
    arguments before the first vote.
    """
    if budget is not None:
        check_count("budget", budget)
    check_count("num_classes", num_classes, 2)
    check_count("seed", seed, 0)
    images = check_images(images)
    names = check_indices(indices, len(images))
    reachable_radii(noise, radii, n, alpha)
    device = resolve_device(surrogate, device)
    calibration = calibration or Calibration()
    settings = {"radii": radii, "n": n, "alpha": alpha, "subject": subject}

    def start(position: int) -> GuidedImage:
        own = int.from_bytes(hashlib.sha256(f"{seed}:{names[position]}:guided".encode()).digest()[:4], "big")
        generator = torch.Generator(device).manual_seed(own)
        image = images[position].to(device)

        def propose(count: int) -> tuple[torch.Tensor, NDArray]:
            shape = (count, *image.shape)
            noisy = image + noise.sample(shape, generator=generator, device=device)
            with torch.no_grad(), _eval_mode(surrogate):
                return noisy, surrogate(noisy).float().cpu().numpy()

        guide = Guide(propose, calibration, free_draws, pilot, own)
        return GuidedImage(target, guide, noise, num_classes, **settings)

    def finish(position: int, certificate: Certificate) -> None:
        if on_certificate is not None:
            on_certificate(names[position], certificate)

    return certify_set(start, len(images), budget, on_certificate=finish, progress=progress)


def certify_set(
    start: Callable[[int], GuidedImage],
    count: int,
    budget: int | None = None,
    *,
    on_certificate: Callable[[int, Certificate], None] | None = None,
    progress: Any = None,
) -> list[Certificate]:
    """Certify the images ``start(0)`` to ``start(count - 1)``: see ``certify_guided``."""
    certificates: dict[int, Certificate] = {}

    def finish(position: int, image: GuidedImage) -> bool:
        certificates[position] = image.certificate()
        if on_certificate is not None:
            on_certificate(position, certificates[position])
        return image.teach()

    def pay(image: GuidedImage, limit: int | None = None) -> int:
        paid = image.look(limit)
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
        left = budget
        while left > 0 and (hopeful := [p for p, image in waiting.items() if not image.done]):
            position = max(hopeful, key=lambda each: waiting[each].chance / waiting[each].cost)
            left -= pay(waiting[position], left)
            if waiting[position].done and finish(position, waiting.pop(position)):
                for image in waiting.values():
                    if image.test.paid == 0:
                        image.plan()  # by what has just been learned
        for position, image in waiting.items():
            finish(position, image)
    return [certificates[position] for position in range(count)]


def _checked_labels(labels: ArrayLike, count: int, num_classes: int) -> NDArray[np.int64]:
    found = np.asarray(labels)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise CertifyError(
            f"draw must return one integer label for each of {count} inputs, got {found.dtype} of shape "
            f"{found.shape}"
        )
    if found.min() < 0 or found.max() >= num_classes:
        raise CertifyError(f"labels must be in [0, {num_classes}), got {found.min()}..{found.max()}")
    return found.astype(np.int64)
