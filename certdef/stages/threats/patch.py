"""A patch: one rectangle of the image shows anything at all, and the target is asked under masks (PatchCleanser)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.config.names import FILLS, one_of
from certdef.purifiers.networks.denoisers import MASKED
from certdef.purifiers.networks.inpainting import DenoisedFill, MaskedFill
from certdef.purifiers.networks.multiscale import check_images
from certdef.purifiers.networks.nim import MIM
from certdef.purifiers.networks.shipped import shipped_denoiser
from certdef.stages.job import Job
from certdef.stages.networks import train_network
from certdef.stages.threat import EXACT, Asked, Keep, Threat, ThreatCurve
from certdef.tracking.workspace import Stage
from certify.threats.fills import Fill
from certify.threats.masks import patch_size
from certify.threats.patches import PROBES

SIZE, FILL, A_SIDE = "5%", "gray", 6
MOST_A_SIDE = 12  # 10,440 answers an image


def _settings(config: RunConfig, options: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    lines: list[str] = []
    fill, a_side, size = options.get("fill", FILL), options.get("masks", A_SIDE), shape[1:]
    if fill not in FILLS:
        lines.append(f"--fill is {fill!r}: {one_of(fill, FILLS)}")
    if fill == "leaves":
        try:
            check_images(shape)
        except ValueError as error:
            lines.append(f"--fill is leaves: {error}")
    if not 1 <= a_side <= MOST_A_SIDE:
        lines.append(f"--masks is {a_side}: use 1 to {MOST_A_SIDE} masks along each side")
    try:
        patch = patch_size(options.get("patch", SIZE), size)
    except certify.CertifyError as error:
        lines.append(f"--patch: {error}")
    if lines:
        raise ConfigError("\n".join(lines))
    return {
        "patch": list(patch),
        "fill": fill,
        "masks": a_side,
        "grid": [float(patch[0] * patch[1])],
        "size": list(size),
    }


def _masks(settings: Mapping[str, Any]) -> certify.CoveringMasks:
    (height, width), (h, w) = settings["size"], settings["patch"]
    return certify.CoveringMasks.over((height, width), (h, w), settings["masks"])


def _prepare(job: Job, settings: Mapping[str, Any]) -> list[Stage]:
    """The autoencoder, where it fills: trained on the pool, free of queries."""
    if settings["fill"] != "mim":
        return []
    if not len(job.data.pool):
        raise ConfigError(
            "--fill is mim: the autoencoder is trained on the images of the pool, and data.pool_images is 0; use leaves"
        )
    return [train_network(job, MASKED).stage]


def _fill(job: Job, name: str) -> str | Fill:
    if name == "mim":
        network = train_network(job, MASKED).network
        assert isinstance(network, MIM)
        return MaskedFill(network)
    return DenoisedFill(shipped_denoiser()).to(job.device) if name == "leaves" else name


def _certify(asked: Asked) -> ThreatCurve:
    """Certify the images that are not recorded yet; the surrogate says which masks the target is asked under first."""
    job, settings = asked.job, asked.settings
    masks = _masks(settings)

    def certify_left(left: list[int], keep: Keep) -> None:
        system = certify.MaskedClassifier(
            asked.base,
            masks,
            asked.num_classes,
            fill=_fill(job, settings["fill"]),
            fill_name=settings["fill"],
            subject=asked.subject,
            surrogate=asked.guide if asked.subject == "target" else None,
            device=job.device,
        )
        try:
            system.check_repeats(asked.images_left([0])[0])  # of the first: a resumed job finds its receipts
        except certify.CertifyError as error:
            raise ConfigError(f"threat patch: {error}") from error
        images, known = asked.images_left(left)
        system.certify(images, known_class=known, indices=left, on_certificate=keep)

    asked.records({"method": "deterministic", **settings}, "patch", certify_left)
    return asked.curve(len(masks.pairs))


THREAT = Threat(
    name="patch",
    title="a patch anywhere",
    parameter="patch",
    unit="pixels of one rectangle",
    kind=EXACT,
    statement="The target asked under masks (PatchCleanser's double masking) keeps its answer whatever one patch of the image shows, wherever it is.",
    limits="The bare target, asked without masks, is not covered; nor are two patches, a larger one, one of another shape that does not fit in, or a target that answers anew each time.",
    settings=_settings,
    prove=_certify,
    most_queries=lambda config, settings: len(_masks(settings).pairs) + 2 * PROBES,
    costs="--masks",
    draws=lambda settings: "masks",  # the masked pixels decide: another patch finds what was paid
    options=("patch", "fill", "masks"),
    papers=("patchcleanser",),
    prepare=_prepare,
    guide_only=True,
)
