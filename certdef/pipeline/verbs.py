"""The main job: target -> ledger -> surrogate -> purifier -> certificates -> attack -> report, tracked in MLflow.

Each verb of the command line is a function here, and each runs only what is not done yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

import surrogates
from certdef import stages
from certdef.config import own_target
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.load import load_config
from certdef.config.objects import is_object
from certdef.config.shard import Shard
from certdef.config.threads import torch_threads
from certdef.config.threats import L2, check_name, chosen_options
from certdef.data.arrays import read_images
from certdef.objects.following import followed
from certdef.objects.named import Objects, named
from certdef.pipeline.callers_torch import as_in_a_new_process
from certdef.pipeline.opening import load_images, open_job
from certdef.pipeline.threats import certify_against
from certdef.report import ducd_page, page, robustness_page, shard_words, target_page, threats, udc_page
from certdef.report.terminal import headline
from certdef.stages import Job, job_checks
from certdef.stages.inspection import inspect
from certdef.stages.summary import Summary
from certdef.tracking.callers_session import given_back
from certdef.tracking.parts import fetch, lineage
from certdef.tracking.workspace import Stage
from surrogates.files import replacing

LOG = logging.getLogger("certdef")  # the first lines of a job; the command line shows them

# How certificates come about: by votes, of all images or of a shard's, or from the shards that have voted.
Vote = Callable[[Job, stages.Ballot], Stage[stages.CertifyResult]]


@dataclass(frozen=True)
class Parts:
    """Target, surrogate and purifier of a job, with their stages in order; no surrogate where surrogate.model is none."""

    target: surrogates.Target
    target_stage: Stage
    purifier: stages.Purifier
    surrogate: nn.Module | None = None
    surrogate_stage: Stage | None = None

    @property
    def agreeing(self) -> stages.Defended:
        """The surrogate that agrees with the target, of a job that has one: others are refused before."""
        assert self.surrogate is not None
        assert self.surrogate_stage is not None
        return stages.Defended(self.surrogate, self.surrogate_stage)

    @property
    def defense(self) -> list[Stage]:
        """The stages that a result depends on, beside the target's identity."""
        return [*([self.surrogate_stage] if self.surrogate_stage else []), *self.purifier.stages]

    @property
    def all(self) -> list[Stage]:
        return [self.target_stage, *self.defense]


