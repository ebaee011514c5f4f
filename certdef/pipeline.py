"""The main job: target -> ledger -> surrogate -> purifier -> certificates -> attack -> report, tracked in MLflow.

Each verb of the command line is a function here, and each runs only what is not done yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import surrogates
from certdef import stages
from certdef.config.checks import check
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.threads import allowed_threads
from certdef.data.arrays import read_images
from certdef.data.sets import Splits, load_data
from certdef.models import storage
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.report import draw, ducd_page, page, udc_page
from certdef.report.unused_options import UnusedOption, unused_options
from certdef.stages import Job
from certdef.stages.summary import Summary
from certdef.tracking.callers_session import given_back
from certdef.tracking.disk_errors import disk_errors
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import Tracker, tracking_uri
from certdef.tracking.workspace import Stage, forget, locked
from surrogates.files import create_private, replacing


@dataclass(frozen=True)
class Parts:
    """Target, surrogate and purifier of a job, with their stages in order."""

    target: surrogates.Target
    target_stage: Stage
    surrogate: nn.Module
    surrogate_stage: Stage
    purifier: stages.Purifier

    @property
    def defense(self) -> list[Stage]:
        """The stages that a result depends on, beside the target's identity."""
        return [self.surrogate_stage, *self.purifier.stages]

    @property
    def all(self) -> list[Stage]:
        return [self.target_stage, *self.defense]


