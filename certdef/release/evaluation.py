"""One evaluation: checked as a whole, then a few clean queries, then the votes; every one of them goes through a ledger.

The same evaluation again pays nothing. Another one of the same model, on more images or with more votes, pays for what is new.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import certify
import surrogates
from certdef.config.job import ConfigError, LedgerConfig, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.config.own_target import with_value
from certdef.config.purifiers import plain_name
from certdef.config.threads import fit_threads, torch_threads
from certdef.data.sets import Splits
from certdef.release.evaluator_config import PURPOSES, EvaluatorConfig, in_own_words
from certdef.release.opening import columns_of, open_model
from certdef.release.rows import classes_of, images_of, values_of
from certdef.stages.conditions import Condition
from certdef.stages.inspection import EXPECTED, Problems
from certdef.stages.job import Certification, versions
from certdef.stages.ledger import check_ledger
from certdef.stages.votes import BaseClassifier, CertifiedCurve, certify_condition, paid_classifier
from certdef.tracking import metrics
from certdef.tracking.legacy import Legacy
from certdef.tracking.results import Share, StageResult
from certify.sampling import Sampling
from surrogates.ledger.reader import read_statement

LOG = logging.getLogger("certdef")
SUBJECT = "target"  # what is certified, in the names of metrics


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        identity: Of the model, as its ledger knows it.
        clean: Accuracy on the same images, without noise.
        curve: Certified accuracy at radius 0 and at `radii`.
        radii: Of the metrics, from 0 on; L2, in [0, 1] pixel units.
        records: The certificates, image by image; beside it the same as .tsv.
        rows: (M,), the row of the data that each recorded image is, by its number in the records.
        classes: Names of the classes; empty where the model and the configuration tell none.
        paid: Queries that this evaluation paid for.
        bill: Of the model's ledger, over all evaluations.
        budget: Of that ledger, by purpose, where the configuration gave one.
        ledger: Its file.
    """

    identity: str
    clean: Share
    curve: CertifiedCurve
    radii: tuple[float, ...]
    records: Path
    rows: np.ndarray
    classes: tuple[str, ...]
    paid: int
    bill: surrogates.Bill
    budget: dict[str, int]
    ledger: Path

    @property
    def metrics(self) -> dict[str, float]:
        """By their names in MLflow; each accuracy with its 95% interval, so that a gate may hold the lower end."""
        found = metrics.with_interval(metrics.CLEAN_ACCURACY.format(subject=SUBJECT), self.clean)
        for radius, share in zip(self.radii, self.curve.shares, strict=True):
            name = metrics.CERTIFIED_ACCURACY.format(subject=SUBJECT, radius=radius)
            found |= metrics.with_interval(name, share)
        costs = {
            metrics.SAMPLES_PER_IMAGE: self.curve.samples_per_image,
            metrics.SECONDS_PER_IMAGE: self.curve.seconds_per_image,
            metrics.PAID: float(self.paid),
            metrics.SPENT.format(purpose=""): float(self.bill.total.spent),
        }
        for purpose in PURPOSES:
            costs[metrics.SPENT.format(purpose=f"_{purpose}")] = float(self.bill[purpose].spent)
        for purpose, queries in self.budget.items():
            costs[metrics.BUDGET.format(purpose=f"_{purpose}")] = float(queries)
        return found | costs


def evaluate(model: Any, features: Any, labels: Any, config: EvaluatorConfig, name: str) -> Evaluation:
    """Certify rows of a table under the noise of the configuration.

    Args:
        model: A loaded MLflow model.
        features: (N, F) pixels, a table or an array.
        labels: (N,) classes, by number or by name.
        config: The rest.
        name: Of the data.

    Raises:
        ConfigError: All that cannot be used, a line each, before any query.
        surrogates.SurrogateError: The model fails or answers what makes no sense, or the budget is spent; what was paid
            for is kept.
    """
    try:
        with torch_threads(None):
            fit_threads(None, math.prod(config.shape))
            return _Checked.of(model, features, labels, config, name).evaluated()
    except surrogates.BudgetExceeded as error:
        raise surrogates.BudgetExceeded(in_own_words(str(error))) from error


