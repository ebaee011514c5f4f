"""Trained parts that a job takes from another one, checked against what it needs; and its own, registered for others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from certdef.config.job import ConfigError, RunConfig, SigmaLaw
from certdef.models import storage
from certdef.purifiers.base import NetworkSpec, Plan
from certdef.stages.job import Job
from certdef.tracking import parts
from certdef.tracking.workspace import Stage

SURROGATE, WEIGHTS = "surrogate", "surrogate.weights"
# Which classes a network of a role has: what version 0.1.0 saved says no more.
CLASSES = {
    "nim": ("NIM", "TiledNIM", "MultiscaleNIM"),
    "nim-simmim": ("NIM", "TiledNIM"),
    "mim": ("MIM",),
    "diffusion": ("DiffusionNetwork",),
    SURROGATE: ("classifier",),
}


def build_network(spec: NetworkSpec, plan: Plan) -> nn.Module:
    """A network as configured: untrained, or with the weights of another job.

    Raises:
        ConfigError: These are of another kind of network, of other images, or were trained under another law.
        ValueError: Settings that can't be used.
    """
    given = spec.reused(plan.config)
    if given is None:
        return spec.build(plan)
    option = spec.weights or ""
    said = _read(plan.config, option, given, spec.role, plan.image_shape)
    if said.get("law") and plan.law is not None:
        _check_law(plan.config, option, given, said["law"])
    return storage.load_model(parts.part_folder(plan.config, given))


def _check_law(config: RunConfig, option: str, given: str, law: Mapping[str, Any]) -> None:
    others = [each for each in config.certify.laws if not parts.is_of(law, each)]
    if others:
        under = ", ".join(f"{each.label} {parts.law_in_words(vars(each))}" for each in others)
        raise ConfigError(
            f"{option} is {given!r}, trained under {parts.law_in_words(law)}, and certify.laws has {under}: certify under its "
            f"law alone, or unset {option}, and a network is trained under each"
        )


def check_surrogate(config: RunConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse a surrogate of another job that is of other images or classes.

    Raises:
        ConfigError: Names the option.
    """
    given = config.surrogate.weights
    if given is None:
        return
    said = _read(config, WEIGHTS, given, SURROGATE, image_shape)
    [described] = said["networks"].values()
    if described["num_classes"] != num_classes:
        raise ConfigError(
            f"{WEIGHTS} is {given!r}, of {described['num_classes']} classes, and the target has {num_classes}: name one that "
            f"was distilled from such a target, or unset {WEIGHTS}"
        )


def load_surrogate(config: RunConfig, given: str) -> tuple[nn.Module, dict[str, Any]]:
    """A surrogate of another job in eval mode, and what is said of it."""
    return storage.load_model(parts.part_folder(config, given)), parts.read_part(config, given)


def _read(
    config: RunConfig, option: str, given: str, role: str, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """What a part says of itself, where it is of this kind and of such images."""
    try:
        said = parts.read_part(config, given)
    except ConfigError as error:
        raise ConfigError(f"{option} is {given!r}: {error}") from error
    kinds = [each["type"] for each in said["networks"].values()]
    kind = said.get("part", role)
    if len(kinds) != 1 or kind != role or kinds[0] not in CLASSES[role]:
        raise ConfigError(
            f"{option} is {given!r}, which holds {', '.join([kind] if kind != role else kinds)}, not a {role}: name one of "
            f"certdef-{role}"
        )
    [described] = said["networks"].values()
    shape = tuple(described.get("image_shape", image_shape))
    if shape != tuple(image_shape) and described["type"] != "MultiscaleNIM":  # that one takes any size
        raise ConfigError(
            f"{option} is {given!r}, trained on images of {_sides(shape)}, and the job's are {_sides(image_shape)}: name one "
            f"that was trained on such images, or unset {option}"
        )
    return said


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def provenance(part: str, recipe: Any, pool: str | None, law: SigmaLaw | None = None) -> dict[str, Any]:
    """What `model.json` says of a part: what it is, and what its weights were trained by."""
    said = {"part": part, "recipe": recipe, "pool": pool}
    return said if law is None else said | {"law": vars(law) | {"shape": list(law.shape)}}


def publish(job: Job, stage: Stage[Any], logged: str | None) -> None:
    """Register what a stage trained, where that is asked for, and unless it is registered already.

    Args:
        job: The job; a shard registers nothing.
        stage: The stage, which is done.
        logged: URI of the model that it logged; None where it logged none.
    """
    folder = stage.path / "model"
    if not job.config.tracking.register_parts or job.prepared or not (folder / "model.json").is_file():
        return
    said = storage.read_spec(folder)
    if "part" in said and "reused" not in said:  # version 0.1.0 kept not what its parts were trained by
        parts.register(job.tracker, stage.name, Path(folder), logged)