def run(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Do the whole job; an interrupted one goes on where it was, a finished one is not paid for again.

    Args:
        config: What to do.
        progress: Show a bar for every long stage.
        fresh: Train and certify anew. Answers in the ledger are still not paid for twice.

    Returns:
        What was done, and where it is.

    Raises:
        ConfigError, certify.CertifyError, surrogates.SurrogateError: One line each, with the remedy.
    """
    if config.ducd.enabled:
        return _run_ducd(config, progress, fresh)
    if config.udc.enabled:
        return _run_udc(config, progress, fresh)
    with open_job(config, progress, fresh) as job:
        parts = _parts(job)
        target, surrogate, purifier = parts.target, parts.surrogate, parts.purifier
        certified = stages.certify_subjects(job, target, surrogate, purifier, parts.defense)
        attacked = stages.attack(job, target, surrogate, purifier, parts.defense)
        served = stages.register(job, target.num_classes, surrogate, purifier, parts.defense)
        return _report(job, [*parts.all, certified, attacked, served, *_ladder(job, parts)], page.render)


def pretrain(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Pre-train the denoisers of De^3, one a law of noise, on the unlabeled pool. No query is spent."""
    with open_job(config, progress, fresh, verb="pretrain") as job:
        return _summary(job, [stages.pretrain_denoiser(job, law)[1] for law in config.certify.laws])


def pretrain_leaves(
    config: RunConfig,
    folder: str | Path,
    *,
    images: int | None = None,
    epochs: int | None = None,
    progress: bool = True,
    fresh: bool = False,
) -> str:
    """Train the shipped denoiser again: the same recipe and seed give the same weights on the same kind of computer.

    Args:
        config: Its seed, device and threads.
        folder: Where the network goes, as the package has it; an interrupted training goes on from there.
        images, epochs: Others than the shipped one's.
        progress: Show bars.
        fresh: Begin anew.

    Returns:
        A line that says what is where.

    Raises:
        ConfigError, surrogates.SurrogateError: A folder that can't be written, or a number out of range.
    """
    from certdef.purifiers.networks.leaves import LeavesTraining, train_on_leaves

    shipped = LeavesTraining(seed=config.seed)
    recipe = replace(
        shipped,
        images=shipped.images if images is None else images,
        epochs=shipped.epochs if epochs is None else epochs,
    )
    path, device = Path(folder), choose_device(config.device)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{str(path)!r} is no folder: name one for the network (--leaves FOLDER)")
    with threads(config.threads), disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        checkpoint = path / "checkpoint.pt"
        if fresh:
            checkpoint.unlink(missing_ok=True)
        bar = tqdm if progress else _silent
        network = train_on_leaves(
            recipe,
            drawn=partial(bar, desc="draw dead leaves", unit="image"),
            device=device,
            checkpoint=checkpoint,
            progress=partial(bar, desc="train on dead leaves"),
        )
        storage.save_network(path, network, training=asdict(recipe))
        checkpoint.unlink()
    weights = sum(each.numel() for each in network.parameters())
    return (
        f"trained     {path}: {weights:,} weights, {recipe.images:,} dead-leaves images, seed {recipe.seed}"
    )


def distill(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Query the target within its budget and distill the surrogate."""
    with open_job(config, progress, fresh) as job:
        target, target_stage = stages.open_target(job)
        return _summary(job, [target_stage, stages.distill(job, target)[1]])


def budgets(
    config: RunConfig,
    budgets: Sequence[int],
    strategies: Sequence[str] = ("random",),
    seeds: int = 1,
    *,
    progress: bool = True,
    fresh: bool = False,
) -> Summary:
    """Distill once for every budget, strategy and seed: agreement against queries. All share the job's ledger."""
    with open_job(config, progress, fresh, verb="budgets") as job:
        stages.check_budgets(config, budgets, strategies, seeds, len(job.data.pool))
        target, target_stage = stages.open_target(job)
        return _summary(job, [target_stage, stages.trace_budgets(job, target, budgets, strategies, seeds)])


def certify(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Certify the target by queries and the surrogate for free; does first what is missing for it."""
    with open_job(config, progress, fresh) as job:
        parts = _parts(job)
        certified = stages.certify_subjects(job, parts.target, parts.surrogate, parts.purifier, parts.defense)
        return _summary(job, [*parts.all, certified])


def attack(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Attack the surrogate and transfer to the target, with and without the purifier; does first what is missing for it."""
    with open_job(config, progress, fresh) as job:
        parts = _parts(job)
        attacked = stages.attack(job, parts.target, parts.surrogate, parts.purifier, parts.defense)
        return _summary(job, [*parts.all, attacked, *_ladder(job, parts)])


def purify(
    config: RunConfig,
    images: str | None = None,
    out: str | None = None,
    *,
    progress: bool = True,
    fresh: bool = False,
) -> Summary:
    """Purify the images of a file, or the held-out ones, and write them; does first what is missing for it.

    Args:
        config: What to do.
        images: An .npz with `images` (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1].
        out: The .npz to write, `images` (N,C,H,W) float32 in [0,1]; default purified.npz in the work directory.
        progress: Show a bar for every long stage.
        fresh: Train anew.
    """
    with open_job(config, progress, fresh) as job:
        chosen = read_images(images, job.data.image_shape) if images else job.data.heldout_images
        path = Path(out) if out else config.workspace / "purified.npz"
        if not path.parent.is_dir() or path.suffix != ".npz":
            raise ConfigError(f"out {str(path)!r}: give an .npz file in a folder that is there")
        parts = _parts(job)
        purified = stages.purify_images(job, parts.purifier, chosen, path)
        return replace(_summary(job, parts.all), purified=purified)


def report(config: RunConfig, *, progress: bool = True, fresh: bool = False) -> Summary:
    """Write the page of the job again, doing first whatever is missing for it."""
    return run(config, progress=progress, fresh=fresh)


def _run_ducd(config: RunConfig, progress: bool, fresh: bool) -> Summary:
    """DUCD: target -> surrogates -> one noise for all images -> certificates side by side -> membership inference."""
    with open_job(config, progress, fresh, checks=_check_ducd) as job:
        target, target_stage = stages.open_target(job)
        students = stages.distill_students(job, target)
        choice = stages.choose_noise(job, students[0], target.num_classes)
        compared = stages.compare_subjects(job, target, target_stage, students, choice)
        done: list[Stage] = [target_stage, *(student.stage for student in students), choice.stage, compared]
        if config.target.uri is None:  # else nobody here knows what it was trained on
            references = stages.train_references(job)
            done += [references[1], stages.audit_membership(job, target, students, references)]
        return _report(job, done, ducd_page.render)


def _run_udc(config: RunConfig, progress: bool, fresh: bool) -> Summary:
    """UDC: restoration -> diffusion purifier -> how far to diffuse -> fine-tuning -> attacks on all of them."""
    with open_job(config, progress, fresh, checks=stages.check_udc, load=stages.load_photographs) as job:
        photographs = stages.photographs_through_display(job)
        defense = stages.train_defense(job, photographs)
        evaluated = stages.evaluate_defense(job, photographs, defense)
        summary = _report(job, [*defense.stages, evaluated], udc_page.render)
        return replace(summary, bill=None, ledger=None)


def _check_main(config: RunConfig, data: Splits) -> None:
    """Refuse what the main job can't do, before anything is trained or paid for."""
    for name, enabled in {"ducd": config.ducd.enabled, "udc": config.udc.enabled}.items():
        if enabled:
            raise ConfigError(
                f"{name}.enabled is true, and the {name.upper()} job has no single stages: use certdef run, or "
                f"--{name}.enabled false"
            )
    _check_pool(data)
    stages.target_draws(config)  # refuses unusable noise laws, and a budget that certifies nothing
    stages.check_attack_budget(config, len(data.heldout_images))
    if config.ladder.enabled:
        stages.check_ladder_budget(config, len(data.heldout_images))
    classifier = _check_models(config, data)
    for name in stages.ladder_systems(config) if config.ladder.enabled else [config.purifier]:
        if name != "none":
            stages.check_purifier(replace(config, purifier=name), data.image_shape, classifier)


def _check_ducd(config: RunConfig, data: Splits) -> None:
    """Refuse what the DUCD job can't do, before anything is trained or paid for."""
    if not data.labeled:
        raise ConfigError(
            f"{data.name} has no labels, which the DUCD job needs: it chooses the noise by them and infers membership; add "
            "them, or use certdef run without ducd.enabled"
        )
    _check_pool(data)
    stages.check_pools(config, data)
    stages.check_choice(config, data)
    stages.check_audit(config, data)
    _check_models(config, data)


def _check_pool(data: Splits) -> None:
    if not len(data.pool):
        raise ConfigError(
            "data.pool_images is 0, and surrogate and denoiser are trained on the images of the pool: use at least 1"
        )


def _check_models(config: RunConfig, data: Splits) -> nn.Module:
    """Refuse classifiers that do not take such images; returns an untrained surrogate."""
    shape, classes = data.image_shape, max(2, len(data.classes))  # the target says how many, once it is open
    if config.target.uri is None and config.target.kind != "svc":
        build_classifier(config.target.kind, shape, classes)
    stages.recipe_of(config.surrogate)
    stages.selection_of(config.surrogate)
    return build_classifier(surrogate_model(config), shape, classes).eval()


def _load(config: RunConfig, progress: Callable[..., Any]) -> Splits:
    own_target = config.target.uri is not None
    return load_data(config.data, config.seed, own_target=own_target, progress=progress)


@contextmanager
def open_job(
    config: RunConfig,
    progress: bool = True,
    fresh: bool = False,
    *,
    verb: str = "run",
    checks: Callable[[RunConfig, Splits], None] = _check_main,
    load: Callable[[RunConfig, Callable[..., Any]], Splits] = _load,
) -> Iterator[Job]:
    """Everything a stage needs, checked before anything is trained or paid for."""
    check(config)
    for line in unused_options(config, verb):
        warnings.warn(line, UnusedOption, stacklevel=2)
    device = choose_device(config.device)
    bar = tqdm if progress else _silent
    with threads(config.threads):
        data = load(config, bar)
        with torch.random.fork_rng():
            checks(config, data)
        with (
            locked(config.workspace),
            disk_errors(config.workspace),
            given_back() as callers_uri,
        ):
            if fresh:
                forget(config.workspace)
            tracker = Tracker(config, callers_uri)
            legacy = Legacy(config, device.type, tracking_uri(config))
            with _ledger(config, stages.ledger_file(config, data, legacy)) as ledger, tracker.job(data):
                drawing = partial(draw.draw, config=config, data=data)
                yield Job(config, data, device, tracker, ledger, bar, drawing, legacy)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads, by default as many as are allowed; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or min(before, allowed_threads()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ledger(config: RunConfig, path: Path) -> surrogates.QueryLedger:
    budget = {purpose: value for purpose, value in asdict(config.ledger).items() if purpose != "path"}
    if not (config.target.uri and config.target.canary_every):
        del budget["canary"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.target.is_private:
        create_private(path)
    return surrogates.QueryLedger(path, budget)


def _parts(job: Job) -> Parts:
    target, target_stage = stages.open_target(job)
    surrogate, surrogate_stage = stages.distill(job, target)
    purifier = stages.prepare_purifier(job, job.config.purifier, surrogate, surrogate_stage)
    return Parts(target, target_stage, surrogate, surrogate_stage, purifier)


def _ladder(job: Job, parts: Parts) -> list[Stage]:
    """Where it is enabled, the threat ladder with no purifier, the job's own, and those of ladder.systems."""
    if not job.config.ladder.enabled:
        return []
    systems = {"none": None, job.config.purifier: parts.purifier}
    for name in stages.ladder_systems(job.config):
        if name not in systems:
            systems[name] = stages.prepare_purifier(job, name, parts.surrogate, parts.surrogate_stage)
    return [stages.evaluate_ladder(job, parts.target, parts.surrogate, parts.surrogate_stage, systems)]


def choose_device(name: str) -> torch.device:
    """auto takes the GPU where there is one; ConfigError if cuda is configured and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', but torch sees no CUDA device: use --device cpu, or see certdef doctor"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _report(job: Job, done: list[Stage], render: Callable[..., str]) -> Summary:
    summary = _summary(job, done)
    path = job.config.workspace / "report.html"
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
    return Summary(
        {stage.name: stage for stage in done},
        job.config.workspace,
        tracking_uri=without_password(job.tracker.uri),
        run_id=job.tracker.run_id,
        bill=bill,
        ledger=Path(job.ledger.path),
    )


def _silent(iterable: Any = None, **_: Any) -> Any:
    return tqdm(iterable, disable=True)
