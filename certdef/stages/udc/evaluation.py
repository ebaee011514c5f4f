"""UDC, the figures: how well each stage of the defense restores, clean and under every attack.

An attacker knows the restoration network of the stage that is attacked and not the purifier (blind, as published); in
the column `fine_tuned_transfer` only the network before the fine-tuning; in the last two attacks the purifier too, and
follows the gradient straight through it (BPDA) or the true one, averaged over its noise (EOT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from certdef.attacks.gradient import StraightThrough
from certdef.config.udc import UDCConfig
from certdef.restoration import RestorationNetwork, apply, carlini_wagner, pgd, psnr, simba, ssim
from certdef.stages.job import Job
from certdef.stages.udc.networks import Defense
from certdef.stages.udc.photographs import Photographs, generator, seed_of
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

DEFENSES = ("none", "purified", "fine_tuned", "fine_tuned_transfer", "fine_tuned_unpurified")
HEADLINE = {"attacked": "none", "purified": "purified", "fine_tuned": "fine_tuned"}
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
EXAMPLES = 5  # test crops in the pictures: the first ones, not picked
DEFENDING, ATTACKED = 100, 200  # seeds of the purifier's noise: when it defends, when it is attacked


# Attacks through the purifier, by what the gradient follows in its place.
ADAPTIVE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pgd_bpda_eot": StraightThrough,
    "pgd_full_eot": lambda purifier: purifier,
}

Attack = Callable[..., Tensor]  # (network, degraded, truth, eps=, seed=) to attacked images


class Mean(NamedTuple):
    """A mean over crops with its 95% normal interval; in JSON the list [value, lower, upper]."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of values (N,)."""
        mean, error = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
        return cls(mean, mean - error, mean + error)


@dataclass(frozen=True)
class Evaluation:
    """One attack at one budget, against every stage of the defense.

    Attributes:
        attack: clean, pgd, carlini_wagner, simba, pgd_bpda_eot or pgd_full_eot.
        eps_255: L-infinity budget in 8-bit levels; 0 for clean.
        crops: Test crops.
        seeds: Starts and noise draws that each crop is averaged over.
        psnr: In dB, by stage of the defense.
        ssim: By stage of the defense.
        gains: Paired differences of PSNR in dB: attack_costs, purification_gains, fine_tuning_adds, below_clean.
    """

    attack: str
    eps_255: float
    crops: int
    seeds: int
    psnr: dict[str, Mean]
    ssim: dict[str, Mean]
    gains: dict[str, Mean]

    @property
    def name(self) -> str:
        """The attack with its budget."""
        return f"{self.attack}_{self.eps_255:g}" if self.eps_255 else self.attack


@dataclass(frozen=True, kw_only=True)
class UDCResult(StageResult):
    """Every attack against every stage of the defense.

    Attributes:
        t: Noise steps of the purifier.
        evaluations: The clean one first.
        worst: By stage of the defense, the attack within the first budget that leaves the lowest PSNR.
    """

    t: int
    evaluations: tuple[Evaluation, ...]
    worst: dict[str, str]

    def named(self, name: str) -> Evaluation:
        """The evaluation of this name."""
        return next(each for each in self.evaluations if each.name == name)


def evaluate_defense(job: Job, photographs: Photographs, defense: Defense) -> Stage[UDCResult]:
    """Attack every stage of the defense on the test crops; the stage keeps a few of them as `examples.npz`."""
    udc = job.config.udc
    settings = {
        name: value
        for name, value in asdict(udc).items()
        if name in ("eps_255", "pgd_steps", "cw_steps", "simba_queries", "seeds") or "adaptive" in name
    }
    key = [settings, job.data.heldout_digest, *(part.fingerprint for part in defense.stages)]
    stage = job.stage("udc", UDCResult, *key)

    def evaluate() -> UDCResult:
        bench = _Bench(job, photographs, defense)
        evaluations = bench.evaluations()
        np.savez_compressed(stage.path / "examples.npz", **bench.examples(udc.eps_255[0]))
        worst = {what: _worst(evaluations, stage_of_it) for what, stage_of_it in HEADLINE.items()}
        return UDCResult(
            t=defense.t,
            evaluations=evaluations,
            worst=worst,
            params={"t": defense.t, "crops": udc.test_crops, "size": udc.size} | settings,
            metrics=_metrics(evaluations, worst),
            artifacts=("*.png",),
        )

    return job.run(stage, evaluate)


