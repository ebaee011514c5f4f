"""Threats of a law: votes on randomly transformed images, through the same vote engine as noise on pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.config.threats import numbers
from certdef.stages.threat import SOUND, Asked, Keep, Threat, ThreatCurve
from certdef.stages.votes import CHUNK, PAID_BATCH
from surrogates.distillation.inference import images_at_once

METHODS = {"group_sequential_two_sided": "group_sequential"}  # not every law has a two-sided radius
Law = Callable[[float], certify.Transformation]


def smoothing_threat(
    name: str,
    law: Law,
    *,
    title: str,
    statement: str,
    limits: str,
    strength: float,
    grid: tuple[float, ...],
    parameter: str,
    unit: str,
    papers: tuple[str, ...] = ("tss",),
) -> Threat:
    """The threat of a law of one strength: `law(strength)`.

    Args:
        name, title, statement, limits, parameter, unit, papers: As in Threat.
        law: Its law.
        strength: By default.
        grid: Parameters by default.
    """
    return Threat(
        name=name,
        title=title,
        parameter=parameter,
        unit=unit,
        kind=SOUND,
        statement=statement,
        limits=limits,
        settings=partial(_settings, law, strength, grid),
        prove=partial(_certify, law),
        most_queries=_most_queries,
        draws=lambda settings: settings["law"],
        law=lambda settings: law(settings["strength"]),
        papers=papers,
    )


def _settings(
    law: Law,
    strength: float,
    grid: tuple[float, ...],
    config: RunConfig,
    options: Mapping[str, Any],
    shape: tuple[int, int, int],
) -> dict[str, Any]:
    chosen = float(options.get("strength", strength))
    try:
        drawn = law(chosen)
    except certify.CertifyError as error:
        raise ConfigError(f"--strength: {error}") from error
    exact = [value * (chosen / strength) for value in grid]
    scaled = tuple(round(value, 6) or float(f"{value:.6g}") for value in exact)
    named = numbers(options["grid"], "grid") if "grid" in options else scaled
    votes = config.certify
    reach = float(drawn.radius(certify.binomial_lower_bound(votes.n, votes.n, votes.alpha)))
    if named[0] > reach:
        raise ConfigError(
            f"--grid is {','.join(f'{value:g}' for value in named)}: {votes.n:,} votes at alpha {votes.alpha:g} prove no more "
            f"than {reach:.3g} under --strength {chosen:g}; raise --strength or --certify.n, or lower --grid"
        )
    return {
        "law": drawn.describe(),
        "strength": chosen,
        "grid": list(named),
        "n0": votes.selection,
        "n": votes.n,
        "alpha": votes.alpha,
        "method": METHODS.get(votes.method, votes.method),
    }


def _most_queries(config: RunConfig, settings: Mapping[str, Any]) -> int:
    return int(settings["n0"] + settings["n"])


def _certify(law: Law, asked: Asked) -> ThreatCurve:
    """Certify the images that are not recorded yet."""
    job, settings = asked.job, asked.settings
    drawn = law(settings["strength"])
    paid = asked.subject == "target"
    options: dict[str, Any] = {name: settings[name] for name in ("n", "alpha", "method")}
    if "sequential" in settings["method"]:
        options["radii"] = (0.0, *_within_reach(drawn, asked.grid, settings))
    header = {"noise": drawn.describe(), "chunk_size": CHUNK, **settings}
    header = {name: value for name, value in header.items() if name not in ("law", "strength", "grid")}

    def certify_left(left: list[int], keep: Keep) -> None:
        batch = PAID_BATCH if paid else job.config.certify.batch_size
        smoothed = certify.SmoothedClassifier(
            asked.base,
            drawn,
            asked.num_classes,
            subject=asked.subject,
            device=job.device,
            seed=job.config.seed,
            batch_size=images_at_once(job.data.image_shape, batch),
            chunk_size=CHUNK,
        )
        images, known = asked.images_left(left)
        smoothed.certify(
            images, n0=job.config.certify.n0, known_class=known, indices=left, on_certificate=keep, **options
        )

    asked.records(header, drawn.threat.replace("_", " "), certify_left)
    return asked.curve(_most_queries(job.config, settings))


def _within_reach(
    law: certify.Transformation, grid: tuple[float, ...], settings: Mapping[str, Any]
) -> list[float]:
    """The parameters that n votes can prove at all: the others are certified of no image."""
    p = certify.binomial_lower_bound(settings["n"], settings["n"], settings["alpha"])
    return [value for value in grid if law.p_required(value) <= p]
