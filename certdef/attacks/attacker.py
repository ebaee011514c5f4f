"""The attacks of the threat ladder, each by its name: what they are given, and what they return.

An attacker knows what THREAT_MODELS says of his attack. Of a classifier whose weights are known he follows the gradients and
judges what he finds by passes of his own; of a target he has the surrogate, its fellow students, and queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from certdef.attacks import apgd, candidates, gradient, query
from certdef.attacks.endpoint import Endpoint
from certdef.attacks.evaluation import DW_BOX, AttackEvaluation, strongest_attack
from certdef.attacks.gradient import forked
from certdef.attacks.gradient_masking import FAR, strongest_white_box
from certdef.attacks.nes import nes
from certdef.attacks.proxies import LowFrequency, learned_proxy
from certdef.attacks.square import square
from certdef.attacks.system import Ensemble, KnownNoise, System, draws_noise, passes_gradients
from certdef.config.attacks import LadderConfig
from surrogates.distillation.inference import images_at_once

JUDGING = 20  # own passes by which an attacker judges a candidate
FEWEST_CLASSES = 4  # that AutoAttack's targeted losses can work with
FAR_QUERIES = 1_000  # of an image, at most: far away few will do
QUIET_STARTS = 5  # of APGD on a bare network, where a step is one cheap pass
PURIFIED_STARTS = 2  # behind a purifier that draws no noise: as many passes as behind one that does
NOISY_SQUARE = 5  # Square has no power against noise, however many its queries: there NES has the budget, and Square a fifth


class Attacker:
    """Attacks one system. `found` holds the adversarial images (M, C, H, W) of every attack so far, by its name; `evaluations`
    what they left, which whoever evaluates them writes down.

    An image that passes of the attacker's own always get wrong is not attacked: he submits it as it is. M are attacked.

    Args:
        system: What is attacked.
        images: (N, C, H, W) in [0, 1].
        labels: The truth, (N,).
        settings: Budgets of the attacks.
        device: Where the modules run.
    """

    def __init__(
        self, system: System, images: Tensor, labels: Tensor, settings: LadderConfig, device: torch.device
    ):
        self.system, self.settings = system, settings
        for part in system.modules:
            part.to(device).eval()
        self.device, purifier = device, system.purifier
        self.noisy = draws_noise(purifier, images[:2].to(device))
        given = system.differentiable
        self.differentiable = passes_gradients(purifier, images[:1].to(device)) if given is None else given
        self.endpoint = Endpoint(
            system.classifier, purifier, repeats=settings.looks if self.noisy else 1, device=device
        )
        self.tally = gradient.Tally()
        self.found: dict[str, Tensor] = {}
        self.evaluations: list[AttackEvaluation] = []
        self.eot = settings.eot if self.noisy else 1
        self.few = -(-settings.eot // 4) if self.noisy else 1  # passes of a step that many others follow
        self.every_image, self.every_label = images, labels
        self.attacked = self._ever_right()  # (N,)
        self.images, self.labels = images[self.attacked], labels[self.attacked]

    @property
    def knows_weights(self) -> bool:
        """Whether the classifier is a module."""
        return isinstance(self.system.classifier, nn.Module)

    def applicable(self) -> set[str]:
        """The attacks and controls that apply to the system."""
        settings, system, purified = self.settings, self.system, self.system.purifier is not None
        names = {"clean"}
        if settings.square_queries:
            names |= {"square", "queries_large_eps"} | ({"nes"} if self.noisy else set())
        if settings.decision_queries:
            names |= {"hop_skip_jump"}
        if self.knows_weights:
            names |= {"blind", "low_frequency", "full_eot", "autoattack", "apgd", "large_eps"}
            names |= {"bpda_eot", "proxy"} if purified else set()
            names |= {"dw_box"} if self.noisy else set()
            names |= {"one_draw"} if self.noisy and self.eot > 1 else set()
        elif system.surrogate is not None:
            names |= {"surrogate_transfer", "large_eps"}
            names |= {"surrogate_transfer_eot"} if purified else set()
            names |= {"ensemble_transfer"} if system.students else set()
        if self.noisy:
            names |= {"resubmission", "resubmission_clean", "worst_case_clean"}
        return names

    def obstacle(self, name: str) -> str:
        """Why an attack that would apply cannot be tried; empty if it can."""
        if name in ("square", "queries_large_eps", "nes") and not self.endpoint.scored:
            return "the target answers labels alone"
        if name in ("full_eot", "low_frequency", "autoattack") and not self.differentiable:
            return "no gradient passes through the purifier"
        if name == "autoattack" and self._classes < FEWEST_CLASSES:
            return f"its losses need {FEWEST_CLASSES} classes"
        return ""

    def attack(self, name: str, eps: float, seed: int) -> Tensor:
        """The adversarial images (N, C, H, W) of an attack, in [0, 1] within eps.

        Args:
            name: Of an attack that applies and that nothing hinders.
            eps: Largest L-infinity distance.
            seed: Of the attack.
        """
        attacks: dict[str, Callable[[float, int], Tensor]] = {
            "square": self._square,
            "queries_large_eps": self._from_afar,
            "nes": self._nes,
            "hop_skip_jump": self._hop_skip_jump,
            "autoattack": self._auto_attack,
            "ensemble_transfer": self._apgd,
            "low_frequency": self._low_frequency,
            "proxy": self._proxy,
            "apgd": self._apgd,
        }
        if name == DW_BOX:  # every image, in the batches whose noise he knows
            return self._known_noise(eps, seed)
        if name.endswith("clean") or not len(self.images):
            found = self.images
        elif name in attacks:
            found = attacks[name](eps, seed)
        elif name == "resubmission":
            found = self._to_submit_again(strongest_attack(self.evaluations).name)
        else:
            found = self._pgd(name, eps, seed)
        self.found[name] = found
        adversarial = self.every_image.clone()
        adversarial[self.attacked] = found
        return adversarial

    @property
    def followed(self) -> nn.Module:
        """The system with a gradient: its own, or where none passes that of the identity in the purifier's place."""
        return self._gradients(self._alone)[0]

    def whole(self, seed: int | None = None) -> nn.Module:
        """The system as the attacker has it, to ask it without a query; with a seed, under noise that he knows."""
        parts = [part for part in (self.system.purifier, self._together) if part is not None]
        system = gradient.OnCopies(nn.Sequential(*parts))
        return system if seed is None else KnownNoise(system, seed)

    # --- by gradients ---------------------------------------------------------------------------------------

    def _pgd(self, name: str, eps: float, seed: int) -> Tensor:
        if name in ("blind", "surrogate_transfer"):
            model = self._behind(None, self._alone)
        elif name == "large_eps":
            model = self._better_gradient(self._alone)
        else:
            model = self._gradients(self._alone)[-1 if name == "bpda_eot" else 0]
        # far away a rough gradient does
        eot = {"blind": 1, "surrogate_transfer": 1, "one_draw": 1, "large_eps": self.few}.get(name, self.eot)
        return gradient.pgd(
            model, self.images, self.labels, eps=eps, steps=self.settings.steps, seed=seed, eot=eot
        )

    def _apgd(self, eps: float, seed: int) -> Tensor:
        if self.noisy:  # rather more passes of one gradient than few of two
            models, eot, restarts = [self._better_gradient(self._together)], 2 * self.few, 1
        else:  # a gradient past a purifier that has none is not worth many starts
            models, eot = self._gradients(self._together), 1
            starts = QUIET_STARTS if self.system.purifier is None else PURIFIED_STARTS
            restarts = starts if self.differentiable else 1
        restarts *= self.settings.restarts
        searches = apgd.searches(models, eps=eps, steps=self.settings.steps, eot=eot, restarts=restarts)
        return self._strongest(searches, eps, seed)

    def _low_frequency(self, eps: float, seed: int) -> Tensor:
        coarse = max(2, min(self.images.shape[2:]) // 2)
        model = LowFrequency(self._gradients(self._alone)[0], coarse)
        wave = [apgd.along_a_wave]
        searches = apgd.searches(
            [model], eps=eps, steps=self.settings.steps, eot=min(self.few, 2), starts=wave
        )
        return self._strongest(searches, eps, seed)

    def _proxy(self, eps: float, seed: int) -> Tensor:
        purifier, before = self.system.purifier, [*self.found.values()]
        assert purifier is not None  # applicable() has it so
        changed = [each for each in before if not torch.equal(each, self.images)]
        learned = learned_proxy(purifier, self.images.to(self.device), changed, eps=eps, seed=seed)
        models = [self._behind(each, self._alone) for each in (learned, *self.system.proxies)]
        return self._strongest(apgd.searches(models, eps=eps, steps=self.settings.steps), eps, seed)

    def _known_noise(self, eps: float, seed: int) -> Tensor:
        known = KnownNoise(self._better_gradient(self._alone), seed)
        searches = apgd.searches([known], eps=eps, steps=self.settings.steps)
        images, labels = self.every_image, self.every_label
        return candidates.strongest(searches, self.whole(seed), images, labels, eps=eps, seed=seed)

    def _auto_attack(self, eps: float, seed: int) -> Tensor:
        return gradient.auto_attack(
            self._better_gradient(self._alone),
            self.images,
            self.labels,
            eps=eps,
            steps=self.settings.steps,
            classes=self._classes,
            seed=seed,
            eot=max(2, self.few) if self.noisy else 1,
            queries=self.settings.square_queries,
        )

    def _strongest(self, searches: Sequence[candidates.Search], eps: float, seed: int) -> Tensor:
        passes = JUDGING if self.noisy else 1
        return candidates.strongest(
            searches, self.whole(), self.images, self.labels, eps=eps, seed=seed, passes=passes
        )

    def _to_submit_again(self, strongest: str) -> Tensor:
        """Of each image the candidate that the attacker's own passes get wrong most often; of a target, the strongest attack's."""
        if not self.knows_weights:
            return self.found[strongest]
        found = [each for name, each in self.found.items() if name not in FAR]
        size = images_at_once(self.images.shape[1:], 256)
        batches = zip(*(each.split(size) for each in (self.images, self.labels, *found)), strict=True)
        with torch.no_grad():
            chosen = [
                candidates.most_often_wrong(self.whole(), images, others, labels, JUDGING).cpu()
                for images, labels, *others in ([part.to(self.device) for part in batch] for batch in batches)
            ]
        return torch.cat(chosen)

    # --- by queries -----------------------------------------------------------------------------------------

    def _square(self, eps: float, seed: int, queries: int | None = None) -> Tensor:
        looks = self.settings.looks if self.noisy else 0
        budget = queries or -(-self.settings.square_queries // (NOISY_SQUARE if self.noisy else 1))
        return square(self._ask, self.images, self.labels, eps=eps, queries=budget, seed=seed, looks=looks)

    def _nes(self, eps: float, seed: int, queries: int | None = None) -> Tensor:
        budget = queries or self.settings.square_queries
        return nes(self._ask, self.images, self.labels, eps=eps, queries=budget, seed=seed)

    def _from_afar(self, eps: float, seed: int) -> Tensor:
        queries = min(self.settings.square_queries, FAR_QUERIES)
        return (self._nes if self.noisy else self._square)(eps, seed, queries)

    def _hop_skip_jump(self, eps: float, seed: int) -> Tensor:
        budget = self.settings.decision_queries
        return query.hop_skip_jump(
            self.endpoint, self.images, self.labels, eps=eps, queries=budget, seed=seed
        )

    def _ask(self, images: Tensor) -> Tensor:
        # Where noise is drawn it is far larger than what bfloat16 rounds away, which is twice as fast on a processor.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.knows_weights and self.noisy):
            _, scores = self.endpoint.query(images, repeats=1)
        assert scores is not None  # obstacle() has it so
        return scores

    # --- what an attacker has -------------------------------------------------------------------------------

    def _ever_right(self) -> Tensor:
        """Which images (N,) a pass of his own gets right; all of a target's, where he has none."""
        images, labels = self.every_image, self.every_label
        if not self.knows_weights:
            return torch.ones(len(images), dtype=torch.bool)
        passes, system = JUDGING if self.noisy else 1, self.whole()
        batches = [each.split(images_at_once(images.shape[1:], 256)) for each in (images, labels)]
        with forked(0, self.device):
            return torch.cat(
                [
                    candidates.wrong(system, shown.to(self.device), truth.to(self.device), passes).cpu()
                    < passes
                    for shown, truth in zip(*batches, strict=True)
                ]
            )

    @property
    def _alone(self) -> nn.Module:
        """The classifier, or the surrogate that stands for it."""
        classifier = self.system.classifier if self.knows_weights else self.system.surrogate
        assert isinstance(classifier, nn.Module)  # applicable() names no attack that needs another
        return classifier

    @property
    def _together(self) -> nn.Module:
        """The classifier, or the surrogate and its fellow students."""
        students = () if self.knows_weights else self.system.students
        return Ensemble([self._alone, *students]) if students else self._alone

    @property
    def _classes(self) -> int:
        with torch.no_grad():
            return self._alone(self.every_image[:1].to(self.device, copy=True)).shape[1]

    def _gradients(self, classifier: nn.Module) -> list[nn.Module]:
        """The system with its own gradient, where there is one, then with that of the identity in the purifier's place."""
        purifier = self.system.purifier
        if purifier is None:
            return [self._behind(None, classifier)]
        straight = self._behind(gradient.StraightThrough(purifier), classifier)
        return [self._behind(purifier, classifier), straight] if self.differentiable else [straight]

    def _better_gradient(self, classifier: nn.Module) -> nn.Module:
        """That of the two which has broken more images so far; its own, where neither was tried."""
        best = strongest_white_box(self.evaluations)
        return self._gradients(classifier)[-1 if best is not None and best.name == "bpda_eot" else 0]

    def _behind(self, purifier: nn.Module | None, classifier: nn.Module) -> nn.Module:
        """A classifier behind a purifier, or a stand-in of it; its gradients are counted."""
        model = classifier if purifier is None else nn.Sequential(purifier, classifier)
        return gradient.Tallied(model, self.tally)
