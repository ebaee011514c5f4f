"""The options that follow from a job's images: the rules of certdef/config/own_target.py, applied to what is there."""

from __future__ import annotations

from collections.abc import Collection

from certdef.config import own_target
from certdef.config.job import RunConfig
from certdef.data.sets import Source, load_source
from certdef.objects.named import NO_OBJECTS, Objects
from certdef.purifiers.registry import needs_work


def as_it_runs(config: RunConfig, verb: str = "run", objects: Objects = NO_OBJECTS) -> RunConfig:
    """The configuration as a verb does it: with what follows from the images, for your own target without a preset."""
    if not own_target.applies(config):
        return config
    return followed(config, objects.source or load_source(config.data), verb, objects)[0]


def followed(
    config: RunConfig, source: Source, verb: str, objects: Objects
) -> tuple[RunConfig, Collection[str] | None]:
    """The same, and the options that were set on purpose; None where a preset decides the others."""
    if not own_target.applies(config):
        return config, None
    chosen = own_target.changed(config) if objects.chosen is None else objects.chosen
    tests = 0 if source.test_images is None else len(source.test_images)
    _, channels, height, width = source.images.shape
    facts = own_target.Facts(
        (channels, height, width), len(source.images) + tests, tests, alone(config, verb, chosen)
    )
    config = own_target.resolved(config, facts, chosen)
    if objects.announce:
        objects.announce(own_target.in_words(config, facts))
    return config, chosen


def alone(config: RunConfig, verb: str, chosen: Collection[str]) -> bool:
    """Whether the target is certified alone: by certify, if nothing of a surrogate was set and nothing must be trained."""
    asked = any(key.startswith("surrogate.") for key in chosen) or config.certify.guide != "off"
    ready = "purifier" not in chosen or not needs_work(config.purifier, config)
    return verb == "certify" and ready and not asked
