"""Options that were changed and that nothing in the job reads: named before anything starts, not ignored in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from certdef.config.job import RunConfig, flatten, preset_path, without_password
from certdef.config.objects import is_given
from certdef.config.own_target import NONE
from certdef.config.purifiers import LEAVES, is_code

DATA_SETS_IN_A_FOLDER = ("fashion-mnist", "cifar10-part", "aerial")
OF_FILES = ("columns", "images_key", "labels_key")  # which part of a file is meant
SELECTION = tuple(f"surrogate.{name}" for name in ("rounds", "start", "round_epochs", "features"))
AS_CERTIFIED = tuple(f"surrogate.{name}" for name in ("consistency", "entropy"))
FINETUNED = ("surrogate.finetune_epochs",)
WITH_MEMBERSHIP = ("run", "certify", "merge", "plan")
WITHOUT_ATTACK = ("pretrain", "distill", "budgets", "certify", "purify")  # verbs that attack nothing
SOFT_LABELS = ("surrogate.unlabelled_weight", "surrogate.unlabelled_ratio")
PURIFIER_SECTIONS = ("nim", "gs", "blind_spot", "reversal", "diffusion")

# Options or sections, and why nothing reads them.
Rules = Iterator[tuple[tuple[str, ...], str]]


class UnusedOption(UserWarning):
    """An option was changed, and the job as configured does not read it."""


def unused_options(config: RunConfig, verb: str = "run", chosen: Collection[str] | None = None) -> list[str]:
    """A line for each option that differs from its preset and that a verb of the job does not read.

    Where no rule says otherwise, an option is read.

    Args:
        config: The job.
        verb: run, a part of it, or serve. `budgets` is distill with a table of strategies, `leaves` the training of the
            shipped denoiser.
        chosen: The options that were set on purpose, dotted; unset, all that differ.
    """
    import yaml

    values = flatten(config.to_dict())
    preset = flatten(RunConfig().to_dict()) | flatten(yaml.safe_load(preset_path(config.preset).read_text()))
    changed = {key: value for key, value in values.items() if value != preset.get(key)}
    if chosen is not None:
        changed = {key: value for key, value in changed.items() if key in chosen}
    rules = [*_rules(config, verb)] if changed else []
    lines = []
    for key, value in changed.items():
        reason = next((why for names, why in rules if _covers(names, key)), None)
        reason = reason or _purifier_reason(config, verb, key, preset.get(key))
        shown = without_password(repr(value))
        lines += [f"{key} is {shown}, which nothing reads: {reason}"] if reason else []
    return lines


def _covers(names: Iterable[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _rules(config: RunConfig, verb: str) -> Rules:
    if verb == "serve":
        other = {name for name in config.to_dict() if name not in ("preset", "tracking", "target")}
        yield tuple(other), "a model is served as it was registered; a request may set n0, n and alpha"
        return
    if verb == "leaves":
        other = {name for name in config.to_dict() if name not in ("preset", "seed", "device", "threads")}
        yield tuple(other), "the shipped denoiser is trained by its own recipe, on images that are drawn"
        return
    if verb == "robustness":
        read = (
            "preset",
            "seed",
            "device",
            "threads",
            "work_dir",
            "data",
            "target",
            "ledger",
            "robustness",
            "tracking",
            "certify",
        )
        yield (
            tuple(name for name in config.to_dict() if name not in read),
            "certdef robustness asks the bare target alone",
        )
        votes = tuple(f"certify.{name}" for name in config.to_dict()["certify"] if name != "alpha")
        yield (
            (*votes, "ledger.training", "ledger.attack"),
            "certdef robustness adds no noise of a vote, trains nothing and attacks nothing",
        )
        yield from _data(config)
        yield from _target(config)
        return
    yield ("robustness",), "it is for certdef robustness"
    yield from _other_job(config)
    yield from _data(config)
    yield from _target(config)
    yield from _surrogate(config, verb)
    yield from _votes(config)
    if verb not in WITH_MEMBERSHIP:
        yield ("membership",), "certdef run and certify infer membership"
    if not config.ladder.enabled:
        yield ("ladder",), "the threat ladder is off, turn it on with --ladder"
    if config.ladder.smoothed_images == 0:
        yield ("ladder.smoothed_draws",), "ladder.smoothed_images is 0"


def _other_job(config: RunConfig) -> Rules:
    """What the jobs beside the main one do without."""
    if config.udc.enabled or config.ducd.enabled:
        yield ("membership",), "the main job infers membership by lists of your own"
    if config.udc.enabled:
        of_others = ("t", "choice_images", "guidance", "robust_epochs", "robust_diffused")
        own = tuple(f"diffusion.{name}" for name in of_others)
        named = (
            "name",
            "path",
            *OF_FILES,
            "resize",
            "color",
            "target_images",
            "pool_images",
            "pool_copies",
            "heldout_images",
        )
        data = tuple(f"data.{name}" for name in named)
        more = ("target", "ledger", "surrogate", "purifier", "certify", "attack", "ladder", "ducd")
        networks = tuple(name for name in PURIFIER_SECTIONS if name != "diffusion")
        yield (
            (*data, *own, *more, *networks, "tracking.registered_model"),
            "the UDC job has no target, surrogate or certificate, and its purifier is DiffPure",
        )
    if config.ducd.enabled:
        yield (
            ("purifier", "attack", "ladder", *PURIFIER_SECTIONS, "tracking.registered_model"),
            "the DUCD job has no purifier and no attack, and registers nothing",
        )
        yield FINETUNED, "the DUCD job has no purifier and no attack"
        choice = tuple(f"certify.{name}" for name in ("choose", "choice_images", "choice_n"))
        yield (
            choice,
            "the DUCD job chooses its noise by ducd.gaussians_255, ducd.choice_images and ducd.choice_n",
        )
        pool = "the DUCD job queries its whole pool"
        yield (*SELECTION, *SOFT_LABELS, "surrogate.strategy", "surrogate.committee"), pool
    for name in ("ducd", "udc"):
        if not getattr(config, name).enabled:
            yield (name,), f"{name}.enabled is false"


def _data(config: RunConfig) -> Rules:
    natural = config.udc.enabled or config.blind_spot.images == "natural"
    data = config.data
    if (data.path or data.name not in DATA_SETS_IN_A_FOLDER) and not natural:
        yield ("data.root",), f"the data set is {data.path or data.name}"
    suffix = Path(data.path or "").suffix.lower()
    if data.path is None:
        yield tuple(f"data.{name}" for name in OF_FILES), "data.path is not set"
    if suffix != ".npz":
        yield ("data.images_key", "data.labels_key"), "data.path is no .npz"
    if suffix in (".npz", ".npy"):
        yield ("data.columns",), "data.path is no table"
    if not config.target.uri:
        yield ("data.labels",), "labels are matched with the classes of your own target (target.uri)"
    if not config.ducd.enabled:
        yield ("data.audit_images",), "only the DUCD job infers membership"
    if config.target.uri:
        yield ("data.target_images",), "no images are set aside where target.uri is given"


def _target(config: RunConfig) -> Rules:
    target = config.target
    if target.uri:
        yield tuple(f"target.{name}" for name in ("kind", "epochs", "augment")), "target.uri is given"
    elif target.kind == "svc":
        yield ("target.epochs", "target.augment"), "target.kind is svc"
    if not target.uri:
        yield ("target.canary_every", "ledger.canary"), "only a service of your own (target.uri) is watched"
        yield ("ledger.preflight",), "only a target of your own (target.uri) is looked at first"
    elif not target.canary_every:
        yield ("ledger.canary",), "target.canary_every is 0"


def _surrogate(config: RunConfig, verb: str) -> Rules:
    surrogate = config.surrogate
    if is_given(surrogate):
        given = "surrogate.weights" if surrogate.weights else "the surrogate"
        model = ("surrogate.model",) if surrogate.weights else ()
        read = ("surrogate.model", "surrogate.weights")
        trained = tuple(
            name for name in (f"surrogate.{each}" for each in vars(surrogate)) if name not in read
        )
        yield (*trained, *model, "ledger.training"), f"{given} is given, and nothing is distilled"
    if verb != "budgets" and surrogate.strategy == "random":
        yield SELECTION, "surrogate.strategy is random"
    elif verb != "budgets" and "kcenter" not in surrogate.strategy:
        yield ("surrogate.features",), f"surrogate.strategy is {surrogate.strategy}, not k-center"
    if verb == "budgets":
        yield ("surrogate.strategy",), "--strategies names those of the table"
    if surrogate.noise != "certified":
        yield AS_CERTIFIED, f"surrogate.noise is {surrogate.noise}: only certified has it"
    elif surrogate.consistency == 0:
        yield ("surrogate.entropy",), "surrogate.consistency is 0"
    if verb in ("distill", "budgets") and surrogate.noise == "certified":
        yield AS_CERTIFIED, "certified surrogates are trained by certdef certify and run"
    if verb in WITHOUT_ATTACK:
        yield FINETUNED, "the surrogate behind the purifier is attacked by certdef attack and run"
    elif not purifiers_of(config):
        yield FINETUNED, "there is no purifier"
    elif surrogate.model == NONE:
        yield FINETUNED, "there is no surrogate"
    if surrogate.committee == 0:
        yield SOFT_LABELS, "surrogate.committee is 0"


def _votes(config: RunConfig) -> Rules:
    if not config.certify.candidates:
        yield ("certify.choice_images", "certify.choice_n"), "certify.choose is off"
    if config.certify.backend is None:
        yield ("certify.workers", "certify.scheduler"), "certify.backend is unset"
    elif config.certify.backend == "loky":
        yield ("certify.scheduler",), "certify.backend is loky, this computer"


def _purifier_reason(config: RunConfig, verb: str, key: str, default: Any) -> str | None:
    """Why an option of a purifier's is not read, or None: its purifiers are the same with the preset's value."""
    section, _, name = key.partition(".")
    if config.udc.enabled or (section not in PURIFIER_SECTIONS and key != "attack.sigma_255"):
        return None
    if section == "nim" and (
        verb == "pretrain" or "nim" in (config.surrogate.model, config.surrogate.features)
    ):
        preset = replace(config.nim, **{name: default})
        if preset.settings != config.nim.settings:
            return None
        if verb == "pretrain":
            shipped = config.nim.weights == LEAVES and name != "keep"
            return (
                "the shipped denoiser has sizes of its own"
                if shipped
                else "pre-training does not depend on it"
            )
    value = tuple(default) if isinstance(default, list) else default
    other = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    if _purifiers(config) != _purifiers(other):
        return None
    return f"no purifier of this job ({', '.join(purifiers_of(config))}) depends on it"


def purifiers_of(config: RunConfig) -> list[str]:
    """The purifiers that a job builds: its own, and those of the threat ladder."""
    systems = config.ladder.systems if config.ladder.enabled else ()
    return [name for name in dict.fromkeys([config.purifier, *systems]) if name != "none"]


def _purifiers(config: RunConfig) -> list[Any]:
    """All that decides the purifiers of a job: their settings, and those of their networks."""
    from certdef.purifiers.registry import find_purifier  # loads torch
    from certdef.stages.purifier import finetuned_networks

    every: list[Any] = []
    for name in purifiers_of(config):
        if is_code(name):  # it reads no option, and is not run for a question
            continue
        spec = find_purifier(name)
        every += [spec.settings(config), spec.tuning and spec.tuning.depends_on(config)]
        waiting = [*spec.networks(config)]
        while waiting:
            network = waiting.pop()
            every += [network.role, network.settings(config)]
            waiting += network.needs(config)
        every += [each.settings(config) for each in finetuned_networks(config, spec)]
    return every
