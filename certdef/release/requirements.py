"""Headings of standards and law that ask for such evidence: what is asked in our words, what is here, what is not.

OWASP AISVS: chapter C11 of the draft of version 1.0 (github.com/OWASP/AISVS, 1.0/en/0x10-C11-Adversarial-Robustness.md). EU AI Act:
Regulation (EU) 2024/1689, Article 15 and Annex IV, which bind providers of high-risk systems. Nothing here says that a model complies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from certdef.release.document import Requirement

AISVS = "OWASP AISVS 1.0 (draft), C11"
AI_ACT = "EU AI Act (Regulation (EU) 2024/1689)"


class Heading(NamedTuple):
    """A heading, what it asks for, the parts of the document that answer it, and what is left to do."""

    source: str
    section: str
    asks: str
    here: tuple[str, ...]
    yours: str


HEADINGS = (
    Heading(AISVS, "11.2.1 known attacks", "Models of high-risk functions are tried against the attacks known for their kind of input.", ("attack",), "Decide which attacks matter in your use: other norms, patches, physical changes are not tried here."),
    Heading(AISVS, "11.2.2 detection in production", "Adversarial inputs raise alarms in production, and risky endpoints block or degrade.", (), "All of it: nothing in this document watches production."),
    Heading(AISVS, "11.2.3 hardening", "Hardening is applied where it is feasible, documented and reproducible.", ("certificates", "reproduce"), "Document how the model itself was trained; noise, purifier and vote are here."),
    Heading(AISVS, "11.2.4 adaptive attacks", "Attacks that know the defense show no loss of robustness from release to release.", ("attack",), "Run the ladder for each release, and compare."),
    Heading(AISVS, "11.2.5 formal verification", "Safety-critical parts are verified formally where their architecture allows it.", ("certificates", "proves", "does_not_prove"), "Deploy the smoothed classifier: the bare model has no certificate."),
    Heading(AISVS, "11.2.6 certified metrics per version", "Certified radius or verified accuracy is kept for each model version, and a drop beyond a threshold stops its deployment.", ("model", "certificates"), "Set the thresholds and gate releases with them: certdef compare OLD NEW --max-drop, --fail-if."),
    Heading(AISVS, "11.2.7 after transformations", "Certification is repeated after fine-tuning, distillation, quantization or merging.", ("model", "certificates"), "Certify every such version by itself: this document is of one."),
    Heading(AISVS, "11.3.1 calibrated outputs", "Outputs are calibrated, so that confidence gives less away.", ("membership",), "Calibrate, and measure again; membership inference shows the effect, not the calibration."),
    Heading(AISVS, "11.3.2 private training", "Sensitive data is trained on with differential privacy and a stated budget.", (), "All of it: how the model was trained is not looked at."),
    Heading(AISVS, "11.3.3 membership inference", "Simulated attacks do hardly better than guessing.", ("membership",), "Say what is little enough; give lists of one distribution; try attackers with more knowledge."),
    Heading(AISVS, "11.10.1 probing for bias", "Endpoints notice queries that vary one trait while all else stays.", (), "All of it: nothing in this document watches production."),
    Heading(AISVS, "11.10.2 robustness by subgroup", "Robustness is measured by meaningful subgroup, and deviations beyond a threshold are flagged.", ("subgroups",), "Choose the groups and the threshold. Here is certified accuracy by group; false negatives under attack, of your positive class, are not."),
    Heading(AISVS, "11.10.3 no regress by subgroup", "Where bias is a way in, hardening looks at subgroups, and none gets worse from release to release.", ("subgroups",), "certdef compare OLD NEW --groups FILE:COLUMN --max-proven-drop 0."),
    Heading(AI_ACT, "Art. 15(1)", "Accuracy, robustness and cybersecurity are at an appropriate level, and stay there over the lifecycle.", ("clean_accuracy", "certificates", "attack"), "Say what is appropriate for the intended purpose, and measure again over the lifecycle."),
    Heading(AI_ACT, "Art. 15(3)", "Levels of accuracy and their metrics are in the instructions for use.", ("clean_accuracy", "certificates"), "Put them there, for the whole system and its intended purpose."),
    Heading(AI_ACT, "Art. 15(4)", "The system withstands errors, faults and inconsistencies; feedback loops are dealt with.", ("certificates",), "Redundancy, fail-safe plans and feedback loops; certificates are about small changes of an image alone."),
    Heading(AI_ACT, "Art. 15(5)", "The system withstands attempts to change its use, outputs or performance, among them adversarial examples, attacks on confidentiality, poisoned data and models.", ("certificates", "attack", "membership"), "Poisoning, model flaws and the security of everything around the model."),
    Heading(AI_ACT, "Annex IV, 1(a) and (c)", "Provider, purpose and version of the system; versions of its software.", ("model", "writer"), "Provider, intended purpose, and the software of the system as deployed."),
    Heading(AI_ACT, "Annex IV, 2(g)", "Procedures and data of validation and testing, metrics, and test reports that are dated and signed.", ("data", "certificates", "queries", "reproduce"), "Sign it. Describe where the images come from and whether they represent the use; discriminatory effects."),
    Heading(AI_ACT, "Annex IV, 2(h)", "Measures of cybersecurity.", ("attack", "membership"), "All others."),
    Heading(AI_ACT, "Annex IV, 3", "Capabilities and limits, also for particular groups of persons; foreseeable unintended outcomes.", ("does_not_prove", "limits", "subgroups"), "Which groups of persons there are, unintended outcomes, human oversight."),
    Heading(AI_ACT, "Annex IV, 4", "Why the metrics are appropriate for this system.", ("proves", "does_not_prove"), "The argument for your system: which radius means what in your use."),
    Heading(AI_ACT, "Annex IV, 6", "Changes through the lifecycle.", ("model", "run"), "Keep one such document for each version, and certdef compare --markdown between two."),
)  # fmt: skip


def requirements(absent: Mapping[str, bool]) -> tuple[Requirement, ...]:
    """Every heading, with the parts of this document that are not there.

    Args:
        absent: Whether a part is, by name.
    """
    return tuple(
        Requirement(
            source=each.source,
            section=each.section,
            asks=each.asks,
            here=each.here,
            absent=tuple(name for name in each.here if absent.get(name)),
            yours=each.yours,
        )
        for each in HEADINGS
    )
