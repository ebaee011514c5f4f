"""The report page of a target that was certified alone: no surrogate, no attack, no served model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.purifiers.registry import find_purifier
from certdef.report.certified import by_class, certificates, radii_in_words, strip
from certdef.report.template import papers, template, uris
from certdef.report.words import of_target_alone, purifier_title
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
    purifier = find_purifier(config.purifier)
    stages = {each.name: each for each in done}
    result = {each.name: each.result for each in done}
    return template("target.html").render(
        config=config,
        config_json=json.dumps(config.public_dict(), indent=2),
        data=data,
        device=device,
        run_id=run_id,
        image=radii_in_words(data, config.certify.radii),
        target=result["target"],
        uris=uris(result),
        purifier=purifier_title(config.purifier).replace("^3", "³"),
        about=purifier.about,
        denoiser=purifier.denoiser.name if purifier.denoiser else None,
        by_class=by_class(config, data, stages["certify"]) if data.named else [],
        strip=strip(config, data, stages),
        bill=of_target_alone(bill),
        papers=papers("smoothing", "denoised", *purifier.about.papers),
        **certificates(config, stages),
    )