class _Bench:
    """The test crops, the attacks on them, and what each stage of the defense restores."""

    def __init__(self, job: Job, photographs: Photographs, defense: Defense):
        self.job, self.defense, self.udc = job, defense, job.config.udc
        self.truth, self.degraded = photographs.test_truth, photographs.test_degraded

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Clean, then every attack at every budget, then the attacks through the purifier at the first."""
        udc, every = self.udc, _attacks(self.udc)
        plan = [("clean", 0.0)] + [(name, eps) for eps in udc.eps_255 for name in every]
        with self.job.progress(total=len(plan) + len(ADAPTIVE), desc="attack the restoration") as bar:
            evaluations = []
            for name, eps in plan:
                evaluations.append(self._blind(name, eps, *every.get(name, (_no_attack, udc.seeds))))
                bar.update()
            for name, through in ADAPTIVE.items():
                evaluations.append(self._adaptive(name, udc.eps_255[0], through))
                bar.update()
        return tuple(evaluations)

    def examples(self, eps_255: float) -> dict[str, Any]:
        """What becomes of the first test crops under PGD: arrays (N, C, H, W) in the order of the pictures."""
        truth, degraded = self.truth[:EXAMPLES], self.degraded[:EXAMPLES]
        network, finetuned = self.defense.network, self.defense.finetuned
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

    def _blind(self, name: str, eps_255: float, attack: Attack, seeds: int) -> Evaluation:
        """One attack on the restoration alone; images averaged over the seeds."""
        network, finetuned = self.defense.network, self.defense.finetuned
        outputs: list[dict[str, Tensor]] = []
        for seed in range(seeds):
            options = {"eps": eps_255 / 255, "seed": seed_of(self.job.config, seed)}
            on_network, on_finetuned = (
                attack(model, self.degraded, self.truth, **options) for model in (network, finetuned)
            )
            before, after = (self._defended(model, DEFENDING + seed) for model in (network, finetuned))
            images = (
                apply(network, on_network),
                apply(before, on_network),
                apply(after, on_finetuned),
                apply(after, on_network),
                apply(finetuned, on_finetuned),
            )
            outputs.append(dict(zip(DEFENSES, images, strict=True)))
        return self._measured(name, eps_255, outputs, self.truth, self.degraded)

    def _adaptive(self, name: str, eps_255: float, through: Callable[[nn.Module], nn.Module]) -> Evaluation:
        """PGD that knows the purifier, and follows the gradient of it or of what stands for it; one seed."""
        count, udc = self.udc.adaptive_crops, self.udc
        truth, degraded = self.truth[:count], self.degraded[:count]
        attack = partial(pgd, eps=eps_255 / 255, steps=udc.pgd_steps, seed=seed_of(self.job.config, 0))
        network, finetuned = self.defense.network, self.defense.finetuned
        outputs = {"none": apply(network, attack(network, degraded, truth))}
        for stage, model in (("purified", network), ("fine_tuned", finetuned)):
            known = nn.Sequential(through(self._purifier(ATTACKED)), model)
            attacked = attack(known, degraded, truth, eot=udc.adaptive_eot)
            outputs[stage] = apply(self._defended(model, DEFENDING), attacked)
        return self._measured(name, eps_255, [outputs], truth, degraded)

    def _measured(
        self, name: str, eps_255: float, outputs: list[dict[str, Tensor]], truth: Tensor, degraded: Tensor
    ) -> Evaluation:
        """Means with intervals of PSNR and SSIM, and of the paired differences of PSNR."""
        quality = {
            measure: {
                stage: torch.stack([of(each[stage], truth) for each in outputs]).mean(dim=0)
                for stage in outputs[0]
            }
            for measure, of in MEASURES.items()
        }
        clean, now = psnr(apply(self.defense.network, degraded), truth), quality["psnr"]
        gains = {
            "attack_costs": clean - now["none"],
            "purification_gains": now["purified"] - now["none"],
            "fine_tuning_adds": now["fine_tuned"] - now["purified"],
            "below_clean": clean - now["fine_tuned"],
        }
        means = {
            measure: {stage: Mean.of(values) for stage, values in by_stage.items()}
            for measure, by_stage in quality.items()
        }
        return Evaluation(
            attack=name,
            eps_255=eps_255,
            crops=len(truth),
            seeds=len(outputs),
            psnr=means["psnr"],
            ssim=means["ssim"],
            gains={gain: Mean.of(values) for gain, values in gains.items()},
        )

    def _purifier(self, seed: int) -> nn.Module:
        return self.defense.purifier(generator(self.job, seed))

    def _defended(self, model: RestorationNetwork, seed: int) -> nn.Module:
        return nn.Sequential(self._purifier(seed), model)


def _attacks(udc: UDCConfig) -> dict[str, tuple[Attack, int]]:
    """The attacks on the restoration alone, and over how many seeds each is averaged."""

    def without_seed(model: nn.Module, degraded: Tensor, truth: Tensor, *, eps: float, seed: int) -> Tensor:
        return carlini_wagner(model, degraded, truth, eps=eps, steps=udc.cw_steps)

    return {
        "pgd": (partial(pgd, steps=udc.pgd_steps), udc.seeds),
        "carlini_wagner": (without_seed, 1),
        "simba": (partial(simba, queries=udc.simba_queries), 1),
    }


def _no_attack(model: nn.Module, degraded: Tensor, truth: Tensor, **_: float) -> Tensor:
    return degraded


def _worst(evaluations: tuple[Evaluation, ...], defense: str) -> str:
    """The attack within the first budget that leaves a stage of the defense the lowest PSNR, among those on all crops."""
    clean, eps = evaluations[0], next(each.eps_255 for each in evaluations if each.eps_255)
    on_all = [each for each in evaluations if each.eps_255 == eps and each.crops == clean.crops]
    if defense == "none":  # nothing to know but the restoration
        on_all = [each for each in on_all if each.attack not in ADAPTIVE]
    return min(on_all, key=lambda each: each.psnr[defense].value).name


def _metrics(evaluations: tuple[Evaluation, ...], worst: dict[str, str]) -> dict[str, float]:
    """udc/<attack>/<stage>/psnr and ssim, udc/<attack>/<gain>; and the headline, udc/clean/psnr to udc/fine_tuned/psnr."""
    named = {each.name: each for each in evaluations}
    figures = {
        metrics.UDC_GAIN.format(what=name, gain=gain): mean.value
        for name, each in named.items()
        for gain, mean in each.gains.items()
    }
    for measure in MEASURES:
        rows = {name: getattr(each, measure) for name, each in named.items()}
        headline = {"clean": rows["clean"]["none"]}
        headline |= {what: rows[name][HEADLINE[what]] for what, name in worst.items()}
        headline |= {f"{name}/{stage}": mean for name, row in rows.items() for stage, mean in row.items()}
        for what, mean in headline.items():
            figures[metrics.UDC_QUALITY.format(what=what, measure=measure)] = mean.value
    return figures
