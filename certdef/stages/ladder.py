"""The threat ladder for every configured purifier: system x attack, once for the surrogate and once for the target.

The surrogate stands in the target's place with its weights known, so every attack can be tried and none costs a query.
The target is attacked as what it is, a black box: transfers and attacks by answers alone, each query paid. Beside them
the certificate of the smoothed surrogate, under the strongest attack on it that we have. Each system is a stage of its
own: one more is evaluated without evaluating, or paying, the others again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import certify
import surrogates
from certdef.attacks import other_kinds, query, smoothed, threat_ladder
from certdef.attacks.evaluation import (
    WORST_CASE,
    AttackEvaluation,
    single_attacks,
    strongest_attack,
    worst_case,
)
from certdef.attacks.gradient_masking import check_gradient_masking
from certdef.attacks.other_kinds import OtherAttack
from certdef.attacks.processes import evaluate_on_processes
from certdef.attacks.threat_ladder import System
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.purifiers import plain_name
from certdef.stages.attack import attack_queries
from certdef.stages.fellows import Fellows, train_fellows
from certdef.stages.job import Job
from certdef.stages.networks import Defended
from certdef.stages.other_attacks import certified_beside, other_attacks
from certdef.stages.purifier import Purifier
from certdef.stages.students import Students
from certdef.tracking import metrics
from certdef.tracking.checked_json import read_json, write_json
from certdef.tracking.results import Share, StageResult, as_frame
from certdef.tracking.workspace import Stage
from surrogates.distillation.inference import images_at_once

if TYPE_CHECKING:
    import pandas

SUBJECTS = ("surrogate", "target")
VOTES = 300  # draws of a prediction under attack, at most
# What only the curve of the smoothed surrogate, or nothing that is measured, depends on.
CURVE = ("smoothed_images", "smoothed_draws")
OTHER_KINDS = "other-attacks"
ELSEWHERE = ("enabled", "systems", "threats")


@dataclass(frozen=True)
class Headline:
    """What is left image by image, and what the strongest attack alone leaves.

    Attributes:
        rung: worst_case.
        knows: Its threat model.
        accuracy: Images that survive every attack that submits an image once; the intervals of all systems of a ladder hold at
            once with 95%.
        attacks: How many attacks.
        strongest: The one that leaves the least alone.
        alone: What it leaves.
        control: Clean images in as many submissions; None where no noise is drawn, or an older version evaluated it.
    """

    rung: str
    knows: str
    accuracy: Share
    attacks: int = 1
    strongest: str = ""
    alone: Share | None = None
    control: Share | None = None


@dataclass(frozen=True)
class Evaluation:
    """One system as one subject: every attack, the worst case image by image, and the gradient masking checks that fail."""

    rungs: tuple[AttackEvaluation, ...]
    headline: Headline
    alarms: tuple[str, ...]
    images: int
    queries: int

    def __repr__(self) -> str:
        return f"Evaluation({len(self.rungs)} attacks on {self.images} images, {self.queries:,} queries)"


@dataclass(frozen=True, kw_only=True)
class SystemResult(StageResult):
    """One system, by subject."""

    subjects: dict[str, Evaluation]


@dataclass(frozen=True)
class SmoothedRow:
    """At one L2 radius: certified accuracy, and accuracy under the attack on the vote, which bounds it from above."""

    radius: float
    certified: Share
    attacked: Share


@dataclass(frozen=True, kw_only=True)
class LadderResult(StageResult):
    """Every system, by its name; `own` is the job's."""

    systems: dict[str, dict[str, Evaluation]]
    own: str
    curve: tuple[SmoothedRow, ...]
    eps: float

    def to_frame(self) -> pandas.DataFrame:
        """A row a subject, system and attack, the worst case image by image among them."""
        return as_frame(
            {"subject": subject, "purifier": system} | attack.row()
            for subject, systems in self.attacks_by_subject.items()
            for system, attacks in systems.items()
            for attack in attacks
        )

    @property
    def attacks_by_subject(self) -> dict[str, dict[str, list[AttackEvaluation]]]:
        """Every attack on every system, for each subject."""
        return {
            subject: {system: list(subjects[subject].rungs) for system, subjects in self.systems.items()}
            for subject in SUBJECTS
        }


