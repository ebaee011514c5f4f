"""Our models on disk: safetensors weights beside `model.json`, which says how to rebuild them. Nothing is unpickled.

The same reader serves the notebook, the pipeline and the scoring server.
"""

from __future__ import annotations

import pkgutil
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

import certify
from certdef.config.job import ConfigError, RunConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.models.classifiers import build_classifier
from certdef.purifiers import build
from certdef.purifiers import networks as network_room
from certdef.purifiers.registry import check_code, find_purifier, is_foreign
from certdef.tracking.checked_json import check_digests, digests, read_json, write_json
from surrogates.distillation.inference import images_at_once
from surrogates.files import replacing

# As a seed: draw one. A seed that an attacker knows lets him search for images whose votes mislead.
FRESH = -1
PARAMS = {"n0": 100, "n": 10_000, "alpha": 0.001, "seed": FRESH}
MEND = "put it back, or train it again, in a job with --fresh"


def save_classifier(folder: Path, model: nn.Module, answers: str = "probabilities", **spec: Any) -> None:
    """Write a classifier's weights, how to rebuild it, and what it answers when served: probabilities or logits.

    `spec` is what else `model.json` says of it.
    """
    _save(folder, {"classifier": model}, kind="classifier", answers=answers, **spec)


def save_network(folder: Path, network: nn.Module, **spec: Any) -> None:
    """Write a purifier's network, e.g. a NIM: images in, images out; `spec` is what else `model.json` says of it."""
    _save(folder, {"network": network}, kind="network", **spec)


def save_purifier(
    folder: Path, name: str, settings: dict[str, Any], networks: Mapping[str, nn.Module]
) -> None:
    """Write a purifier by name: its settings and networks."""
    _save(folder, networks, kind="purifier", purifier=name, settings=settings)


def save_certified(
    folder: Path,
    classifier: nn.Module,
    name: str,
    settings: dict[str, Any],
    networks: Mapping[str, nn.Module],
    **spec: Any,
) -> None:
    """Write the certified classifier: surrogate, purifier, noise law and the defaults of a certificate."""
    parts = {"surrogate": classifier} | dict(networks)
    _save(folder, parts, kind="certified", purifier=name, settings=settings, **spec)


def _save(folder: Path, modules: Mapping[str, nn.Module], **spec: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        with replacing(folder / f"{name}.safetensors") as file:
            file.write(save(weights))
    spec |= {"networks": {name: _described(module) for name, module in modules.items()}}
    spec |= {"files": digests(folder, [f"{name}.safetensors" for name in modules])}
    write_json(folder / "model.json", spec | {"certdef": version("certdef")})


def _described(module: Any) -> dict[str, Any]:
    """How to build a module again: a classifier by its name, a network by its class and shape."""
    if hasattr(module, "built"):
        return {"type": "classifier"} | module.built
    return {"type": type(module).__name__} | asdict(module.shape)


def rebuilt(described: dict[str, Any], purifier: str | None = None) -> nn.Module:
    """A module as `model.json` describes it, with untrained weights.

    Args:
        described: Its class and shape, or a classifier's name.
        purifier: The purifier that it belongs to, which another package may have registered.

    Raises:
        ConfigError: No module of ours, or of that purifier, defines the class.
    """
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in described.items()
    }
    kind = arguments.pop("type")
    if kind == "classifier":
        return build_classifier(**arguments)
    network = _network_class(kind, _modules(purifier))
    return network(get_type_hints(network.__init__)["shape"](**arguments))


def _network_class(kind: str, modules: list[str]) -> Any:
    """The class of this name that one of the modules defines: a file never says what is imported.

    Raises:
        ConfigError: None does.
    """
    for name in modules:
        network = getattr(import_module(name), kind, None)
        if isinstance(network, type) and issubclass(network, nn.Module) and network.__module__ == name:
            return network
    raise ConfigError(f"unknown network {kind!r}: use the version of certdef that saved the model")


