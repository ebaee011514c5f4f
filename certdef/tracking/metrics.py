"""The names of metrics in MLflow, one table. `{subject}` is target or surrogate, `{radius}` an L2 radius."""

from __future__ import annotations

from collections.abc import Iterable

from certdef.tracking.results import Share

CLEAN_ACCURACY = "{subject}/clean_accuracy"
CERTIFIED_ACCURACY = "{subject}/certified_accuracy_at_{radius:g}"
AGREEMENT = (
    "{subject}/agreement_{images}"  # images: clean, noisy, denoised, validation, or one of the next two
)
# Of a surrogate as it is certified, under the noise of its votes and behind its denoiser: with the target's answer to the
# clean image, and with that to the same noisy, denoised one.
WITH_CLEAN, SAME_INPUT = "as_certified_with_clean", "as_certified"
FINETUNED = (
    "finetuned_with_clean"  # of the one behind the purifier, with the target's answer to the clean image
)
QUERIES = "{subject}/queries"
SAMPLES_PER_IMAGE = "certify/samples_per_image"
SECONDS_PER_IMAGE = "certify/seconds_per_image"
ATTACK_ACCURACY = "attack/{attack}/accuracy"
ATTACK_AT_EPS = "attack/{attack}_eps_{eps:g}/accuracy"
GRADIENT_MASKING_CHECKS = "attack/{system}alarms"
POPULATION = "certified/population/average_case/{law}/{figure}"
LOSS = "{stage}/loss"
LAST_LOSS = "{stage}/loss_last"
NOMINAL_QUERIES = "budgets/queries_nominal"  # the sum of the cells
CHARGED_QUERIES = "budgets/queries_charged"
BUDGET_AGREEMENT = "budgets/{strategy}/agreement_{condition}"  # steps are numbers of queries
TUNED = "{stage}/{name}"  # a setting that a purifier chose, and the curves of the choice
CHOICE_SCORE = "choice/{place}/{law}/mean_expected_certified_accuracy"
CHOICE_VOTES = "choice/paid_votes"
NOISE_CHOICE = "noise/{law}/mean_certified_accuracy"
MEMBERSHIP_AUC = "membership/{attack}/{model}/auc"
MEMBERSHIP_RATE = "membership/{attack}/{model}/tpr_at_fpr_{rate:g}"
UDC_LEVEL = "udc/t"
UDC_QUALITY = "udc/{what}/{measure}"  # measure: psnr (dB) or ssim
UDC_GAIN = "udc/{what}/{gain}"  # in dB of PSNR
SPENT = "queries/spent{purpose}"  # purpose: empty for all, or _training ...
BUDGET = "queries/budget{purpose}"
AGAINST_THREAT = (
    "certified/{threat}/{parameter:g}"  # of the target; of a surrogate under certified/{threat}/surrogate/
)
THREAT_QUERIES = "certified/{threat}/{subject}_queries_per_image"
PAID = "queries/paid"  # by one evaluation; what it was given from the ledger is not in it


def with_interval(name: str, share: Share) -> dict[str, float]:
    """A share under its name, its bounds beside it."""
    return {name: share.value, f"{name}_lower": share.lower, f"{name}_upper": share.upper}


def certified_accuracy(subject: str, radii: Iterable[float], shares: Iterable[Share]) -> dict[str, float]:
    """Certified accuracy of a subject at each radius."""
    pairs = zip(radii, shares, strict=True)
    return {CERTIFIED_ACCURACY.format(subject=subject, radius=radius): share.value for radius, share in pairs}


def against_threat(
    threat: str, subject: str, grid: Iterable[float], shares: Iterable[Share]
) -> dict[str, float]:
    """Certified accuracy of a subject at each parameter of a threat."""
    name = threat if subject == "target" else f"{threat}/{subject}"
    pairs = zip(grid, shares, strict=True)
    return {AGAINST_THREAT.format(threat=name, parameter=value): share.value for value, share in pairs}
