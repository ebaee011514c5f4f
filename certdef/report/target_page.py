"""The report page of a target that was certified alone: no surrogate, no attack, no served model."""

from __future__ import annotations

from collections.abc import Sequence

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.purifiers.registry import find_purifier
from certdef.report.certified import of_target
from certdef.report.template import papers, template
from certdef.report.words import of_target_alone
from certdef.tracking.workspace import Stage
from surrogates import Bill


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages target and certify, and those of the purifier, in any order.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    return template("target.html").render(
        bill=of_target_alone(bill),
        papers=papers("smoothing", "denoised", *find_purifier(config.purifier).about.papers),
        **of_target(config, data, done, run_id, device),
    )
