"""Certify one image with a surrogate as guide.

The image gets one radius, chosen by the guide before any vote is paid for, and as few paid votes as decide it.
Every bet is fixed before the votes that it is about, so the certificate has its full alpha. Where the votes
contradict the class that the guide predicted, the target's own is tested by fresh votes, at a small share of
alpha that was kept for it: at most two tests, whose errors add up to alpha.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from certify.certificate import Certificate
from certify.errors import CertifyError, check_alpha, check_count
from certify.guided.bets import MARGIN, Bets, GuidedTest, pick_draws
from certify.guided.calibration import Calibration, strata_of
from certify.noise.base import NoiseLaw
from certify.voting.checks import check_labels

WORTH = 0.5  # chance of a claim from which a larger radius is preferred
SECOND = 0.05  # of alpha, kept for the class that the target prefers where that is not the guide's
CHOICE = 32  # paid votes that choose the class where the guide's own choice is not trusted
JUDGED = 8  # paid votes from which the guide's choice is judged
CHUNK = 4096  # free draws at a time


@dataclass
class Guide:
    """Fresh noise draws of one image and the surrogate's logits on them.

    Attributes:
        propose: ``propose(count)`` returns (inputs, logits): ``count`` noisy inputs, indexable by an integer
            array, and the surrogate's logits (count, num_classes) on them.
        calibration: Shared by the images of a target.
        free_draws: Draws for each paid one (B).
        pilot: Draws before the first paid one.
        seed: Of the picks.
    """

    propose: Callable[[int], tuple[Any, ArrayLike]]
    calibration: Calibration = field(default_factory=Calibration)
    free_draws: int = 32
    pilot: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("free_draws", self.free_draws)
        check_count("pilot", self.pilot)


def certify_votes_guided(
    draw: Callable[[Any], ArrayLike],
    guide: Guide,
    noise: NoiseLaw,
    num_classes: int,
    *,
    radii: Sequence[float],
    n: int = 100_000,
    alpha: float = 0.001,
    subject: str = "callable",
) -> Certificate:
    """Certify one image from paid votes, with a surrogate whose answers are free as guide.

    Args:
        draw: ``draw(inputs)`` returns an integer label for each of these inputs, which the guide proposed.
        guide: Predicts the class (no n0) and the votes.
        noise: The law that the guide draws from.
        radii: One of them is tested, chosen before the first paid vote.
        n: Most paid votes, those that choose the class included.
        num_classes, alpha, subject: As in ``certify_votes``.

    Raises:
        CertifyError: Bad arguments (before the first draw), or bad labels or logits.
    """
    check_count("num_classes", num_classes, 2)
    image = GuidedImage(draw, guide, noise, num_classes, radii=radii, n=n, alpha=alpha, subject=subject)
    while not image.done:
        image.pay()
    image.update_calibration()
    return image.certificate()


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
        self._draw, self._noise, self._n, self._alpha = draw, noise, n, check_alpha(alpha)
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
        self._spare = n - int(votes_needed(noise.p_required(self._radii[0]), self._alpha))
        self.top = self._predicted = int(np.bincount(logits.argmax(axis=1), minlength=num_classes).argmax())
        self.plan()

    def plan(self) -> None:
        """Choose the radius by what the guide predicts, anew until the first paid vote: that costs no alpha."""
        strata = strata_of(self._pilot, self.top)
        level = self._alpha * (SECOND if self._again else 1 - SECOND)
        remaining = self._n - int(self._selection.sum())
        for radius in reversed(self._radii):
            p = self._noise.p_required(radius)
            self.radius = radius
            self.test = GuidedTest(p, level, remaining, self.guide.calibration, strata)
            self.chance, self.cost = self.test.outlook()
            if self.chance >= WORTH:
                break
        self._finish()

    def pay(self, limit: int | None = None) -> int:
        """Pay for one batch of votes, at most ``limit``; returns how many."""
        choice = min(CHOICE, self._spare // 2)  # leaves enough of n to certify the class
        if choice and not (self.guide.calibration.trusts_class or self._selection.any() or self.test.paid):
            return self._select(choice if limit is None else min(choice, limit))
        bets = self.test.bets()
        if bets is None:
            self.done = True
            return 0
        size = self.test.batch_size(bets)
        paid = size if limit is None else min(size, limit)
        at_once = max(1, CHUNK // self.guide.free_draws)
        for start in range(0, paid, at_once):
            self._play(bets, min(size - start, at_once), min(paid - start, at_once))
        self.chance, self.cost = self.test.outlook()
        self._finish()
        return paid

    def _play(self, bets: Bets, rounds: int, paid: int) -> None:
        """Pay for a vote in the first ``paid`` of ``rounds``: free draws, a pick, its label, the bets.

        All rounds are drawn, so that a larger limit begins with the same votes.
        """
        each = self.guide.free_draws
        inputs, logits = self.guide.propose(rounds * each)
        strata = strata_of(logits, self.top).reshape(rounds, each)
        picks = pick_draws(strata, bets.tilt, self._random)[:paid]
        strata = strata[:paid]
        answers = self._draw(inputs[np.arange(paid) * each + picks])
        labels = check_labels(answers, paid, len(self._votes))
        self._votes += np.bincount(labels, minlength=len(self._votes))
        self.test.settle(bets, strata, picks, labels == self.top)

    def _select(self, count: int) -> int:
        """Choose the class by paid votes that the bound does not see: the guide has predicted it badly before."""
        inputs = self.guide.propose(CHOICE)[0][np.arange(count)]  # a larger limit begins with the same votes
        labels = check_labels(self._draw(inputs), count, len(self._votes))
        self._selection = np.bincount(labels, minlength=len(self._votes))
        self.top = int(self._selection.argmax())
        self.plan()
        return count

    def update_calibration(self) -> bool:
        """Update the calibration by the votes of this image; returns whether beliefs changed."""
        votes = self._votes + self._selection
        predicted = bool(votes.argmax() == self._predicted) if votes.sum() >= JUDGED else None
        return self.guide.calibration.observe(self.test.successes, self.test.trials, predicted)

    def certificate(self) -> Certificate:
        """What the votes so far prove."""
        claimed = self.test.claimed
        return Certificate.of(
            self.top,
            self.radius if claimed else None,
            self.test.p if claimed else 0.0,
            self._selection,
            self._votes,
            self._noise,
            alpha=self._alpha,
            method="guided",
            subject=self.subject,
        )

    def _finish(self) -> None:
        self.done = self.test.claimed or self.test.paid >= self.test.n or self.chance == 0
        rival, paid = int(self._votes.argmax()), int(self._votes.sum())
        preferred = rival != self.top and paid >= JUDGED and 2 * self._votes[rival] > paid
        if self.done and preferred and not self.test.claimed and not self._again:
            self._test_again(rival)

    def _test_again(self, rival: int) -> None:
        """Test the class that the target prefers, by votes of its own and the share of alpha kept for this."""
        self.guide.calibration.observe(self.test.successes, self.test.trials)
        self._again, self.top = True, rival
        self._selection, self._votes = self._selection + self._votes, np.zeros_like(self._votes)
        self.plan()


def reachable_radii(noise: NoiseLaw, radii: Sequence[float] | None, n: int, alpha: float) -> list[float]:
    """The increasing radii that n unbroken votes could certify.

    Raises:
        CertifyError: There are none, or a radius is negative or not finite.
    """
    check_count("n", n)
    alpha = check_alpha(alpha)
    values = np.unique(np.asarray([] if radii is None else radii, dtype=np.float64))
    if len(values) == 0 or not np.all(np.isfinite(values)) or values[0] < 0:
        raise CertifyError(f"a guide needs finite radii >= 0, got {radii!r}: try radii=[0.5]")
    least = np.array([votes_needed(noise.p_required(radius), alpha) for radius in values])
    within = values[least <= n]
    if len(within) == 0:
        remedy = f"use n >= {least[0]:.0f}" if least[0] < 1e12 else "choose a smaller radius"
        raise CertifyError(f"n={n} is too small to certify radius {values[0]:g} at alpha={alpha:g}: {remedy}")
    return within.tolist()


def votes_needed(p: float, alpha: float) -> float:
    """Unbroken votes that claim a probability above p at the first test's share of alpha; inf where none do."""
    if p >= 1:
        return np.inf
    return float(np.ceil((-np.log(alpha * (1 - SECOND)) + MARGIN) / -np.log(p)))
