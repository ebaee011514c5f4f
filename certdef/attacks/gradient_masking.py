"""Gradient masking checks: where a robust accuracy is due to masked gradients, or to a weak attack.

Attacks can fail because they are weak (Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security",
ICML 2018). Each check is an exact test at 1%. Two attacks at the same eps are compared image by image (McNemar's test,
one-sided).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scipy.stats import binomtest

from certdef.attacks.evaluation import AttackEvaluation

TRANSFERS = ("surrogate_transfer", "surrogate_transfer_eot", "ensemble_transfer")
QUERIES = ("square", "nes", "hop_skip_jump")
FAR = ("large_eps", "queries_large_eps")
BLACK_BOX = ("blind", *TRANSFERS, *QUERIES)
WHITE_BOX = ("bpda_eot", "full_eot")  # the gradient as it is
BY_GRADIENTS = (*WHITE_BOX, "low_frequency", "proxy", "apgd")
LEVEL = 0.01  # of each test
TOLERANCE = 0.05  # largest robust accuracy at large_eps


def check_gradient_masking(
    evaluations: Sequence[AttackEvaluation], surrogate: Sequence[AttackEvaluation] = ()
) -> list[str]:
    """What suggests masked gradients or a weak attack, in words; empty where nothing does.

    Args:
        evaluations: Of one system.
        surrogate: Of a target's: the same system with the surrogate in its place, on the same images first.
    """
    tried, alike = (
        {each.name: each for each in every if each.accuracy} for every in (evaluations, surrogate)
    )
    return [
        *_black_box(tried),
        *_transfer(tried),
        *_queries(tried),
        *_averaging(tried),
        *_large_eps(tried),
        *_unlike_the_surrogate(tried, alike),
    ]


def strongest_white_box(evaluations: Sequence[AttackEvaluation]) -> AttackEvaluation | None:
    """The attack by gradients with the lowest robust accuracy; None where none was tried."""
    tried = {each.name: each for each in evaluations if each.accuracy}
    white = [tried[name] for name in WHITE_BOX if name in tried]
    return min(white, key=_robust, default=None)


def _black_box(tried: dict[str, AttackEvaluation]) -> list[str]:
    """A black-box attack must not beat all that know every gradient."""
    best = min((tried[name] for name in BY_GRADIENTS if name in tried), key=_robust, default=None)
    if best is None:
        return []
    return [
        f"{name} ({_percent(tried[name])}) beats {best.name} ({_percent(best)}), which knows more: the gradients are masked"
        for name in BLACK_BOX
        if name in tried and _is_lower(tried[name], best)
    ]


def _transfer(tried: dict[str, AttackEvaluation]) -> list[str]:
    """Who asks the system itself must not do worse than who asks a stand-in of it."""
    best, asking = (
        min((tried[name] for name in names if name in tried), key=_robust, default=None)
        for names in (TRANSFERS, QUERIES)
    )
    if best is None or asking is None or not _is_lower(best, asking):
        return []
    return [
        f"{best.name} ({_percent(best)}) beats {asking.name} ({_percent(asking)}), which asks the system itself: its answers are masked"
    ]


def _queries(tried: dict[str, AttackEvaluation]) -> list[str]:
    """Of a target queries must be worth more than none, where a transfer finds what they could."""
    clean, others = tried.get("clean"), [tried[name] for name in TRANSFERS if name in tried]
    if clean is None:
        return []
    said = []
    for name in QUERIES:
        if name not in tried or _is_lower(tried[name], clean):
            continue
        if better := next((each for each in others if _is_lower(each, tried[name])), None):
            said.append(
                f"{tried[name].queries:,} queries of {name} ({_percent(tried[name])}) leave as much as no attack ({_percent(clean)}), and "
                f"{better.name} less ({_percent(better)}): its figure says nothing"
            )
    return said


def _robust(evaluation: AttackEvaluation) -> float:
    return evaluation.robust_accuracy


def _averaging(tried: dict[str, AttackEvaluation]) -> list[str]:
    """More draws of the noise must not weaken the attack."""
    one = tried.get("one_draw")
    many = next((tried[name] for name in WHITE_BOX[::-1] if name in tried), None)
    if one is None or many is None or not _is_lower(one, many):
        return []
    return [
        f"averaging over the noise attacks worse ({_percent(many)}) than one draw ({_percent(one)}): the gradients are masked"
    ]


def _large_eps(tried: dict[str, AttackEvaluation]) -> list[str]:
    """At a large distance every image must be lost."""
    said = []
    for name in FAR:
        far = tried.get(name)
        if far and far.accuracy and far.accuracy[1] > TOLERANCE:
            how = " by queries" * (name != "large_eps")
            said.append(
                f"robust accuracy is {_percent(far)} at eps {far.eps:g}{how}, where it should be 0: the attack is too weak"
            )
    return said


def _unlike_the_surrogate(
    tried: dict[str, AttackEvaluation], alike: dict[str, AttackEvaluation]
) -> list[str]:
    """Where nothing is robust, queries that break the surrogate must break the target, which answers like it."""
    name = "queries_large_eps"
    if name not in tried or name not in alike:
        return []
    target, surrogate = tried[name], alike[name]
    shared = min(len(target.right), len(surrogate.right))
    target, surrogate = (replace(each, right=each.right[:shared]) for each in (target, surrogate))
    if not _is_lower(surrogate, target):
        return []
    return [
        f"at eps {target.eps:g}, where nothing is robust, the same queries leave {_percent(target)} of the target and "
        f"{_percent(surrogate)} of the surrogate: the target's answers are masked"
    ]


def _is_lower(low: AttackEvaluation, high: AttackEvaluation) -> bool:
    """Whether fewer images survive one attack than another, by McNemar's exact test."""
    pairs = list(zip(low.right, high.right, strict=True))
    only_high = sum(b and not a for a, b in pairs)
    only_low = sum(a and not b for a, b in pairs)
    if not only_high:
        return False
    return binomtest(only_high, only_high + only_low, 0.5, alternative="greater").pvalue < LEVEL


def _percent(evaluation: AttackEvaluation) -> str:
    return f"{100 * evaluation.robust_accuracy:.1f}%"
