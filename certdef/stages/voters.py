"""Who votes under a condition: the target for pay, or the student of that condition, behind the denoiser where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

import surrogates
from certdef.stages.baseline import Baseline, open_baseline
from certdef.stages.conditions import Condition
from certdef.stages.engines import Engines, choose_engines
from certdef.stages.job import Job
from certdef.stages.purifier import Purifier
from certdef.stages.students import Students
from certdef.stages.votes import paid_classifier
from certdef.tracking.workspace import Stage


@dataclass(frozen=True)
class Voters:
    """The base classifiers of a job.

    Attributes:
        job: What is certified.
        target: By paid queries.
        students: For free.
        purifier: What stands between noise and classifier.
        engines: The arithmetic of the job's own networks.
        baseline: The old version of the target, where one guides.
    """

    job: Job
    target: surrogates.Target
    students: Students
    purifier: Purifier
    engines: Engines
    baseline: Baseline | None = None

    @staticmethod
    def of(job: Job, target: surrogates.Target, students: Students, purifier: Purifier) -> Voters:
        """The voters in the arithmetic that was chosen for this job."""
        engines = choose_engines(job, {"denoiser": purifier.denoiser(), "surrogate": students.surrogate})
        old = open_baseline(job.config, job.data.image_shape, target)
        return Voters(job, target, students, purifier, engines, None if old is None else Baseline(old))

    def classifier(self, condition: Condition, stage: Stage, kind: str = "certification") -> Any:
        """What is smoothed: images (B, C, H, W) -> labels of the target, scores of a surrogate.

        Args:
            condition: Of whom, under which law, behind which purifier.
            stage: For which the target is paid.
            kind: What the votes are for; receipts of other kinds are apart.
        """
        if not condition.paid:
            return self._behind(condition, self.students.of(condition))
        denoiser, key = self._denoiser(condition), "none"
        if denoiser:
            key = self.engines.key("denoiser", self.purifier.denoiser_key(condition.law))
        return paid_classifier(self.job, self.target, stage, condition, denoiser, key, kind)

    def guide(self, condition: Condition) -> nn.Module | None:
        """Who guides the target's votes: its old version, else the surrogate that answers as it does, not a student that is
        to be right.
        """
        if self.baseline is not None:
            denoiser = self._denoiser(condition)
            return nn.Sequential(denoiser, self.baseline) if denoiser else self.baseline
        return self._behind(condition, self.students.surrogate)

    def _behind(self, condition: Condition, surrogate: nn.Module | None) -> nn.Module | None:
        denoiser, network = self._denoiser(condition), self.engines.computed("surrogate", surrogate)
        return nn.Sequential(denoiser, network) if denoiser and network else network

    def _denoiser(self, condition: Condition) -> nn.Module | None:
        plain = self.purifier.denoiser(condition.law) if condition.denoised else None
        return self.engines.computed("denoiser", plain)
