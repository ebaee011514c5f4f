"""Titles of subjects, purifiers, laws and conditions. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from certdef.config.candidates import TRUNCATED
from certdef.config.job import SigmaLaw

if TYPE_CHECKING:
    from certdef.stages.conditions import Condition
    from surrogates import Bill

__all__ = [
    "SUBJECT_NAMES",
    "condition_title",
    "law_in_words",
    "of_target_alone",
    "purifier_title",
    "right_in_words",
    "sigma_in_words",
]

SUBJECT_NAMES = {
    "surrogate": "surrogate",
    "target_white_box": "target, by its weights",
    "target": "target, by paid queries",
}


def purifier_title(name: str) -> str:
    """A purifier's name as tables and pictures print it."""
    from certdef.purifiers.registry import find_purifier  # which loads torch

    return find_purifier(name).title


def behind_in_words(purifier: str | None) -> str:
    """What a classifier stands behind."""
    return f"behind {purifier_title(purifier)}" if purifier else "without a denoiser"


def right_in_words(remarks: Mapping[str, Any]) -> str:
    """What right means, to stand behind a figure: empty where the images have labels.

    Args:
        remarks: The params of a stage's result, or Splits.remarks.
    """
    return "; right: the target's own clean answer" if "right" in remarks else ""


def law_in_words(law: SigmaLaw) -> str:
    """A law of sigma as the literature writes it: gamma(25, scale 3)/255; a constant one by its value."""
    if law.family == "constant":
        return f"{law.scale_255:g}/255, constant"
    cut = law.family.startswith(TRUNCATED)
    shape, ends = (law.shape[:-2], law.shape[-2:]) if cut else (law.shape, ())
    arguments = [*(f"{value:g}" for value in shape), f"scale {law.scale_255:g}"]
    within = f" cut to {ends[0]:g}/255 to {ends[1]:g}/255" if cut else ""
    return f"{law.family.removeprefix(TRUNCATED)}({', '.join(arguments)})/255{within}"


def sigma_in_words(law: SigmaLaw) -> str:
    """The same as a statement about sigma, in [0, 1] pixel units where it is constant."""
    if law.family == "constant":
        return f"σ = {law.scale_255 / 255:.3f}, constant"
    return f"σ ~ {law_in_words(law)}"


def condition_title(condition: Condition) -> str:
    """A condition's noise and denoiser."""
    denoiser = purifier_title(condition.purifier) if condition.purifier else "no denoiser"
    return f"{condition.law} noise, {denoiser}"


def of_target_alone(bill: Bill) -> Bill:
    """The bill of a target that is certified alone: such a job has no budget for training and attack.

    What a whole job on the same target paid for them before stays on it.
    """
    charges = {
        purpose: replace(charge, budget=charge.largest) if purpose in ("training", "attack") else charge
        for purpose, charge in bill.charges.items()
    }
    return replace(bill, charges={purpose: each for purpose, each in charges.items() if each.budget})
