"""What a job on your own target does where nothing was said: values that follow from its images.

Each line of RULES is an option, its value, and the reason. What the user set stays as it is, and the rules below it follow
it. Nothing here applies to a job that names a preset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from certdef.config.candidates import candidate_laws, choice_votes
from certdef.config.job import RunConfig, SigmaLaw, flatten

PRESET = "own"
NONE = (
    "none"  # as surrogate.model: no stand-in, the target alone is certified; as purifier: the bare classifier
)

LARGE = 3 * 64 * 64  # values of an image: above, a vote costs tenths of a second
HELD_BYTES = 2**27  # of images held out, and of those in the pool
PASS_BYTES = 20 * 2**20  # of the images of one pass: a network's activations take some twenty times as much
TRAINED_VALUES = 3e8  # pixels that a student is trained on: a minute or two
CORRUPTIONS = 10  # of robustness.corruptions: all
TOKENS = 256  # of an image, at most, for a transformer: its attention grows with their square


@dataclass(frozen=True)
class Facts:
    """What is known before a job starts.

    Args:
        shape: (C, H, W) of the images.
        images: How many there are.
        tests: Of them, those of a test set of its own; 0 where the data has none.
        alone: The job certifies the target and does nothing else: no stand-in is wanted.
        listed: Images of the lists for membership inference.
        average_case: It asks for the target's answers under corruptions, and for no other certificate.
    """

    shape: tuple[int, int, int]
    images: int
    tests: int = 0
    alone: bool = False
    listed: int = 0
    average_case: bool = False

    @property
    def values(self) -> int:
        """Pixels, or color values, of an image."""
        return math.prod(self.shape)

    @property
    def side(self) -> int:
        return max(self.shape[1:])

    @property
    def gray(self) -> bool:
        return self.shape[0] == 1

    @property
    def large(self) -> bool:
        return self.values > LARGE

    def fitting(self, size: int, most: int) -> int:
        """How many images take so many bytes as float32: a multiple of 8, or `most`."""
        count = size // (4 * self.values)
        return most if count >= most else max(8, count // 8 * 8)


class Rule(NamedTuple):
    """The value of an option that was not set, and why."""

    key: str
    value: Callable[[Facts, RunConfig], Any]
    reason: str


def _law(facts: Facts, config: RunConfig) -> tuple[SigmaLaw, ...]:
    small = facts.gray and facts.side <= 32
    return (SigmaLaw("constant", "constant", (), 60.0 if small else 30.0),)


def _certified(most: Callable[[Facts], int]) -> Callable[[Facts, RunConfig], int]:
    """The held-out images that no noise is chosen on, at most so many."""

    def images(facts: Facts, config: RunConfig) -> int:
        reserved = config.certify.choice_images if config.certify.candidates else 0
        return max(1, min(config.data.heldout_images - reserved, most(facts)))

    return images


def _radii(facts: Facts, config: RunConfig) -> tuple[float, ...]:
    law = config.certify.laws[0]
    wide = law.family != "constant" or law.scale_255 >= 45
    return (0.1, 0.25, 0.5) if wide else (0.1, 0.25)


def _heldout(facts: Facts, config: RunConfig) -> int:
    there = facts.tests or (facts.images if facts.alone else facts.images // 2)
    return max(1, min(there, facts.fitting(HELD_BYTES, 400)))


def _pool(facts: Facts, config: RunConfig) -> int:
    if config.surrogate.model == NONE and facts.alone:
        return 0
    left = facts.images - (facts.tests or config.data.heldout_images)
    return max(1, min(left, facts.fitting(HELD_BYTES, 5_000)))


def _student(facts: Facts, config: RunConfig) -> str:
    if facts.alone:
        return NONE
    if facts.large:
        return "mobilenetv3_small_100"
    return "mlp" if facts.side <= 16 else "resnet"


def _passes(most: int) -> Callable[[Facts, RunConfig], int]:
    """Epochs that show a bounded number of pixels, whatever the size of the pool."""

    def epochs(facts: Facts, config: RunConfig) -> int:
        shown = TRAINED_VALUES / facts.values
        return int(max(5, min(most, shown // max(1, config.data.pool_images))))

    return epochs


def _training(facts: Facts, config: RunConfig) -> int:
    return max(1, min(600, config.data.pool_images))


def _eps(facts: Facts, config: RunConfig) -> tuple[float, ...]:
    return (0.1, 0.2, 0.3) if facts.gray and facts.side <= 32 else (0.0078, 0.0157, 0.0314)


def _patch(facts: Facts, config: RunConfig) -> int:
    """The smallest side that divides the image and leaves few tokens; the largest where none does."""
    _, height, width = facts.shape
    divisors = [side for side in range(1, min(height, width) + 1) if height % side == width % side == 0]
    fit = [side for side in divisors if side >= 4 and height * width // side**2 <= TOKENS]
    return fit[0] if fit else divisors[-1]


def _nim_width(facts: Facts, config: RunConfig) -> int:
    values = facts.shape[0] * config.nim.patch_size**2  # of a patch
    return 64 if values <= 64 else 96 if values <= 192 else 192


def smoothed_targets(config: RunConfig) -> int:
    """Smoothed targets that a job may certify: each law with and without the purifier, and the Gaussian beside a law whose
    sigma is random; where the noise is chosen, that one and the laws of random sigma."""
    certify, behind = config.certify, 1 + (config.purifier != NONE)
    if certify.candidates:
        return behind * (1 + sum(law.family != "constant" for law in certify.laws))
    return behind * len(certify.laws) + (certify.laws[0].family != "constant")


def _certification(facts: Facts, config: RunConfig) -> int:
    certify = config.certify
    if facts.average_case:
        return _corrupted(config)
    choice = choice_votes(certify, 1 + (config.purifier != NONE))
    votes = certify.selection + certify.n
    return choice + max(1, certify.target_images) * smoothed_targets(config) * votes


def _corrupted(config: RunConfig) -> int:
    """Queries of certdef robustness, at most: three times those of an image that never changes, where draws is unset."""
    own, alpha = config.robustness, config.certify.alpha
    laws = CORRUPTIONS if isinstance(own.corruptions, str) else max(1, len(own.corruptions))
    if not (0 < own.q < 1 and 0 < alpha < 1):
        return config.ledger.certification  # refused where it is checked
    draws = own.draws or 3 * math.ceil(math.log(alpha) / math.log(1 - own.q) + 1)
    return max(1, laws * own.images * draws)


def _attack_queries(facts: Facts, config: RunConfig) -> int:
    attack = config.attack
    own = max(1, min(attack.images, config.data.heldout_images)) * (2 * len(attack.eps) + 1)
    return 4 * own + 50_000 * config.ladder.enabled


RULES = (
    Rule("purifier", lambda f, c: "de3-leaves", "the shipped denoiser needs no training and takes images of any size"),
    Rule("certify.laws", _law, "one Gaussian: each law costs votes of its own; a classifier of natural images stands less noise"),
    Rule("certify.method", lambda f, c: "fixed" if c.certify.guide != "off" else "group_sequential_two_sided", "stops as soon as the radii are decided"),
    Rule("certify.n0", lambda f, c: 32 if f.large else 100, "enough to choose a class that can be certified at all"),
    Rule("certify.n", lambda f, c: 1_000 if f.large else 5_000, "proves 2.4 (3.0) sigma where the vote is unanimous"),
    Rule("certify.radii", _radii, "within reach of that many votes"),
    Rule("data.heldout_images", _heldout, "half of the images, or the test set, as far as they fit in 128 MiB"),
    Rule("surrogate.model", _student, "the largest that a processor trains in minutes; none where only the target is certified"),
    Rule("data.pool_images", _pool, "the other images, as far as they fit in 128 MiB; none where nothing is trained"),
    Rule("certify.target_images", _certified(lambda f: 20 if f.large else 50), "each costs hundreds of paid votes"),
    Rule("certify.images", _certified(lambda f: 10 if f.large else 100), "free, but each takes up to 1,000 passes, at a tenth of a second where they are large"),
    Rule("certify.engine", lambda f, c: "auto" if f.large else "plain", "bfloat16 halves the time of the denoiser, which is most of it where images are large"),
    Rule("certify.batch_size", lambda f, c: f.fitting(PASS_BYTES, 2048), "20 MiB of images, some 400 MiB with what a network keeps of them"),
    Rule("ledger.training", _training, "every image of the pool once, up to 600"),
    Rule("surrogate.query_batch", lambda f, c: min(c.ledger.training, f.fitting(PASS_BYTES, 100)), "a part of that budget"),
    Rule("surrogate.batch_size", lambda f, c: f.fitting(PASS_BYTES, 100), "as certify.batch_size"),
    Rule("surrogate.epochs", _passes(200), "as many as show 300 million pixels"),
    Rule("surrogate.learning_rate", lambda f, c: 3e-3 if c.surrogate.model == "mlp" else 2e-3, "a convolution network takes less"),
    Rule("surrogate.shift", lambda f, c: f.side // 16, "an object that moved is the same object"),
    Rule("surrogate.noise_255", lambda f, c: c.certify.laws[0].scale_255 if c.certify.laws[0].family == "constant" else 75.0, "up to the noise of the vote"),
    Rule("nim.patch_size", _patch, "at most 256 tokens an image"),
    Rule("nim.width", _nim_width, "a third of the values of a patch, or more"),
    Rule("nim.decoder_width", _nim_width, "as nim.width"),
    Rule("nim.epochs", _passes(300), "as surrogate.epochs"),
    Rule("nim.base_learning_rate", lambda f, c: 6e-3, "one that every width of these stands"),
    Rule("nim.batch_size", lambda f, c: f.fitting(PASS_BYTES, 128), "as certify.batch_size"),
    Rule("attack.eps", _eps, "2, 4 and 8 of 255 for natural images, as the literature has them"),
    Rule("attack.images", lambda f, c: min(c.data.heldout_images, 20 if f.large else 200), "each costs seven queries"),
    Rule("attack.steps", lambda f, c: 10 if f.large else 20, "each is a pass through the surrogate and back"),
    Rule("attack.sigma_255", lambda f, c: c.certify.laws[0].scale_255 if c.certify.laws[0].family == "constant" else 75.0, "the noise of the vote"),
    Rule("ledger.evaluation", lambda f, c: 8 * max(25, c.data.heldout_images) + f.listed, "the held-out images clean, noisy and denoised, for two jobs or three, and the lists of membership inference"),
    Rule("ledger.certification", _certification, "n0 + n votes for every image and smoothed target, at most, and those that choose the noise"),
    Rule("ledger.attack", _attack_queries, "every image at every distance, bare and purified, for up to four jobs"),
)  # fmt: skip


def applies(config: RunConfig) -> bool:
    """Whether the rules decide what was not set: for a target of your own in the main job, unless a preset was named."""
    return config.preset == PRESET and not (config.ducd.enabled or config.udc.enabled)


def resolved(config: RunConfig, facts: Facts, chosen: Collection[str] | None = None) -> RunConfig:
    """The configuration with a value of its own for every option that was not set.

    Args:
        config: What was said.
        facts: Of the images.
        chosen: The options that were set, dotted; unset, those that differ from the defaults of RunConfig.
    """
    if chosen is None:
        chosen = changed(config)
    for rule in RULES:
        if rule.key not in chosen:
            config = with_value(config, rule.key, rule.value(facts, config))
    return config


def changed(config: RunConfig) -> set[str]:
    """The options that differ from the defaults of RunConfig, dotted."""
    defaults = flatten(RunConfig().to_dict())
    return {key for key, value in flatten(config.to_dict()).items() if value != defaults.get(key)}


def checkable(config: RunConfig) -> RunConfig:
    """The same before the rules, without what only they can tell: whether a small budget fits its first batch."""
    if not applies(config) or "surrogate.query_batch" in changed(config):
        return config
    first = max(1, min(config.surrogate.query_batch, config.ledger.training))
    return replace(config, surrogate=replace(config.surrogate, query_batch=first))


def in_words(config: RunConfig, facts: Facts) -> str:
    """What was chosen, on one line."""
    channels, height, width = facts.shape
    certify, law = config.certify, config.certify.laws[0]
    noise = f"sigma {law.scale_255 / 255:.2f}" if law.family == "constant" else f"noise {law.label}"
    if certify.candidates:
        noise = f"noise chosen of {len(candidate_laws(certify))} on {certify.choice_images} others"
    parts = [
        f"{facts.images} images of {channels}x{height}x{width}: {config.data.heldout_images} held out",
        f"{min(certify.target_images, config.data.heldout_images)} certified by up to {certify.selection + certify.n:,} votes each",
        noise,
        f"purifier {config.purifier}",
    ]
    if config.surrogate.model == NONE:
        parts.append("no surrogate")
    else:
        epochs = config.surrogate.epochs
        parts.append(f"surrogate {config.surrogate.model}, {config.ledger.training} queries, {epochs} epochs")
    return ", ".join(parts) + " (--print-config shows all)"


def with_value(config: RunConfig, key: str, value: Any) -> RunConfig:
    """The configuration with another value of one option, which is named with dots."""
    section, _, name = key.rpartition(".")
    if not section:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})
