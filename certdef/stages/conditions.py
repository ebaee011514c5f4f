"""What is certified: the conditions of a job, and how many votes the target may pay for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import certify
from certdef.config.candidates import candidate_laws, choice_votes
from certdef.config.job import OFF, ConfigError, RunConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.config.own_target import NONE
from certdef.config.purifiers import plain_name
from certdef.purifiers.registry import find_purifier
from certify.bounds import smallest_n
from certify.bounds.two_sided import TOP_SHARE, check_two_sided
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


def conditions(config: RunConfig, chosen: Mapping[str, SigmaLaw] | None = None) -> list[Condition]:
    """The smoothed classifiers of both subjects, the headline first.

    Each law with and without the purifier. Where the headline's noise is chosen, that stands before the laws of random sigma,
    and has no second row if it is one of them; else there is, behind the purifier, a Gaussian of the first law's mean sigma,
    with Cohen's radius, unless that law is one. Of a purifier that is no denoiser, the rows without it remain; without a
    surrogate, those of the target.

    Args:
        config: The job.
        chosen: The chosen laws by place (place_of); unset, where nothing is chosen yet, the widest candidate stands for each.
    """
    every = []
    for subject in subjects(config):
        rows = list(_rows(config, subject, chosen))
        for at, (law, purifier) in enumerate(rows):
            headline = at == 0
            every.append(Condition(subject, law.label, purifier, noise_law(law), headline))
        first = config.certify.laws[0]
        if not candidate_laws(config.certify) and first.family != "constant":
            gaussian = certify.Gaussian(noise_law(first).mean_sigma)
            every.append(Condition(subject, "gaussian", denoising(config)[0], gaussian))
    return every


def _rows(
    config: RunConfig, subject: str, chosen: Mapping[str, SigmaLaw] | None
) -> Iterator[tuple[SigmaLaw, str | None]]:
    """Law and purifier of each row of a subject; the chosen ones first."""
    places, laws = denoising(config), config.certify.laws
    candidates = candidate_laws(config.certify)
    headline: list[tuple[SigmaLaw, str | None]] = []
    if candidates:
        widest = max(candidates, key=lambda law: noise_law(law).mean_sigma)
        laws = tuple(law for law in laws if law.family != "constant")
        headline = [
            (widest if chosen is None else chosen[place_of(subject, purifier)], purifier)
            for purifier in places
        ]
    yield from headline
    for law in laws:
        for purifier in places:
            if (law, purifier) not in headline:
                yield law, purifier


def unchosen(config: RunConfig) -> RunConfig:
    """The job without its choice of noise: what is trained under the laws as they are configured."""
    return replace(config, certify=replace(config.certify, choose=OFF))


def denoising(config: RunConfig) -> tuple[str | None, ...]:
    """With the purifier between noise and classifier, and without; without alone where it is no denoiser."""
    return (config.purifier, None) if find_purifier(config.purifier).denoiser else (None,)


def place_of(subject: str, purifier: str | None) -> str:
    """Names a subject with what stands before it, whatever the noise."""
    return f"{subject}-{plain_name(purifier or 'none')}"


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
    choice = 0
    if paid is None:
        if "two_sided" in config.certify.method:
            candidates = [noise_law(law) for law in candidate_laws(config.certify)]
            for noise in [*(each.noise for each in conditions(config)), *candidates]:
                check_two_sided(noise)
        paid, choice = _paid(config), choice_queries(config)
    if config.certify.guide == "budget":  # the budget is the set's, not the image's
        return _within_reach(config, config.certify.n)
    images = config.certify.target_images * paid
    n0 = config.certify.selection
    n = min(config.certify.n, (config.ledger.certification - choice) // images - n0)
    share = TOP_SHARE if "two_sided" in config.certify.method else 1.0
    least = smallest_n(0.5, share * config.certify.alpha)
    if n < least:
        chosen = f" beside {choice} for the choice of the noise" if choice else ""
        raise ConfigError(
            f"ledger.certification is {config.ledger.certification}: {paid} smoothed targets x "
            f"{config.certify.target_images} images need {n0} + {least} draws each{chosen}, at least "
            f"{choice + images * (n0 + least)}; raise it or lower certify.target_images"
        )
    return _within_reach(config, n)


def certification_queries(config: RunConfig, heldout: int, paid: int | None = None) -> int:
    """Queries that the certificates of so many held-out images take, at most.

    Args:
        paid: Number of smoothed targets; unset, that of the main job.
    """
    draws = target_draws(config, paid)
    choice, images = 0, heldout
    if paid is None:
        paid, choice, images = _paid(config), choice_queries(config), certifiable(config, heldout)
    if config.certify.guide == "budget":
        return choice + (config.ledger.certification - choice) // paid * paid
    selection = config.certify.selection if config.certify.guide == "off" else 0
    return choice + min(config.certify.target_images, images) * paid * (selection + draws)


def choice_queries(config: RunConfig) -> int:
    """Queries that the choice of the noise takes, at most."""
    return choice_votes(config.certify, len(denoising(config)))


def certifiable(config: RunConfig, heldout: int) -> int:
    """How many of the held-out images, the first ones, may be certified: those that no noise is chosen on."""
    return heldout - (config.certify.choice_images if candidate_laws(config.certify) else 0)


def images_of(config: RunConfig, condition: Condition, heldout: int) -> int:
    """How many of the held-out images, the first ones, are certified under a condition."""
    wanted = config.certify.target_images if condition.paid else config.certify.images
    return min(wanted, certifiable(config, heldout))


def check_choice_of_noise(config: RunConfig, heldout: int) -> None:
    """Refuse candidates that are no noise laws, and a choice that leaves no image to certify.

    Raises:
        ConfigError: Names the value, and the remedy.
    """
    for law in candidate_laws(config.certify):
        noise_law(law)
    if certifiable(config, heldout) < 1:
        raise ConfigError(
            f"certify.choice_images is {config.certify.choice_images}, and {heldout} images are held out: none is left to "
            "certify; lower it, raise data.heldout_images, or use certify.choose off"
        )


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
    return [(config.ledger.certification - choice_queries(config)) // _paid(config)]


def _paid(config: RunConfig) -> int:
    """Number of smoothed targets that pay for their votes, whatever is chosen."""
    return sum(condition.paid for condition in conditions(config))
