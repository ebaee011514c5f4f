"""The noise of the headline, chosen on held-out images that are never certified.

A candidate gets a few votes on each of these images, and its score is the certified accuracy that as many votes as a
certificate has are expected to prove (certify.expected_accuracy), averaged over certify.radii. The highest score is
chosen, of equals the smaller sigma: once for all images, for each subject by itself, with and without the denoiser. The
certificates keep their whole alpha, as they are of other images and other draws.

The surrogate tries every candidate for nothing. The target pays, so it starts from the surrogate's choice, or from the
middle where there is none, and goes on to the next sigma as long as that is better. Surrogate and denoiser are trained
before the choice, under the laws of certify.laws: a choice that they depended on would be circular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import certify
import surrogates
from certdef.config.candidates import candidate_laws
from certdef.config.job import SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.stages.conditions import Condition, certifiable, denoising, place_of, subjects, target_draws
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.stages.students import Students
from certdef.stages.voters import Voters
from certdef.stages.votes import CHUNK, PAID_BATCH
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage
from certify.voting.chunks import PREDICTION
from surrogates.distillation.inference import images_at_once

EQUAL = 9  # decimals in which scores that differ are unequal

Voter = Callable[[Condition], Any]  # a smoothed classifier -> its base classifier


@dataclass(frozen=True)
class Chosen:
    """The choice of one smoothed classifier.

    Attributes:
        subject: target or surrogate.
        purifier: What stands between noise and classifier; None without.
        law: The chosen law of sigma.
        expected: The expected certified accuracy at each radius, by the label of each candidate that was tried.
        votes: Votes that were cast for it, paid or free.
    """

    subject: str
    purifier: str | None
    law: SigmaLaw
    expected: dict[str, tuple[float, ...]]
    votes: int

    @property
    def scores(self) -> dict[str, float]:
        """The mean over the radii by candidate, which decided."""
        return {label: float(np.mean(row)) for label, row in self.expected.items()}


@dataclass(frozen=True, kw_only=True)
class ChoiceResult(StageResult):
    """What was chosen, by place (place_of).

    Attributes:
        chosen: The choices.
        candidates: Every candidate that there was, by its label.
        radii: What certified accuracy was expected at, in [0, 1] pixel units.
        images: Held-out images that the choice was made on, the last ones.
        votes_each: Votes of an image for a candidate.
        paid: Votes of the target.
    """

    chosen: dict[str, Chosen]
    candidates: dict[str, SigmaLaw]
    radii: tuple[float, ...]
    images: int
    votes_each: int
    paid: int

    @property
    def laws(self) -> dict[str, SigmaLaw]:
        """The chosen laws by place."""
        return {place: each.law for place, each in self.chosen.items()}


def choose_headline(
    job: Job,
    target: surrogates.Target,
    students: Students,
    purifier: Purifier,
    depends_on: list[Stage],
) -> Stage[ChoiceResult] | None:
    """Choose the noise of each smoothed classifier in the headline; None where certify.choose is off."""
    config = job.config.certify
    laws = sorted(candidate_laws(config), key=lambda law: noise_law(law).mean_sigma)
    if not laws:
        return None
    draws = target_draws(job.config)
    voters = Voters.of(job, target, students, purifier)
    stage = job.stage(
        "choice",
        ChoiceResult,
        [[law.label, *law.parameters] for law in laws],
        [config.choice_images, config.choice_n, list(config.radii), config.alpha, config.n, draws],
        [job.config.purifier, job.data.heldout_digest, target.subject, voters.engines.chosen],
        *(other.fingerprint for other in (*depends_on, *students.stages)),
    )
    voter = partial(voters.classifier, stage=stage, kind="choice")
    return job.run(stage, lambda: _choose(job, laws, voter, target.num_classes, draws))


def _choose(job: Job, laws: Sequence[SigmaLaw], voter: Voter, num_classes: int, draws: int) -> ChoiceResult:
    config, chosen = job.config.certify, {}
    order = subjects(job.config)[::-1]  # the surrogate first: its choice is the target's prior
    for purifier in denoising(job.config):
        prior: SigmaLaw | None = None
        for subject in order:
            paid = subject == "target"
            score = Scores(job, voter, subject, purifier, num_classes, draws if paid else config.n)
            law = choose_for_target(laws, score, prior) if paid else best_of(laws, score)
            expected = {
                each.label: score.expected[each.label] for each in laws if each.label in score.expected
            }
            votes = len(expected) * config.choice_images * config.choice_n
            chosen[place_of(subject, purifier)] = Chosen(subject, purifier, law, expected, votes)
            prior = law
    paid_votes = sum(each.votes for each in chosen.values() if each.subject == "target")
    return ChoiceResult(
        chosen=chosen,
        candidates={law.label: law for law in laws},
        radii=config.radii,
        images=config.choice_images,
        votes_each=config.choice_n,
        paid=paid_votes,
        params={place: each.law.label for place, each in chosen.items()}
        | {"images": config.choice_images, "votes_each": config.choice_n},
        metrics={metrics.CHOICE_VOTES: paid_votes}
        | {
            metrics.CHOICE_SCORE.format(place=place, law=label): value
            for place, each in chosen.items()
            for label, value in each.scores.items()
        },
    )


class Scores:
    """The score of a law for one smoothed classifier, from votes that are cast once.

    Args:
        job: Its held-out images, the last of which vote.
        voter: What votes under a condition.
        subject: target or surrogate.
        purifier: What stands between noise and classifier.
        num_classes: K.
        n: Votes that a certificate will have.
    """

    def __init__(
        self, job: Job, voter: Voter, subject: str, purifier: str | None, num_classes: int, n: int
    ) -> None:
        self.job, self.voter, self.subject, self.purifier = job, voter, subject, purifier
        self.num_classes, self.n = num_classes, n
        most = PAID_BATCH if subject == "target" else job.config.certify.batch_size
        self.engine = certify.VoteEngine(
            batch_size=images_at_once(job.data.image_shape, most),
            chunk_size=CHUNK,
            device=job.device,
            seed=job.config.seed,
        )
        self.expected: dict[str, tuple[float, ...]] = {}

    def __call__(self, law: SigmaLaw) -> float:
        if law.label not in self.expected:
            self.expected[law.label] = self._expected(law)
        return round(float(np.mean(self.expected[law.label])), EQUAL)

    def _expected(self, law: SigmaLaw) -> tuple[float, ...]:
        config, data, noise = self.job.config.certify, self.job.data, noise_law(law)
        heldout = len(data.heldout_images)
        indices = list(range(certifiable(self.job.config, heldout), heldout))
        counts = self.engine.count(
            self.voter(Condition(self.subject, law.label, self.purifier, noise)),
            torch.from_numpy(data.heldout_images[indices]),
            noise,
            self.num_classes,
            config.choice_n,
            indices=indices,
            stage=PREDICTION,  # draws that no certificate uses
        )
        right = counts[np.arange(len(indices)), data.heldout_labels[indices]]
        radii = config.radii
        expected = certify.expected_accuracy(
            right, config.choice_n, noise, radii, n=self.n, alpha=config.alpha
        )
        return tuple(expected.tolist())


def best_of(laws: Sequence[SigmaLaw], score: Callable[[SigmaLaw], float]) -> SigmaLaw:
    """The law with the highest score, the first of equals."""
    return max(laws, key=score)


def choose_for_target(
    laws: Sequence[SigmaLaw], score: Callable[[SigmaLaw], float], prior: SigmaLaw | None
) -> SigmaLaw:
    """The best of the laws that are worth their votes.

    Of the constant sigmas those from the prior's, or from the middle, to one whose neighbors are no better. Laws of random
    sigma where the prior is one of them, where there is no prior, and where there is nothing else.

    Args:
        laws: Candidates, by mean sigma.
        score: Costs votes the first time that it is asked about a law.
        prior: The surrogate's choice.
    """
    constant = [law for law in laws if law.family == "constant"]
    tried: list[SigmaLaw] = []
    if constant:
        at = len(constant) // 2
        if prior is not None:
            sigma = noise_law(prior).mean_sigma
            away = [abs(noise_law(law).mean_sigma - sigma) for law in constant]
            at = int(np.argmin(away))
        tried.append(constant[climb(len(constant), at, lambda index: score(constant[index]))])
    if prior is None or prior.family != "constant" or not constant:
        tried += [law for law in laws if law.family != "constant"]
    return best_of(sorted(tried, key=laws.index), score)


def climb(count: int, start: int, score: Callable[[int], float]) -> int:
    """From a start to an index in 0..count-1 whose neighbors are no better; of equal neighbors the smaller index."""
    best = start
    while True:
        near = [index for index in (best - 1, best, best + 1) if 0 <= index < count]
        top = max(near, key=score)
        if top == best:
            return best
        best = top
