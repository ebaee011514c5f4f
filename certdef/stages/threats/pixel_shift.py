"""Shifts by whole pixels, every one of them asked of the bare classifier: nothing is smoothed, alpha = 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.config.threats import numbers
from certdef.stages.threat import EXACT, Asked, Keep, Threat, ThreatCurve

PADDING = "reflect"
MOST = 2  # rows and columns by default: 25 answers an image


def _settings(config: RunConfig, options: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    most = options.get("strength", MOST)
    if most != int(most) or not 1 <= most < min(shape[1:]):
        raise ConfigError(
            f"--strength is {most:g}: give the largest shift in whole pixels, from 1 to {min(shape[1:]) - 1}"
        )
    grid = numbers(options["grid"], "grid") if "grid" in options else tuple(range(1, int(most) + 1))
    if any(value != int(value) or value > most for value in grid):
        raise ConfigError(f"--grid is {options['grid']!r}: give whole pixels up to --strength {most:g}")
    return {"most": int(most), "padding": PADDING, "grid": [float(value) for value in grid]}


def _certify(asked: Asked) -> ThreatCurve:
    most, padding = asked.settings["most"], asked.settings["padding"]

    def certify_left(left: list[int], keep: Keep) -> None:
        images, _ = asked.images_left(left)  # every answer counts: knowing the class saves none
        certify.certify_pixel_shifts(
            asked.base,
            images,
            most,
            asked.num_classes,
            padding=padding,
            subject=asked.subject,
            indices=left,
            on_certificate=keep,
            device=asked.job.device,
        )

    asked.records({"method": "deterministic", "padding": padding, "most": most}, "shifts", certify_left)
    return asked.curve((2 * most + 1) ** 2)


THREAT = Threat(
    name="pixel-shift",
    title="shift by whole pixels",
    parameter="shift k in rows and columns",
    unit="whole pixels",
    kind=EXACT,
    statement="The bare classifier, without any vote, gives the same answer to every shift of the image by up to k rows and k columns.",
    limits="What comes in at the border is the image reflected; another background, half a pixel, or a target that answers anew each time is not covered.",
    settings=_settings,
    prove=_certify,
    most_queries=lambda config, settings: (2 * int(settings["most"]) + 1) ** 2,
    costs="--strength",
    draws=lambda settings: settings["padding"],
)
