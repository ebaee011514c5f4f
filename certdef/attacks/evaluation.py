"""Evaluations of one system under attack: what each attacker knows, the worst case over attacks, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The threat model of each attack, from the weakest on.
THREAT_MODELS = {
    "clean": "no attack",
    "blind": "the classifier's weights, nothing of the purifier",
    "surrogate_transfer": "a surrogate's weights, nothing of the purifier",
    "surrogate_transfer_eot": "a surrogate's weights and the purifier, averaged over its noise",
    "square": "scores of the whole system",
    "hop_skip_jump": "labels of the whole system",
    "bpda_eot": "every weight; the purifier's gradient is replaced by the identity's",
    "full_eot": "every weight and every gradient, averaged over the noise",
    "one_draw": "as full_eot, through one noise draw a step",
    "large_eps": "as the better of bpda_eot and full_eot, at a distance where robust accuracy should be 0",
    "resubmission": "as the strongest attack; submits each image again and again, wrong if wrong once",
    "resubmission_clean": "no attack; submits each image again and again, wrong if wrong once",
}
CONTROLS = ("clean", "large_eps", "resubmission_clean")  # no attack at eps


@dataclass(frozen=True)
class AttackEvaluation:
    """How many images a system still classifies right under one attack.

    Attributes:
        name: Of the attack.
        knows: Its threat model.
        eps: L-infinity distance, in [0, 1] pixel units.
        accuracy: [share, lower, upper]; None where the attack could not be tried.
        right: Which images are classified right.
        queries: What was queried of the system; gradients are not counted.
        skipped: Why the attack could not be tried.
    """

    name: str
    knows: str
    eps: float
    accuracy: list[float] | None = None
    right: tuple[bool, ...] = ()
    queries: int = 0
    skipped: str = ""

    @property
    def robust_accuracy(self) -> float:
        """The share of images classified right; ValueError where the attack could not be tried."""
        if self.accuracy is None:
            raise ValueError(f"{self.name} was not tried: {self.skipped}")
        return self.accuracy[0]

    def to_json(self) -> dict[str, Any]:
        """The evaluation as JSON has it."""
        return vars(self) | {"right": list(self.right)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> AttackEvaluation:
        """The evaluation from its plain form."""
        return cls(**{**plain, "right": tuple(plain["right"])})


def worst_case(evaluations: Sequence[AttackEvaluation]) -> AttackEvaluation:
    """The evaluation with the lowest robust accuracy over all attacks; controls do not count.

    Raises:
        ValueError: No attack was tried.
    """
    tried = [each for each in evaluations if each.accuracy and each.name not in CONTROLS]
    if not tried:
        raise ValueError("no attack was tried: evaluate with at least one")
    return min(tried, key=lambda each: each.robust_accuracy)


def markdown_table(systems: Mapping[str, Sequence[AttackEvaluation]]) -> str:
    """Attack x system: accuracy [95% interval] in %, the worst case in bold; – where an attack does not apply."""
    named = {system: {each.name: each for each in evaluations} for system, evaluations in systems.items()}
    attacks = [name for name in THREAT_MODELS if any(name in by_name for by_name in named.values())]
    lowest = {system: worst_case(evaluations) for system, evaluations in systems.items()}
    lines = ["| attack | " + " | ".join(systems) + " |", "| --- |" + " --- |" * len(systems)]
    for name in attacks:
        cells = [_cell(by_name.get(name), lowest[system]) for system, by_name in named.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(evaluation: AttackEvaluation | None, lowest: AttackEvaluation) -> str:
    if evaluation is None:
        return "–"
    if evaluation.accuracy is None:
        return f"({evaluation.skipped})"
    share, low, high = (100 * value for value in evaluation.accuracy)
    mark = "**" if evaluation == lowest else ""
    return f"{mark}{share:.0f}{mark} [{low:.0f}, {high:.0f}]"
