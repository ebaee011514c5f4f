"""Certify a new version of a model from the old version's answers on the same noise draws.

A certificate of N draws stands on one number: how many of them the new version answers with the class. It need not be
asked on all of them. The old version's answers are the guide to a sample, and the sample shows that at least k of the
N are answered so (an audit of a count, as of an election); then Clopper and Pearson's bound of k successes in N holds as if
all had been asked.

    alpha   =   DRAWS alpha                        +   (1 - DRAWS) alpha
                the N draws mislead                    the sample misleads
                (binomial: k of N)                     (betting: share >= k / N, certify/guided/bets.py)

The sample. A round takes B of the N draws at random, picks one by what the old version answered, and asks the new version
on it. Given the draws, the share that the new version answers with the class is a fixed number, and the bets of
``bets.py`` are fair for it *whatever the old answers are*: wrong, of another model, or written by an adversary who knows
the draws and the new version, but not the picks. Nothing is inferred from the old version's own certificate.

The class may be chosen on these very draws. Let g(p) = P(Binomial(N, p) >= k), with k so large that g(p_0) <= a p_0.
g is convex on [0, p_0] and g(0) = 0, so g(p) <= (p / p_0) g(p_0) <= a p there, and over all classes with p_c <= p_0

    P(some class with p_c <= p_0 has k votes of N) <= sum_c g(p_c) <= a sum_c p_c <= a.

So one share of alpha pays for every class, and for every radius, at once. What it needs: the new version is fixed before
the draws are used, that is, it was not trained or chosen on them.

Incremental randomized smoothing (Ugare et al. 2024, arXiv 2305.19521) bounds p_new >= p_old - zeta, zeta the probability
that the two versions answer differently: ``certify.bounds.incremental``. That pays for p_old and zeta apart, counts
answers that changed *to* the class as losses too, and trusts that the recorded counts are the old version's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.bounds.binomial import required_successes
from certify.certificate import Certificate, Certificates
from certify.errors import CertifyError, check_alpha, check_count, with_options
from certify.guided.answers import OldAnswers, Redrawn, asked
from certify.guided.calibration import Calibration
from certify.guided.certify import GuidedOptions, certify_guided, certify_set
from certify.guided.image import Guide, GuidedImage, reachable_radii
from certify.noise.base import FloatArray, NoiseLaw, Shape
from certify.noise.description import same_draws
from certify.voting.base_classifier import eval_mode
from certify.voting.checks import check_images, check_indices, check_labels, resolve_device
from certify.voting.chunks import hash32
from certify.voting.tally import as_tensor

METHOD = "from_old"
DRAWS = 0.15  # of alpha: that the N draws mislead
CONFIDENCE = 1.5  # log-odds of a class that the old version names; the calibration learns what it is worth


@dataclass(frozen=True)
class Audited(NoiseLaw):
    """A law whose radii are claimed for a share of ``draws`` recorded draws, in the place of a probability.

    ``p_required`` is (k - 1) / N, k the successes of N that certify the radius for every class at once: who has more
    has k.
    """

    law: NoiseLaw
    draws: int
    alpha: float

    def required(self, p: float) -> int | None:
        """Successes among the draws that prove probability ``p``, whichever the class; None if all are too few."""
        return _required(p, self.draws, self.alpha)

    def compute_radius(self, p: FloatArray) -> FloatArray:
        return self.law.compute_radius(p)

    def compute_p_required(self, r: FloatArray) -> FloatArray:
        return np.array([self._share(radius) for radius in r.ravel()]).reshape(r.shape)

    def p_required(self, radius: ArrayLike) -> Any:
        """As of a law: a float for a scalar, else an array; inf where the draws are too few."""
        shares = np.array([self._share(float(each)) for each in np.ravel(radius)])
        return float(shares[0]) if np.ndim(radius) == 0 else shares.reshape(np.shape(radius))

    def _share(self, radius: float) -> float:
        k = self.required(self.law.p_required(radius))
        return np.inf if k is None else (k - 1) / self.draws

    def describe(self) -> dict[str, Any]:
        return self.law.describe()

    def draw(
        self, shape: Shape, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        return self.law.draw(shape, generator, device, dtype)

    @property
    def sound(self) -> bool:
        """Whether the radius of the law is proven."""
        return self.law.sound

    @property
    def norm(self) -> str:  # type: ignore[override]
        """Of the radius."""
        return self.law.norm


class RecordedDraws:
    """Proposes draws of one image for a guide: first all N in order, then some at random, with the old answers.

    Args:
        labels: Old answers (N,).
        num_classes: K.
        random: Of the picks.
    """

    def __init__(self, labels: NDArray[np.int64], num_classes: int, random: np.random.Generator) -> None:
        self._labels, self._random, self._all = labels, random, True
        self._logits = named_class(num_classes)

    def __call__(self, count: int) -> tuple[NDArray[np.int64], FloatArray]:
        which = np.arange(count) if self._all else self._random.integers(0, len(self._labels), count)
        self._all = False
        return which, self._logits[self._labels[which]]


class Remembered:
    """The new version's votes on recorded draws: each draw is asked once.

    Args:
        ask: Labels (B,) of draws (B,), all different.
        draws: N.
        num_classes: K.
    """

    def __init__(self, ask: Callable[[NDArray[np.int64]], ArrayLike], draws: int, num_classes: int) -> None:
        self._ask, self._num_classes, self._known = ask, num_classes, np.full(draws, -1, dtype=np.int64)

    def __call__(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        fresh = np.unique(which[self._known[which] < 0])
        if len(fresh):
            self._known[fresh] = check_labels(self._ask(fresh), len(fresh), self._num_classes)
        return self._known[which]


def audited_image(
    ask: Callable[[NDArray[np.int64]], ArrayLike],
    old: NDArray[np.int64],
    noise: NoiseLaw,
    num_classes: int,
    *,
    radii: Sequence[float],
    n: int,
    alpha: float,
    calibration: Calibration | None = None,
    free_draws: int = 32,
    seed: int = 0,
    subject: str = "target",
) -> GuidedImage:
    """One image on its way to a certificate, from the old answers on its N draws: the votes-level call.

    Args:
        ask: The new version's labels (B,) on draws (B,), numbers below N that are all different.
        old: Old answers (N,).
        noise: The law of the draws.
        num_classes, radii, n, alpha, subject: As in ``certify_votes_guided``.
        calibration, free_draws, seed: As in ``Guide``.
    """
    law = Audited(noise, len(old), check_alpha(alpha) * DRAWS)
    propose = RecordedDraws(old, num_classes, np.random.default_rng([seed, 1]))
    guide = Guide(propose, calibration or Calibration(), free_draws, len(old), seed)
    draw = Remembered(ask, len(old), num_classes)
    level = alpha * (1 - DRAWS)
    return GuidedImage(draw, guide, law, num_classes, radii=radii, n=n, alpha=level, subject=subject)


def audited_certificate(certificate: Certificate, noise: NoiseLaw, alpha: float) -> Certificate:
    """What the certificate of an ``audited_image`` says of the law itself, at the whole of alpha."""
    p_lower = 0.0 if certificate.abstained else float(noise.p_required(certificate.radius))
    return replace(certificate, p_lower=p_lower, alpha=alpha, method=METHOD)


def certify_from_old(
    new: Callable[[torch.Tensor], Any],
    old: OldAnswers | Callable[[torch.Tensor], Any],
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
    """Certify a new version by few paid votes, with an old version's answers on the same draws as guide.

    Sound whatever the old version is, if the new one was not trained or chosen on these draws.

    Args:
        new: Noisy images (B, C, H, W) -> scores (B, num_classes) or labels (B,); paid.
        old: Its recorded answers (``record_answers``); or the old version itself, where it is free: scores (logits)
            or labels on fresh draws, as a surrogate of ``certify_guided``.
        images: (N, C, H, W) in [0, 1]: those of the answers, in their order, or some of them by ``indices``.
        noise: The law of the answers.
        num_classes: K.
        radii: One of them is tested, chosen by the old answers before the first paid vote.
        n: Most votes of an image. A draw that is picked again is not paid again.
        alpha, budget: As in ``certify_guided``.
        options: Fields of ``GuidedOptions``; ``seed`` is that of the picks. ``pilot`` is the number of recorded draws.

    Raises:
        CertifyError: Bad arguments, or answers on other images, another law or another kind of device; before the
            first vote.
    """
    check_count("num_classes", num_classes, 2)

    def vote(noisy: torch.Tensor) -> NDArray[np.int64]:
        with torch.no_grad(), eval_mode(new):
            return asked(new, noisy, num_classes)

    if not isinstance(old, OldAnswers):
        guide = Named(old, num_classes)
        shared: dict[str, Any] = {"radii": radii, "n": n, "alpha": alpha, "budget": budget}
        return certify_guided(vote, guide, images, noise, num_classes, **shared, **options)
    chosen = with_options(GuidedOptions(), options)
    if budget is not None:
        check_count("budget", budget)
    check_count("seed", chosen.seed, 0)
    images = check_images(images)
    names = check_indices(chosen.indices if chosen.indices is not None else old.indices, len(images))
    device = resolve_device(new, chosen.device)
    rows = _rows(old, names, noise, num_classes, device)
    check_reach(noise, radii, n, alpha, old.labels.shape[1])
    calibration, redrawn = chosen.calibration or Calibration(), Redrawn(old, noise)

    def start(position: int) -> GuidedImage:
        row, image = rows[position], images[position].to(device)

        return audited_image(
            lambda which: vote(redrawn(row, which, image)),
            old.labels[row],
            noise,
            num_classes,
            radii=radii,
            n=n,
            alpha=alpha,
            calibration=calibration,
            free_draws=chosen.free_draws,
            seed=hash32(f"{chosen.seed}:{names[position]}:{METHOD}"),
            subject=chosen.subject,
        )

    def finish(position: int, certificate: Certificate) -> None:
        if chosen.on_certificate is not None:
            chosen.on_certificate(names[position], audited_certificate(certificate, noise, alpha))

    found = certify_set(start, len(images), budget, on_certificate=finish, progress=chosen.progress)
    return Certificates(audited_certificate(each, noise, alpha) for each in found)


def check_reach(noise: NoiseLaw, radii: Sequence[float], n: int, alpha: float, draws: int) -> None:
    """Raise CertifyError unless n votes, and the recorded draws, could certify the smallest of the radii."""
    smallest = reachable_radii(noise, radii, n, check_alpha(alpha))[0]
    if not np.isfinite(Audited(noise, draws, alpha * DRAWS).p_required(smallest)):
        raise CertifyError(
            f"{draws} recorded draws are too few to certify radius {smallest:g} at alpha={alpha:g}: record more "
            "answers of the old version, or choose a smaller radius"
        )


def named_class(num_classes: int) -> FloatArray:
    """Logits (K, K) of an answer that names a class and nothing else."""
    return np.eye(num_classes) * (CONFIDENCE + np.log(max(1, num_classes - 1)))


class Named:
    """An old version as guide: its scores as they are, its labels as scores.

    Args:
        old: Noisy images -> scores (B, K) or labels (B,).
        num_classes: K.
    """

    def __init__(self, old: Callable[[torch.Tensor], Any], num_classes: int) -> None:
        self._old, self._logits = old, torch.from_numpy(named_class(num_classes))

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        answers = as_tensor(self._old(noisy), len(noisy), len(self._logits))
        if answers.ndim != 1:
            return answers
        labels = check_labels(answers.cpu().numpy(), len(noisy), len(self._logits))
        return self._logits[torch.from_numpy(labels)]


@lru_cache(maxsize=256)
def _required(p: float, draws: int, alpha: float) -> int | None:
    k = required_successes(p, draws, alpha * p) if 0 < p < 1 else None
    if k is None:
        return None
    k = max(k, int(np.ceil(draws * p)) + 1)  # where g is convex up to p
    return k if k <= draws else None


def _rows(
    old: OldAnswers, names: list[int], noise: NoiseLaw, num_classes: int, device: torch.device
) -> list[int]:
    """Where the answers to these images are, or CertifyError."""
    if num_classes != old.num_classes:
        raise CertifyError(
            f"num_classes is {num_classes}, but the old answers have {old.num_classes} classes: a version with other "
            "classes is certified from scratch"
        )
    if not same_draws(old.noise, noise):
        raise CertifyError(f"the old answers were drawn under {old.noise}, got {noise!r}: give that law")
    if device.type != old.device:
        raise CertifyError(f"the old answers were drawn on {old.device}, not on {device.type}: pass device=")
    known = {name: row for row, name in enumerate(old.indices)}
    missing = [name for name in names if name not in known]
    if missing:
        raise CertifyError(f"image {missing[0]} has no old answers: pass indices= of those that have")
    return [known[name] for name in names]
