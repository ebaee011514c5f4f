"""The page of the DUCD job: surrogate and target side by side, what one says of the other, and what both give away.

Every figure is taken from a stage's result or the query bill; none is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import certify
from certdef.config.job import RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import Splits
from certdef.report import figures as pictures
from certdef.report import page
from certdef.report.words import SUBJECT_NAMES, law_in_words
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
    return page.template("ducd.html").render(
        data=data,
        config=config,
        target=result["target"],
        subjects=subjects,
        proven=next(iter(subjects.values()))["accuracy"],
        compared=compared,
        noise=result["noise"],
        laws=in_words(config),
        radii=radii,
        headline_at=next((at for at, radius in enumerate(radii) if radius > 0), 0),
        students=_students(result),
        agreement=next(iter(compared.agreement.values())),
        audit=_audit(result),
        attack_names=ATTACKS,
        curves=pictures.data_uri((folder["comparison"] / "certified_accuracy.png").read_bytes()),
        roc=pictures.data_uri((folder["membership"] / "membership_roc.png").read_bytes())
        if "membership" in folder
        else None,
        bill=page.charges(bill),
        uris=page.uris(result),
        versions=versions(),
        config_json=json.dumps(config.public_dict(), indent=2),
        papers=page.papers("ducd", "unicr", "smoothing", "rmia", "lira", "loss", "delong"),
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
    """A row each for the surrogate and the ways of asking the target."""
    noise = candidate_noises(config)[compared.noise]
    rows = {}
    for subject, key in compared.conditions.items():
        curve = compared.curves[key]
        sure = certify.binomial_lower_bound(curve.n, curve.n, config.certify.alpha)
        rows[subject] = {
            "name": SUBJECT_NAMES[subject],
            "colour": "surrogate" if subject == "surrogate" else "target",
            "images": curve.images,
            "n": curve.n,
            "sound": curve.sound,
            "norm": curve.noise["norm"],
            "abstained": curve.abstained,
            "ceiling": noise.radius(sure),
            "accuracy": curve.shares,
        }
    return rows


def _students(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each surrogate with its agreement, the certified one first."""
    return [
        {
            "name": name,
            "overlap": each.overlap,
            "queries": each.queries,
            "loss": each.loss,
            **result["comparison"].agreement[name],
        }
        for name, each in result.items()
        if isinstance(each, StudentResult)
    ]


def _audit(result: dict[str, Any]) -> dict[str, Any] | None:
    """Membership inference of every model, and whether overlapping queries gave more away; None without it."""
    if "membership" not in result:
        return None
    found: MembershipResult = result["membership"]
    gains = [row[found.headline] for row in found.benefit.values()]
    names = {
        name: f"surrogate, {100 * result[name].overlap:g}% of its queries from the training set"
        for name in found.benefit
    }
    return found.to_json() | {
        "names": {"target": "target"} | names,
        "first": next(iter(found.benefit)),
        "last": next(reversed(found.benefit)),
        "first_gain": gains[0],
        "last_gain": gains[-1],
        "lost": found.shrinkage[found.headline],
    }
