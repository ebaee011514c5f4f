"""Our models on disk: safetensors weights beside `model.json`, which says how to rebuild them. Nothing is unpickled.

The same reader serves the notebook, the pipeline and the scoring server.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import certdef
import certify
from certdef.config import ConfigError, SigmaLaw
from certdef.models import build_classifier
from certdef.noise_laws import noise_law
from certdef.purifiers.nim import NIM, NIMShape

# As a seed: draw one. A seed that an attacker knows lets him search for images whose votes mislead.
FRESH = -1
PARAMS = {"n0": 100, "n": 10_000, "alpha": 0.001, "seed": FRESH}


def save_classifier(
    folder: Path,
    model: nn.Module,
    name: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    answers: str = "probabilities",
) -> None:
    """Write a classifier's weights, how to rebuild it, and what it answers when served: probabilities or logits."""
    _save(
        folder,
        {"classifier": model},
        kind="classifier",
        model=name,
        image_shape=list(image_shape),
        num_classes=num_classes,
        answers=answers,
    )


def save_nim(folder: Path, model: NIM) -> None:
    """Write a NIM's weights and shape."""
    _save(
        folder,
        {"nim": model},
        kind="nim",
        nim=vars(model.shape) | {"image_shape": list(model.shape.image_shape)},
    )


def save_certified(folder: Path, classifier: nn.Module, nim: NIM, spec: dict[str, Any]) -> None:
    """Write the certified classifier: surrogate, denoiser, noise law and the defaults of a certificate."""
    _save(folder, {"classifier": classifier, "nim": nim}, kind="certified", **spec)


def _save(folder: Path, modules: dict[str, nn.Module], **spec: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
    (folder / "model.json").write_text(json.dumps(spec | {"certdef": certdef.__version__}, indent=1))


def load_model(folder: Path | str, device: str | torch.device = "cpu") -> Any:
    """What was saved in a folder: a classifier, a NIM, or a CertifiedClassifier, in eval mode."""
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no certdef model (no model.json): give the folder of a logged model"
        )
    spec = json.loads((folder / "model.json").read_text())
    parts: dict[str, nn.Module] = {}
    if "model" in spec:
        parts["classifier"] = build_classifier(spec["model"], tuple(spec["image_shape"]), spec["num_classes"])
    if "nim" in spec:
        parts["nim"] = NIM(NIMShape(**spec["nim"] | {"image_shape": tuple(spec["nim"]["image_shape"])}))
    for name, module in parts.items():
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        module.to(device).eval()
    if spec["kind"] == "certified":
        return CertifiedClassifier(parts["classifier"], parts["nim"], spec, device)
    return next(iter(parts.values()))


class CertifiedClassifier:
    """The smoothed surrogate behind De^3: images in, certificates out."""

    def __init__(
        self, classifier: nn.Module, nim: nn.Module, spec: dict[str, Any], device: str | torch.device = "cpu"
    ):
        self.base = nn.Sequential(nim, classifier)
        self.noise = noise_law(SigmaLaw(**spec["law"] | {"shape": tuple(spec["law"]["shape"])}))
        self.num_classes, self.image_shape = spec["num_classes"], tuple(spec["image_shape"])
        self.defaults = PARAMS | spec["defaults"]
        self.device = device

    def certify(self, images: np.ndarray, **params: Any) -> tuple[list[certify.Certificate], int]:
        """Certify images (N, C, H, W), float32 in [0, 1]; params: n0, n, alpha, seed (-1: a fresh one).

        Returns the certificates and the seed that was used.
        """
        if images.shape[1:] != self.image_shape:
            raise ConfigError(
                f"images have shape {images.shape}: expected (N, {', '.join(map(str, self.image_shape))})"
            )
        settings = self.defaults | params
        seed = secrets.randbelow(2**32) if int(settings["seed"]) == FRESH else int(settings["seed"])
        smoothed = certify.SmoothedClassifier(
            self.base,
            self.noise,
            self.num_classes,
            subject="surrogate",
            device=self.device,
            seed=seed,
        )
        certificates = smoothed.certify(
            torch.from_numpy(np.ascontiguousarray(images)),
            n0=int(settings["n0"]),
            n=int(settings["n"]),
            alpha=float(settings["alpha"]),
        )
        return certificates, seed
