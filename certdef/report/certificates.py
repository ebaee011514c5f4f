"""The rows of the certificates' tables, on the page and in the README."""

from __future__ import annotations

from dataclasses import dataclass

import certify
from certdef.config.job import RunConfig
from certdef.report.words import law_in_words, purifier_title
from certdef.stages.certificates import CertifyResult
from certdef.stages.conditions import conditions, largest_radius, place_of
from certdef.stages.votes import CertifiedCurve


@dataclass(frozen=True)
class CertificateRow:
    """One smoothed classifier in a table.

    Attributes:
        curve: Its certified accuracy.
        law: The law of sigma in words; None where sigma is constant.
        mean_sigma: Mean noise level, in [0, 1] pixel units.
        purifier: Title of the purifier between noise and classifier; None without one.
        largest_radius: What a unanimous vote proves.
        chosen: Its noise was chosen for it.
        comparison: It is the Gaussian that stands beside the laws.
    """

    curve: CertifiedCurve
    law: str | None
    mean_sigma: float
    purifier: str | None
    largest_radius: float
    chosen: bool = False
    comparison: bool = False


def certificate_rows(config: RunConfig, result: CertifyResult, subject: str) -> list[CertificateRow]:
    """A row for each noise, with and without the purifier; the headline first.

    Args:
        config: The job.
        result: Its certificates.
        subject: target or surrogate.
    """
    known = {law.label: law for law in (*config.certify.laws, *result.chosen.values())}
    rows = []
    for condition in conditions(config, result.chosen):
        if condition.subject == subject:
            curve, noise, law = result.curves[condition.key], condition.noise, known.get(condition.law)
            assert isinstance(noise, certify.Gaussian | certify.GaussianScaleMixture)
            chosen = result.chosen.get(place_of(subject, condition.purifier))
            rows.append(
                CertificateRow(
                    curve=curve,
                    law=None if law is None or law.family == "constant" else law_in_words(law),
                    mean_sigma=noise.mean_sigma,
                    purifier=purifier_title(condition.purifier) if condition.purifier else None,
                    largest_radius=largest_radius(noise, curve.n, config.certify.alpha),
                    chosen=chosen is not None and law == chosen,
                    comparison=law is None,
                )
            )
    return rows
