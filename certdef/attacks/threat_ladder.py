"""The threat ladder: one defended classifier against attackers who know more and more, each under its own name.

A purifier is worth what the strongest attacker leaves of it, so the headline is the lowest rung. Attacks can also fail
because they are bad at what they do: the alarms say where a figure looks like masked gradients (Athalye, Carlini, Wagner,
"Obfuscated gradients give a false sense of security", ICML 2018) and not like robustness. Every accuracy is one look at
each image with a 95% Clopper-Pearson interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import certify
import surrogates
from certdef.attacks import gradient as attacks
from certdef.attacks import query as query_attacks
from certdef.config.attacks import LadderConfig

# What the attacker of each rung knows, from the weakest on.
KNOWS = {
    "clean": "no attack",
    "blind": "the classifier's weights, nothing of the purifier",
    "surrogate_transfer": "a surrogate's weights, nothing of the purifier",
    "surrogate_transfer_eot": "a surrogate's weights and the purifier, averaged over its noise",
    "square": "scores of the whole system",
    "hop_skip_jump": "labels of the whole system",
    "bpda_eot": "every weight; the purifier's gradient is taken for the identity's",
    "full_eot": "every weight and every gradient, averaged over the noise",
    "one_draw": "as full_eot, through one noise draw a step",
    "large_eps": "as the better of bpda_eot and full_eot, at a distance where nothing should be left",
    "resubmission": "as the lowest rung; asks again and again, wrong if once wrong",
    "resubmission_clean": "no attack; asks again and again, wrong if once wrong",
}
CONTROLS = ("clean", "large_eps", "resubmission_clean")  # figures that no attack at eps stands behind
BLACK_BOX = ("blind", "surrogate_transfer", "surrogate_transfer_eot", "square", "hop_skip_jump")
WHITE_BOX = ("bpda_eot", "full_eot")
LEVEL = 0.01  # of the tests behind the alarms
NOTHING = 0.05  # what may be left at large_eps


@dataclass(frozen=True)
class System:
    """A purifier in front of a classifier.

    Args:
        classifier: A module with known weights, images (N, C, H, W) in [0, 1] -> logits (N, K); or an opened target,
            which can only be asked, and pays if it is attached to a ledger.
        purifier: In front of it; unset, nothing.
        surrogate: A module like the classifier that the attacker has in the place of a target's weights.
        differentiable: Whether a gradient passes through the purifier; unset, autograd is asked.
    """

    classifier: nn.Module | surrogates.Target
    purifier: nn.Module | None = None
    surrogate: nn.Module | None = None
    differentiable: bool | None = None


@dataclass(frozen=True)
class Rung:
    """How many images a system still classifies right against one attacker.

    `accuracy` is [share, lower, upper], `right` its images one by one, `queries` what the system was asked (gradients
    are not counted); a rung that could not be tried has none of them and says in `skipped` why.
    """

    name: str
    knows: str
    eps: float
    accuracy: list[float] | None = None
    right: tuple[bool, ...] = ()
    queries: int = 0
    skipped: str = ""


def climb(
    system: System, images: Tensor, labels: Tensor, settings: LadderConfig, *, seed: int = 0,
    device: torch.device | str = "cpu", progress: Callable | None = None,
) -> list[Rung]:  # fmt: skip
    """Every rung that applies to a system, in the order of KNOWS.

    With known weights: blind, square, hop_skip_jump, bpda_eot, full_eot. With a target: the transfers from the surrogate,
    square and hop_skip_jump. With a purifier that draws noise also the controls one_draw and resubmission.

    Args:
        images: (N, C, H, W) in [0, 1]; labels (N,) the truth.
        seed: Of the attacks and of every noise that the purifier draws from a generator of its own.
        progress: Wraps the rungs, e.g. tqdm.
    """
    climber = _Climber(system, images, labels, settings, seed, torch.device(device))
    names = [name for name in KNOWS if name in climber.wanted()]
    for name in progress(names, desc="ladder") if progress else names:
        climber.step(name)
    return climber.rungs


def headline(rungs: Sequence[Rung]) -> Rung:
    """The lowest rung: what is left against the attacker who does best.

    Raises:
        ValueError: No attack was tried.
    """
    tried = [rung for rung in rungs if rung.accuracy and rung.name not in CONTROLS]
    if not tried:
        raise ValueError("no rung was tried: climb with at least one attack")
    return min(tried, key=lambda rung: rung.accuracy[0])


def most_queries(settings: LadderConfig, images: int, *, purified: bool, noisy: bool) -> int:
    """The most that a climb may ask of a target, evaluations included: behind a purifier or not, one with noise or not."""
    an_image = 2 + purified  # clean and the transfers
    an_image += sum(
        queries + 1 for queries in (settings.square_queries, settings.decision_queries) if queries
    )
    an_image += 2 * settings.resubmissions * noisy
    return images * an_image


def alarms(rungs: Sequence[Rung]) -> list[str]:
    """What suggests that a figure is owed to a weak attack, in words; each by an exact test at 1%, none for nothing.

    Two rungs at the same eps are compared on their images one by one (McNemar's test, one-sided).
    """
    found = []
    tried = {rung.name: rung for rung in rungs if rung.accuracy}
    white = [tried[name] for name in WHITE_BOX if name in tried]
    if white:
        best = min(white, key=lambda rung: rung.accuracy[0])
        for name in BLACK_BOX:
            if name in tried and _lower(tried[name], best):
                found.append(
                    f"{name} ({_share(tried[name])}) beats {best.name} ({_share(best)}), which knows more: the gradients are masked"
                )
    one, many = tried.get("one_draw"), next((tried[name] for name in WHITE_BOX[::-1] if name in tried), None)
    if one and many and _lower(one, many):
        found.append(
            f"averaging over the noise leaves more ({_share(many)}) than one draw ({_share(one)}): the gradients are masked"
        )
    if "large_eps" in tried and tried["large_eps"].accuracy[1] > NOTHING:
        far = tried["large_eps"]
        found.append(
            f"{_share(far)} are left at eps {far.eps:g}, where nothing should be: the attack is too weak"
        )
    return found


class _Climber:
    """The state of one climb: the endpoint that is asked, what was found so far, and the rungs."""

    def __init__(
        self,
        system: System,
        images: Tensor,
        labels: Tensor,
        settings: LadderConfig,
        seed: int,
        device: torch.device,
    ):
        self.system, self.images, self.labels = system, images, labels
        self.settings, self.seed, self.device = settings, seed, device
        for part in (system.classifier, system.purifier, system.surrogate):
            if isinstance(part, nn.Module):
                part.to(device).eval()
        self.noisy = draws_noise(system.purifier, images[:2].to(device))
        looks = settings.looks if self.noisy else 1
        self.endpoint = query_attacks.Endpoint(system.classifier, system.purifier, looks=looks, device=device)
        self.eot = settings.eot if self.noisy else 1
        differentiable = system.differentiable
        if differentiable is None:
            differentiable = passes_gradients(system.purifier, images[:1].to(device))
        self.differentiable = differentiable
        self.rungs: list[Rung] = []
        self.attacked: dict[str, Tensor] = {}

    def wanted(self) -> set[str]:
        system, names = self.system, {"clean"}
        names |= {"square"} if self.settings.square_queries else set()
        names |= {"hop_skip_jump"} if self.settings.decision_queries else set()
        if isinstance(system.classifier, nn.Module):
            names |= {"blind", "full_eot", "large_eps"}
            names |= {"bpda_eot"} if system.purifier is not None else set()
            names |= {"one_draw"} if self.noisy and self.eot > 1 else set()
        elif system.surrogate is not None:
            names |= {"surrogate_transfer"}
            names |= {"surrogate_transfer_eot"} if system.purifier is not None else set()
        if self.noisy:
            names |= {"resubmission", "resubmission_clean"}
        return names

    def step(self, name: str) -> None:
        """Attack, then look: one rung."""
        seed = self.seed * len(KNOWS) + list(KNOWS).index(name)
        eps = {"clean": 0.0, "resubmission_clean": 0.0, "large_eps": self.settings.large_eps}.get(
            name, self.settings.eps
        )
        asked = self.endpoint.queries
        if why := self._missing(name):
            self.rungs.append(Rung(name, KNOWS[name], eps, skipped=why))
            return
        reseed(self.system.purifier, seed)
        with attacks.forked(seed, self.device):
            shown, looks = self._attack(name, eps, seed), 1
            if name.startswith("resubmission"):
                looks = self.settings.resubmissions
            else:
                self.attacked[name] = shown
            right = torch.ones(len(self.labels), dtype=torch.bool)
            for _ in range(looks):
                right &= self.endpoint.ask(shown, looks=1)[0] == self.labels
        count = int(right.sum())
        low, high = certify.binomial_interval(count, len(right))
        share = [count / len(right), float(low), float(high)]
        self.rungs.append(
            Rung(name, KNOWS[name], eps, share, tuple(right.tolist()), queries=self.endpoint.queries - asked)
        )

    def _missing(self, name: str) -> str:
        """Why a rung that would apply cannot be tried; empty if it can."""
        if name == "square" and not self.endpoint.scored:
            return "the target answers labels alone"
        if name == "full_eot" and not self.differentiable:
            return "no gradient passes through the purifier"
        return ""

    def _attack(self, name: str, eps: float, seed: int) -> Tensor:
        """What the attacker of a rung shows to the system, (N, C, H, W)."""
        system, settings = self.system, self.settings
        if name in ("clean", "resubmission_clean"):
            return self.images
        if name == "resubmission":
            return self.attacked[headline(self.rungs).name]
        if name in ("square", "hop_skip_jump"):
            attack = query_attacks.square if name == "square" else query_attacks.hop_skip_jump
            queries = settings.square_queries if name == "square" else settings.decision_queries
            return attack(self.endpoint, self.images, self.labels, eps=eps, queries=queries, seed=seed)
        known = system.surrogate if name.startswith("surrogate") else system.classifier
        if name in ("blind", "surrogate_transfer"):
            return self._pgd(known, eps, seed, 1)
        straight = (
            name == "bpda_eot"
            or not self.differentiable
            or (name == "large_eps" and self._straight_is_best())
        )
        front = attacks.StraightThrough(system.purifier) if straight else system.purifier
        defended = known if front is None else nn.Sequential(front, known)
        # far away a rough gradient does
        eot = {"one_draw": 1, "large_eps": -(-self.eot // 4)}.get(name, self.eot)
        return self._pgd(defended, eps, seed, eot)

    def _straight_is_best(self) -> bool:
        white = [rung for rung in self.rungs if rung.name in WHITE_BOX and rung.accuracy]
        return min(white, key=lambda rung: rung.accuracy[0]).name == "bpda_eot"

    def _pgd(self, model: nn.Module, eps: float, seed: int, eot: int) -> Tensor:
        steps = self.settings.steps
        return attacks.pgd(model, self.images, self.labels, eps=eps, steps=steps, seed=seed, eot=eot)


def draws_noise(purifier: nn.Module | None, images: Tensor) -> bool:
    """Whether a purifier answers the same images differently."""
    with torch.no_grad(), torch.random.fork_rng():
        return purifier is not None and not torch.equal(purifier(images), purifier(images))


def passes_gradients(purifier: nn.Module | None, image: Tensor) -> bool:
    """Whether autograd has a way from a purifier's output back to its input."""
    if purifier is None:
        return True
    with torch.enable_grad(), torch.random.fork_rng():
        output = purifier(image.clone().requires_grad_())
        return output.requires_grad and output.grad_fn is not None


def reseed(purifier: nn.Module | None, seed: int) -> None:
    """Start every generator that a purifier draws from at `seed`."""
    for module in purifier.modules() if purifier is not None else ():
        if isinstance(source := getattr(module, "generator", None), torch.Generator):
            source.manual_seed(seed)


def _lower(low: Rung, high: Rung) -> bool:
    """Whether fewer images survive on one rung than on another, by McNemar's exact test."""
    only_high = sum(b and not a for a, b in zip(low.right, high.right, strict=True))
    only_low = sum(a and not b for a, b in zip(low.right, high.right, strict=True))
    if not only_high:
        return False
    return binomtest(only_high, only_high + only_low, 0.5, alternative="greater").pvalue < LEVEL


def _share(rung: Rung) -> str:
    return f"{100 * rung.accuracy[0]:.1f}%"


def table(systems: dict[str, list[Rung]]) -> str:
    """System x rung in Markdown: accuracy [95% interval] in %; – where a rung does not apply, and the headline beside it."""
    names = [name for name in KNOWS if any(rung.name == name for rungs in systems.values() for rung in rungs)]
    lines = [
        "| rung | " + " | ".join(systems) + " |",
        "| --- |" + " --- |" * len(systems),
    ]
    for name in names:
        cells = []
        for rungs in systems.values():
            rung = next((each for each in rungs if each.name == name), None)
            if rung is None:
                cells.append("–")
            elif rung.accuracy is None:
                cells.append(f"({rung.skipped})")
            else:
                share, low, high = (100 * value for value in rung.accuracy)
                mark = "**" if rung == headline(rungs) else ""
                cells.append(f"{mark}{share:.0f}{mark} [{low:.0f}, {high:.0f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plain(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Rungs as JSON has them; Rung(**row) makes one again."""
    return [vars(rung) | {"right": list(rung.right)} for rung in rungs]
