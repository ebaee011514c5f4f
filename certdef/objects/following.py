"""The options that follow from a job's images: the rules of certdef/config/own_target.py, applied to what is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig
from certdef.data.lists import listed_images
from certdef.data.sets import load_source
from certdef.data.source import Progress, Source, no_bar
from certdef.objects.named import NO_OBJECTS, Objects
from certdef.purifiers.registry import is_ready


def as_it_runs(config: RunConfig, verb: str = "run", objects: Objects = NO_OBJECTS) -> RunConfig:
    """The configuration as a verb does it: with what follows from the images, for your own target without a preset.

    Raises:
        ConfigError: The images can't be read.
    """
    source = objects.source or load_source(config.data)
    return followed(config, verb, replace(objects, source=source))[0]


def followed(
    config: RunConfig, verb: str, objects: Objects, progress: Progress = no_bar
) -> tuple[RunConfig, Objects]:
    """The same, and the objects with the images that were looked at and the options that were set on purpose.

    Images that can't be read are left to who reads them next, and says so with all else that is wrong.
    """
    if not own_target.applies(config):
        return config, objects
    set_before = config.chosen if objects.chosen is None else objects.chosen
    chosen = own_target.changed(config) if set_before is None else set_before
    try:
        source = objects.source or load_source(config.data, progress)
        facts = own_target.Facts(
            source.image_shape,
            len(source),
            _tests(source),
            alone=alone(config, verb, chosen),
            listed=listed_images(config),
            average_case=verb == "robustness",
        )
    except ConfigError:
        return own_target.checkable(config), objects
    config = own_target.resolved(config, facts, chosen)
    in_words = own_target.in_words(config, facts)
    return config, replace(objects, source=source, chosen=frozenset(chosen), in_words=in_words)


def _tests(source: Source) -> int:
    return 0 if source.test_images is None else len(source.test_images)


def alone(config: RunConfig, verb: str, chosen: Collection[str]) -> bool:
    """Whether the target is certified alone, where nothing must be trained: by certify if nothing of a surrogate was set, by any verb with surrogate.model none.

    Robustness asks the target alone in any case.
    """
    if verb == "robustness":
        return True
    if "purifier" in chosen and not is_ready(config.purifier, config):
        return False  # its training needs a pool
    if "surrogate.model" in chosen and config.surrogate.model == own_target.NONE:
        return True
    asked = any(key.startswith("surrogate.") for key in chosen) or config.certify.guided_by_surrogate
    return verb == "certify" and not asked
