"""Trained parts of other jobs, by name: which options take one, and where its files are on this disk."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from certdef.config.job import RunConfig

# Each of these takes a network that a job has trained: of a registry, of a run, or in a folder.
OPTIONS = ("nim.weights", "diffusion.pretrained", "surrogate.weights")
TRACKED = ("models:/", "runs:/")
MODEL = "model.json"  # which certdef.models.storage writes beside the weights
PLACES = ("", "model", "artifacts/model")  # in the folder itself, in a stage's, and as MLflow logs a model
DOWNLOADED = "parts"  # folder of the work directory


def is_tracked(given: str | None) -> bool:
    """Whether a text names something that a tracking store keeps."""
    return given is not None and given.startswith(TRACKED)


def folder_in(folder: Path) -> Path | None:
    """The folder that holds the model, of the ways in which it may lie there; None where it holds none."""
    return next((folder / place for place in PLACES if (folder / place / MODEL).is_file()), None)


def is_part(given: str | None) -> bool:
    """Whether the value of an option names a network that a job has trained."""
    return given is not None and (is_tracked(given) or folder_in(Path(given)) is not None)


def reused(config: RunConfig) -> dict[str, str]:
    """The parts that a job takes from others: what is named, by the option."""
    given = {option: value_of(config, option) for option in OPTIONS}
    return {option: value for option, value in given.items() if value is not None and is_part(value)}


def value_of(config: RunConfig, option: str) -> str | None:
    """The value of one of OPTIONS."""
    section, name = option.split(".")
    return getattr(getattr(config, section), name)


def download_folder(config: RunConfig, given: str, store: str) -> Path:
    """Where a part of a tracking store is kept: of each store by itself, which may give the same name to another one."""
    plain = re.sub(r"[^\w-]+", "-", given.partition(":")[2]).strip("-")[:80]
    return (
        config.workspace
        / DOWNLOADED
        / f"{plain}-{hashlib.sha256(f'{store} {given}'.encode()).hexdigest()[:8]}"
    )
