"""What a threat is, and what is proven against one: the contract that all threats share.

A threat is a file of certdef/stages/threats with a `THREAT`. Its `prove` proves something of each image of one subject
and records it; the runner (certdef/stages/threat_run.py) opens the subjects, pays, keeps the result and logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.config.threats import check_name
from certdef.data.sets import digest
from certdef.stages.job import Job, versions
from certdef.tracking.checked_json import read_json
from certdef.tracking.results import Share, StageResult, as_frame
from certdef.tracking.workspace import FINGERPRINT, RESULT, Stage

if TYPE_CHECKING:
    import pandas

SOUND = "sound"  # holds for every change within the parameter, with probability 1 - alpha over the draws
EXACT = "alpha = 0"  # the same without any draw, of a deterministic target
AVERAGE_CASE = "average case"  # bounds the share of changes that alter the answer; no worst case
KINDS = (SOUND, EXACT, AVERAGE_CASE)

Keep = Callable[[int, certify.Certificate, float], None]  # index, certificate, seconds


@dataclass(frozen=True)
class ThreatCurve:
    """What is proven of one subject.

    Attributes:
        subject: target or surrogate.
        images: How many.
        accuracy: Share of images that are right and proven so, one for each parameter of the grid.
        right: Share of images whose proven or exact answer is right, at no change.
        abstained: Share of images of which nothing is proven.
        queries_per_image: Answers that were asked for, on average; paid for the target, free for the surrogate.
        n: Answers an image, at most.
        seconds_per_image: On average.
        trained_for: Whether a surrogate was trained under the threat.
    """

    subject: str
    images: int
    accuracy: tuple[Share, ...]
    right: Share
    abstained: float
    queries_per_image: float
    n: int
    seconds_per_image: float
    trained_for: bool = False

    @property
    def paid(self) -> bool:
        return self.subject == "target"


@dataclass(frozen=True, kw_only=True)
class ThreatResult(StageResult):
    """What is proven against one threat, of each subject.

    Attributes:
        threat: Its name.
        title: The same in words.
        statement: What is proven of an image, in a sentence.
        limits: What is not, in a sentence.
        kind: sound, alpha = 0, or average case.
        parameter: Name of what the grid counts.
        unit: Its unit.
        grid: The parameters at which accuracy is given, rising.
        alpha: Probability that the statement about an image is wrong.
        settings: What decides the draws and the claim.
        curves: By subject.
        identity: Of the target.
        images_digest: Of the held-out images and labels.
        papers: Keys of the sources.
    """

    threat: str
    title: str
    statement: str
    limits: str
    kind: str
    parameter: str
    unit: str
    grid: tuple[float, ...]
    alpha: float
    settings: dict[str, Any]
    curves: dict[str, ThreatCurve]
    identity: str
    images_digest: str
    papers: tuple[str, ...] = ()

    def to_frame(self) -> pandas.DataFrame:
        """A row a subject and parameter: the share of images that is right, and proven up to it."""
        return as_frame(
            {"subject": subject, "kind": self.kind, self.parameter: at, "accuracy": share}
            for subject, curve in self.curves.items()
            for at, share in zip((0.0, *self.grid), (curve.right, *curve.accuracy), strict=True)
        )


@dataclass(frozen=True)
class Asked:
    """One subject under one threat: all that a threat needs to prove something.

    Attributes:
        job: Its seed, device, data and configuration.
        stage: Whose folder keeps the records.
        subject: target or surrogate.
        base: Images (B, C, H, W), also outside [0, 1], -> labels or scores; of the target each image is paid, once for
            each draw.
        num_classes: Of the answers.
        settings: As the threat's `settings` gave them.
        grid: Rising parameters.
        images: Number of held-out images, the first ones.
        guide: The surrogate, which may say in which order the target is asked, free of queries; None without one.
    """

    job: Job
    stage: Stage
    subject: str
    base: Callable[[Tensor], Any]
    num_classes: int
    settings: dict[str, Any]
    grid: tuple[float, ...]
    images: int
    guide: Any = None

    @property
    def stem(self) -> Path:
        """The records of this subject, without suffix."""
        return self.stage.path / "records" / self.subject

    def log(self, header: Mapping[str, Any]) -> certify.RecordLog:
        """The records of this subject, opened to be continued: image by image, so that interrupted work resumes."""
        private = self.job.config.target.is_private
        self.stem.parent.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
        same = {"subject": self.subject, "seed": self.job.config.seed, "stage": self.stage.fingerprint}
        log = certify.RecordLog(
            self.stem, {**header, **same, "versions": versions(), **self.job.data.remarks}
        )
        if private:
            for path in (log.path, log.tsv_path):
                path.chmod(0o600)
        return log

    def left(self, log: certify.RecordLog) -> list[int]:
        """The images that are not recorded yet."""
        return [index for index in range(self.images) if index not in log.done]

    def records(
        self, header: Mapping[str, Any], name: str, certify_left: Callable[[list[int], Keep], Any]
    ) -> None:
        """Record, under a bar, what is proven of the images that are not recorded yet.

        Args:
            header: What decides the records, beside the job; continued under the same alone.
            name: What the bar calls the work.
            certify_left: certify_left(left, keep) certifies the images left and gives each certificate to keep as it comes; not called
                where none is left.
        """
        with self.log(header) as log:
            left = self.left(log)
            bar = self.job.progress(
                total=self.images,
                initial=self.images - len(left),
                desc=f"{name} {self.subject}",
                unit="image",
            )

            def keep(index: int, certificate: certify.Certificate, seconds: float) -> None:
                self.record(log, index, certificate, seconds)
                bar.update()

            if left:
                certify_left(left, keep)
            bar.close()

    def images_left(self, left: list[int]) -> tuple[Tensor, Any]:
        """These held-out images, and their classes where they are known; None where they are not."""
        data = self.job.data
        known = data.heldout_labels[left] if self.job.config.certify.known_class else None
        return torch.from_numpy(data.heldout_images[left]), known

    def record(
        self, log: certify.RecordLog, index: int, certificate: certify.Certificate, seconds: float
    ) -> None:
        """Record what is proven of one image."""
        data = self.job.data
        row = None if data.heldout_rows is None else int(data.heldout_rows[index])
        image = digest(data.heldout_images[index])
        log.append(index, int(data.heldout_labels[index]), certificate, seconds, image=image, row=row)

    def curve(self, n: int) -> ThreatCurve:
        """What the records of this subject say at the parameters of the grid.

        Raises:
            ConfigError: They are of other images.
        """
        records = certify.read_records(self.stem.with_name(f"{self.subject}.jsonl"))
        labels = self.job.data.heldout_labels
        if len(records) != self.images or np.any(labels[records.idx] != records.label):
            raise ConfigError(
                f"{str(self.stem)!r} has images that are not this job's: put it back, or delete it; paid answers are in the ledger"
            )
        assert records.counts is not None  # a .jsonl keeps them
        assert records.n0 is not None
        at = certify.curves.certified_accuracy(records, [0.0, *self.grid])
        columns = (column.tolist() for column in (at.accuracy, at.lower, at.upper))
        shares = [Share(*row) for row in zip(*columns, strict=True)]
        timed = certify.read_records(self.stem.with_name(f"{self.subject}.tsv"))
        return ThreatCurve(
            subject=self.subject,
            images=len(records),
            accuracy=tuple(shares[1:]),
            right=shares[0],
            abstained=float(np.mean(records.predict == certify.ABSTAIN)),
            queries_per_image=float(np.mean(records.counts.sum(axis=1) + records.n0)),
            n=n,
            seconds_per_image=float(np.mean(timed.seconds)),
        )


@dataclass(frozen=True)
class Threat:
    """A threat that something is proven against.

    Attributes:
        name: As --threat names it.
        title: In words.
        parameter, unit: Of the grid.
        kind: sound, alpha = 0, or average case.
        statement, limits: As in ThreatResult.
        settings: settings(config, options, image_shape) -> all that decides the claim, JSON-able, with `grid`; ConfigError
            names an option that can't be used.
        prove: Proves something of each image of a subject, records it, and returns what the records say.
        most_queries: most_queries(config, settings) -> answers an image, at most.
        costs: The option that lowers this number.
        draws: draws(settings) -> what decides the images that are shown, JSON-able: the key of the paid answers.
        options: The options beside the configuration that it reads.
        law: law(settings) -> the law that a surrogate is trained under; None where it is certified as it agrees.
        papers: Keys of the sources (certdef cite).
        prepare: prepare(job, settings) -> the stages of the networks that it needs, trained free of queries.
        guide_only: The surrogate says in which order the target is asked, and is not certified itself.
    """

    name: str
    title: str
    parameter: str
    unit: str
    kind: str
    statement: str
    limits: str
    settings: Callable[[RunConfig, Mapping[str, Any], tuple[int, int, int]], dict[str, Any]]
    prove: Callable[[Asked], ThreatCurve]
    most_queries: Callable[[RunConfig, Mapping[str, Any]], int]
    draws: Callable[[Mapping[str, Any]], Any]
    costs: str = "certify.n"
    options: tuple[str, ...] = ("strength", "grid")
    law: Callable[[Mapping[str, Any]], certify.NoiseLaw | None] = field(default=lambda settings: None)
    papers: tuple[str, ...] = ()
    prepare: Callable[[Job, Mapping[str, Any]], list[Stage]] = field(default=lambda job, settings: [])
    guide_only: bool = False

    def check_options(self, given: Mapping[str, Any]) -> None:
        """Refuse options that this threat does not read.

        Raises:
            ConfigError: Names the first one.
        """
        for name in given:
            if name not in self.options:
                known = ", ".join(f"--{each}" for each in self.options)
                raise ConfigError(
                    f"--{name} is {given[name]!r}: threat {self.name} does not read it, but {known}"
                )


def latest_results(
    workspace: Path, identity: str, images_digest: str
) -> dict[str, tuple[Path, ThreatResult]]:
    """The latest result of each threat in a work directory, of this target and these images, by name, with its folder.

    Raises:
        ConfigError: One was changed after it was written.
    """
    latest: dict[str, tuple[Path, ThreatResult]] = {}
    paths = workspace.glob(f"threat-*-{FINGERPRINT}/{RESULT}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        result = ThreatResult.from_json(read_json(path))
        if result.identity == identity and result.images_digest == images_digest:
            latest[result.threat] = path.parent, result
    return {name: latest[name] for name in sorted(latest)}


def find_threat(name: str) -> Threat:
    """A threat by name; ConfigError that lists the known ones otherwise."""
    check_name(name)
    return import_module(f"certdef.stages.threats.{name.replace('-', '_')}").THREAT
