"""The bare target, average case: how often its answer changes under declared corruptions. No model is smoothed or trained.

Every label is paid once: the ledger keeps it as a receipt of the draw that it answers, so that an interrupted job, another
q or more images go on with what is there.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import certify
import surrogates
from certdef.config.job import ConfigError, RunConfig
from certdef.config.purifiers import is_code
from certdef.config.robustness import ALL
from certdef.data.sets import Splits, digest
from certdef.stages.inspection import Problems
from certdef.stages.job import Job, versions
from certdef.stages.target import TargetResult
from certdef.tracking import metrics
from certdef.tracking.checked_json import fingerprint
from certdef.tracking.results import StageResult, as_frame
from certdef.tracking.workspace import Stage
from certify.bounds.change import LARGEST_ALPHA, ChangePlan, change_plan, fewest_labels
from certify.threats import population
from certify.threats.perturbations import Perturbation, perturbation
from surrogates.distillation.inference import images_at_once
from surrogates.files import replacing

if TYPE_CHECKING:
    import pandas

BATCH = 512  # images before the target at once


@dataclass(frozen=True)
class CorruptionRow:
    """What is proven under one corruption, average case; each of the three statements is wrong with probability <= alpha.

    Attributes:
        name, in_words, law: Of the corruption.
        images: How many were asked about.
        proven: Of them, those whose answer changes with probability <= q, each proven by itself.
        least_proven: At least so many do, all together.
        refuted: Those whose answer changes with probability > q.
        changed: Those with at least one draw that changed the answer: a worst case that chance has found.
        mean, mean_upper: Estimate and upper bound of the mean change probability of the images.
        labels: Queries under the corruption.
        once: Whether one label an image stood for all: a fixed law, and a target that answers an image alike every time.
    """

    name: str
    in_words: str
    law: dict[str, Any]
    images: int
    proven: int
    least_proven: int
    refuted: int
    changed: int
    mean: float
    mean_upper: float
    labels: int
    once: bool

    @property
    def share(self) -> float:
        """Share of the images that are proven."""
        return self.proven / self.images

    @property
    def labels_per_image(self) -> float:
        return self.labels / self.images

    @property
    def key(self) -> str:
        """The name as files and metrics have it."""
        return key_of(self.name)

    @classmethod
    def of(cls, bound: population.PopulationBound) -> CorruptionRow:
        """The figures of a bound."""
        return cls(
            name=bound.name,
            in_words=bound.in_words,
            law=bound.law,
            images=len(bound.images),
            proven=bound.proven,
            least_proven=bound.least_proven,
            refuted=sum(each.verdict == population.REFUTED for each in bound.images),
            changed=sum(each.changes > 0 for each in bound.images),
            mean=bound.mean,
            mean_upper=bound.mean_upper,
            labels=bound.labels,
            once=bound.assumes_deterministic,
        )


@dataclass(frozen=True, kw_only=True)
class RobustnessResult(StageResult):
    """Average-case statements about the bare target, a row a corruption.

    Attributes:
        rows: One a corruption.
        q: The share of draws that may change an answer.
        alpha: Probability that a statement is wrong.
        n: Draws of a corruption for an image, at most.
        images: How many held-out images, the first ones.
        identity: Of the target.
        images_digest: Of the held-out images and labels.
        claim: What kind of statement this is.
    """

    rows: tuple[CorruptionRow, ...]
    q: float
    alpha: float
    n: int
    images: int
    identity: str
    images_digest: str
    claim: str = population.AVERAGE_CASE

    def to_frame(self) -> pandas.DataFrame:
        """A row a corruption; every figure is an average case."""
        return as_frame({"claim": self.claim} | vars(row) for row in self.rows).drop(columns=["law"])


def key_of(name: str) -> str:
    """The name of a corruption as files and metrics have it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def laws_of(config: RunConfig, channels: int | None = None) -> list[Perturbation]:
    """The configured corruptions; of all of them those that take images of so many channels.

    Raises:
        ConfigError, certify.CertifyError: A line for each that is none, or is named twice.
    """
    named = config.robustness.corruptions
    if named == ALL:
        left_out = {"jpeg"} if channels not in (None, 1, 3) else set()
        return [population.corruption(name) for name in population.CORRUPTIONS if name not in left_out]
    if isinstance(named, str):
        raise ConfigError(
            f"robustness.corruptions is {named!r}: use all, or a list, e.g. [noise,brightness=0.2,jpeg=50]"
        )
    if not named:
        raise ConfigError("robustness.corruptions is empty: use all, or a list, e.g. [noise,brightness=0.2]")
    problems = Problems({})
    found = [problems.attempt(_law, text) for text in named]
    problems.raise_all()
    laws = [law for law in found if law is not None]
    keys = [key_of(law.name) for law in laws]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ConfigError(f"robustness.corruptions has {twice[0]!r} twice: name each once")
    return laws


