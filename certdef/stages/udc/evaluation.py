"""UDC, the figures: how well each system restores, clean and under every attack, and what its parts add.

Photographs are the units of every interval (`intervals`). The headline compares systems under the worst case over attacks,
on the crops that every attack was tried on: an attack that costs too much to be tried on all crops still counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from certdef.data.sets import digest
from certdef.stages.job import Job
from certdef.stages.udc.bench import ADAPTIVE, MEASURES, SYSTEMS, UNDER_ALL, Bench, Measured
from certdef.stages.udc.intervals import Mean
from certdef.stages.udc.networks import Defense
from certdef.stages.udc.photographs import Photographs
from certdef.tracking import metrics
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage

# Names of the headline's figures in MLflow, where they are not the system's.
HEADLINE = {"none": "attacked"}
# What is gained, in dB on the same crops: one system's PSNR less another's. Both are under the attack, each under its own.
GAINS = {
    "purification_gains": ("purified", "none"),
    "fine_tuning_adds": ("fine_tuned", "purified"),
    "attacked_inputs_add": ("fine_tuned", "clean_tuned"),
    "purifier_adds": ("fine_tuned", "adversarial_unpurified"),
}


@dataclass(frozen=True)
class Evaluation:
    """One attack at one budget, against every system.

    Attributes:
        attack: clean, pgd, carlini_wagner, simba, pgd_bpda_eot or pgd_full_eot.
        eps_255: L-infinity budget in 8-bit levels; 0 for clean.
        crops: Test crops.
        photographs: What they are cut from: the units of the intervals.
        seeds: Starts and noise draws that each crop is averaged over.
        psnr: In dB, by system.
        ssim: By system.
        gains: Paired differences of PSNR in dB: those of GAINS, attack_costs and below_clean (of the defense to the end).
    """

    attack: str
    eps_255: float
    crops: int
    photographs: int
    seeds: int
    psnr: dict[str, Mean]
    ssim: dict[str, Mean]
    gains: dict[str, Mean]

    @property
    def name(self) -> str:
        """The attack with its budget."""
        return f"{self.attack}_{self.eps_255:g}" if self.eps_255 else self.attack


@dataclass(frozen=True)
class Worst:
    """What a system keeps under the attack within the first budget that leaves it the lowest PSNR.

    Attributes:
        attack: Name of that attack's evaluation.
        psnr: In dB.
        ssim: Under the same attack.
    """

    attack: str
    psnr: Mean
    ssim: Mean


@dataclass(frozen=True)
class Headline:
    """Every system clean and in the worst case, on the crops that every attack was tried on.

    Attributes:
        crops: How many these are.
        photographs: What they are cut from.
        clean: PSNR in dB by system, and
        clean_ssim: SSIM.
        worst: By system.
        gains: As of an evaluation, each system under its own worst attack.
    """

    crops: int
    photographs: int
    clean: dict[str, Mean]
    clean_ssim: dict[str, Mean]
    worst: dict[str, Worst]
    gains: dict[str, Mean]


@dataclass(frozen=True, kw_only=True)
class UDCResult(StageResult):
    """Every attack against every system.

    Attributes:
        t: Noise steps of the purifier.
        evaluations: The clean one first.
        headline: The worst case over attacks.
    """

    t: int
    evaluations: tuple[Evaluation, ...]
    headline: Headline

    def named(self, name: str) -> Evaluation:
        """The evaluation of this name."""
        return next(each for each in self.evaluations if each.name == name)


def evaluate_defense(job: Job, photographs: Photographs, defense: Defense) -> Stage[UDCResult]:
    """Attack every system on the test crops; the stage keeps every crop's figures, and a few crops as `examples.npz`."""
    udc, numbers = job.config.udc, photographs.test_photographs
    settings = {
        name: value
        for name, value in asdict(udc).items()
        if name in ("eps_255", "pgd_steps", "cw_steps", "simba_queries", "seeds") or "adaptive" in name
    }
    images = [job.data.heldout_digest, digest(numbers)]
    key = [settings, *images, *(part.fingerprint for part in defense.stages)]
    stage = job.stage("udc", UDCResult, *key)

    def evaluate() -> UDCResult:
        bench = Bench(job, photographs, defense, stage.path)
        measured = bench.measured()
        np.savez_compressed(stage.path / "examples.npz", **bench.examples(udc.eps_255[0]))
        evaluations = tuple(_evaluation(each, measured[0], numbers) for each in measured)
        headline = _headline(measured, numbers)
        return UDCResult(
            t=defense.t,
            evaluations=evaluations,
            headline=headline,
            params={"t": defense.t, "crops": udc.test_crops, "size": udc.size} | settings,
            metrics=_metrics(evaluations, headline),
            artifacts=("*.png",),
        )

    return job.run(stage, evaluate)


