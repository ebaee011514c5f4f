"""In which arithmetic the job's own networks vote: float32, or what was measured to be fastest on this machine.

The choice is a part of the certified model, and of what a paid receipt is kept for. So it is made once, before the first
vote, and stays beside the ledger in the job's folder, where --fresh leaves it too: the same seed gives the same counts
there, and no vote is paid for again because the clock said something else. The target's own arithmetic is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import certify
from certdef.config.noise_laws import noise_law
from certdef.stages.job import Job, not_finished, not_prepared
from certdef.tracking.checked_json import fingerprint, read_json, write_json
from certify.voting import Computed, fastest_engine
from surrogates.distillation.inference import images_at_once

KEPT = "engines.json"
MEASURED_ON = 32  # held-out images, without their labels
MEND = "put it back, or delete it: then the arithmetic is measured again, and votes may have to be paid for again"


@dataclass(frozen=True)
class Engines:
    """The arithmetic of each part of a base classifier that is not plain.

    Attributes:
        chosen: Part (denoiser, surrogate) -> VoteEngine.arithmetic; empty where all is plain float32.
    """

    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def computed(self, part: str, module: nn.Module | None) -> nn.Module | None:
        """The module with its part's arithmetic; the module itself where that is plain."""
        if module is None or part not in self.chosen:
            return module
        return Computed(module, replace(certify.VoteEngine(), **self.chosen[part]))

    def key(self, part: str, key: str) -> str:
        """Identifies a module, named by `key`, together with its arithmetic."""
        return f"{key}-{fingerprint(self.chosen[part])}" if part in self.chosen else key


def choose_engines(job: Job, parts: dict[str, nn.Module | None]) -> Engines:
    """The arithmetic of the parts: as kept, else as measured now and kept; plain where certify.engine is.

    Args:
        job: Whose folder keeps it.
        parts: The modules by the name of their part; None where the job has none.
    """
    if job.config.certify.engine == "plain":
        return Engines()
    path = job.config.workspace / KEPT
    kept = read_json(path, MEND) if path.exists() else {}
    chosen = {}
    for part, module in parts.items():
        if module is None:
            continue
        key = _name(job, part, module)
        if key not in kept:
            if job.prepared:
                raise not_prepared(job.config, f"the arithmetic of {part}")
            if job.finished:
                raise not_finished(job.config, f"the arithmetic of {part}")
            kept[key] = _fastest(job, module)
            write_json(path, kept)
        if kept[key]:
            chosen[part] = kept[key]
    return Engines(chosen)


def _name(job: Job, part: str, module: nn.Module) -> str:
    """What the speed of a part depends on; its weights do not matter."""
    sizes = [[name, list(each.shape)] for name, each in module.state_dict().items()]
    return f"{part}-{fingerprint(type(module).__name__, sizes, list(job.data.image_shape), job.device.type)}"


def _fastest(job: Job, module: nn.Module) -> dict[str, Any]:
    images = torch.from_numpy(job.data.heldout_images[:MEASURED_ON])
    size = images_at_once(job.data.image_shape, 256)
    engine = certify.VoteEngine(batch_size=size, device=job.device, seed=job.config.seed)
    tuned = fastest_engine(module, images, noise_law(job.config.certify.laws[0]), engine=engine)
    plain = {name: value for name, value in engine.arithmetic.items() if name != "batch_size"}
    found = {name: value for name, value in tuned.engine.arithmetic.items() if name != "batch_size"}
    return {} if found == plain else found
