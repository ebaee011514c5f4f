"""The rows of the certificates' tables, on the page and in the README."""

from __future__ import annotations

from dataclasses import dataclass

from certdef.config.job import RunConfig
from certdef.config.noise_laws import noise_law
from certdef.report.words import law_in_words, purifier_title
from certdef.stages.certificates import CertifyResult
from certdef.stages.conditions import conditions, largest_radius
from certdef.stages.votes import CertifiedCurve


@dataclass(frozen=True)
class CertificateRow:
    """One smoothed classifier in a table.

    Attributes:
        curve: Its certified accuracy.
        law: The law of sigma in words; None for the Gaussian of constant sigma that stands beside the laws.
        mean_sigma: Mean noise level, in [0, 1] pixel units.
        purifier: Title of the purifier between noise and classifier; None without one.
        largest_radius: What a unanimous vote proves.
    """

    curve: CertifiedCurve
    law: str | None
    mean_sigma: float
    purifier: str | None
    largest_radius: float


def certificate_rows(config: RunConfig, result: CertifyResult, subject: str) -> list[CertificateRow]:
    """A row for each noise, with and without the purifier; the headline first.

    Args:
        config: The job.
        result: Its certificates.
        subject: target or surrogate.
    """
    laws, rows = {law.label: law for law in config.certify.laws}, []
    for condition in conditions(config):
        if condition.subject == subject:
            law = laws.get(condition.law)
            curve = result.curves[condition.key]
            rows.append(
                CertificateRow(
                    curve=curve,
                    law=law_in_words(law) if law else None,
                    # the Gaussian beside the laws has the first law's mean
                    mean_sigma=noise_law(law or config.certify.laws[0]).mean_sigma,
                    purifier=purifier_title(condition.purifier) if condition.purifier else None,
                    largest_radius=largest_radius(condition.noise, curve.n, config.certify.alpha),
                )
            )
    return rows
