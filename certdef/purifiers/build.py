"""A purifier from its name, its settings and its networks: as a defence of its own, and as denoiser of the vote.

The same two functions serve the pipeline, the ladder, a notebook and a model read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from certdef.config.job import RunConfig
from certdef.purifiers.catalogue import CATALOGUE


def settings(name: str, config: RunConfig) -> dict[str, Any]:
    """What a purifier is told beside its networks, as plain values in [0,1] pixel units."""
    smoothing = {"kernel": config.gs.kernel, "sigma": config.gs.sigma, "passes": config.gs.passes}
    chain = {"t": config.diffusion.t, "steps": config.diffusion.steps}
    reversal = config.reversal
    return {
        "gs": smoothing,
        "ncis": smoothing | {"iterations": config.blind_spot.iterations},
        "blind-spot": {},
        "reversal": {"tasks": list(reversal.tasks), "eps": reversal.eps, "steps": reversal.steps, "step": reversal.step_255 / 255},
        "one-step": {},
        "diffpure": chain,
        "uad-rs": chain,  # t is the stage's choice
        "agdm": chain | {"scale": config.diffusion.guidance},
    }.get(name, {"sigma": config.attack.sigma_255 / 255})  # fmt: skip


def purifier(
    name: str,
    settings: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The purifier as a defence of its own: images (N, C, H, W) in [0, 1] -> the same, noise from `generator`."""
    told = dict(settings)
    if name in ("gs", "ncis"):
        from certdef.purifiers.gaussian import GaussianSmoothing
        from certdef.purifiers.ncis import NCIS

        iterations = told.pop("iterations", None)
        smoothing = GaussianSmoothing(**told)
        return smoothing if iterations is None else NCIS(networks["blind_spot"], smoothing, iterations)
    if name == "blind-spot":
        return networks["blind_spot_noisy"]
    if name == "reversal":
        from certdef.purifiers.reversal import Reversal

        return Reversal(networks["classifier"], networks["tasks"], **told, denoiser=networks.get("denoiser"))
    if name in ("one-step", "diffpure", "uad-rs", "agdm"):
        from certdef.purifiers.agdm import AGDM
        from certdef.purifiers.diffpure import DiffPure
        from certdef.purifiers.networks.diffusion import OneStep

        if name == "one-step":
            return OneStep(networks["diffusion"])
        if name == "agdm":
            return AGDM(networks["diffusion"], networks["robust"], **told, generator=generator)
        return DiffPure(networks["diffusion"], **told, generator=generator)
    from certdef.purifiers.de3 import DeCubed

    return DeCubed(networks[CATALOGUE[name].networks[0]], told["sigma"], generator)


def denoiser(name: str, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> nn.Module | None:
    """What stands between the noise and the classifier of a smoothed vote: a function of the noisy image alone.

    None where the purifier has no such part. The noise is the law's and is added once, so De^3 adds none of its own,
    and the diffusion purifiers take one step from the noise level that they see.
    """
    if name in ("gs", "ncis", "blind-spot"):
        return purifier(name, settings, networks)
    if name in ("de3", "de3-simmim", "mim"):
        return networks[CATALOGUE[name].networks[0]]
    return purifier("one-step", {}, networks) if "diffusion" in networks else None
