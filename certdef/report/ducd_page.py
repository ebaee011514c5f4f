"""The page of the DUCD job: surrogate and target side by side, what one says of the other, and membership inference.

Every figure is taken from a stage's result or the query bill; none is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from certdef.config.job import RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import Splits
from certdef.report import images
from certdef.report.template import papers, template, uris
from certdef.report.words import SUBJECT_NAMES, law_in_words
from certdef.stages.conditions import largest_radius
from certdef.stages.ducd.certificates import ComparisonResult, candidate_noises
from certdef.stages.ducd.membership import MembershipResult
from certdef.stages.ducd.surrogates import StudentResult
from certdef.stages.job import versions
from certdef.tracking.workspace import Stage
from surrogates import Bill

ATTACKS = {"loss": "loss threshold", "rmia": "RMIA, offline", "lira": "LiRA, offline"}


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML that loads nothing: styles and pictures are inside.

    Args:
        config: The job.
        data: Its images.
        done: The finished stages of the job; references and membership may be missing.
        bill: The query bill of the target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    folder = {each.name: each.path for each in done}
    result = {each.name: each.result for each in done}
    compared = result["comparison"]
    radii = [0.0, *compared.radii]
    subjects = _subjects(config, compared)
    return template("ducd.html").render(
        data=data,
        config=config,
        target=result["target"],
        subjects=subjects,
        certified=next(iter(subjects.values()))["accuracy"],
        compared=compared,
        noise=result["noise"],
        laws=in_words(config),
        radii=radii,
        headline_at=next((at for at, radius in enumerate(radii) if radius > 0), 0),
        students=_students(result),
        agreement=next(iter(compared.agreement.values())),
        audit=_audit(result),
        attack_names=ATTACKS,
        curves=images.data_uri((folder["comparison"] / "certified_accuracy.png").read_bytes()),
        roc=images.data_uri((folder["membership"] / "membership_roc.png").read_bytes())
        if "membership" in folder
        else None,
        bill=bill,
        uris=uris(result),
        versions=versions(),
        config_json=json.dumps(config.public_dict(), indent=2),
        papers=papers("ducd", "unicr", "smoothing", "rmia", "lira", "loss", "delong"),
        run_id=run_id,
        device=device,
    )


def in_words(config: RunConfig) -> dict[str, str]:
    """Each candidate noise as the literature writes it, by its label."""
    mixtures = {
        law.label: f"σ ~ {law_in_words(law)}, mean {noise_law(law).mean_sigma:.3f}"
        for law in config.certify.laws
    }
    constant = {
        f"gaussian-{level:g}": f"Gaussian, σ = {level / 255:.3f}" for level in config.ducd.gaussians_255
    }
    return constant | mixtures


def _subjects(config: RunConfig, compared: ComparisonResult) -> dict[str, dict[str, Any]]:
    """A row each for the surrogate and for the target, by its weights and by paid queries."""
    noise = candidate_noises(config)[compared.noise]
    rows = {}
    for subject, key in compared.conditions.items():
        curve = compared.curves[key]
        rows[subject] = {
            "name": SUBJECT_NAMES[subject],
            "color": "surrogate" if subject == "surrogate" else "target",
            "images": curve.images,
            "n": curve.n,
            "sound": curve.sound,
            "norm": curve.noise["norm"],
            "abstained": curve.abstained,
            "largest_radius": largest_radius(noise, curve.n, config.certify.alpha),
            "accuracy": curve.shares,
        }
    return rows


def _students(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each surrogate with its agreement, the certified one first; a pilot is not compared."""
    return [
        {
            "name": name,
            "overlap": each.overlap,
            "queries": each.queries,
            "loss": each.loss,
            **result["comparison"].agreement[name],
        }
        for name, each in result.items()
        if isinstance(each, StudentResult) and name in result["comparison"].agreement
    ]


def _audit(result: dict[str, Any]) -> dict[str, Any] | None:
    """Membership inference of every model, and whether overlapping queries reveal more; None without it."""
    if "membership" not in result:
        return None
    membership: MembershipResult = result["membership"]
    gains = [row[membership.headline] for row in membership.benefit.values()]
    names = {
        name: f"surrogate, {100 * result[name].overlap:g}% of its queries from the training set"
        for name in membership.benefit
    }
    return membership.to_json() | {
        "names": {"target": "target"} | names,
        "first": next(iter(membership.benefit)),
        "last": next(reversed(membership.benefit)),
        "first_gain": gains[0],
        "last_gain": gains[-1],
        "lost": membership.shrinkage[membership.headline],
    }
