"""What `evaluator_config` may say: its keys, checked all at once, and the certification that follows. Loads no torch.

A key that has the name of an option of a job means the same. What is not set follows the size of the images, as it does
for a target of one's own (certdef/config/own_target.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite, prod
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from certdef.config.checks import failures
from certdef.config.job import (
    LONGEST_SIDE,
    OFF,
    CertifyConfig,
    ConfigError,
    RunConfig,
    SigmaLaw,
    SurrogateConfig,
    nearest,
)
from certdef.config.own_target import NONE, PRESET, Facts, resolved

NAME = "certdef"  # of the evaluator
PURPOSES = ("certification", "evaluation")  # what a budget may be for
LAYOUTS = ("flat", "flat_hwc", "chw", "hwc")
# Keys that only a certificate has: where one is there, or nearly, the configuration is meant for this evaluator.
OWN = ("image_shape", "pixel_range", "sigma", "law", "radii", "n0", "ledger", "budget")
LIKE = 0.8  # from this likeness on a key may be one that was misspelled


@dataclass(frozen=True)
class EvaluatorConfig:
    """One evaluation. Pixels, sigma and radii are in [0, 1] units; `pixel_range`, `mean` and `std` say how the data have them.

    Args:
        image_shape: Sides of an image, (H, W) or (C, H, W): the columns of the data are its values.
        pixel_range: What black and white are in the data and for the model, e.g. (0, 255).
        mean: What was subtracted from each channel, in units of [0, 1].
        std: What each channel was divided by then.
        layout: The order of the columns: flat (C, H, W) or flat_hwc (H, W, C). chw and hwc are the same orders, for a model
            without a signature that takes images (N, C, H, W) or (N, H, W, C) in the place of rows.
        sigma: Of Gaussian noise, in [0, 1] pixel units.
        law: A law of sigma in its place, as in a job: {family, shape, scale_255}.
        images: Most rows that are certified; which ones, the seed decides.
        n0, n, alpha, radii, method, known_class, bound: As the options of `certify` of a job.
        seed: Of the noise, and of which rows are certified.
        work_dir: Folder with a folder for each model: its ledger and its records.
        ledger: The ledger's file in the place of that one; it belongs to one model.
        budget: Most certification queries of this model, over all evaluations; or a map of certification and evaluation to
            numbers. Unset, as many as this evaluation takes.
        num_classes, classes, output_kind, output, batch_size, dtype, identity: As `surrogates.open_target` takes them, where
            the model does not tell.
        metric_prefix: Before the names of metrics and files, as for MLflow's own evaluators.
        progress: Show a bar.
    """

    image_shape: tuple[int, ...]
    pixel_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str = "flat"
    sigma: float | None = None
    law: SigmaLaw | None = None
    images: int | None = None
    n0: int | None = None
    n: int | None = None
    alpha: float | None = None
    radii: tuple[float, ...] | None = None
    method: str | None = None
    known_class: bool | None = None
    bound: str | None = None
    seed: int = 0
    work_dir: str = "runs/evaluations"
    ledger: str | None = None
    budget: dict[str, int] = field(default_factory=dict)
    num_classes: int | None = None
    classes: list[Any] | dict[str, int] | None = None
    output_kind: str | None = None
    output: str | int | None = None
    batch_size: int | None = None
    dtype: str | None = None
    identity: str | None = None
    metric_prefix: str = ""
    progress: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = (1, *self.image_shape)[-3:]
        return channels, height, width

    @property
    def form(self) -> dict[str, Any]:
        """In what form the model takes pixels and answers, as options of open_target; without what is unset."""
        names = (
            "pixel_range",
            "mean",
            "std",
            "num_classes",
            "classes",
            "output_kind",
            "output",
            "batch_size",
        )
        given = {name: getattr(self, name) for name in (*names, "dtype") if getattr(self, name) is not None}
        if self.pixel_range == EvaluatorConfig.pixel_range:
            del given["pixel_range"]
        return given

    def job(self, rows: int) -> RunConfig:
        """The same as the configuration of a job that certifies a target alone, with what follows from so many images."""
        config = self._as_given
        chosen = {"purifier", "surrogate.model", *(f"certify.{name}" for name in self._certify)}
        return resolved(config, Facts(self.shape, rows, rows, alone=True), chosen)

    @property
    def _certify(self) -> dict[str, Any]:
        """Options of `certify` that were set."""
        names = ("n0", "n", "alpha", "radii", "method", "known_class", "bound")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.images is not None:
            given["target_images"] = self.images
        law = SigmaLaw("constant", "constant", (), 255 * self.sigma) if self.sigma is not None else self.law
        return given if law is None else given | {"laws": (law,)}

    @property
    def _as_given(self) -> RunConfig:
        return RunConfig(
            preset=PRESET,
            seed=self.seed,
            purifier=NONE,
            surrogate=SurrogateConfig(model=NONE),
            certify=CertifyConfig(**{"choose": OFF} | self._certify),
        )

    def faults(self) -> list[str]:
        """A line for each value that is out of its range."""
        return [_in_own_terms(line) for found in failures(self._as_given).values() for line in found]


def is_meant(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is this evaluator's: MLflow hands it to every evaluator where none is named."""
    keys = map(str, _unwrapped(config or {}))
    return any(difflib.get_close_matches(key, OWN, n=1, cutoff=LIKE) for key in keys)


