"""Evaluations of one system under attack: what each attacker knows, the worst case image by image, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import certify
from surrogates.frames import Framed

if TYPE_CHECKING:
    import pandas

# The threat model of each attack, from the weakest on.
THREAT_MODELS = {
    "clean": "no attack",
    "blind": "the classifier's weights, nothing of the purifier",
    "surrogate_transfer": "a surrogate's weights, nothing of the purifier",
    "surrogate_transfer_eot": "a surrogate's weights and the purifier, averaged over its noise",
    "ensemble_transfer": "the weights of several surrogates and the purifier; three losses, judged on surrogates alone",
    "square": "scores of the whole system",
    "nes": "scores of the whole system, whose gradient is estimated",
    "hop_skip_jump": "labels of the whole system",
    "low_frequency": "every weight and every gradient, of which it follows the low frequencies",
    "bpda_eot": "every weight; the purifier's gradient is replaced by the identity's",
    "full_eot": "every weight and every gradient, averaged over the noise",
    "autoattack": "every weight and every gradient; the first attack of AutoAttack that a pass gets wrong",
    "proxy": "every weight; the purifier's gradient is replaced by that of a network learned from what it does, or of its denoiser",
    "apgd": "every weight and every gradient; three losses, and the candidate that the attacker's own passes get wrong most often",
    "dw_box": "every weight, every gradient, and the noise that will be drawn",
    "one_draw": "as full_eot, through one noise draw a step",
    "large_eps": "as the better of bpda_eot and full_eot, or as a transfer, at a distance where robust accuracy should be 0",
    "queries_large_eps": "as square, or as nes where noise is drawn, at a distance where robust accuracy should be 0",
    "resubmission": "as the strongest attacks; submits each image again and again, wrong if wrong once",
    "resubmission_clean": "no attack; submits each image again and again, wrong if wrong once",
    "worst_case": "the best of the attacks that submit an image once, for each image its own",
    "worst_case_clean": "no attack; as many submissions as the worst case has, wrong if wrong once",
}
# No attack at eps.
CONTROLS = ("clean", "large_eps", "queries_large_eps", "resubmission_clean", "worst_case_clean")
RESUBMISSION, WORST_CASE = "resubmission", "worst_case"
DW_BOX = "dw_box"  # who knows the noise beforehand is another attacker: it has a row, and no part in the worst case


@dataclass(frozen=True)
class AttackEvaluation:
    """How many images a system still classifies right under one attack.

    Attributes:
        name: Of the attack.
        knows: Its threat model.
        eps: L-infinity distance, in [0, 1] pixel units; 0 for an attack of another kind, whose name has its budget.
        accuracy: [share, lower, upper]; None where the attack could not be tried.
        right: Which images are classified right.
        queries: What was queried of the system; what the attacker computes by himself is none.
        gradients: Images whose gradient he followed, through the system or what stands for it.
        skipped: Why the attack could not be tried.
        certified: Of an attack of another kind: [share, lower, upper] of the images that are proven against all that it may do, of
            the vote or the target under masks that the certificates are about; None where nothing was certified.
    """

    name: str
    knows: str
    eps: float
    accuracy: list[float] | None = None
    right: tuple[bool, ...] = ()
    queries: int = 0
    gradients: int = 0
    skipped: str = ""
    certified: list[float] | None = None

    def __repr__(self) -> str:
        if self.accuracy is None:
            return f"AttackEvaluation({self.name}, skipped: {self.skipped})"
        share, low, high = (f"{100 * value:.1f}" for value in self.accuracy)
        return (
            f"AttackEvaluation({self.name}, eps={self.eps:g}, accuracy {share}% [{low}, {high}] of "
            f"{len(self.right)} images, queries={self.queries})"
        )

    def row(self) -> dict[str, Any]:
        """The evaluation as a row of a table: all of it but for the single images."""
        share, lower, upper = self.accuracy or (None, None, None)
        return {
            "attack": self.name,
            "eps": self.eps,
            "accuracy": share,
            "accuracy_lower": lower,
            "accuracy_upper": upper,
            "images": len(self.right),
            "queries": self.queries,
            "gradients": self.gradients,
            "knows": self.knows,
            "skipped": self.skipped,
        }

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


class Evaluations(list[AttackEvaluation], Framed):
    """One system under the attacks of the threat ladder: a list that is a table in a notebook."""

    def __repr__(self) -> str:
        worst = next((each for each in self if each.name == WORST_CASE and each.accuracy), None)
        tried = sum(each.accuracy is not None for each in self)
        headline = f", worst case {100 * worst.robust_accuracy:.1f}% at eps={worst.eps:g}" if worst else ""
        return f"Evaluations({tried} of {len(self)} tried{headline})"

    def to_frame(self) -> pandas.DataFrame:
        """A row an attack, from the weakest threat model on."""
        import pandas

        return pandas.DataFrame([each.row() for each in self])


def single_attacks(evaluations: Sequence[AttackEvaluation]) -> list[AttackEvaluation]:
    """The attacks that were tried and submit each image once, not knowing the noise; no controls."""
    others = (*CONTROLS, RESUBMISSION, DW_BOX, WORST_CASE)
    alike = [each for each in evaluations if each.name in THREAT_MODELS]  # others have other budgets
    return [each for each in alike if each.accuracy and each.name not in others]


def known_by(systems: Iterable[Sequence[AttackEvaluation]]) -> dict[str, str]:
    """What each attack on any of the systems knows, by its name: in the order of the ladder, attacks of other kinds last."""
    knows = {each.name: each.knows for evaluations in systems for each in evaluations}
    return {name: THREAT_MODELS[name] for name in THREAT_MODELS if name in knows} | {
        name: text for name, text in knows.items() if name not in THREAT_MODELS
    }


def strongest_attack(evaluations: Sequence[AttackEvaluation]) -> AttackEvaluation:
    """The single attack with the lowest robust accuracy.

    Raises:
        ValueError: No attack was tried.
    """
    tried = single_attacks(evaluations)
    if not tried:
        raise ValueError("no attack was tried: evaluate with at least one")
    return min(tried, key=lambda each: each.robust_accuracy)


def worst_case(evaluations: Sequence[AttackEvaluation], systems: int = 1) -> AttackEvaluation:
    """The images that survive every single attack, as AutoAttack reports it (Croce and Hein, ICML 2020).

    The lowest accuracy of an attack overstates what is robust: each attack breaks other images. A system that draws noise
    loses some images in as many submissions without any attack: worst_case_clean is the control.

    Args:
        evaluations: Of one system.
        systems: How many systems stand side by side: the intervals hold for all of them at once with 95% (Bonferroni).

    Raises:
        ValueError: No attack was tried.
    """
    one = strongest_attack(evaluations)
    rights = [each.right for each in single_attacks(evaluations)]
    right = tuple(all(each) for each in zip(*rights, strict=True))
    low, high = certify.binomial_interval(sum(right), len(right), alpha=0.05 / systems)
    accuracy = [sum(right) / len(right), float(low), float(high)]
    return AttackEvaluation(WORST_CASE, THREAT_MODELS[WORST_CASE], one.eps, accuracy, right)


def markdown_table(systems: Mapping[str, Sequence[AttackEvaluation]]) -> str:
    """Attack x system: accuracy [95% interval] in %, the worst case in bold; – where an attack does not apply."""
    named = {system: {each.name: each for each in evaluations} for system, evaluations in systems.items()}
    lines = ["| attack | " + " | ".join(systems) + " |", "| --- |" + " --- |" * len(systems)]
    for name in known_by(systems.values()):
        cells = [_cell(by_name.get(name)) for by_name in named.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(evaluation: AttackEvaluation | None) -> str:
    if evaluation is None:
        return "–"
    if evaluation.accuracy is None:
        return f"({evaluation.skipped})"
    share, low, high = (100 * value for value in evaluation.accuracy)
    mark = "**" if evaluation.name == WORST_CASE else ""
    proven = f"; certified {_percents(evaluation.certified)}" if evaluation.certified else ""
    return f"{mark}{share:.0f}{mark} [{low:.0f}, {high:.0f}]{proven}"


def _percents(share: Sequence[float]) -> str:
    value, low, high = (100 * each for each in share)
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"
