"""The main job: target -> ledger -> surrogate -> purifier -> certificates -> attack -> report, tracked in MLflow.

Each verb of the command line is a function here, and each runs only what is not done yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import surrogates
from certdef import stages
from certdef.config.checks import check
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.data.sets import load_data, read_images
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.report import ducd_page, page
from certdef.stages import Job
from certdef.tracking.mlflow import Tracker
from certdef.tracking.workspace import forget, locked


@dataclass(frozen=True)
class Summary:
    """What a verb leaves behind: the result of each stage that it needed, and where to look."""

    results: dict[str, dict[str, Any]]
    workspace: Path
    report: Path | None = None
    tracking_uri: str = ""
    run_id: str = ""
    bill: surrogates.Bill | None = None
    reused: bool = False  # every stage was done before


def run(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Do the whole job; an interrupted one goes on where it was, a finished one is not paid for again.

    Args:
        progress: Show a bar for every long stage.
        fresh: Train and certify anew. Answers in the ledger are still not paid for twice.

    Raises:
        ConfigError, certify.CertifyError, surrogates.SurrogateError: One line each, with the remedy.
    """
    if config.ducd.enabled:
        return _run_ducd(config, progress, fresh)
    with open_job(config, progress, fresh) as job:
        target, surrogate, purifier, done = _parts(job)
        certified = stages.certify_subjects(job, target, surrogate, purifier, done[1:])
        attacked = stages.attack(job, target, surrogate, purifier, done[1:])
        served = stages.register(job, target.num_classes, surrogate, purifier, done[1:])
        climbed = _climb(job, target, surrogate, purifier, done)
        return _report(job, [*done, certified, attacked, served, *climbed])