def read_config(config: Mapping[str, Any]) -> EvaluatorConfig:
    """Read what MLflow hands over.

    Raises:
        ConfigError: Unknown keys, and values that cannot be used: a line for each.
    """
    config = _unwrapped(config)
    known = [each.name for each in fields(EvaluatorConfig)]
    lines = [
        f"unknown key {name!r} of evaluator_config{nearest(str(name), known)}: it takes {', '.join(known)}"
        for name in config
        if name not in known
    ]
    if config.get("image_shape") is None:
        lines.append("image_shape is not set: give the sides of an image, (H, W) or (C, H, W), e.g. (28, 28)")
    given = {name: value for name, value in config.items() if name in known and value is not None}
    wrong = [name for name, value in given.items() if name in KEYS and not KEYS[name][0](value)]
    lines += [f"{name} is {given[name]!r}: {KEYS[name][1]}" for name in wrong]
    if {"sigma", "law"} <= given.keys():
        lines.append("sigma and law are both set: leave one of them out")
    good = {name: _plain(name, value) for name, value in given.items() if name not in wrong}
    lines += EvaluatorConfig(**({"image_shape": (1, 1)} | good)).faults()
    if lines:
        raise ConfigError("\n".join(lines))
    return EvaluatorConfig(**good)


def in_own_words(message: str) -> str:
    """A message in which options of a job and of the command line are called as they are here."""
    message = message.replace("--ledger.path", "ledger").replace("class_names", "classes")
    for purpose in PURPOSES:
        message = message.replace(f"ledger.{purpose}", f"budget, of {purpose},")
    return _in_own_terms(message)


def _in_own_terms(line: str) -> str:
    return re.sub(r"(--|\b)(certify|target|data)\.(?=\w)", "", line).replace("target_images", "images")


