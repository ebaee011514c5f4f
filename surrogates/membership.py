"""Membership inference: do a model's answers reveal which images it was trained on?

Every attack gives each candidate image a score that is higher for likely members, from one signal: the
logit-scaled confidence of the true label, log p_y - log(1 - p_y).

loss  the confidence itself, as a threshold on the loss (Yeom et al., CSF 2018)
rmia  the confidence against that of reference models, compared with images of the population: the offline
      RMIA (Zarifzadeh, Liu & Shokri, ICML 2024)
lira  the signal against a normal law fitted to that of reference models: the offline LiRA with one variance
      for all images (Carlini et al., IEEE S&P 2022)

Offline: the references are trained by the attacker on images of the same kind, none of them a candidate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surrogates.errors import SurrogateError
from surrogates.intervals import auc_difference_interval, auc_interval, clopper_pearson
from surrogates.targets import Target, check_images

ATTACKS = ("loss", "rmia", "lira")
CANDIDATES = ("members", "nonmembers")
FALSE_POSITIVE_RATES = (0.01, 0.001)
FLOOR = 1e-30  # of a probability: below every float32 softmax that is not 0

Scores = NDArray[np.float64]
Labeled = tuple[Any, Any]  # images (N, C, H, W) float32 in [0, 1] and labels (N,)
Model = Callable[[torch.Tensor], Any] | Target


@dataclass(frozen=True)
class Rate:
    """True positive rate at the threshold that at most `fpr` of the non-members pass.

    Args:
        fpr: False positive rate that is allowed.
        tpr: Share of members that pass the threshold.
        lower: Of its Clopper-Pearson interval over members, for this threshold.
        upper: Of the same.
        attained: Share of non-members that pass the threshold; 0 where there are fewer than 1 / fpr of them.
    """

    fpr: float
    tpr: float
    lower: float
    upper: float
    attained: float


@dataclass(frozen=True, eq=False)
class Membership:
    """How well an attack separates members from non-members.

    Args:
        attack: Its name.
        auc: Area under the ROC curve; 0.5 is a coin.
        lower: Of its DeLong interval.
        upper: Of the same.
        rates: True positive rates at low false positive rates.
        member_scores: (M,), higher for likely members.
        nonmember_scores: (N,).
    """

    attack: str
    auc: float
    lower: float
    upper: float
    rates: tuple[Rate, ...]
    member_scores: Scores
    nonmember_scores: Scores

    def roc(self) -> tuple[Scores, Scores]:
        """Return false and true positive rates, rising from (0, 0) to (1, 1), one point a threshold."""
        thresholds = np.unique(np.concatenate([self.member_scores, self.nonmember_scores]))[::-1]
        rates = [
            np.searchsorted(np.sort(-scores), -thresholds, side="right") / len(scores)
            for scores in (self.nonmember_scores, self.member_scores)
        ]
        return np.insert(rates[0], 0, 0.0), np.insert(rates[1], 0, 0.0)


class MembershipAudit:
    """The same candidates, references and attacks for every model that is audited.

    A model is a Target, or a callable from images (B, C, H, W) to probabilities (B, K). Without references only "loss"
    is run.

    Args:
        members: Images (N, C, H, W) float32 in [0, 1] and their labels (N,).
        nonmembers: The same.
        references: Models that were trained on none of them.
        population: Further images and labels, for RMIA.
        a: How much more confident a reference would be, had it been trained on the image: p = ((1 + a) p_out + 1 - a) / 2.
        gamma: RMIA's threshold on the likelihood ratio.
        batch_size: Images a query.
        confidence: Of the intervals.

    Raises:
        SurrogateError: A value out of its range, or images and labels that do not fit each other.
    """

    def __init__(
        self,
        members: Labeled,
        nonmembers: Labeled,
        *,
        references: Sequence[Model] = (),
        population: Labeled | None = None,
        a: float = 0.3,
        gamma: float = 1.0,
        batch_size: int = 512,
        confidence: float = 0.95,
    ) -> None:
        if not 0 <= a <= 1:
            raise SurrogateError(f"a must be in [0, 1], got {a!r}: try 0.3")
        if not gamma > 0:
            raise SurrogateError(f"gamma must be positive, got {gamma!r}: try 1")
        if not 0 < confidence < 1:
            raise SurrogateError(f"confidence must be in (0, 1), got {confidence!r}: try 0.95")
        self.a, self.gamma, self.batch_size, self.confidence = a, gamma, batch_size, confidence
        self._groups = {
            "members": _labeled("members", members),
            "nonmembers": _labeled("nonmembers", nonmembers),
        }
        if references and population is not None:
            self._groups["population"] = _labeled("population", population)
        self._references = [self._signals(reference) for reference in references]

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that the given references and population allow."""
        allowed = {"loss": True, "rmia": "population" in self._groups, "lira": len(self._references) > 1}
        return tuple(attack for attack in ATTACKS if allowed[attack])

    def __call__(self, model: Model) -> dict[str, Membership]:
        """Attack a model with every attack that is possible; each image is queried once."""
        own = self._signals(model)
        tail = (1 - self.confidence) / 2
        return {attack: evaluate(attack, *self._scores(attack, own), tail) for attack in self.attacks}

    def _signals(self, model: Model) -> dict[str, Scores]:
        return {
            name: label_logits(model, images, labels, self.batch_size)
            for name, (images, labels) in self._groups.items()
        }

    def _scores(self, attack: str, own: dict[str, Scores]) -> tuple[Scores, Scores]:
        out = {
            name: np.stack([signals[name] for signals in self._references])
            for name in own
            if self._references
        }
        if attack == "loss":
            return own["members"], own["nonmembers"]
        if attack == "rmia":
            ratio = {name: rmia_ratio(own[name], out[name], self.a) for name in own}
            members, nonmembers = (
                rmia_score(ratio[name], ratio["population"], self.gamma) for name in CANDIDATES
            )
            return members, nonmembers
        spread = _pooled_deviation(np.concatenate([out[name] for name in CANDIDATES], axis=1))
        members, nonmembers = ((own[name] - out[name].mean(axis=0)) / spread for name in CANDIDATES)
        return members, nonmembers