def ladder_systems(config: RunConfig) -> list[str]:
    """The purifiers that are compared: none, the job's own, and those of ladder.systems."""
    return list(dict.fromkeys(["none", config.purifier, *config.ladder.systems]))


def evaluate_ladder(
    job: Job,
    target: surrogates.Target,
    surrogate: Defended,
    systems: dict[str, Purifier | None],
    behind: dict[str, Defended],
    students: Students,
) -> Stage[LadderResult]:
    """Evaluate each system, beside them the certificate under attack, of the certified surrogate.

    The job's own purifier is the headline: its figures are attack/<name>/accuracy.

    Args:
        job: The job.
        target: It pays from its ledger.
        surrogate: The one that agrees with it, from which attacks are transferred to it.
        systems: Purifiers by name, None for no purifier.
        behind: By the same names the surrogate that stands behind each purifier where none is missing: fine-tuned, or the same.
        students: The surrogates that are certified.
    """
    config, fellows = job.config, train_fellows(job, target, surrogate.stage)
    attacks = other_attacks(config, job.data.image_shape)
    evaluated, others = (
        {
            name: _evaluate_system(job, target, surrogate, fellows, behind[name], name, purifier, kinds)
            for name, purifier in systems.items()
            if kinds is None or kinds
        }
        for kinds in (None, attacks)
    )
    certified = certified_beside(job, target, attacks, SUBJECTS)
    own = systems[config.purifier]
    before = [surrogate.stage, *(own.stages if own else []), *students.headline_stages]
    parts = [other.fingerprint for other in before]
    fingerprints = {name: each.fingerprint for name, each in evaluated.items()}
    key = [_curve_settings(config), job.data.heldout_digest, parts, fingerprints, WORST_CASE]
    if attacks:
        key += [{name: each.fingerprint for name, each in others.items()}, certified]
    stage = job.stage("ladder", LadderResult, *key)

    def gather() -> LadderResult:
        shown = len(evaluated) * len(SUBJECTS)
        every = {
            name: {
                subject: _with_others(
                    _evaluation(each.path / f"{subject}.json", found.images, shown),
                    others[name].path / f"{subject}.json" if name in others else None,
                    certified[subject],
                )
                for subject, found in each.result.subjects.items()
            }
            for name, each in evaluated.items()
        }
        smoothed_surrogate = students.headline or surrogate.classifier
        curve = _smoothed(job, smoothed_surrogate, own.denoiser() if own else None, target.num_classes)
        return LadderResult(
            systems=every,
            own=config.purifier,
            curve=curve,
            eps=config.ladder.eps,
            params={"systems": list(systems)} | _curve_settings(config) | job.data.remarks,
            metrics=_metrics(every, config.purifier, curve),
            artifacts=("*.png", "*.md"),
        )

    return job.run(stage, gather)


def ladder_queries(config: RunConfig, heldout: int) -> int:
    """Queries that the ladder takes at most."""
    images = min(config.ladder.target_images, heldout)
    return sum(
        threat_ladder.most_queries(config.ladder, images, purified=name != "none", noisy=name != "none")
        + images * len(config.ladder.threats)
        for name in ladder_systems(config)
    )


def check_ladder_budget(config: RunConfig, heldout: int) -> None:
    """Refuse, before anything is spent, an attack budget that ladder and attack do not fit in, and a missing package."""
    if config.ladder.decision_queries:
        query.check_hop_skip_jump()
    names, images = ladder_systems(config), min(config.ladder.target_images, heldout)
    ladders, attack = ladder_queries(config, heldout), attack_queries(config, heldout)
    if ladders + attack > config.ledger.attack:
        raise ConfigError(
            f"ledger.attack is {config.ledger.attack}: the ladder may take {ladders} queries ({len(names)} systems x {images} "
            f"images) and the attack {attack}; raise it to {ladders + attack}, or lower ladder.target_images, "
            "ladder.square_queries or ladder.decision_queries"
        )


