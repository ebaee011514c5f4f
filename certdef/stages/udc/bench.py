"""UDC, the attacks: the test crops, every attack on every system, and how well each crop is then restored.

A system is a network, with the purifier in front of it or without. A blind attacker knows the network of the system and not
the purifier (as published); of the transfer only the network before the fine-tuning. An aware attacker knows the purifier
too, and follows the gradient straight through it (BPDA) or the true one, averaged over its noise (EOT); of a system without
purifier there is no more to know, and its attack is PGD.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certdef.attacks.gradient import StraightThrough
from certdef.config.udc import UDCConfig
from certdef.data.npz import read_npz
from certdef.restoration import apply, carlini_wagner, pgd, psnr, simba, ssim
from certdef.stages.job import Job
from certdef.stages.udc.networks import Defense
from certdef.stages.udc.photographs import Photographs, generator, seed_of
from surrogates.files import replacing


class System(NamedTuple):
    """A network, `restoration` or one of FINETUNINGS; whether the purifier stands in front; whose attack it is under."""

    network: str
    purified: bool
    attacked: str


SYSTEMS = {
    "none": System("restoration", purified=False, attacked="restoration"),
    "purified": System("restoration", purified=True, attacked="restoration"),
    "fine_tuned": System("fine_tuned", purified=True, attacked="fine_tuned"),
    "fine_tuned_transfer": System("fine_tuned", purified=True, attacked="restoration"),
    "fine_tuned_unpurified": System("fine_tuned", purified=False, attacked="fine_tuned"),
    "clean_tuned": System("clean_tuned", purified=True, attacked="clean_tuned"),
    "clean_tuned_unpurified": System("clean_tuned", purified=False, attacked="clean_tuned"),
    "adversarial": System("adversarial", purified=True, attacked="adversarial"),
    "adversarial_unpurified": System("adversarial", purified=False, attacked="adversarial"),
}
# Those that every attack is tried on.
UNDER_ALL = tuple(name for name, system in SYSTEMS.items() if system.network == system.attacked)
# Attacks through the purifier, by what the gradient follows in its place.
ADAPTIVE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pgd_bpda_eot": StraightThrough,
    "pgd_full_eot": lambda purifier: purifier,
}
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
EXAMPLES = 5  # test crops in the pictures: the first ones, not picked
DEFENDING, ATTACKED = 100, 200  # seeds of the purifier's noise: when it defends, when it is attacked

Attack = Callable[..., Tensor]  # (network, degraded, truth, eps=, seed=) to attacked images
Outputs = dict[str, Tensor]  # what each system restores, by its name


class Measured(NamedTuple):
    """One attack at one budget, crop by crop.

    Attributes:
        attack: clean, pgd, carlini_wagner, simba, pgd_bpda_eot or pgd_full_eot.
        eps_255: L-infinity budget in 8-bit levels; 0 for clean.
        seeds: Starts and noise draws that each crop is averaged over.
        quality: By measure and system, of each crop, (crops,).
    """

    attack: str
    eps_255: float
    seeds: int
    quality: dict[str, dict[str, NDArray[np.float64]]]


class _Planned(NamedTuple):
    """An attack to be measured; `outputs` does it, and gives what each system restores for each seed."""

    attack: str
    eps_255: float
    seeds: int
    systems: tuple[str, ...]
    outputs: Callable[[], list[Outputs]]


class Bench:
    """The test crops, the attacks on them, and what each system restores.

    Args:
        job: The job.
        photographs: Its crops.
        defense: The networks and the purifier.
        folder: Where each attack's figures are kept once it is done: an interrupted job goes on after them.
    """

    def __init__(self, job: Job, photographs: Photographs, defense: Defense, folder: Path):
        self.job, self.defense, self.udc, self.folder = job, defense, job.config.udc, folder
        self.truth, self.degraded = photographs.test_truth, photographs.test_degraded
        self.networks = {"restoration": defense.network} | defense.finetuned

    def measured(self) -> list[Measured]:
        """Clean; every attack at the first budget, those through the purifier last; the other attacks at other budgets."""
        udc, every = self.udc, _attacks(self.udc)
        first, *others = udc.eps_255

        def blind(name: str, eps: float, attack: Attack, seeds: int) -> _Planned:
            return _Planned(name, eps, seeds, tuple(SYSTEMS), partial(self._blind, eps, attack, seeds))

        plan = [blind("clean", 0.0, _no_attack, udc.seeds)]
        plan += [blind(name, first, *attack) for name, attack in every.items()]
        plan += [
            _Planned(name, first, 1, UNDER_ALL, partial(self._aware, first, through))
            for name, through in ADAPTIVE.items()
        ]
        plan += [blind(name, eps, *attack) for eps in others for name, attack in every.items()]
        bar = self.job.progress(plan, desc="attack the restoration")
        return [Measured(each.attack, each.eps_255, each.seeds, self._kept(each)) for each in bar]

    def examples(self, eps_255: float) -> dict[str, Any]:
        """What becomes of the first test crops under PGD: arrays (N, C, H, W) in the order of the pictures."""
        truth, degraded = self.truth[:EXAMPLES], self.degraded[:EXAMPLES]
        network, finetuned = self.networks["restoration"], self.networks["fine_tuned"]
        attack = partial(pgd, eps=eps_255 / 255, steps=self.udc.pgd_steps)
        attacked, attacked_finetuned = (attack(model, degraded, truth) for model in (network, finetuned))
        purified, purified_finetuned = (
            apply(self._purifier(DEFENDING), images) for images in (attacked, attacked_finetuned)
        )
        images = {
            "truth": truth,
            "degraded": degraded,
            "restored": apply(network, degraded),
            "attacked": attacked,
            "attacked_restored": apply(network, attacked),
            "purified": purified,
            "purified_restored": apply(network, purified),
            "fine_tuned": apply(finetuned, purified_finetuned),
        }
        return {name: part.cpu().numpy() for name, part in images.items()}

    def _blind(self, eps_255: float, attack: Attack, seeds: int) -> list[Outputs]:
        """One attack on each network alone, for each seed."""
        outputs = []
        for seed in range(seeds):
            options = {"eps": eps_255 / 255, "seed": seed_of(self.job.config, seed)}
            attacked = {
                name: attack(network, self.degraded, self.truth, **options)
                for name, network in self.networks.items()
            }
            outputs.append(
                {
                    name: apply(self._system(system, DEFENDING + seed), attacked[system.attacked])
                    for name, system in SYSTEMS.items()
                }
            )
        return outputs

    def _aware(self, eps_255: float, through: Callable[[nn.Module], nn.Module]) -> list[Outputs]:
        """PGD that knows the purifier where there is one, and follows the gradient of it or of what stands for it."""
        count, udc = self.udc.adaptive_crops, self.udc
        truth, degraded = self.truth[:count], self.degraded[:count]
        attack = partial(pgd, eps=eps_255 / 255, steps=udc.pgd_steps, seed=seed_of(self.job.config, 0))
        outputs = {}
        for name in UNDER_ALL:
            system, eot = SYSTEMS[name], 1
            known: nn.Module = self.networks[system.network]
            if system.purified:
                known, eot = nn.Sequential(through(self._purifier(ATTACKED)), known), udc.adaptive_eot
            outputs[name] = apply(self._system(system, DEFENDING), attack(known, degraded, truth, eot=eot))
        return [outputs]

    def _kept(self, planned: _Planned) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Quality by measure and system, averaged over the seeds; measured unless the folder has it."""
        path = self.folder / f"quality-{planned.attack}_{planned.eps_255:g}.npz"
        if not path.is_file():
            outputs = planned.outputs()
            truth = self.truth[: len(outputs[0]["none"])]
            arrays: dict[str, Any] = {
                f"{measure}.{system}": _mean_of_seeds([of(each[system], truth) for each in outputs])
                for measure, of in MEASURES.items()
                for system in planned.systems
            }
            with replacing(path) as file:
                np.savez(file, **arrays)
        names = [f"{measure}.{system}" for measure in MEASURES for system in planned.systems]
        kept = read_npz(path, names, "kept figures")
        return {
            measure: {system: kept[f"{measure}.{system}"] for system in planned.systems}
            for measure in MEASURES
        }

    def _purifier(self, seed: int) -> nn.Module:
        return self.defense.purifier(generator(self.job, seed))

    def _system(self, system: System, seed: int) -> nn.Module:
        network = self.networks[system.network]
        return nn.Sequential(self._purifier(seed), network) if system.purified else network


def _mean_of_seeds(quality: list[Tensor]) -> NDArray[np.float64]:
    """(N,) for each seed to their mean, (N,)."""
    return torch.stack(quality).double().mean(dim=0).cpu().numpy()


def _attacks(udc: UDCConfig) -> dict[str, tuple[Attack, int]]:
    """The attacks on a network alone, and over how many seeds each is averaged."""

    def without_seed(model: nn.Module, degraded: Tensor, truth: Tensor, *, eps: float, seed: int) -> Tensor:
        return carlini_wagner(model, degraded, truth, eps=eps, steps=udc.cw_steps)

    return {
        "pgd": (partial(pgd, steps=udc.pgd_steps), udc.seeds),
        "carlini_wagner": (without_seed, 1),
        "simba": (partial(simba, queries=udc.simba_queries), 1),
    }


def _no_attack(model: nn.Module, degraded: Tensor, truth: Tensor, **_: Any) -> Tensor:
    return degraded