def _unwrapped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"certdef": {...}} as for several evaluators, also where this one is named alone."""
    inner = config.get(NAME)
    return inner if isinstance(inner, Mapping) and len(config) == 1 else config


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(float(value))


def _are_numbers(value: Any) -> bool:
    several = isinstance(value, list | tuple) or (hasattr(value, "tolist") and not isinstance(value, Real))
    return several and len(value) > 0 and all(map(_is_number, value))


def _is_shape(value: Any) -> bool:
    sides = isinstance(value, list | tuple) and len(value) in (2, 3) and all(map(_is_count, value))
    return sides and max(value) <= LONGEST_SIDE and prod(map(int, value)) > 1


def _is_range(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 2 and float(value[0]) < float(value[1])


def _is_law(value: Any) -> bool:
    if isinstance(value, SigmaLaw):
        return True
    if not isinstance(value, Mapping) or not {*value} <= {each.name for each in fields(SigmaLaw)}:
        return False
    whole = {**asdict(SigmaLaw()), **value}
    numbers = not len(whole["shape"]) or _are_numbers(whole["shape"])
    texts = isinstance(whole["label"], str) and isinstance(whole["family"], str)
    return numbers and texts and _is_number(whole["scale_255"])


def _is_budget(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and {*value} <= {*PURPOSES} and all(map(_is_count, value.values()))
    return _is_count(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | Path) and bool(str(value))


# The keys, what each of them may be, and the remedy.
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_shape": (_is_shape, "give the sides of an image, (H, W) or (C, H, W), e.g. (28, 28)"),
    "pixel_range": (_is_range, "give what black and white are in the data, lower first, e.g. (0, 255)"),
    "mean": (lambda value: _is_number(value) or _are_numbers(value), "give a number for each channel"),
    "std": (
        lambda value: (_is_number(value) and value > 0) or (_are_numbers(value) and min(value) > 0),
        "give a number above 0 for each channel",
    ),
    "layout": (lambda value: isinstance(value, str) and value in LAYOUTS, f"use one of {', '.join(LAYOUTS)}"),
    "sigma": (lambda value: _is_number(value) and 0 < value <= 1, "use [0, 1] pixel units: 64/255 is 0.25"),
    "law": (
        _is_law,
        "give family, shape and scale_255, e.g. {'family': 'gamma', 'shape': [25], 'scale_255': 3}",
    ),
    "images": (_is_count, "use at least 1"),
    "n0": (_is_count, "use at least 1, e.g. 100"),
    "n": (_is_count, "use at least 1, e.g. 1000"),
    "alpha": (_is_number, "use a value in (0, 0.5), e.g. 0.001"),
    "radii": (_are_numbers, "name at least one radius, e.g. [0.25, 0.5]"),
    "method": (_is_text, "use e.g. fixed"),
    "known_class": (lambda value: isinstance(value, bool), "use True or False"),
    "bound": (_is_text, "use e.g. clopper_pearson"),
    "seed": (lambda value: value == 0 or _is_count(value), "use a whole number of at least 0"),
    "work_dir": (_is_text, "give a folder"),
    "ledger": (_is_text, "give the path of a file"),
    "budget": (_is_budget, "give a number of queries, or a map of certification and evaluation to such"),
    "num_classes": (lambda value: _is_count(value) and value >= 2, "use at least 2"),
    "metric_prefix": (lambda value: isinstance(value, str), "give a text, e.g. 'validation/'"),
    "progress": (lambda value: isinstance(value, bool), "use True or False"),
    "identity": (_is_text, "give a name that changes when the model does"),
}


def _plain(name: str, value: Any) -> Any:
    """A checked value as the configuration keeps it: numpy's numbers and lists as Python's numbers and tuples."""
    match name:
        case "image_shape":
            return tuple(int(side) for side in value)
        case "mean" | "std":
            return tuple(float(each) for each in ([value] if _is_number(value) else value))
        case "pixel_range" | "radii":
            return tuple(float(each) for each in value)
        case "images" | "n0" | "n" | "seed" | "num_classes":
            return int(value)
        case "alpha" | "sigma":
            return float(value)
        case "work_dir" | "ledger":
            return str(value)
        case "budget":
            return dict(value) if isinstance(value, Mapping) else {PURPOSES[0]: int(value)}
        case "law" if isinstance(value, Mapping):
            law = SigmaLaw(**value)
            label = value.get("label", law.family)
            return SigmaLaw(label, law.family, tuple(map(float, law.shape)), float(law.scale_255))
    return value