def pretrain(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Pre-train the denoisers of De^3, one a law of noise, on the unlabelled pool. No query is spent."""
    with open_job(config, progress, fresh) as job:
        return _summary(job, [stages.pretrain_denoiser(job, law)[1] for law in config.certify.laws])


def distill(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Query the target within its budget and distil the surrogate."""
    with open_job(config, progress, fresh) as job:
        target, target_stage = stages.open_black_box(job)
        return _summary(job, [target_stage, stages.distil(job, target)[1]])


def budgets(
    config: RunConfig, budgets: Sequence[int], strategies: Sequence[str] = ("random",), seeds: int = 1, *,
    progress: bool = True, fresh: bool = False,
) -> Summary:  # fmt: skip
    """Distil once for every budget, strategy and seed: agreement against queries. All share the job's ledger."""
    with open_job(config, progress, fresh) as job:
        stages.check_budgets(config, budgets, strategies, seeds, len(job.data.pool))
        target, target_stage = stages.open_black_box(job)
        stage = stages.trace_budgets(job, target, budgets, strategies, seeds)
        summary = _summary(job, [target_stage, stage])
        return replace(summary, results={"target": target_stage.result, "budgets": stage.result})


def certify(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Certify the target by queries and the surrogate for free; does first what is missing for it."""
    with open_job(config, progress, fresh) as job:
        target, surrogate, purifier, done = _parts(job)
        return _summary(job, [*done, stages.certify_subjects(job, target, surrogate, purifier, done[1:])])


def attack(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Attack the surrogate and transfer to the target, with and without the purifier; does first what is missing for it."""
    with open_job(config, progress, fresh) as job:
        target, surrogate, purifier, done = _parts(job)
        attacked = stages.attack(job, target, surrogate, purifier, done[1:])
        return _summary(job, [*done, attacked, *_climb(job, target, surrogate, purifier, done)])


def purify(
    config: RunConfig, images: str | None = None, out: str | None = None, *, progress: bool = True, fresh: bool = False
) -> Summary:  # fmt: skip
    """Purify the images of a file, or the held-out ones, and write them; does first what is missing for it.

    Args:
        images: An .npz with `images` (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1].
        out: The .npz to write, `images` (N,C,H,W) float32 in [0,1]; default purified.npz in the work directory.
    """
    with open_job(config, progress, fresh) as job:
        shown = read_images(images, job.data.image_shape) if images else job.data.heldout_images
        path = Path(out) if out else config.workspace / "purified.npz"
        if not path.parent.is_dir() or path.suffix != ".npz":
            raise ConfigError(f"out {str(path)!r}: give an .npz file in a folder that is there")
        _, _, purifier, done = _parts(job)
        result = stages.purify_images(job, purifier, shown, path)
        summary = _summary(job, done)
        return replace(summary, results=summary.results | {"purify": result})


def report(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Write the page of the job again, doing first whatever is missing for it."""
    return run(config, progress=progress, fresh=fresh)


def _run_ducd(config: RunConfig, progress: bool, fresh: bool) -> Summary:
    """DUCD: target -> surrogates -> one noise for all images -> certificates side by side -> membership inference."""
    with open_job(config, progress, fresh, ducd=True) as job:
        target, target_stage = stages.open_black_box(job)
        students = stages.distil_students(job, target)
        choice = stages.choose_noise(job, students[0])
        compared = stages.compare_subjects(job, target, target_stage, students, choice)
        done = [target_stage, *(student.stage for student in students), choice.stage, compared]
        if config.target.uri is None:  # else nobody here knows what it was trained on
            references = stages.train_references(job)
            done += [references[1], stages.audit_membership(job, target, students, references)]
        return _report(job, done, ducd_page.render)


@contextmanager
def open_job(
    config: RunConfig, progress: bool = True, fresh: bool = False, *, ducd: bool = False
) -> Iterator[Job]:
    """Everything a stage needs, checked before anything is trained or paid for."""
    check(config)
    if config.ducd.enabled and not ducd:
        raise ConfigError(
            "ducd.enabled is true, and the DUCD job has no single stages: use certdef run, or --ducd.enabled false"
        )
    device = choose_device(config.device)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    data = load_data(config.data, config.seed, own_target=config.target.uri is not None)
    if ducd:
        stages.check_pools(config, data)
        stages.check_choice(config, data)
        stages.check_audit(config, data)
    else:
        stages.target_draws(config)  # refuses unusable noise laws, and a budget that certifies nothing
        stages.check_attack_budget(config, len(data.heldout_images))
        if config.ladder.enabled:
            stages.check_ladder_budget(config, len(data.heldout_images))
    with torch.random.fork_rng():  # and sizes that do not fit the images
        if config.target.uri is None and config.target.kind != "svc":
            build_classifier(config.target.kind, data.image_shape, len(data.classes))
        classifier = build_classifier(surrogate_model(config), data.image_shape, len(data.classes)).eval()
        if not ducd:
            for name in stages.ladder_systems(config) if config.ladder.enabled else [config.purifier]:
                if name != "none":
                    stages.check_purifier(replace(config, purifier=name), data.image_shape, classifier)
    stages.recipe_of(config.surrogate)
    stages.selection_of(config.surrogate)
    with locked(config.workspace):
        if fresh:
            forget(config.workspace)
        tracker = Tracker(config)
        budget = {purpose: value for purpose, value in asdict(config.ledger).items() if purpose != "path"}
        if not (config.target.uri and config.target.canary_every):
            del budget["canary"]
        config.ledger_path.parent.mkdir(parents=True, exist_ok=True)
        with surrogates.QueryLedger(config.ledger_path, budget) as ledger, tracker.job(data):
            yield Job(config, data, device, tracker, ledger, tqdm if progress else _silent)


def _parts(job: Job) -> tuple[surrogates.Target, nn.Module, stages.Purifier, list[stages.Stage]]:
    """Target, surrogate, purifier, and their stages: the target's first, then those that a result depends on.

    (The surrogate's stage depends on the target's identity, not on where the target was logged.)
    """
    target, target_stage = stages.open_black_box(job)
    surrogate, surrogate_stage = stages.distil(job, target)
    purifier = stages.prepare_purifier(job, job.config.purifier, surrogate, surrogate_stage)
    return target, surrogate, purifier, [target_stage, surrogate_stage, *purifier.stages]


def _climb(
    job: Job, target: surrogates.Target, surrogate: nn.Module, purifier: stages.Purifier, done: list[stages.Stage]
) -> list[stages.Stage]:  # fmt: skip
    """Where it is asked for, the threat ladder with no purifier, the job's own, and those of ladder.systems."""
    if not job.config.ladder.enabled:
        return []
    systems = {"none": None, job.config.purifier: purifier}
    for name in stages.ladder_systems(job.config):
        if name not in systems:
            systems[name] = stages.prepare_purifier(job, name, surrogate, done[1])
    return [stages.climb_ladder(job, target, surrogate, done[1], systems)]


def choose_device(name: str) -> torch.device:
    """auto takes the GPU where there is one; ConfigError if cuda is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', but torch sees no CUDA device: use --device cpu, or see certdef doctor"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _report(job: Job, done: list[stages.Stage], render: Callable[..., str] = page.render) -> Summary:
    summary = _summary(job, done)
    path = job.config.workspace / "report.html"
    path.write_text(
        render(job.config, job.data, done, summary.bill, run_id=summary.run_id, device=str(job.device)),
        encoding="utf-8",
    )
    job.tracker.log_files(path)
    return replace(summary, report=path)


def _summary(job: Job, done: list[stages.Stage]) -> Summary:
    if job.ledger.canaries is not None:
        job.ledger.canaries.finish()  # nothing is reported of a target that has changed
    bill = job.ledger.bill()
    job.tracker.log_bill(bill)
    results = {stage.name: stage.result for stage in done}
    return Summary(
        results,
        job.config.workspace,
        None,
        without_password(job.tracker.uri),
        job.tracker.run_id,
        bill,
        all(stage.reused for stage in done),
    )


def _silent(iterable: Any = None, **_: Any) -> Any:
    return tqdm(iterable, disable=True)