def _evaluate_system(
    job: Job,
    target: surrogates.Target,
    surrogate: Defended,
    fellows: Fellows,
    behind: Defended,
    name: str,
    purifier: Purifier | None,
    others: list[OtherAttack] | None = None,
) -> Stage[SystemResult]:
    """One system against every attacker, as both subjects; a subject that is done is not evaluated again.

    Attacks of other kinds are a stage of their own: naming one evaluates nothing else again.
    """
    config, title = job.config.ladder, "ladder" if others is None else OTHER_KINDS
    settings = {key: value for key, value in asdict(config).items() if key not in (*CURVE, *ELSEWHERE)}
    if config.processes == 1:
        del settings["processes"]  # as older versions named it
    if others is not None:
        settings = {key: settings[key] for key in ("images", "target_images", "steps", "eot")}
        settings["threats"] = [each.name for each in others]
    before = [surrogate.stage, *fellows.stages, *(purifier.stages if purifier else [])]
    before += [] if behind.stage is surrogate.stage else [behind.stage]
    parts = [other.fingerprint for other in before]
    key = [settings, job.data.heldout_digest, target.subject, *parts]
    stage = job.stage(f"{title}-{plain_name(name)}", SystemResult, *key)

    def evaluate() -> SystemResult:
        defense = purifier.defense(torch.Generator(job.device)).to(job.device) if purifier else None
        passes = purifier.spec.differentiable if purifier else None
        proxies = [each.to(job.device) for each in purifier.proxies()] if purifier else []
        paid = job.ledger.attach(
            target,
            purpose="attack",
            experiment=f"{title}/{name}/{job.config.seed}",
            formerly=job.legacy.experiment(stage.name),
        )
        systems = {
            "surrogate": (
                System(behind.classifier, defense, differentiable=passes, proxies=proxies),
                config.images,
            ),
            "target": (
                System(paid, defense, surrogate.classifier, differentiable=passes, students=fellows.models),
                config.target_images,
            ),
        }
        subjects = {}
        for subject, (system, images) in systems.items():
            path, count = stage.path / f"{subject}.json", min(images, len(job.data.heldout_images))
            if not path.is_file():
                attacks = _attacked(job, system, count, f"{name}, {subject}", others)
                write_json(path, {"attacks": [each.to_json() for each in attacks]})
            if others is None:
                subjects[subject] = _evaluation(path, count)
        return SystemResult(subjects=subjects, params=settings | job.data.remarks)

    return job.run(stage, evaluate)


def _attacked(
    job: Job, system: System, count: int, title: str, others: list[OtherAttack] | None
) -> list[AttackEvaluation]:
    images, labels = (
        torch.from_numpy(each[:count]) for each in (job.data.heldout_images, job.data.heldout_labels)
    )
    how: dict[str, Any] = {
        "seed": job.config.seed,
        "device": job.device,
        "progress": lambda attacks, desc: job.progress(attacks, desc=f"{desc} {title}"),
    }
    if others is not None:
        return other_kinds.evaluate(system, images, labels, others, job.config.ladder, **how)
    return evaluate_on_processes(system, images, labels, job.config.ladder, **how)


def _with_others(evaluation: Evaluation, path: Path | None, certified: dict[str, list[float]]) -> Evaluation:
    """An evaluation with the rows of other kinds below it, and beside these what is certified; the worst case stays as it is."""
    if path is None:
        return evaluation
    others = [replace(each, right=(), certified=certified.get(each.name)) for each in _attacks(path)]
    queries = evaluation.queries + sum(each.queries for each in others)
    return replace(evaluation, rungs=(*evaluation.rungs, *others), queries=queries)