def run(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Do the whole job; an interrupted one goes on where it was, a finished one is not paid for again.

    Args:
        config: What to do; unset, options are given by themselves, e.g. certify__n=2000, and target is your own.
        progress: Show a bar for every long stage.
        fresh: Train and certify anew. Answers in the ledger are still not paid for twice.
        given: Objects in the place of names: target, identity, images, labels, class_names, surrogate, purifier
            (certdef.objects.named).

    Returns:
        What was done, and where it is.

    Raises:
        ConfigError, certify.CertifyError, surrogates.SurrogateError: One line each, with the remedy.
    """
    config, objects = named(config, given)
    return _run(config, objects, progress, fresh)


def _run(
    config: RunConfig, objects: Objects, progress: bool, fresh: bool = False, finished: bool = False
) -> Summary:
    if config.ducd.enabled:
        return _run_ducd(config, objects, progress, fresh, finished)
    if config.udc.enabled:
        return _run_udc(config, progress, fresh, finished)
    with open_job(config, progress, fresh, objects=objects, finished=finished) as job:
        parts = _parts(job)
        students = _students(job, parts)
        audited = stages.infer_membership(job, parts.target, parts.surrogate, parts.surrogate_stage)
        smoothed, certified = _certified(job, parts, students)
        done = [*parts.all, *students.stages, *audited, *certified]
        if students.headline is None:
            return _report(job, done, target_page.render)
        behind = _behind(job, parts, parts.purifier)
        done += _attacked(job, parts, behind)
        if storable(job.config):
            done.append(_registered(job, smoothed, students, certified[-1].result))
        return _report(job, [*done, *_ladder(job, parts, behind, students)], page.render)


def pretrain(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Pre-train the denoisers of De^3, one a law of noise, on the unlabeled pool. No query is spent."""
    config, objects = named(config, given)
    with open_job(config, progress, fresh, verb="pretrain", objects=objects) as job:
        return _summary(job, [stages.pretrain_denoiser(job, law)[1] for law in job.config.certify.laws])


def distill(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Query the target within its budget and distill the surrogate."""
    config, objects = named(config, given)
    with open_job(config, progress, fresh, verb="distill", objects=objects) as job:
        target, target_stage = stages.open_target(job)
        return _summary(job, [target_stage, stages.distill(job, target)[1]])


def budgets(
    config: RunConfig | None,
    budgets: Sequence[int],
    strategies: Sequence[str] = ("random",),
    seeds: int = 1,
    *,
    progress: bool = True,
    fresh: bool = False,
    **given: Any,
) -> Summary:
    """Distill once for every budget, strategy and seed: agreement against queries. All share the job's ledger."""
    config, objects = named(config, given)
    with open_job(config, progress, fresh, verb="budgets", objects=objects) as job:
        stages.check_budgets(job.config, budgets, strategies, seeds, len(job.data.pool))
        target, target_stage = stages.open_target(job)
        return _summary(job, [target_stage, stages.trace_budgets(job, target, budgets, strategies, seeds)])


def certify(
    config: RunConfig | None = None,
    *,
    shard: str | None = None,
    prepare: bool = False,
    threat: str = L2,
    threat_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    fresh: bool = False,
    **given: Any,
) -> Summary:
    """Certify the target by queries and the surrogate for free; does first what is missing for it.

    Your own target alone, without surrogate and training, where nothing of the surrogate was set, the purifier needs no
    training and no preset was named; there is a page of it then.

    Args:
        config: What to do.
        shard: `2/3` certifies the second of three parts of the images, of a job that is prepared; `merge` joins all parts.
        prepare: Do all that comes before the certificates and stop: what shards need.
        threat: What to certify against: l2, or another one of certdef.config.threats.threat_names().
        threat_options: Of a threat other than l2: strength, grid and its own, as on the command line.
        progress: Show a bar for every long stage.
        fresh: Train and certify anew.
        given: As for run.
    """
    check_name(threat)
    extra = chosen_options(threat, threat_options or {})
    if threat != L2 and (shard or prepare):
        raise ConfigError(f"threat is {threat}: shards are for {L2}, leave --shard and --prepare out")
    part = None if shard is None else Shard.parse(shard)
    if part and (prepare or fresh):
        raise ConfigError(
            f"shard is {part}: it reads a job that is prepared, leave --prepare and --fresh to that one"
        )
    config, objects = named(config, given)
    if threat != L2:
        options = {"progress": progress, "fresh": fresh}
        return certify_against(config, objects, threat, extra, _report_threats, **options)
    with open_job(config, progress, fresh, verb="certify", objects=objects, shard=part) as job:
        if part is None and not prepare:
            return _certify(job, stages.certify_subjects)
        return _certify(job, stages.record_shard if part else (lambda job, ballot: ballot.stage))


def merge(
    shards: Sequence[str | Path], config: RunConfig | None = None, *, progress: bool = True, **given: Any
) -> Summary:
    """Join the shards of a job: records, bill and summary of one process. Nothing is queried.

    Args:
        shards: The folders of all of them, in any order.
        config: The job; unset, as the shards were told.
        progress: Show a bar.
        given: As for run.

    Raises:
        ConfigError, certify.CertifyError: A shard is missing, there twice, not finished, damaged, or of another job; names it.
    """
    found = stages.read_shards(shards)
    config, objects = named(config or load_config(file=found.config), given)
    with open_job(config, progress, verb="certify", objects=objects, prepared=True) as job:
        return _certify(job, partial(stages.merge_shards, shards=found))


def _certify(job: Job, vote: Vote) -> Summary:
    parts = _parts(job)
    students = _students(job, parts)
    audited = stages.infer_membership(job, parts.target, parts.surrogate, parts.surrogate_stage)
    *before, certified = _certified(job, parts, students, vote)[1]
    done = [*parts.all, *students.stages, *audited, *before]
    if not certified.done or job.shard:
        in_words = partial(shard_words.of_part, job.config, job.shard)
        return replace(_summary(job, done), in_words=in_words)
    done.append(certified)
    return _report(job, done, target_page.render) if parts.surrogate is None else _summary(job, done)


def robustness(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Bound how often the bare target's answer changes under declared corruptions: an average case, and no radius.

    Nothing is smoothed, denoised or trained, but for the target where the job has none of its own.
    """
    config, objects = named(config, given)
    with open_job(config, progress, fresh, verb="robustness", objects=objects) as job:
        LOG.info("average case %s", stages.robustness_bill(job.config, len(job.data.heldout_images)))
        target, target_stage = stages.open_target(job)
        measured = stages.measure_robustness(job, target, target_stage)
        return _report(job, [target_stage, measured], robustness_page.render, robustness_page.FILE)


def attack(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Attack the surrogate and transfer to the target, with and without the purifier; does first what is missing for it."""
    config, objects = named(config, given)
    with open_job(config, progress, fresh, verb="attack", objects=objects) as job:
        parts = _parts(job)
        behind = _behind(job, parts, parts.purifier)
        done = [*parts.all, *_attacked(job, parts, behind)]
        if not job.config.ladder.enabled:
            return _summary(job, done)
        students = _students(job, parts)
        return _summary(job, [*done, *students.stages, *_ladder(job, parts, behind, students)])


def purify(
    config: RunConfig | None = None,
    images: Any = None,
    out: str | None = None,
    *,
    progress: bool = True,
    fresh: bool = False,
    **given: Any,
) -> Summary:
    """Purify the images of a file, or the held-out ones, and write them; does first what is missing for it.

    Args:
        config: What to do.
        images: An .npz with `images` (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1]; or arrays, which are the
            job's images too.
        out: The .npz to write, `images` (N,C,H,W) float32 in [0,1]; default purified.npz in the work directory.
        progress: Show a bar for every long stage.
        fresh: Train anew.
        given: As for run.
    """
    named_file = isinstance(images, str)
    config, objects = named(config, given if images is None or named_file else given | {"images": images})
    with open_job(config, progress, fresh, verb="purify", objects=objects) as job:
        chosen = read_images(images, job.data.image_shape) if named_file else job.data.heldout_images
        path = Path(out) if out else job.config.workspace / "purified.npz"
        if not path.parent.is_dir() or path.suffix != ".npz":
            raise ConfigError(f"out {str(path)!r}: give an .npz file in a folder that is there")
        parts = _parts(job)
        purified = stages.purify_images(job, parts.purifier, chosen, path)
        return replace(_summary(job, parts.all), purified=purified)


def report(
    config: RunConfig | None = None, *, progress: bool = True, fresh: bool = False, **given: Any
) -> Summary:
    """Write the page of a finished job again. Nothing is trained, queried or paid for.

    Raises:
        ConfigError: A stage is not done, or `fresh` was asked for.
    """
    if fresh:
        raise ConfigError("--fresh does every stage anew, and report does none: use certdef run --fresh")
    config, objects = named(config, given)
    return _run(config, objects, progress, finished=True)


def plan(
    config: RunConfig | None = None,
    *,
    price: float | None = None,
    ask: bool = True,
    known: dict[str, list[str]] | None = None,
    **given: Any,
) -> stages.Plan:
    """What the whole job will take and can reach, and what is likely wrong with it, before anything is trained.

    Your own target is queried for a few held-out images, from the budget ledger.preflight alone; evaluation gets their
    answers for nothing.

    Args:
        config: The job; values that cannot be used are named with everything else that is wrong.
        price: USD per 1,000 queries.
        ask: Whether anything is queried; else only what the ledger has already is looked at.
        known: Lines on what is wrong already, by section of the configuration.
        given: As for run.

    Raises:
        ConfigError, certify.CertifyError, surrogates.SurrogateError: All that is wrong, a line each.
    """
    if price is not None and not 0 < price < float("inf"):
        raise ConfigError(f"price must be USD per 1,000 queries above 0, got {price:g}: try --price 1.50")
    config, objects = named(config, given)
    with as_in_a_new_process(), torch_threads(config.threads), given_back():
        config, objects = followed(fetch(config), "run", objects)
        load = stages.load_photographs if config.udc.enabled else partial(load_images, objects=objects)
        found = inspect(
            config,
            job_checks.every(config),
            partial(load, progress=partial(tqdm, disable=True)),
            own_target=not config.udc.enabled,
            known=known,
        )
        found.problems.raise_all()
        assert found.device is not None
        assert found.data is not None
        if found.target is None:
            return stages.make_plan(config, found.data, found.device, None, None, price=price)
        return stages.plan_of_own(config, found.data, found.device, found.target, ask=ask, price=price)


def _run_ducd(config: RunConfig, objects: Objects, progress: bool, fresh: bool, finished: bool) -> Summary:
    """DUCD: target -> pilot -> one noise for all images -> surrogates -> certificates side by side -> membership inference."""
    with open_job(config, progress, fresh, checks=job_checks.DUCD, objects=objects, finished=finished) as job:
        target, target_stage = stages.open_target(job)
        pilot = stages.distill_pilot(job, target)
        choice = stages.choose_noise(job, pilot, target.num_classes)
        students = stages.distill_students(job, target, pilot, choice.noise)
        compared = stages.compare_subjects(job, target, target_stage, students, choice)
        distilled = {each.name: each.stage for each in (*students, pilot)}
        done: list[Stage] = [target_stage, *distilled.values(), choice.stage, compared]
        if config.target.uri is None:  # else nobody here knows what it was trained on
            references = stages.train_references(job)
            done += [references[1], stages.audit_membership(job, target, students, references)]
        return _report(job, done, ducd_page.render)


def _run_udc(config: RunConfig, progress: bool, fresh: bool, finished: bool) -> Summary:
    """UDC: restoration -> diffusion purifier -> how far to diffuse -> fine-tuning -> attacks on all of them."""
    with open_job(
        config, progress, fresh, checks=job_checks.UDC, load=stages.load_photographs, finished=finished
    ) as job:
        photographs = stages.photographs_through_display(job)
        defense = stages.train_defense(job, photographs)
        evaluated = stages.evaluate_defense(job, photographs, defense)
        summary = _report(job, [*defense.stages, evaluated], udc_page.render)
        return replace(summary, bill=None, ledger=None)


def _parts(job: Job) -> Parts:
    target, target_stage = stages.open_target(job)
    if job.config.surrogate.model == own_target.NONE:
        return Parts(target, target_stage, stages.prepare_purifier(job, job.config.purifier))
    surrogate, surrogate_stage = stages.distill(job, target)
    purifier = stages.prepare_purifier(job, job.config.purifier, surrogate, surrogate_stage)
    return Parts(target, target_stage, purifier, surrogate, surrogate_stage)


def _students(job: Job, parts: Parts) -> stages.Students:
    return stages.train_students(job, parts.target, parts.surrogate, parts.surrogate_stage, parts.purifier)


def _certified(
    job: Job, parts: Parts, students: stages.Students, vote: Vote = stages.certify_subjects
) -> tuple[Parts, list[Stage]]:
    """The parts as they are certified, and the stages: the choice of the noise, where there is one, what is trained for it,
    and the certificates."""
    choice = stages.choose_headline(job, parts.target, students, parts.purifier, parts.defense)
    laws, before = choice.result.laws if choice else {}, len(parts.purifier.stages)
    behind = [law for place, law in laws.items() if choice and choice.result.chosen[place].purifier]
    smoothed = replace(parts, purifier=stages.finetune_denoiser(job, parts.purifier, behind))
    ballot = stages.prepare_votes(job, smoothed.target, students, smoothed.purifier, smoothed.defense, laws)
    return smoothed, [*([choice] if choice else []), *smoothed.purifier.stages[before:], vote(job, ballot)]


def _registered(
    job: Job, parts: Parts, students: stages.Students, certified: stages.CertifyResult
) -> Stage[stages.ServedResult]:
    """The surrogate that is certified in the headline, under the headline's noise."""
    headline = next(
        each
        for each in stages.conditions(job.config, certified.chosen)
        if each.subject == "surrogate" and each.headline
    )
    model, law = students.of(headline), stages.headline_law(job.config, certified, "surrogate")
    assert model is not None  # the job has a surrogate
    own = students.stages if certified.chosen else students.headline_stages
    return stages.register(job, parts.target.num_classes, model, parts.purifier, [*parts.defense, *own], law)


def _behind(job: Job, parts: Parts, purifier: stages.Purifier) -> stages.Defended:
    """The surrogate that stands behind a purifier where it is attacked: fine-tuned on its images, or the one that agrees."""
    return stages.finetune_surrogate(job, parts.target, parts.agreeing, purifier)


def _finetuned(parts: Parts, behind: stages.Defended) -> list[Stage]:
    """Its stage, where it is one of its own."""
    return [] if behind.stage is parts.surrogate_stage else [behind.stage]


def _attacked(job: Job, parts: Parts, behind: stages.Defended) -> list[Stage]:
    tuned, agreeing = _finetuned(parts, behind), parts.agreeing.classifier
    before = [*parts.defense, *tuned]
    return [
        *tuned,
        stages.attack(job, parts.target, agreeing, parts.purifier, before, behind.classifier),
    ]


def storable(config: RunConfig) -> bool:
    """Whether the certified surrogate can be loaded again by others, and so is registered: not of an object in Python."""
    return not (is_object(config.surrogate.model) or is_object(config.purifier))


def _ladder(job: Job, parts: Parts, behind: stages.Defended, students: stages.Students) -> list[Stage]:
    """Where it is enabled, the threat ladder with no purifier, the job's own, and those of ladder.systems."""
    if not job.config.ladder.enabled:
        return []
    agreeing = parts.agreeing
    systems: dict[str, stages.Purifier | None] = {"none": None}
    classifiers = {"none": agreeing}
    tuned: list[Stage] = []
    for name in stages.ladder_systems(job.config):
        if name == job.config.purifier != "none":
            systems[name], classifiers[name] = parts.purifier, behind
        elif name not in systems:
            purifier = stages.prepare_purifier(job, name, agreeing.classifier, agreeing.stage)
            systems[name], classifiers[name] = purifier, _behind(job, parts, purifier)
            tuned += _finetuned(parts, classifiers[name])
    return [
        *tuned,
        stages.evaluate_ladder(job, parts.target, agreeing, systems, classifiers, students),
    ]


def _report_threats(job: Job, done: list[Stage]) -> Summary:
    return _report(job, done, threats.render, "threats.html")


def _report(job: Job, done: list[Stage], render: Callable[..., str], name: str = "report.html") -> Summary:
    summary = _summary(job, done)
    path = job.config.workspace / name
    html = render(job.config, job.data, done, summary.bill, run_id=summary.run_id, device=str(job.device))
    with replacing(path) as file:
        file.write(html.encode())
    job.tracker.log_files(path)
    return replace(summary, report=path)


def _summary(job: Job, done: list[Stage]) -> Summary:
    if job.ledger.canaries is not None:
        job.ledger.canaries.finish()  # nothing is reported of a target that has changed
    bill = job.ledger.bill()
    job.tracker.log_bill(bill)
    summary = Summary(
        {stage.name: stage for stage in done},
        job.config.workspace,
        tracking_uri=without_password(job.tracker.uri),
        run_id=job.tracker.run_id,
        run_page=job.tracker.run_page,
        bill=bill,
        ledger=Path(job.ledger.path),
        in_words=partial(headline, job.config),
    )
    job.tracker.describe(str(summary), lineage(job.config))
    return summary