def evaluate(attack: str, members: Scores, nonmembers: Scores, tail: float = 0.025) -> Membership:
    """AUC and true positive rates of scores (M,) and (N,), with intervals that miss `tail` on each side."""
    auc, lower, upper = auc_interval(members, nonmembers, tail)
    rates = tuple(_rate(members, nonmembers, fpr, tail) for fpr in FALSE_POSITIVE_RATES)
    return Membership(attack, auc, lower, upper, rates, members, nonmembers)


def auc_difference(
    first: Membership, second: Membership, confidence: float = 0.95
) -> tuple[float, float, float]:
    """AUC of one model minus that of another under the same attack and candidates: (difference, lower, upper).

    Raises:
        SurrogateError: The candidates differ in number.
    """
    sizes = [(len(each.member_scores), len(each.nonmember_scores)) for each in (first, second)]
    if sizes[0] != sizes[1]:
        raise SurrogateError(f"candidates differ, {sizes[0]} and {sizes[1]}: compare results of one audit")
    pairs = [(each.member_scores, each.nonmember_scores) for each in (first, second)]
    return auc_difference_interval(pairs[0], pairs[1], (1 - confidence) / 2)


# --- the attacks --------------------------------------------------------------------------------------------


def rmia_ratio(own: Scores, out: Scores, a: float) -> Scores:
    """p(x | model) / p(x) for signals (N,) of the model and (R, N) of references that did not see x."""
    from scipy.special import expit

    return expit(own) / (((1 + a) * expit(out).mean(axis=0) + 1 - a) / 2)


def rmia_score(ratio: Scores, population: Scores, gamma: float) -> Scores:
    """Share of the population (Z,) that each ratio (N,) beats by the factor gamma."""
    return np.searchsorted(np.sort(population), ratio / gamma, side="right") / len(population)


def _pooled_deviation(signals: Scores) -> float:
    """One standard deviation for all images of signals (R, N): few references can't give each its own."""
    variance = signals.var(axis=0, ddof=1).mean()
    return float(np.sqrt(variance)) or 1.0


def _rate(members: Scores, nonmembers: Scores, fpr: float, tail: float) -> Rate:
    allowed = int(np.floor(fpr * len(nonmembers) + 1e-9))
    threshold = np.sort(nonmembers)[::-1][allowed]  # only what lies above it passes: ties do not
    passed = int((members > threshold).sum())
    lower, upper = clopper_pearson(passed, len(members), tail)
    return Rate(fpr, passed / len(members), lower, upper, float((nonmembers > threshold).mean()))


# --- the signal ---------------------------------------------------------------------------------------------


def label_logits(model: Model, images: Any, labels: Any, batch_size: int = 512) -> Scores:
    """log p_y - log(1 - p_y) (N,) float64 of the true labels; 1 - p_y is summed over the other classes.

    Raises:
        SurrogateError: The model answers no probabilities of every class.
    """
    pixels, classes = _labeled("images", (images, labels))
    logits = []
    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        logs = _log_probabilities(model, pixels[part])
        if classes[part].max() >= logs.shape[1]:
            raise SurrogateError(
                f"label {classes[part].max()} is none of the model's {logs.shape[1]} classes"
            )
        rows = np.arange(len(logs))
        own = logs[rows, classes[part]]
        logs[rows, classes[part]] = -np.inf
        logits.append(own - np.logaddexp.reduce(logs, axis=1))
    return np.concatenate(logits)


def _log_probabilities(model: Model, pixels: np.ndarray) -> Scores:
    """(N, K) float64, at least log FLOOR; a target that answers labels alone is sure of each."""
    if isinstance(model, Target):
        answers = model.query(pixels)
        if answers.scores is None:
            values = np.eye(model.num_classes)[answers.labels]
        elif model.output_kind == "logits":
            values = _softmax(answers.scores.astype(np.float64))
        else:
            values = answers.scores.astype(np.float64)
    else:
        with torch.inference_mode():
            raw = model(torch.from_numpy(pixels).clone())  # every model sees the same images
        values = np.asarray(raw.cpu() if isinstance(raw, torch.Tensor) else raw, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(pixels):
        raise SurrogateError(f"the model answered shape {values.shape}, expected ({len(pixels)}, classes)")
    sums = values.sum(axis=1)
    if not (np.all(values > -1e-3) and np.all(np.abs(sums - 1) < 1e-2)):
        worst = sums[np.argmax(np.abs(sums - 1))]
        raise SurrogateError(f"the model's rows sum to {worst:g}, expected probabilities: apply softmax")
    return np.log(np.maximum(values, FLOOR))


def _softmax(logits: Scores) -> Scores:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _labeled(name: str, group: Labeled) -> tuple[np.ndarray, NDArray[np.int64]]:
    images, labels = group
    pixels, classes = check_images(images), np.asarray(labels)
    if classes.shape != (len(pixels),) or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise SurrogateError(
            f"{name}: labels have shape {classes.shape} and type {classes.dtype}, expected one class index "
            f"for each of {len(pixels)} images"
        )
    return pixels, classes.astype(np.int64)
