"""The shipped denoiser, trained again from its recipe: no job, no query, no tracking."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from certdef.config.job import ConfigError, RunConfig
from certdef.config.threads import torch_threads
from certdef.models import storage
from certdef.purifiers.networks.leaves import LeavesTraining, train_on_leaves
from certdef.stages.inspection import choose_device
from certdef.tracking.disk_errors import disk_errors


def pretrain_leaves(
    config: RunConfig,
    folder: str | Path,
    *,
    images: int | None = None,
    epochs: int | None = None,
    progress: bool = True,
    fresh: bool = False,
) -> str:
    """Train the shipped denoiser again: the same recipe and seed give the same weights on the same kind of computer.

    Args:
        config: Its seed, device and threads.
        folder: Where the network goes, as the package has it; an interrupted training goes on from there.
        images, epochs: Others than the shipped one's.
        progress: Show bars.
        fresh: Begin anew.

    Returns:
        A line that says what is where.

    Raises:
        ConfigError, surrogates.SurrogateError: A folder that can't be written, or a number out of range.
    """
    shipped = LeavesTraining(seed=config.seed)
    recipe = replace(
        shipped,
        images=shipped.images if images is None else images,
        epochs=shipped.epochs if epochs is None else epochs,
    )
    path, device = Path(folder), choose_device(config.device)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{str(path)!r} is no folder: name one for the network (--leaves FOLDER)")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder {str(path)!r} can't be made ({error.strerror}): name another one (--leaves FOLDER)"
        ) from error
    with torch_threads(config.threads), disk_errors(path):
        checkpoint = path / "checkpoint.pt"
        if fresh:
            checkpoint.unlink(missing_ok=True)
        bar = tqdm if progress else partial(tqdm, disable=True)
        network = train_on_leaves(
            recipe,
            drawn=partial(bar, desc="draw dead leaves", unit="image"),
            device=device,
            checkpoint=checkpoint,
            progress=partial(bar, desc="train on dead leaves"),
        )
        storage.save_network(path, network, training=asdict(recipe))
        checkpoint.unlink()
    weights = sum(each.numel() for each in network.parameters())
    return (
        f"trained     {path}: {weights:,} weights, {recipe.images:,} dead-leaves images, seed {recipe.seed}"
    )