def _law(text: str) -> Perturbation:
    if not text.startswith("python:"):
        try:
            return population.corruption(text)
        except certify.CertifyError as error:
            raise ConfigError(f"robustness.corruptions: {error}") from error
    if not is_code(text):
        raise ConfigError(f"robustness.corruptions has {text!r}: write python:package.module:function")
    module, _, name = text.removeprefix("python:").partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"robustness.corruptions has {text!r}, which can't be imported: {error}") from error
    return function if isinstance(function, Perturbation) else perturbation(f"{module}.{name}", function)


def images_of(config: RunConfig, heldout: int) -> int:
    """How many held-out images are asked about."""
    return min(config.robustness.images, heldout)


def plan_of(config: RunConfig) -> ChangePlan:
    """The test of one image under one corruption."""
    return change_plan(config.robustness.q, config.robustness.draws, config.certify.alpha)


def robustness_queries(config: RunConfig, heldout: int) -> int:
    """Queries under corruptions, at most."""
    return len(laws_of(config)) * images_of(config, heldout) * plan_of(config).n


def check_robustness(config: RunConfig, data: Splits | None) -> None:
    """Refuse corruptions, a q and a budget that can't be, all at once.

    Raises:
        ConfigError: A line for each.
    """
    problems = Problems({})
    channels = None if data is None else data.image_shape[0]
    laws = problems.attempt(laws_of, config, channels, part="laws")
    own = config.robustness  # q and images out of range are named by certdef/config/rules.py
    plan = problems.attempt(_checked_plan, config) if 0 < own.q < 1 else None
    if laws is not None and data is not None:
        blank = torch.zeros(1, *data.image_shape)
        for law in laws:
            problems.attempt(law.sample, blank, torch.Generator().manual_seed(0))
    if laws is not None and plan is not None and own.images >= 1:
        heldout = config.data.heldout_images if data is None else len(data.heldout_images)
        problems.attempt(_check_budgets, config, heldout)
    problems.raise_all()


def _checked_plan(config: RunConfig) -> ChangePlan:
    own, alpha = config.robustness, config.certify.alpha
    if alpha > LARGEST_ALPHA:
        raise ConfigError(f"certify.alpha is {alpha:g}: use at most {LARGEST_ALPHA}, e.g. 0.001")
    fewest = fewest_labels(own.q, alpha)
    if own.draws is not None and own.draws < fewest:
        raise ConfigError(
            f"robustness.draws is {own.draws}: too few to prove q = {own.q:g} at certify.alpha {alpha:g}, use at least {fewest}"
        )
    return plan_of(config)


def _check_budgets(config: RunConfig, heldout: int) -> None:
    need, budget = robustness_queries(config, heldout), config.ledger.certification
    if need > budget:
        raise ConfigError(
            f"ledger.certification is {budget}: {len(laws_of(config))} corruptions of {images_of(config, heldout)} images take up "
            f"to {need}; raise it, or lower robustness.images or robustness.draws, or name fewer corruptions"
        )
    if heldout > config.ledger.evaluation:
        raise ConfigError(
            f"ledger.evaluation is {config.ledger.evaluation}: {heldout} held-out images need {heldout}; raise it or lower "
            "data.heldout_images"
        )


def robustness_bill(config: RunConfig, heldout: int) -> str:
    """What is paid for at most, before anything is."""
    plan, laws, images = plan_of(config), len(laws_of(config)), images_of(config, heldout)
    least = int(plan.sizes[np.flatnonzero(plan.proving >= 0)[0]])
    return (
        f"{laws} corruptions x {images} images: at most {plan.n} labels each, {least} where no answer changes: at most "
        f"{robustness_queries(config, heldout):,} queries of ledger.certification, and {heldout:,} of ledger.evaluation"
    )


