"""The ladder's attacks of other kinds as a job names them, and what is certified against the same threats beside them."""

from __future__ import annotations

from collections.abc import Sequence

import certify
import surrogates
from certdef.attacks.other_kinds import OtherAttack
from certdef.config.job import ConfigError, RunConfig
from certdef.stages.job import Job
from certdef.stages.threat import ThreatCurve, ThreatResult, latest_results
from certdef.tracking.results import Share


def other_attacks(config: RunConfig, image_shape: tuple[int, int, int]) -> list[OtherAttack]:
    """The attacks of other kinds that the job names.

    Raises:
        ConfigError: A patch that is larger than the images.
    """
    try:
        return [OtherAttack.named(text, image_shape[1:]) for text in config.ladder.threats]
    except certify.CertifyError as error:
        raise ConfigError(f"ladder.threats: {error}") from error


def certified_beside(
    job: Job, target: surrogates.Target, attacks: list[OtherAttack], subjects: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Of each subject, by an attack's name, the certified share of the same threat: where one was certified that reaches as far."""
    proven = latest_results(job.config.workspace, target.identity, job.data.heldout_digest) if attacks else {}
    beside: dict[str, dict[str, list[float]]] = {subject: {} for subject in subjects}
    for attack in attacks:
        if attack.threat not in proven:
            continue
        _, result = proven[attack.threat]
        for subject, curve in result.curves.items():
            if (share := share_within(result, curve, attack)) is not None:
                beside[subject][attack.name] = [*share]
    return beside


def share_within(result: ThreatResult, curve: ThreatCurve, attack: OtherAttack) -> Share | None:
    """Images that are certified against all that an attack may do, at least; None where what was certified is less."""
    if attack.threat == "patch":
        covers = all(own <= most for own, most in zip(attack.patch, result.settings["patch"], strict=True))
        return curve.accuracy[0] if covers else None
    reach = float(attack.budget)
    return next((share for at, share in zip(result.grid, curve.accuracy, strict=True) if at >= reach), None)
