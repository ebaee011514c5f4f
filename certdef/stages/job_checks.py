"""What each kind of job refuses before anything is trained or paid for, in the order in which it is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig
from certdef.config.objects import is_given, is_object
from certdef.data.sets import Splits
from certdef.models.classifiers import build_classifier, check_known, surrogate_model
from certdef.purifiers.registry import is_ready
from certdef.stages.attack import check_attack_budget
from certdef.stages.conditions import check_choice_of_noise, target_draws
from certdef.stages.ducd.certificates import check_choice
from certdef.stages.ducd.membership import check_audit
from certdef.stages.ducd.surrogates import check_pools
from certdef.stages.inspection import Check, Problems
from certdef.stages.ladder import check_ladder_budget, ladder_systems
from certdef.stages.other_attacks import other_attacks
from certdef.stages.parts import check_surrogate as check_part
from certdef.stages.purifier import check_purifier
from certdef.stages.robustness import check_robustness
from certdef.stages.students import held_out_queries
from certdef.stages.surrogate import recipe_of, selection_of
from certdef.stages.udc.networks import check_udc


def _check_single_stages(config: RunConfig, data: Splits) -> None:
    """Refuse a part of a job that has no parts."""
    for name, enabled in {"ducd": config.ducd.enabled, "udc": config.udc.enabled}.items():
        if enabled:
            raise ConfigError(
                f"{name}.enabled is true, and the {name.upper()} job has no single stages: use certdef run, or "
                f"--{name}.enabled false"
            )


def _check_votes(config: RunConfig, data: Splits) -> None:
    """Refuse unusable noise laws, and a budget that certifies nothing."""
    target_draws(config)


def _check_choice(config: RunConfig, data: Splits | None) -> None:
    """Refuse a choice of the noise that cannot be made, or leaves nothing to certify."""
    check_choice_of_noise(config, _heldout(config, data))


def _check_budgets(config: RunConfig, data: Splits | None) -> None:
    """Refuse budgets that accuracy and agreement, and the attack, do not fit in."""
    heldout = _heldout(config, data)
    problems = Problems({})
    problems.attempt(_check_evaluation, config, heldout)
    if not _is_alone(config):
        problems.attempt(check_attack_budget, config, heldout)
    problems.raise_all()


def _check_ladder(config: RunConfig, data: Splits | None) -> None:
    """Refuse a budget that the ladder does not fit in."""
    if config.ladder.enabled:
        check_ladder_budget(config, _heldout(config, data))
        if data is not None:
            other_attacks(config, data.image_shape)


def _heldout(config: RunConfig, data: Splits | None) -> int:
    return config.data.heldout_images if data is None else len(data.heldout_images)


def _check_evaluation(config: RunConfig, heldout: int) -> None:
    need = held_out_queries(config, heldout)
    how = {1: "", 2: ", clean and under the noise,", 3: ", clean, under the noise and denoised,"}[
        need // heldout
    ]
    if need > config.ledger.evaluation:
        raise ConfigError(
            f"ledger.evaluation is {config.ledger.evaluation}: {heldout} held-out images{how} need "
            f"{need}; raise it or lower data.heldout_images"
        )


def _is_alone(config: RunConfig) -> bool:
    """Whether the target is certified alone."""
    return config.surrogate.model == own_target.NONE


def _check_target_model(config: RunConfig, data: Splits) -> None:
    """Refuse a target to be trained here that does not take such images."""
    if config.target.uri is None and config.target.kind != "svc":
        build_classifier(config.target.kind, data.image_shape, _classes(data))


def _check_name(config: RunConfig, data: Splits | None) -> None:
    """Refuse a surrogate that nobody knows, whatever the images."""
    if not _is_alone(config) and not is_given(config.surrogate):
        check_known(surrogate_model(config))


def _check_surrogate(config: RunConfig, data: Splits) -> None:
    """Refuse a surrogate that does not take such images, or a training that there is not."""
    recipe_of(config.surrogate)
    selection_of(config.surrogate)
    if config.target.uri is None:  # another's is opened first, and says how many classes it has
        check_part(config, data.image_shape, len(data.classes))
    _untrained_surrogate(config, data)


def _untrained_surrogate(config: RunConfig, data: Splits) -> nn.Module | None:
    if _is_alone(config):
        return None
    return build_classifier(surrogate_model(config), data.image_shape, _classes(data)).eval()


def _classes(data: Splits) -> int:
    return max(2, len(data.classes))  # the target says how many, once it is open


def _check_purifiers(config: RunConfig, data: Splits) -> None:
    """Refuse purifiers that cannot be built, each with a line."""
    problems = Problems({})
    classifier = _untrained_surrogate(config, data)
    for name in ladder_systems(config) if config.ladder.enabled else [config.purifier]:
        if name != "none":
            named = replace(config, purifier=name)
            problems.attempt(check_purifier, named, data.image_shape, classifier)
    problems.raise_all()


def _check_pool(config: RunConfig, data: Splits) -> None:
    given = is_given(config.surrogate) or _is_alone(config)
    if not len(data.pool) and not (given and is_ready(config.purifier, config)):
        raise ConfigError(
            "data.pool_images is 0, and surrogate and denoiser are trained on the images of the pool: use at least 1"
        )


def _check_labels(config: RunConfig, data: Splits) -> None:
    if not data.labeled:
        raise ConfigError(
            f"{data.name} has no labels, which the DUCD job needs: it chooses the noise by them and infers membership; add "
            "them, or use certdef run without ducd.enabled"
        )


NETWORKS = (
    Check(_check_name, ("surrogate",)),
    Check(_check_target_model, ("data", "target")),
    Check(_check_surrogate, ("data", "nim", "surrogate", "training")),
)
MAIN = (
    Check(_check_pool, ("data",)),
    Check(_check_choice, ("certify", "laws", "data")),
    Check(_check_votes, ("certify", "laws", "ledger", "purifier")),
    Check(_check_budgets, ("attack", "ledger", "purifier", "surrogate")),
    Check(_check_ladder, ("attack", "ladder", "ledger", "purifier")),
    *NETWORKS,
    Check(_check_purifiers, ("data", "ladder", "laws", "nim", "purifier", "surrogate")),
)
AVERAGE_CASE = (
    Check(_check_target_model, ("data", "target")),
    Check(check_robustness, ("certify", "data", "ledger", "robustness")),
)
ANOTHER_JOB = (Check(_check_single_stages, ()),)
DUCD = (
    Check(_check_labels, ("data",)),
    Check(_check_pool, ("data",)),
    Check(check_pools, ("data", "ducd", "ledger", "surrogate")),
    Check(check_choice, ("certify", "data", "ducd", "laws", "ledger")),
    Check(check_audit, ("data", "ducd", "ledger")),
    *NETWORKS,
)
UDC = (Check(check_udc, ("data", "udc")),)


def main(config: RunConfig, verb: str = "run") -> Sequence[Check]:
    """Those of the main job and of its parts."""
    if config.ducd.enabled or config.udc.enabled:
        return ANOTHER_JOB
    return (
        Check(partial(_check_verb, verb), ()),
        *(AVERAGE_CASE if verb == "robustness" else MAIN),
    )


def against_threat(config: RunConfig, own: Check) -> Sequence[Check]:
    """Those of a threat other than l2, with its own: it has no noise of certify.laws, and needs no denoiser and no attack."""
    if config.ducd.enabled or config.udc.enabled:
        return ANOTHER_JOB
    return (
        Check(partial(_check_verb, "certify"), ()),
        Check(_check_pool_of_surrogate, ("data",)),
        Check(_check_answers, ("ledger", "surrogate")),
        *NETWORKS,
        own,
    )


def _check_pool_of_surrogate(config: RunConfig, data: Splits) -> None:
    if not len(data.pool) and not (_is_alone(config) or is_object(config.surrogate.model)):
        raise ConfigError(
            "data.pool_images is 0, and the surrogate is trained on the images of the pool: use at least 1"
        )


def _check_answers(config: RunConfig, data: Splits | None) -> None:
    _check_evaluation(config, _heldout(config, data))


def _check_verb(verb: str, config: RunConfig, data: Splits | None) -> None:
    """Refuse what a verb can't do without a purifier, a surrogate, or one that is distilled here."""
    name = config.surrogate.model
    if config.preset == own_target.PRESET and config.target.uri is None:
        raise ConfigError(f"preset is {config.preset!r}: it is for a target of your own, give target.uri")
    if verb == "purify" and config.purifier == own_target.NONE:
        raise ConfigError(
            "purifier is none: there is nothing to purify with, name one that certdef purifiers lists"
        )
    if verb in ("distill", "budgets") and config.surrogate.weights is not None:
        raise ConfigError(
            f"surrogate.weights is {config.surrogate.weights!r}: nothing is distilled, unset it"
        )
    if verb in ("distill", "budgets") and (_is_alone(config) or is_object(name)):
        raise ConfigError(f"surrogate.model is {name!r}: nothing is distilled, name a model, e.g. resnet")
    if _is_alone(config) and (verb == "attack" or config.ladder.enabled):
        raise ConfigError(
            "surrogate.model is none: attacks are computed on a surrogate, name a model, e.g. resnet"
        )


def every(config: RunConfig) -> Sequence[Check]:
    """Those of the job that `certdef run` does."""
    if config.ducd.enabled:
        return DUCD
    return UDC if config.udc.enabled else MAIN
