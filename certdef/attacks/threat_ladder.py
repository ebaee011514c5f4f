"""The threat ladder: one defended classifier under attackers who know more and more, each under its own name.

A purifier is worth what the strongest attacker leaves of it: the headline is the worst case over attacks, image by image.
Every accuracy is one evaluation of each image with a 95% Clopper-Pearson interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import certify
import surrogates
from certdef.attacks import apgd, gradient, query
from certdef.attacks.endpoint import Endpoint
from certdef.attacks.evaluation import (
    THREAT_MODELS,
    AttackEvaluation,
    single_attacks,
    strongest_attack,
    worst_case,
)
from certdef.attacks.gradient_masking import strongest_white_box
from certdef.config.attacks import LadderConfig

JUDGING = 20  # own passes by which an attacker judges a candidate


@dataclass(frozen=True)
class System:
    """A classifier behind a purifier.

    Args:
        classifier: A module with known weights, images (N, C, H, W) in [0, 1] to logits (N, K); or an opened target,
            which answers queries alone, and pays if it is attached to a ledger.
        purifier: Purifies every image first; unset, none.
        surrogate: A module like the classifier that the attacker has in the place of a target's weights.
        differentiable: Whether a gradient passes through the purifier; unset, autograd is tried.
        proxy: A map with a gradient that apgd follows too, beside the purifier's own: images to images.
    """

    classifier: nn.Module | surrogates.Target
    purifier: nn.Module | None = None
    surrogate: nn.Module | None = None
    differentiable: bool | None = None
    proxy: nn.Module | None = None


def evaluate(
    system: System,
    images: Tensor,
    labels: Tensor,
    settings: LadderConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable | None = None,
) -> list[AttackEvaluation]:
    """Evaluate a system under every attack that applies, in the order of THREAT_MODELS.

    With known weights: blind, square, hop_skip_jump, bpda_eot, full_eot, apgd. With a target: the transfers from the surrogate,
    square and hop_skip_jump. With a purifier that draws noise also one_draw, resubmission and the controls of as many
    submissions. Last, where there is an attack, the worst case over those that submit an image once.

    Args:
        system: What is attacked.
        images: (N, C, H, W) in [0, 1].
        labels: The truth, (N,).
        settings: Budgets of the attacks.
        seed: Of the attacks and of every noise that the purifier draws from a generator of its own.
        device: Where the modules run.
        progress: Wraps the attacks, like tqdm.
    """
    ladder = _Ladder(system, images, labels, settings, seed, torch.device(device))
    names = [name for name in THREAT_MODELS if name in ladder.applicable()]
    for name in progress(names, desc="ladder") if progress else names:
        ladder.evaluate(name)
    found = ladder.evaluations
    return [*found, worst_case(found)] if single_attacks(found) else found


def most_queries(settings: LadderConfig, images: int, *, purified: bool, noisy: bool) -> int:
    """The most that a ladder may query of a target, evaluations included.

    Args:
        settings: Budgets of the attacks.
        images: How many are attacked.
        purified: Whether the target stands behind a purifier.
        noisy: Whether the purifier draws noise.
    """
    budgets = [budget for budget in (settings.square_queries, settings.decision_queries) if budget]
    clean_and_large_eps, transfers = 2, 1 + purified
    attacks = transfers + len(budgets)
    again = (2 * settings.resubmissions + attacks) * noisy
    return images * (clean_and_large_eps + attacks + sum(budgets) + again)


class _Ladder:
    """One system's ladder: the endpoint that is queried, the adversarial images so far, and the evaluations."""

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
        for part in (system.classifier, system.purifier, system.surrogate, system.proxy):
            if isinstance(part, nn.Module):
                part.to(device).eval()
        self.noisy = draws_noise(system.purifier, images[:2].to(device))
        repeats = settings.looks if self.noisy else 1
        self.endpoint = Endpoint(system.classifier, system.purifier, repeats=repeats, device=device)
        self.eot = settings.eot if self.noisy else 1
        differentiable = system.differentiable
        if differentiable is None:
            differentiable = passes_gradients(system.purifier, images[:1].to(device))
        self.differentiable = differentiable
        self.evaluations: list[AttackEvaluation] = []
        self.adversarial: dict[str, Tensor] = {}

    def applicable(self) -> set[str]:
        """The attacks that apply to the system."""
        system, names = self.system, {"clean"}
        names |= {"square"} if self.settings.square_queries else set()
        names |= {"hop_skip_jump"} if self.settings.decision_queries else set()
        if isinstance(system.classifier, nn.Module):
            names |= {"blind", "full_eot", "apgd", "large_eps"}
            names |= {"bpda_eot"} if system.purifier is not None else set()
            names |= {"one_draw"} if self.noisy and self.eot > 1 else set()
        elif system.surrogate is not None:
            names |= {"surrogate_transfer", "large_eps"}
            names |= {"surrogate_transfer_eot"} if system.purifier is not None else set()
        if self.noisy:
            names |= {"resubmission", "resubmission_clean", "worst_case_clean"}
        return names

    def evaluate(self, name: str) -> None:
        """Attack, then classify what the attack returns."""
        seed = self.seed * len(THREAT_MODELS) + list(THREAT_MODELS).index(name)
        eps = self.settings.large_eps if name == "large_eps" else self.settings.eps
        if name.endswith("clean"):
            eps = 0.0
        before = self.endpoint.queries
        if reason := self._obstacle(name):
            self.evaluations.append(AttackEvaluation(name, THREAT_MODELS[name], eps, skipped=reason))
            return
        reseed(self.system.purifier, seed)
        with gradient.forked(seed, self.device):
            adversarial = self._attack(name, eps, seed)
            self.adversarial[name] = adversarial
            right = self._classified_right(adversarial, self._submissions(name))
        low, high = certify.binomial_interval(sum(right), len(right))
        accuracy, queries = [sum(right) / len(right), float(low), float(high)], self.endpoint.queries - before
        self.evaluations.append(AttackEvaluation(name, THREAT_MODELS[name], eps, accuracy, right, queries))

    def _submissions(self, name: str) -> int:
        """How often each image is submitted to see whether it is right."""
        if name == "worst_case_clean":
            return len(single_attacks(self.evaluations))
        return self.settings.resubmissions if name.startswith("resubmission") else 1

    def _classified_right(self, images: Tensor, submissions: int) -> tuple[bool, ...]:
        """Which images are right in every one of so many submissions."""
        right = torch.ones(len(self.labels), dtype=torch.bool)
        for _ in range(submissions):
            right &= self.endpoint.query(images, repeats=1)[0] == self.labels
        return tuple(right.tolist())

    def _obstacle(self, name: str) -> str:
        """Why an attack that would apply cannot be tried; empty if it can."""
        if name == "square" and not self.endpoint.scored:
            return "the target answers labels alone"
        if name == "full_eot" and not self.differentiable:
            return "no gradient passes through the purifier"
        return ""

    def _attack(self, name: str, eps: float, seed: int) -> Tensor:
        """The adversarial images of an attack, (N, C, H, W)."""
        settings, data = self.settings, (self.images, self.labels)
        if name.endswith("clean"):
            return self.images
        if name == "resubmission":
            return self.adversarial[strongest_attack(self.evaluations).name]
        if name == "square":
            return query.square(self.endpoint, *data, eps=eps, queries=settings.square_queries, seed=seed)
        if name == "hop_skip_jump":
            budget = settings.decision_queries
            return query.hop_skip_jump(self.endpoint, *data, eps=eps, queries=budget, seed=seed)
        few = -(-self.settings.eot // 4) if self.noisy else 1
        if name == "apgd":
            known, system = self._known_models(), self._whole()
            return apgd.strongest(
                known,
                system,
                *data,
                eps=eps,
                steps=settings.steps,
                seed=seed,
                eot=few,
                passes=JUDGING if self.noisy else 1,
                restarts=settings.restarts * (1 if self.noisy else -(-settings.eot // 4)),
            )
        # far away a rough gradient does
        draws = {"blind": 1, "surrogate_transfer": 1, "one_draw": 1, "large_eps": few}
        model, eot = self._known_model(name), draws.get(name, self.eot)
        return gradient.pgd(model, *data, eps=eps, steps=settings.steps, seed=seed, eot=eot)

    def _known_model(self, name: str) -> nn.Module:
        """The model whose gradient an attacker follows: the classifier, or the one that stands for it, and the purifier."""
        known = isinstance(self.system.classifier, nn.Module)
        classifier = self.system.classifier if known else self.system.surrogate
        assert isinstance(classifier, nn.Module)  # applicable() names no other
        purifier = self.system.purifier
        if purifier is None or name in ("blind", "surrogate_transfer"):
            return classifier
        straight = name == "bpda_eot" or not self.differentiable
        if name == "large_eps":
            best = strongest_white_box(self.evaluations)
            straight = straight or (best is not None and best.name == "bpda_eot")
        return nn.Sequential(gradient.StraightThrough(purifier) if straight else purifier, classifier)

    def _known_models(self) -> list[nn.Module]:
        """The system with each gradient that there is, and its proxy."""
        names = ["full_eot"] if self.system.purifier is None else ["full_eot", "bpda_eot"]
        models = [self._known_model(name) for name in (names if self.differentiable else names[-1:])]
        proxy, classifier = self.system.proxy, self.system.classifier
        if proxy is not None and isinstance(classifier, nn.Module):
            models.append(nn.Sequential(proxy, classifier))
        return models

    def _whole(self) -> nn.Module:
        """The system of known weights as it answers."""
        parts = [
            part for part in (self.system.purifier, self.system.classifier) if isinstance(part, nn.Module)
        ]
        return gradient.OnCopies(nn.Sequential(*parts))


def draws_noise(purifier: nn.Module | None, images: Tensor) -> bool:
    """Whether a purifier answers the same images differently."""
    if purifier is None:
        return False
    with torch.no_grad(), torch.random.fork_rng():
        return not torch.equal(purifier(images.clone()), purifier(images.clone()))


def passes_gradients(purifier: nn.Module | None, image: Tensor) -> bool:
    """Whether autograd has a way from a purifier's output back to its input."""
    if purifier is None:
        return True
    with torch.enable_grad(), torch.random.fork_rng():
        output = purifier(image.clone().requires_grad_().clone())
        return output.requires_grad and output.grad_fn is not None


def reseed(purifier: nn.Module | None, seed: int) -> None:
    """Start every generator that a purifier draws from at `seed`."""
    for module in purifier.modules() if purifier is not None else ():
        if isinstance(source := getattr(module, "generator", None), torch.Generator):
            source.manual_seed(seed)
