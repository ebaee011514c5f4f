"""Opening a job: all that is wrong is said at once, then its folder, ledger and tracking are open until it ends."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from tqdm import tqdm

import surrogates
from certdef import stages
from certdef.config import own_target
from certdef.config.checks import failures
from certdef.config.job import RunConfig
from certdef.config.shard import Shard
from certdef.config.threads import fit_threads, torch_threads
from certdef.data.sets import Splits, load_source, split
from certdef.objects.following import followed
from certdef.objects.named import NO_OBJECTS, Objects
from certdef.report import draw
from certdef.report import plan as plan_words
from certdef.report.unused_options import UnusedOption, unused_options
from certdef.stages import Job, job_checks
from certdef.stages.inspection import Check, inspect
from certdef.tracking.callers_session import given_back
from certdef.tracking.disk_errors import disk_errors
from certdef.tracking.legacy import Legacy
from certdef.tracking.mlflow import Tracker, Untracked, tracking_uri
from certdef.tracking.workspace import forget, locked

LOG = logging.getLogger("certdef")  # the first lines of a job; the command line shows them


@contextmanager
def open_job(
    config: RunConfig,
    progress: bool = True,
    fresh: bool = False,
    *,
    verb: str = "run",
    checks: Sequence[Check] | None = None,
    load: Callable[[RunConfig, Callable[..., Any]], Splits] | None = None,
    objects: Objects = NO_OBJECTS,
    shard: Shard | None = None,
    prepared: bool = False,
    planned: bool = True,
) -> Iterator[Job]:
    """Everything a stage needs, checked before anything is trained or paid for: all that is wrong is raised at once.

    A shard (`shard`) and a merge (`prepared`) find everything before the certificates done, or are refused.
    What one's own target will be asked is foretold where that is known (`planned`); it is looked at in any case.
    """
    with torch_threads(config.threads), given_back() as callers_uri:
        own = verb != "pretrain" and not config.udc.enabled
        bar = tqdm if progress else partial(tqdm, disable=True)
        config, objects = followed(config, verb, objects, bar)
        rules = job_checks.main(config, verb) if checks is None else checks
        if shard:
            rules = (
                *rules,
                Check(
                    partial(stages.check_shard, shard), ("certify", "data", "laws", "purifier", "surrogate")
                ),
            )
        read = load or partial(load_images, objects=objects)
        loading: Callable[[RunConfig], Splits] = lambda config: read(config, bar)  # noqa: E731
        found = inspect(config, rules, loading, own_target=own)
        if not failures(config):  # else nobody knows what the job would read
            _warn_of_unused(config, verb, objects)
        found.problems.raise_all()
        if objects.in_words:
            LOG.info("chosen      %s", objects.in_words)
        assert found.device is not None
        assert found.data is not None
        fit_threads(config.threads, math.prod(found.data.image_shape))
        with locked(config.workspace, shared=shard is not None), disk_errors(config.workspace):
            if fresh:
                forget(config.workspace)
            tracker = (Untracked if shard else Tracker)(config, callers_uri)
            legacy = Legacy(config, found.device.type, tracking_uri(config))
            path = stages.ledger_file(config, found.data, legacy)
            opened: AbstractContextManager[surrogates.QueryLedger] = (
                stages.shard_ledger(config, path, shard, len(found.data.heldout_images))
                if shard
                else stages.open_ledger(config, path)
            )
            with opened as ledger, tracker.job(found.data):
                job = Job(
                    config=config,
                    data=found.data,
                    device=found.device,
                    legacy=legacy,
                    tracker=tracker,
                    ledger=ledger,
                    progress=bar,
                    draw=partial(draw.draw, config=config, data=found.data),
                    own_target=found.target,
                    shard=shard,
                    prepared=prepared or shard is not None,
                )
                if found.target is not None:
                    plan_words.show_first_lines(job, found.target, verb, planned=planned)
                yield job


def load_images(config: RunConfig, progress: Callable[..., Any], objects: Objects = NO_OBJECTS) -> Splits:
    """The images of a job: as configured, or as given."""
    own = config.target.uri is not None
    source = objects.source or load_source(config.data, progress)
    return split(source, config.data, config.seed, own_target=own, progress=progress)


def _warn_of_unused(config: RunConfig, verb: str, objects: Objects) -> None:
    """Name the options that nothing reads."""
    for line in unused_options(config, verb, objects.chosen):
        if own_target.applies(config):  # the command line could not know yet
            LOG.warning(line)
        else:
            warnings.warn(line, UnusedOption, stacklevel=4)
