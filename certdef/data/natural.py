"""Natural photographs, to train what should know no data set: crops of the Berkeley images beside the data sets.

`natural/train400_gray180.npz` holds 400 gray images of 180x180, `natural/cbsd68` the 68 color test photographs of 481x321;
none is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certdef.config.job import ConfigError
from certdef.data.npz import read_npz

SOURCES = {1: "train400", 3: "cbsd68"}


def natural_crops(
    root: Path | str,
    channels: int,
    size: int,
    count: int,
    seed: int = 0,
    *,
    source: str | None = None,
    scales: Sequence[int] = (1,),
) -> Tensor:
    """Random square crops of natural photographs: the images of `numbered_crops`, whose options these are."""
    return numbered_crops(root, channels, size, count, seed, source=source, scales=scales)[0]


def numbered_crops(
    root: Path | str,
    channels: int,
    size: int,
    count: int,
    seed: int = 0,
    *,
    source: str | None = None,
    scales: Sequence[int] = (1,),
) -> tuple[Tensor, NDArray[np.int64]]:
    """Random square crops of natural photographs, and which photograph each is cut from.

    Photographs take turns, so that each gives as many crops as any other; half of the crops are mirrored. Two crops of one
    photograph are not independent: whoever averages over crops takes photographs as the units of an interval.

    Args:
        root: Folder of the data sets, with `natural` below it.
        channels: 1 (gray, Rec. 601 luma where the photograph has color) or 3.
        size: Side of a crop, in pixels.
        count: Number of crops.
        seed: Of the order, places and mirrors.
        source: `train400` or `cbsd68`; unset, train400 for gray and cbsd68 for color.
        scales: Whole factors that photographs are shrunk by first, by averages; crops take turns among them. The images of
            most data sets are shrunken photographs, with more detail in a pixel.

    Returns:
        Crops (count, channels, size, size), float32 in [0, 1], and the number of each one's photograph, (count,).

    Raises:
        ConfigError: No such source, no such channels, no such file, or the crop is larger than a photograph.
    """
    if channels not in SOURCES:
        raise ConfigError(f"natural crops have 1 or 3 channels, got {channels}")
    source = source or SOURCES[channels]
    photographs = _photographs(Path(root) / "natural", source, channels)
    smallest = min(min(photograph.shape[1:]) for photograph in photographs) // max(scales)
    if not 0 < size <= smallest:
        shrunk = f", shrunk by {max(scales)}" if max(scales) > 1 else ""
        raise ConfigError(
            f"natural crops of {size} pixels do not fit: {source} has photographs of {smallest}{shrunk}"
        )
    scaled = [[_shrink(photograph, scale) for photograph in photographs] for scale in scales]
    random = np.random.default_rng(seed)
    rounds = -(-count // len(photographs))
    order = np.concatenate([random.permutation(len(photographs)) for _ in range(rounds)])
    crops = np.empty((count, channels, size, size), np.float32)
    for number, chosen in enumerate(order[:count]):
        photograph = scaled[number % len(scales)][chosen]  # (C, H, W), 8-bit levels
        top, left = (random.integers(length - size + 1) for length in photograph.shape[1:])
        crop = photograph[:, top : top + size, left : left + size]
        crops[number] = crop[:, :, ::-1] if random.random() < 0.5 else crop
    return torch.from_numpy(crops / 255), order[:count]


def _shrink(photograph: np.ndarray, scale: int) -> np.ndarray:
    """Averages of scale x scale pixels, (C, H // scale, W // scale)."""
    if scale == 1:
        return photograph
    channels, height, width = (photograph.shape[0], *(side // scale for side in photograph.shape[1:]))
    whole = photograph[:, : height * scale, : width * scale].astype(np.float32)
    return whole.reshape(channels, height, scale, width, scale).mean(axis=(2, 4))


def natural_files(root: Path | str, channels: int, source: str | None = None) -> list[Path]:
    """The files that natural_crops reads, in their order; those that are missing are not among them."""
    folder = Path(root) / "natural"
    if (source or SOURCES.get(channels)) == "train400":
        return list(folder.glob("train400_gray180.npz"))
    return sorted((folder / "cbsd68").glob("*.jpg"))


def _photographs(folder: Path, source: str, channels: int) -> list[np.ndarray]:
    """Every photograph of a source, (C, H, W) in 8-bit levels."""
    files = natural_files(folder.parent, channels, source)
    if source == "train400" and channels == 1:
        if not files:
            raise ConfigError(
                f"no {str(folder / 'train400_gray180.npz')!r}: pass the folder that holds the data sets, natural among them"
            )
        return list(read_npz(files[0], ["x"], "natural photographs")["x"][:, None])
    if source == "cbsd68":
        from PIL import Image

        if not files:
            raise ConfigError(
                f"no photographs in {str(folder / 'cbsd68')!r}: pass the folder of the data sets"
            )
        mode = "L" if channels == 1 else "RGB"
        opened = [np.asarray(Image.open(path).convert(mode)) for path in files]
        return [np.atleast_3d(pixels).transpose(2, 0, 1) for pixels in opened]
    raise ConfigError(
        f"no natural source {source!r} with {channels} channels: train400 is gray, cbsd68 gray or color"
    )
