"""What a surrogate's confidence says about the target's votes, estimated from image to image.

A noise draw belongs to the stratum of the surrogate's log-odds of the class, cut at fixed places, so that an
estimate from one image holds for the next. Within an image the target's rate of that class follows a curve,

    rate_k = sigmoid(slope * curve_k + shift)        k = 1..K strata,

whose ``shift`` is the image's own. The curve and the distribution of (slope, shift) over images are estimated by
expectation-maximization from the votes paid so far (empirical Bayes). Slope 0 ignores the guide: a useless guide
is detected, and then costs little. Nothing here can make a certificate wrong: it only chooses the bets.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp

from certify.errors import CertifyError
from certify.noise.base import FloatArray

CUTS = np.arange(-4.0, 8.5, 0.5)  # of the log-odds
STRATA = len(CUTS) + 1
MIDDLES = np.concatenate([CUTS[:1] - 0.25, CUTS + 0.25])
SLOPES = np.array([0.0, 0.6, 1.0, 1.6])
SHIFTS = np.linspace(-14, 14, 113)
RATE = 1e-6  # no belief is surer than this
# Before any image: a curve twice as steep as the surrogate's own, and shares of the slopes.
STEEPNESS, SHARES = 2.0, np.array([0.35, 0.15, 0.4, 0.1])
WIDTHS = np.array([5.0, 3.0, 3.0, 3.0])  # standard deviations of the shift, by slope
PRIOR_IMAGES = 3.0  # how many images the prior is worth
SMOOTHING = np.array([0.1, 0.2, 0.4, 0.2, 0.1])  # of the estimated distribution, over neighboring shifts
RIDGE = 0.02  # pull of the curve towards the prior's, beside the pull towards a straight line
TRUST = (9, 1)  # prior images whose class the guide predicted, and did not
RELIABLE = 0.8  # share of predicted classes from which the guide's choice is trusted
NEGLIGIBLE = 1e-7  # beliefs below this weight are left out


def strata_of(logits: ArrayLike, top: int) -> NDArray[np.int64]:
    """Stratum (N,) of each draw from the surrogate's logits (N, num_classes); class ``top``.

    Raises:
        CertifyError: The logits hold a NaN or have another shape.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or not 0 <= top < scores.shape[1]:
        raise CertifyError(
            f"a guide must give logits (count, num_classes), got shape {scores.shape}: check it"
        )
    with np.errstate(invalid="ignore"):
        odds = scores[:, top] - logsumexp(np.delete(scores, top, axis=1), axis=1)
    if np.isnan(odds).any():
        raise CertifyError(
            "a guide gave logits that are NaN, or infinite for several classes: they name no class, check it"
        )
    return np.searchsorted(CUTS, odds)


class Calibration:
    """Beliefs about the rates of an image's strata, before its first vote: ``rates`` (J, K), ``prior`` (J,).

    Share one between the images of a target; ``observe`` updates it by the votes of an image that is done.
    """

    def __init__(self) -> None:
        self._slope = np.repeat(SLOPES, len(SHIFTS))[:, None]
        self._shift = np.tile(SHIFTS, len(SLOPES))[:, None]
        bell = np.exp(-0.5 * (SHIFTS / WIDTHS[:, None]) ** 2)
        self._before = (SHARES[:, None] * bell / bell.sum(axis=1, keepdims=True)).ravel()
        self._line = STEEPNESS * MIDDLES
        self._curve, self._weights = self._line.copy(), self._before.copy()
        self._successes: list[FloatArray] = []
        self._trials: list[FloatArray] = []
        self._judged = self._right = 0
        self._refresh()

    @property
    def trusts_class(self) -> bool:
        """Whether the guide predicts the target's class so often that no vote is paid for choosing it."""
        return (self._right + TRUST[0]) / (self._judged + sum(TRUST)) >= RELIABLE

    def observe(self, successes: ArrayLike, trials: ArrayLike, predicted: bool | None = None) -> bool:
        """Update by the votes of an image; returns whether beliefs changed.

        Args:
            successes: Votes for the class (K,), by stratum.
            trials: Paid votes (K,), by stratum.
            predicted: Whether the class that the guide predicted won most of the votes; None if there were too few.
        """
        if predicted is not None:
            self._judged, self._right = self._judged + 1, self._right + predicted
        if not np.any(trials):
            return False
        self._successes.append(np.asarray(successes, dtype=np.float64))
        self._trials.append(np.asarray(trials, dtype=np.float64))
        images = len(self._trials)
        if images not in (3, 6) and images % 10:
            return False
        for _ in range(4):
            self._fit(np.stack(self._successes), np.stack(self._trials))
        self._refresh()
        return True

    def _refresh(self) -> None:
        kept = self._weights > NEGLIGIBLE
        self.rates = np.clip(self._table()[kept], RATE, 1 - RATE)
        self.prior = self._weights[kept] / self._weights[kept].sum()

    def _table(self) -> FloatArray:
        return expit(self._slope * self._curve + self._shift)

    def _fit(self, successes: FloatArray, trials: FloatArray) -> None:
        """One step of expectation-maximization."""
        rates = np.clip(self._table(), RATE, 1 - RATE)
        log_posterior = (
            successes @ np.log(rates).T
            + (trials - successes) @ np.log1p(-rates).T
            + np.log(np.maximum(self._weights, 1e-300))
        )
        posterior = np.exp(log_posterior - logsumexp(log_posterior, axis=1, keepdims=True))

        images = np.pad(posterior.sum(axis=0).reshape(len(SLOPES), -1), ((0, 0), (2, 2)), mode="edge")
        smooth = np.stack([np.convolve(row, SMOOTHING, mode="valid") for row in images]).ravel()
        weights = smooth * (len(trials) / smooth.sum()) + PRIOR_IMAGES * self._before
        self._weights = weights / weights.sum()

        expected, won = posterior.T @ trials, posterior.T @ successes
        bend = np.diff(np.eye(STRATA), n=2, axis=0)
        stiffness = 2 * bend.T @ bend + RIDGE * np.eye(STRATA)
        for _ in range(2):  # Newton steps on the curve
            rates = self._table()
            gradient = (self._slope * (won - expected * rates)).sum(axis=0)
            gradient -= stiffness @ (self._curve - self._line)
            curvature = (self._slope**2 * expected * rates * (1 - rates)).sum(axis=0)
            step = np.linalg.solve(np.diag(curvature) + stiffness, gradient)
            self._curve = self._curve + np.clip(step, -1.5, 1.5)
