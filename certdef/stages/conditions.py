"""What is certified: the conditions of a job, and how many votes the target may pay for each."""

from __future__ import annotations

from dataclasses import dataclass

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.own_target import NONE
from certdef.config.purifiers import plain_name
from certdef.purifiers.registry import find_purifier
from certify.bounds import smallest_n
from certify.bounds.two_sided import check_two_sided
from certify.guided import reachable_radii


@dataclass(frozen=True)
class Condition:
    """One smoothed classifier: a subject under a noise law, with or without a purifier between noise and classifier."""

    subject: str  # target or surrogate
    law: str
    purifier: str | None
    noise: certify.NoiseLaw
    headline: bool = False
    white_box: bool = False  # the target by its own weights, free of queries

    @property
    def denoised(self) -> bool:
        return self.purifier is not None

    @property
    def paid(self) -> bool:
        return self.subject == "target" and not self.white_box

    @property
    def key(self) -> str:
        subject = f"{self.subject}-white-box" if self.white_box else self.subject
        return f"{subject}-{self.law}-{plain_name(self.purifier or 'none')}"

    @property
    def metric_prefix(self) -> str:
        return self.subject if self.headline else self.key.replace("-", "/")


def conditions(config: RunConfig) -> list[Condition]:
    """Both subjects under each law with and without the purifier, the headline first; beside them a Gaussian of the
    first law's mean sigma, with Cohen's radius, unless that law is one. Of a purifier that is no denoiser, the rows without
    it remain; without a surrogate, those of the target."""
    laws = [(law.label, noise_law(law)) for law in config.certify.laws]
    first = laws[0][0]
    constant = isinstance(laws[0][1], certify.Gaussian)
    gaussian = certify.Gaussian(laws[0][1].mean_sigma)
    name = config.purifier if find_purifier(config.purifier).denoiser else None
    every = []
    for subject in subjects(config):
        for label, noise in laws:
            every.append(Condition(subject, label, name, noise, headline=label == first))
            if name:
                every.append(Condition(subject, label, None, noise))
        if not constant:
            every.append(Condition(subject, "gaussian", name, gaussian))
    return every


def subjects(config: RunConfig) -> tuple[str, ...]:
    """What is certified: the target, and its surrogate where the job has one."""
    return ("target",) if config.surrogate.model == NONE else ("target", "surrogate")


def target_draws(config: RunConfig, paid: int | None = None) -> int:
    """Draws an image that the certification budget allows the target, at most those of the surrogate.

    Args:
        paid: Number of smoothed targets; unset, that of the main job.

    Raises:
        ConfigError: The budget is too small to certify anything; says which one would do.
        CertifyError: A noise law that the method has no radius for.
    """
    if paid is None:
        if config.certify.method == "two_sided":
            for condition in conditions(config):
                check_two_sided(condition.noise)
        paid = sum(condition.paid for condition in conditions(config))
    if config.certify.guide == "budget":  # the budget is the set's, not the image's
        return _within_reach(config, config.certify.n)
    images = config.certify.target_images * paid
    n0 = config.certify.selection
    n = min(config.certify.n, config.ledger.certification // images - n0)
    least = smallest_n(0.5, config.certify.alpha)
    if n < least:
        raise ConfigError(
            f"ledger.certification is {config.ledger.certification}: {paid} smoothed targets x "
            f"{config.certify.target_images} images need {n0} + {least} draws each, at least "
            f"{images * (n0 + least)}; raise it or lower certify.target_images"
        )
    return _within_reach(config, n)


def certification_queries(config: RunConfig, heldout: int, paid: int | None = None) -> int:
    """Queries that the certificates of so many held-out images take, at most.

    Args:
        paid: Number of smoothed targets; unset, that of the main job.
    """
    if paid is None:
        paid = sum(condition.paid for condition in conditions(config))
    if config.certify.guide == "budget":
        return config.ledger.certification // paid * paid
    selection = config.certify.selection if config.certify.guide == "off" else 0
    return min(config.certify.target_images, heldout) * paid * (selection + target_draws(config, paid))


def largest_radius(noise: certify.NoiseLaw, n: int, alpha: float) -> float:
    """The radius that a unanimous vote of n draws proves."""
    return float(noise.radius(certify.binomial_lower_bound(n, n, alpha)))


def _within_reach(config: RunConfig, n: int) -> int:
    """Refuse a guide where n votes could prove none of the radii."""
    if config.certify.guide != "off":
        for condition in conditions(config):
            reachable_radii(condition.noise, config.certify.radii, n, config.certify.alpha)
    return n


def guided_budget(config: RunConfig) -> list[int]:
    """The votes that a guide may spend on each smoothed target, where it has such a budget."""
    if config.certify.guide != "budget":
        return []
    return [config.ledger.certification // sum(each.paid for each in conditions(config))]