def _evaluation(path: Path, images: int, systems: int = 1) -> Evaluation:
    """What a finished evaluation says, without the answers image by image; its headline beside those of so many systems."""
    attacks = _attacks(path)
    alike = _attacks(path.with_name("surrogate.json")) if path.stem == "target" else []
    others = [each for each in attacks if each.name != WORST_CASE]  # version 0.1 kept none
    least, strongest = worst_case(attacks, systems), strongest_attack(attacks)
    control = next((each.accuracy for each in attacks if each.name == "worst_case_clean"), None)
    assert least.accuracy is not None
    assert strongest.accuracy is not None
    return Evaluation(
        rungs=tuple(replace(each, right=()) for each in (*others, least)),
        headline=Headline(
            least.name,
            least.knows,
            Share(*least.accuracy),
            len(single_attacks(attacks)),
            strongest.name,
            Share(*strongest.accuracy),
            Share(*control) if control else None,
        ),
        alarms=tuple(check_gradient_masking(attacks, alike)),
        images=images,
        queries=sum(each.queries for each in attacks),
    )


def _attacks(path: Path) -> list[AttackEvaluation]:
    """The evaluations of one system as one subject, as they are kept."""
    plain: Any = read_json(path)
    rows = plain if isinstance(plain, list) else plain["attacks"]  # version 0.1 kept the bare list
    return [AttackEvaluation.from_json(row) for row in rows]


def _metrics(
    systems: dict[str, dict[str, Evaluation]], own: str, curve: tuple[SmoothedRow, ...]
) -> dict[str, float]:
    """attack/<name>/accuracy, with target/ before it for the target and the name of a system that is not the job's."""
    figures = {
        metrics.ATTACK_ACCURACY.format(attack=f"smoothed_pgd_l2_at_{row.radius:g}"): row.attacked.value
        for row in curve
    }
    for system, subjects in systems.items():
        for subject, evaluation in subjects.items():
            prefix = "target/" * (subject == "target") + f"{plain_name(system)}/" * (system != own)
            accuracies = {each.name: each.accuracy[0] for each in evaluation.rungs if each.accuracy}
            for name, accuracy in accuracies.items():
                plain = name.replace("=", "/").replace("%", "-percent")  # what MLflow allows
                figures[metrics.ATTACK_ACCURACY.format(attack=prefix + plain)] = accuracy
            figures[metrics.GRADIENT_MASKING_CHECKS.format(system=prefix)] = len(evaluation.alarms)
    return figures


def _curve_settings(config: RunConfig) -> dict[str, Any]:
    certified = {name: getattr(config.certify, name) for name in ("n0", "n", "alpha", "radii")}
    own = {name: getattr(config.ladder, name) for name in CURVE}
    return certified | own | {"law": asdict(config.certify.laws[0])}


def _smoothed(
    job: Job, surrogate: nn.Module, denoiser: nn.Module | None, num_classes: int
) -> tuple[SmoothedRow, ...]:
    """Certified accuracy of the smoothed surrogate, and accuracy under attack, at the configured L2 radii."""
    config, certified, data = job.config.ladder, job.config.certify, job.data
    count = min(config.smoothed_images, len(data.heldout_images))
    if not count:
        return ()
    base = nn.Sequential(denoiser, surrogate) if denoiser is not None else surrogate
    classifier = certify.SmoothedClassifier(
        base.eval(),
        noise_law(certified.laws[0]),
        num_classes,
        subject="surrogate",
        device=job.device,
        seed=job.config.seed,
        batch_size=images_at_once(data.image_shape, certified.batch_size),
    )
    rows = smoothed.curve(
        classifier,
        torch.from_numpy(data.heldout_images[:count]),
        torch.from_numpy(data.heldout_labels[:count]),
        certified.radii,
        smoothed.VoteAttack(min(10, config.steps), config.smoothed_draws, job.config.seed),
        n0=certified.n0,
        n=certified.n,
        votes=min(VOTES, certified.n),
        alpha=certified.alpha,
        progress=job.progress,
    )
    return tuple(
        SmoothedRow(row["radius"], Share(*row["certified"]), Share(*row["attacked"])) for row in rows
    )