Crops = NDArray[np.float64]


def _evaluation(measured: Measured, clean: Measured, numbers: NDArray[np.int64]) -> Evaluation:
    """Means and intervals of what was measured crop by crop."""
    now = measured.quality["psnr"]
    crops = len(now["none"])
    numbers = numbers[:crops]
    means = {
        measure: {system: Mean.of(values, numbers) for system, values in by_system.items()}
        for measure, by_system in measured.quality.items()
    }
    return Evaluation(
        attack=measured.attack,
        eps_255=measured.eps_255,
        crops=crops,
        photographs=len(np.unique(numbers)),
        seeds=measured.seeds,
        psnr=means["psnr"],
        ssim=means["ssim"],
        gains=_gains(now, clean.quality["psnr"]["none"][:crops], numbers),
    )


def _gains(now: dict[str, Crops], clean: Crops, numbers: NDArray[np.int64]) -> dict[str, Mean]:
    """Paired differences of PSNR in dB between systems, and to the restoration alone without attack."""
    differences = {"attack_costs": clean - now["none"]}
    differences |= {gain: now[better] - now[than] for gain, (better, than) in GAINS.items()}
    differences["below_clean"] = clean - now["fine_tuned"]
    return {gain: Mean.of(values, numbers) for gain, values in differences.items()}


def _headline(measured: list[Measured], numbers: NDArray[np.int64]) -> Headline:
    """Clean and the worst case within the first budget, on the crops that every attack was tried on."""
    clean, attacks = measured[0], [each for each in measured if each.eps_255 == measured[1].eps_255]
    crops = min(len(each.quality["psnr"]["none"]) for each in attacks)
    numbers = numbers[:crops]

    def of(each: Measured, measure: str, system: str) -> Crops:
        return each.quality[measure][system][:crops]

    def worst_of(system: str) -> Measured:
        # Of a system without purifier the aware attack is PGD again, with one start.
        known = [each for each in attacks if SYSTEMS[system].purified or each.attack not in ADAPTIVE]
        return min(known, key=lambda each: Mean.of(of(each, "psnr", system), numbers).value)

    worst = {system: worst_of(system) for system in UNDER_ALL}
    kept = {system: of(each, "psnr", system) for system, each in worst.items()}
    return Headline(
        crops=crops,
        photographs=len(np.unique(numbers)),
        clean={system: Mean.of(of(clean, "psnr", system), numbers) for system in UNDER_ALL},
        clean_ssim={system: Mean.of(of(clean, "ssim", system), numbers) for system in UNDER_ALL},
        worst={
            system: Worst(
                f"{each.attack}_{each.eps_255:g}",
                Mean.of(kept[system], numbers),
                Mean.of(of(each, "ssim", system), numbers),
            )
            for system, each in worst.items()
        },
        gains=_gains(kept, of(clean, "psnr", "none"), numbers),
    )


def _metrics(evaluations: tuple[Evaluation, ...], headline: Headline) -> dict[str, float]:
    """udc/<attack>/<system>/psnr and ssim, udc/<attack>/<gain>; and the headline: udc/clean/psnr, udc/attacked/psnr (of the
    restoration alone), udc/<system>/psnr, udc/worst_case/<gain>."""
    gains = {each.name: each.gains for each in evaluations} | {"worst_case": headline.gains}
    figures = {
        metrics.UDC_GAIN.format(what=name, gain=gain): mean.value
        for name, by_gain in gains.items()
        for gain, mean in by_gain.items()
    }
    for measure in MEASURES:
        clean = headline.clean if measure == "psnr" else headline.clean_ssim
        rows = {"clean": clean["none"]}
        rows |= {
            HEADLINE.get(system, system): getattr(each, measure) for system, each in headline.worst.items()
        }
        rows |= {
            f"{each.name}/{system}": mean
            for each in evaluations
            for system, mean in getattr(each, measure).items()
        }
        for what, mean in rows.items():
            figures[metrics.UDC_QUALITY.format(what=what, measure=measure)] = mean.value
    return figures