def _modules(purifier: str | None) -> list[str]:
    """The modules that define networks: ours, and those of a purifier that another package registered."""
    known = [f"{network_room.__name__}.{each.name}" for each in pkgutil.iter_modules(network_room.__path__)]
    known.append("certdef.restoration.network")
    if purifier is not None and is_foreign(purifier):
        builders = (each.build for each in find_purifier(purifier).networks(RunConfig()))
        known += [getattr(build, "func", build).__module__ for build in builders]
    return known


def load_weights(folder: Path, network: nn.Module) -> nn.Module:
    """The weights of a single network that was saved in a folder, into one that is built already.

    Raises:
        ConfigError: They were changed after they were saved, or are those of another network.
    """
    spec = read_spec(folder)
    check_digests(folder, spec.get("files", {}), MEND)
    return _filled(network, folder / f"{next(iter(spec['networks']))}.safetensors")


def _filled(network: nn.Module, path: Path) -> nn.Module:
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"weights {str(path)!r} can't be loaded ({reason}): {MEND}") from error
    return network


def read_spec(folder: Path) -> dict[str, Any]:
    """What `model.json` says.

    Raises:
        ConfigError: There is none, or it was changed after it was saved.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no certdef model (no model.json): give the folder of a logged model"
        )
    return read_json(path, MEND)


def load_model(folder: Path | str, device: str | torch.device = "cpu", code: str | None = None) -> Any:
    """What was saved in a folder: a classifier, a network, a purifier or a CertifiedClassifier, in eval mode.

    Args:
        folder: A folder with `model.json`.
        device: Where it runs.
        code: Allows this purifier of the user's own (`python:package.module:factory`), whose code is imported and run.

    Raises:
        ConfigError: There is no model, it was changed after it was saved, or it needs code that is not allowed.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    check_digests(folder, spec.get("files", {}), MEND)  # version 0.1 kept none
    purifier = spec.get("purifier")
    if purifier is not None:
        check_code(purifier, code)
    with (
        torch.random.fork_rng()
    ):  # a module is built with random weights, which draw from the caller's generator
        parts = {name: rebuilt(described, purifier) for name, described in spec["networks"].items()}
    for name, module in parts.items():
        _filled(module, folder / f"{name}.safetensors").to(device).eval()
    if spec["kind"] == "certified":
        return CertifiedClassifier(parts, spec, device)
    if spec["kind"] == "purifier":
        return build.purifier(spec["purifier"], spec["settings"], parts).to(device).eval()
    return next(iter(parts.values()))


class CertifiedClassifier:
    """The smoothed surrogate behind its purifier's denoiser: images in, certificates out."""

    def __init__(
        self, networks: dict[str, nn.Module], spec: dict[str, Any], device: str | torch.device = "cpu"
    ):
        self.denoiser = build.denoiser(spec["purifier"], spec["settings"], networks)
        parts = [self.denoiser, networks["surrogate"]] if self.denoiser else [networks["surrogate"]]
        self.base = nn.Sequential(*parts).to(device).eval()
        self.noise = noise_law(SigmaLaw(**spec["law"] | {"shape": tuple(spec["law"]["shape"])}))
        self.num_classes, self.image_shape = spec["num_classes"], tuple(spec["image_shape"])
        self.defaults = PARAMS | spec["defaults"]
        self.device = device

    def certify(
        self, images: np.ndarray, *, progress: Any = None, **params: Any
    ) -> tuple[list[certify.Certificate], int]:
        """Certify images (N, C, H, W), float32 in [0, 1].

        Args:
            images: The images.
            progress: Anything with update(draws), called after each batch.
            params: n0, n, alpha, seed (-1: a fresh one).

        Returns:
            The certificates, and the seed that was used.

        Raises:
            ConfigError, certify.CertifyError: Images or params that cannot be used.
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
            batch_size=images_at_once(self.image_shape, 1024),
        )
        certificates = smoothed.certify(
            torch.from_numpy(np.ascontiguousarray(images)),
            n0=int(settings["n0"]),
            n=int(settings["n"]),
            alpha=float(settings["alpha"]),
            progress=progress,
        )
        return certificates, seed
