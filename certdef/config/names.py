"""The names that options take, all known without torch: a typo is answered before that is loaded, which takes seconds.

What certdef itself builds by name reads its names here. certify and surrogates import nothing of certdef and list their own;
a test holds their lists and these alike. timm's models are read from its files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from certdef.config.job import FILES, RunConfig, nearest
from certdef.config.objects import is_given
from certdef.config.own_target import NONE
from certdef.config.purifiers import entry_points, is_code
from certdef.config.target import NOISES

PRECISIONS = ("float32", "bfloat16", "float16")
STRATEGIES = (
    *("random", "kcenter", "margin", "entropy", "dfal"),
    *("kcenter_margin", "margin_kcenter", "dfal_kcenter"),
)
NATURAL = "natural"  # as blind_spot.images: the photographs of data.root

# Options that take one of a few names, with these. Those whose default is None may be unset.
CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "certify.method": (
        *("fixed", "two_sided", "sequential", "group_sequential"),
        "group_sequential_two_sided",
    ),
    "certify.bound": ("clopper_pearson", "randomized"),
    "certify.guide": ("off", "decide", "budget"),
    "certify.backend": ("loky", "dask", "ray"),
    "certify.engine": ("plain", "auto"),
    "nim.precision": PRECISIONS,
    "surrogate.strategy": STRATEGIES,
    "surrogate.loss": ("auto", "l1", "soft_cross_entropy", "kl", "cross_entropy", "partial"),
    "surrogate.features": ("student", "nim"),
    "surrogate.noise": NOISES,
    "surrogate.precision": PRECISIONS,
    "blind_spot.images": ("pool", NATURAL),
    "data.color": ("gray", "rgb"),
}
# The same of your own target. Opening it refuses them too, with all else that is wrong with it.
TARGET_CHOICES: dict[str, tuple[str, ...]] = {
    "target.output_kind": ("labels", "top_k", "probabilities", "logits"),
    "target.protocol": ("mlflow", "mlflow-server", "deployments", "open-inference", "onnx", "tflite", "json"),
    "target.layout": ("chw", "hwc", "flat", "flat_hwc"),  # or sides, which are no name
    "target.dtype": ("float32", "float64", "float16", "uint8", "int8", "int32", "int64"),
    "target.color": ("rgb", "bgr", "gray"),
}
TASKS = ("contrastive", "rotation", "jigsaw", "denoising")  # reversal.tasks
FILLS = ("gray", "mean", "mim", "leaves")  # --fill of the threat patch
CORRUPTIONS = (  # robustness.corruptions, each alone or with a strength
    *("noise", "brightness", "contrast", "gamma", "blur"),
    *("motion-blur", "shift", "rotation", "jpeg", "8-bit"),
)
DATA_SETS = ("digits", "fashion-mnist", "cifar10-part", "aerial")  # data.name, beside FILES
SMALL_MODELS = ("mlp", "cnn", "resnet")  # our own, beside timm's
NIM_SIZES = re.compile(r"nim_p(\d+)_w(\d+)_d(\d+)_h(\d+)(_c)?")  # an encoder with a linear head
TIMM_MODEL = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def is_choice(config: RunConfig, key: str) -> bool:
    """Whether the value of one of CHOICES is one of its names, or unset where that is its default."""
    section, _, name = key.rpartition(".")
    holder = getattr(config, section) if section else config
    value = getattr(holder, name)
    return value in CHOICES[key] or (value is None and getattr(type(holder), name) is None)


def one_of(value: object, names: Iterable[str]) -> str:
    """The remedy for a value that is none of a few names."""
    *others, last = known = tuple(names)
    few = f"use {', '.join(others)} or {last}" if len(known) <= 3 else f"use one of {', '.join(known)}"
    return few + nearest(str(value), known)


def unknown_data_set(name: str) -> str:
    """What is said of a data set that nobody knows."""
    return (
        f"unknown data set {name!r}{nearest(name, DATA_SETS)}: choose one of {', '.join(DATA_SETS)}, or give a file or folder "
        "of your own, --data.path"
    )


def unknown_model(name: str) -> str:
    """What is said of a model that nobody knows."""
    near = nearest(name, (*SMALL_MODELS, *timm_names()))
    return f"unknown model {name!r}{near}: use cnn, mlp, resnet or a timm model name, e.g. resnet18"


def surely_unknown(name: str) -> bool:
    """Whether neither we nor timm have a model of this name, and nobody can have registered one by now.

    Whoever registers a model has loaded timm, which then is asked.
    """
    if name in SMALL_MODELS or NIM_SIZES.fullmatch(name):
        return False
    if "timm" in sys.modules:
        return not sys.modules["timm"].is_model(name)
    plain = name.partition(".")[0]  # what follows names weights: resnet50.a1_in1k
    if plain in timm_names() or not timm_names():
        return False
    return not re.search(rf"(['\"]){re.escape(plain)}\1", _timm_text())  # as is the former name of a model


@cache
def timm_names() -> tuple[str, ...]:
    """timm's models by name, without their weights; none where its files cannot be read."""
    return tuple(sorted(TIMM_MODEL.findall(_timm_text())))


@cache
def _timm_text() -> str:
    """The files of timm that register models: to import them takes seconds, to read them a tenth."""
    found = find_spec("timm")
    folders = found.submodule_search_locations if found else None
    files = [file for folder in folders or () for file in sorted(Path(folder, "models").glob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def unknown_names(config: RunConfig) -> list[str]:
    """A line for each name that a job would look up with torch, and that surely nobody knows."""
    lines = []
    data, target, surrogate = config.data, config.target, config.surrogate
    if data.path is None and not config.udc.enabled and data.name not in (*DATA_SETS, *FILES):
        lines.append(unknown_data_set(data.name))
    models = {}
    if target.uri is None and target.kind != "svc":
        models["target.kind"] = target.kind
    if not is_given(surrogate) and surrogate.model not in (NONE, "nim"):
        models["surrogate.model"] = surrogate.model
    if not _may_register(config):
        lines += [f"{key}: {unknown_model(name)}" for key, name in models.items() if surely_unknown(name)]
    if target.uri is not None:
        for key, names in TARGET_CHOICES.items():
            value = target.form.get(key.removeprefix("target."))
            if isinstance(value, str) and value not in names:
                lines.append(f"{key} is {value!r}: {one_of(value, names)}")
    return lines


def unknown_corruptions(config: RunConfig) -> list[str]:
    """A line for each corruption that nobody knows; none where one has a strength, which only its law can judge, or is code."""
    named = config.robustness.corruptions
    if isinstance(named, str) or any(set(text) & set("=+:") for text in named):
        return []
    return [
        f"robustness.corruptions: {name!r} is no corruption{nearest(name, CORRUPTIONS)}: choose from {', '.join(CORRUPTIONS)}"
        for name in named
        if name not in CORRUPTIONS
    ]


def _may_register(config: RunConfig) -> bool:
    """Whether a purifier is foreign code, which may register models of timm's kind when it is loaded."""
    purifiers = (config.purifier, *config.ladder.systems)
    return any(is_code(name) or name in entry_points() for name in purifiers)
