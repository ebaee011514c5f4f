"""The page of the bare target, average case. No radius stands anywhere here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.report import images
from certdef.report.average_case import PICTURE, shown
from certdef.report.template import papers, template, uris
from certdef.report.words import of_target_alone
from certdef.stages.robustness import laws_of
from certdef.tracking.workspace import Stage
from certify.threats.population import perturbed_draws
from surrogates import Bill

FILE = "robustness.html"


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML; styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages target and robustness.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    result = {each.name: each.result for each in done}
    stage = next(each for each in done if each.name == "robustness")
    return template("robustness.html").render(
        config=config,
        config_json=json.dumps(config.public_dict(), indent=2),
        data=data,
        bill=of_target_alone(bill),
        target=result["target"],
        uris=uris(result),
        average=shown(stage.result, (stage.path / PICTURE).read_bytes()),
        result=stage.result,
        worst=min(stage.result.rows, key=lambda row: (row.share, -row.mean_upper)),
        strip=_strip(config, data),
        papers=papers("bound", "pooled", "corruptions"),
        run_id=run_id,
        device=device,
    )


def _strip(config: RunConfig, data: Splits) -> list[dict[str, Any]]:
    """The first held-out image as it is, and the first draw of it under every corruption: as the target got them."""
    image = torch.from_numpy(data.heldout_images[0])
    shown = [{"name": "unchanged", "image": images.data_uri(images.png(image))}]
    for law in laws_of(config, data.image_shape[0]):
        drawn = perturbed_draws(law, image, 0, 0, 1, config.seed)[0]
        shown.append({"name": law.name, "image": images.data_uri(images.png(drawn))})
    return shown
