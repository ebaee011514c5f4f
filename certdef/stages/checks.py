"""What each kind of job can't do, refused before anything is trained or paid for."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig
from certdef.config.objects import is_object
from certdef.data.sets import Splits
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.stages.attack import check_attack_budget
from certdef.stages.conditions import target_draws
from certdef.stages.ducd.certificates import check_choice
from certdef.stages.ducd.membership import check_audit
from certdef.stages.ducd.surrogates import check_pools
from certdef.stages.ladder import check_ladder_budget, ladder_systems
from certdef.stages.purifier import check_purifier
from certdef.stages.surrogate import recipe_of, selection_of


def check_main(config: RunConfig, data: Splits, verb: str = "run") -> None:
    """Refuse what the main job can't do, before anything is trained or paid for."""
    for name, enabled in {"ducd": config.ducd.enabled, "udc": config.udc.enabled}.items():
        if enabled:
            raise ConfigError(
                f"{name}.enabled is true, and the {name.upper()} job has no single stages: use certdef run, or "
                f"--{name}.enabled false"
            )
    target_draws(config)  # refuses unusable noise laws, and a budget that certifies nothing
    _check_verb(config, verb)
    classifier = None
    if config.surrogate.model != own_target.NONE:
        check_attack_budget(config, len(data.heldout_images))
        classifier = _check_models(config, data)
    if config.ladder.enabled:
        check_ladder_budget(config, len(data.heldout_images))
    for name in ladder_systems(config) if config.ladder.enabled else [config.purifier]:
        if name != own_target.NONE:
            check_purifier(replace(config, purifier=name), data.image_shape, classifier)


def _check_verb(config: RunConfig, verb: str) -> None:
    """Refuse what a verb can't do without a purifier, a surrogate, or one that is distilled here."""
    name = config.surrogate.model
    if verb == "purify" and config.purifier == own_target.NONE:
        raise ConfigError(
            "purifier is none: there is nothing to purify with, name one that certdef purifiers lists"
        )
    if verb in ("distill", "budgets") and (name == own_target.NONE or is_object(name)):
        raise ConfigError(f"surrogate.model is {name!r}: nothing is distilled, name a model, e.g. resnet")
    if name == own_target.NONE and (verb == "attack" or config.ladder.enabled):
        raise ConfigError(
            "surrogate.model is none: attacks are computed on a surrogate, name a model, e.g. resnet"
        )


def check_ducd(config: RunConfig, data: Splits) -> None:
    """Refuse what the DUCD job can't do, before anything is trained or paid for."""
    check_pools(config, data)
    check_choice(config, data)
    check_audit(config, data)
    _check_models(config, data)


def _check_models(config: RunConfig, data: Splits) -> nn.Module:
    """Refuse classifiers that do not take such images; returns an untrained surrogate."""
    shape, classes = data.image_shape, len(data.classes)
    if config.target.uri is None and config.target.kind != "svc":
        build_classifier(config.target.kind, shape, classes)
    recipe_of(config.surrogate)
    selection_of(config.surrogate)
    return build_classifier(surrogate_model(config), shape, classes).eval()
