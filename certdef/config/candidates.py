"""The noise laws that a job may choose among: constant sigmas, and laws of certify.laws, whole or cut to an interval."""

from __future__ import annotations

import re

from certdef.config.job import CertifyConfig, ConfigError, SigmaLaw

TRUNCATED = (
    "truncated_"  # family of a law that is cut: its last two shape arguments are the ends, in 8-bit levels
)
CUT = re.compile(r"(.+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


def candidate_laws(certify: CertifyConfig) -> tuple[SigmaLaw, ...]:
    """Every law that may be chosen, by its label once; none where the choice is off.

    One that is a law of the job has that one's label, and so its denoiser; the others get the first law's.

    Raises:
        ConfigError: A candidate that is neither a level nor a law of the job.
    """
    if not certify.candidates:
        return ()
    named = {law.label: law for law in certify.laws}
    constant = [law for law in certify.laws if law.family == "constant"]
    same = {str(law.parameters): law for law in reversed(certify.laws)}
    found: dict[str, SigmaLaw] = {}
    for law in [*(_law(each, named) for each in certify.candidates), *constant]:
        law = same.get(str(law.parameters), law)
        if law.label in named and law != named[law.label]:
            raise ConfigError(
                f"certify.laws has the label {law.label!r} of a candidate in certify.choose: rename it"
            )
        found[law.label] = law
    return tuple(found.values())


def choice_votes(certify: CertifyConfig, classifiers: int) -> int:
    """Votes that the choice takes for so many smoothed classifiers, at most: if each tries every candidate."""
    return classifiers * len(candidate_laws(certify)) * certify.choice_images * certify.choice_n


def _law(candidate: float | str, named: dict[str, SigmaLaw]) -> SigmaLaw:
    if not isinstance(candidate, str):
        if not 0 < candidate <= 255:
            raise ConfigError(f"certify.choose has {candidate:g}: use 8-bit levels above 0, e.g. 60")
        return SigmaLaw(f"gaussian-{candidate:g}", "constant", (), float(candidate))
    if candidate in named:
        return named[candidate]
    cut = CUT.fullmatch(candidate)
    law = named.get(cut[1]) if cut else None
    if cut is None or law is None or law.family == "constant":
        known = ", ".join(named)
        raise ConfigError(
            f"certify.choose has {candidate!r}: use levels of sigma, laws of certify.laws ({known}), or such a law of random "
            "sigma and an interval of levels, e.g. nim@60-90"
        )
    low, high = float(cut[2]), float(cut[3])
    if not low < high:
        raise ConfigError(
            f"certify.choose has {candidate!r}: the interval is empty, name the lower level first"
        )
    label = f"{law.label}-{low:g}-{high:g}"
    return SigmaLaw(label, TRUNCATED + law.family, (*law.shape, low, high), law.scale_255)