@dataclass(frozen=True)
class _Checked:
    """An evaluation of which nothing is known to be wrong, and that has not asked the model yet."""

    config: EvaluatorConfig
    job: RunConfig
    target: surrogates.Target
    data: Splits
    rows: np.ndarray
    noise: certify.NoiseLaw
    budget: dict[str, int]

    @staticmethod
    def of(model: Any, features: Any, labels: Any, config: EvaluatorConfig, name: str) -> _Checked:
        """Raises ConfigError with a line for each thing that is wrong."""
        problems, attempt = Problems({}), Problems.attempt
        values = attempt(problems, values_of, features, columns_of(model), part="values")
        images = attempt(problems, images_of, values, config, reads=["values"])
        target = attempt(problems, open_model, model, features, config, part="target")
        classes = attempt(problems, classes_of, labels, len(features), target, reads=["target"])
        job = config.job(len(features))
        noise = attempt(problems, _noise_of, config, job, part="noise")
        attempt(problems, _check_sampling, job, noise, reads=["noise"])
        folder = Path(config.work_dir) / plain_name("model" if target is None else target.identity)
        path = Path(config.ledger or folder / "ledger.db")
        attempt(problems, check_ledger, path, None if target is None else target.identity, part="ledger")
        budget = attempt(problems, _budget_of, config, job, path, reads=["ledger"])
        try:
            problems.raise_all()
        except EXPECTED as error:
            raise ConfigError(in_own_words(str(error))) from error
        assert images is not None
        assert classes is not None
        assert target is not None
        assert noise is not None
        assert budget is not None
        # A sample that does not follow the order of the table, and grows without changing: its votes stay paid for.
        rows = np.random.default_rng(config.seed).permutation(len(images))[: job.certify.target_images]
        job = with_value(
            with_value(job, "work_dir", str(folder)), "ledger", LedgerConfig(str(path), **budget)
        )
        return _Checked(
            config, job, target, _splits(name, target, images[rows], classes[rows]), rows, noise, budget
        )

    def evaluated(self) -> Evaluation:
        """Ask the model."""
        path, images = self.job.ledger_path, self.data.heldout_images
        path.parent.mkdir(parents=True, exist_ok=True)
        with surrogates.QueryLedger(path, self.budget) as ledger:
            before = ledger.bill().total.largest
            paid = ledger.attach(self.target, purpose="evaluation")
            LOG.info(
                "certifies %d images of %s by at most %s queries, on ledger %s",
                len(images),
                self.target.identity,
                f"{_most_votes(self.job):,}",
                path,
            )
            right = paid.query(images).labels == self.data.heldout_labels
            curve, records = self._certified(ledger)
            bill = ledger.bill()
        return Evaluation(
            identity=self.target.identity,
            clean=Share.of(int(right.sum()), len(right)),
            curve=curve,
            radii=(0.0, *self.job.certify.radii),
            records=records,
            rows=self.rows,
            classes=self.target.class_names or (),
            paid=bill.total.largest - before,
            bill=bill,
            budget=self.config.budget,
            ledger=path,
        )

    def _certified(self, ledger: surrogates.QueryLedger) -> tuple[CertifiedCurve, Path]:
        """The curve, and the file of the records."""
        config, n = self.job.certify, self.job.certify.n
        work = Certification(
            config=self.job,
            data=self.data,
            device=torch.device("cpu"),
            legacy=Legacy(self.job, "cpu", ""),
            ledger=ledger,
            progress=partial(tqdm, disable=not self.config.progress),
        )
        condition = Condition(SUBJECT, config.laws[0].label, None, self.noise, headline=True)
        decides = [self.target.identity, self.target.preprocessing, config.settings, self.noise.describe()]
        stage = work.stage("evaluation", StageResult, *decides, self.data.heldout_digest, versions())
        stage.begin()
        voter = paid_classifier(work, self.target, stage, condition)
        curve = certify_condition(work, condition, BaseClassifier(voter, self.target.num_classes, n), stage)
        return curve, stage.path / "records" / f"{condition.key}.jsonl"


def _splits(name: str, target: surrogates.Target, images: np.ndarray, labels: np.ndarray) -> Splits:
    """The images of a job of which nothing is trained."""
    names = target.class_names
    return Splits(
        name=name,
        classes=names or tuple(map(str, range(target.num_classes))),
        target_images=images[:0],
        target_labels=labels[:0],
        pool=images[:0],
        heldout_images=images,
        heldout_labels=labels,
        audit_images=images[:0],
        audit_labels=labels[:0],
        named=names is not None,
    )


def _noise_of(config: EvaluatorConfig, job: RunConfig) -> certify.NoiseLaw:
    """The noise as it was given: sigma does not make the detour by 8-bit levels, which rounds."""
    return certify.Gaussian(config.sigma) if config.sigma is not None else noise_law(job.certify.laws[0])


def _check_sampling(job: RunConfig, noise: certify.NoiseLaw) -> None:
    """Refuse votes that could prove nothing."""
    config = job.certify
    radii = (0.0, *config.radii) if config.stops_early else None
    Sampling(config.n0, config.n, config.alpha, config.method, radii, config.bound).plan(noise)


def _most_votes(job: RunConfig) -> int:
    return job.certify.target_images * (job.certify.selection + job.certify.n)


def _budget_of(config: EvaluatorConfig, job: RunConfig, ledger: Path) -> dict[str, int]:
    """What may be spent: as given, else what is spent already and what this evaluation may take besides."""
    spent = read_statement(ledger).accounts if ledger.is_file() else {}
    needs = dict(zip(PURPOSES, (_most_votes(job), job.certify.target_images), strict=True))
    for purpose, given in config.budget.items():
        if given < needs[purpose]:
            each = f" x {job.certify.selection + job.certify.n} votes" if purpose == PURPOSES[0] else ""
            raise ConfigError(
                f"budget, of {purpose}, is {given}, and {job.certify.target_images} images{each} may take "
                f"{needs[purpose]}: raise it, or lower images{' or n' if each else ''}"
            )
    free = {
        purpose: needs[purpose] + (spent[purpose].largest if purpose in spent else 0) for purpose in needs
    }
    return free | config.budget