def measure_robustness(
    job: Job, target: surrogates.Target, target_stage: Stage[TargetResult]
) -> Stage[RobustnessResult]:
    """Prove how often the target's answer changes, average case, corruption by corruption."""
    config, data = job.config, job.data
    laws = laws_of(config, data.image_shape[0])
    count, plan = images_of(config, len(data.heldout_images)), plan_of(config)
    once = target_stage.result.params["deterministic"] == "yes" or not target.charged_when_sent
    stage = job.stage(
        "robustness",
        RobustnessResult,
        target.identity,
        data.heldout_digest,
        count,
        [law.describe() for law in laws],
        [plan.q, plan.alpha, plan.n],
        once,
    )

    def compute() -> RobustnessResult:
        answers = job.ledger.attach(target, purpose="evaluation").query(data.heldout_images).labels[:count]
        most = len(laws) * count * plan.n
        bar = job.progress(total=most, desc="robustness, average case", unit="label")
        rows = []
        for law in laws:
            bound = _bound(job, target, law, answers, plan, once, bar)
            _record(job, stage, bound)
            rows.append(CorruptionRow.of(bound))
            most -= count * plan.n - bound.labels
            bar.total = most
        bar.close()
        return _result(tuple(rows), plan, count, target.identity, data)

    return job.run(stage, compute)


def _bound(
    job: Job,
    target: surrogates.Target,
    law: Perturbation,
    answers: np.ndarray,
    plan: ChangePlan,
    once: bool,
    bar: Any,
) -> population.PopulationBound:
    """The statement about one corruption, by paid labels."""
    seed = job.config.seed
    # What decides a draw, and nothing else: another q, alpha or number of images pays for no draw twice.
    experiment = f"population/{fingerprint(seed, law.describe())}"
    paid = job.ledger.attach(target, purpose="certification", experiment=experiment)
    return population.certify_population(
        lambda images: paid.query(images.numpy()).labels,
        job.data.heldout_images[: len(answers)],
        law,
        q=plan.q,
        n=plan.n,
        alpha=plan.alpha,
        answers=answers,
        seed=seed,
        batch_size=images_at_once(job.data.image_shape, BATCH),
        deterministic=once,
        on_labels=bar.update,
    )


def _record(job: Job, stage: Stage, bound: population.PopulationBound) -> None:
    """Keep what every image's labels said: enough to state it again without a query."""
    private, folder = job.config.target.is_private, stage.path / "records"
    folder.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    path = folder / f"{key_of(bound.name)}.json"
    images = job.data.heldout_images
    plain = bound.to_json() | {
        "digests": [digest(images[each.index]) for each in bound.images],
        "right": [int(job.data.heldout_labels[each.index]) for each in bound.images],
        "versions": versions(),
    }
    with replacing(path) as file:
        file.write(json.dumps(plain).encode())
    if private:
        path.chmod(0o600)


def _result(
    rows: tuple[CorruptionRow, ...], plan: ChangePlan, images: int, identity: str, data: Splits
) -> RobustnessResult:
    named: dict[str, float] = {}
    for row in rows:
        figures = {
            "share_proven": row.share,
            "least_share": row.least_proven / row.images,
            "share_changed_once": row.changed / row.images,
            "mean_change": row.mean,
            "mean_change_upper": row.mean_upper,
            "labels_per_image": row.labels_per_image,
        }
        named |= {
            metrics.POPULATION.format(law=row.key, figure=name): value for name, value in figures.items()
        }
    assert all(math.isfinite(value) for value in named.values())
    return RobustnessResult(
        rows=rows,
        q=plan.q,
        alpha=plan.alpha,
        n=plan.n,
        images=images,
        identity=identity,
        images_digest=data.heldout_digest,
        params={
            "claim": population.AVERAGE_CASE,
            "threat": population.THREAT,
            "q": plan.q,
            "alpha": plan.alpha,
            "labels_at_most": plan.n,
            "images": images,
        }
        | data.remarks,
        metrics=named,
        artifacts=("records/*.json", "*.png"),
    )
