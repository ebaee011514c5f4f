"""A denoiser on tiles: images of any size through a network that sees squares of one size.

Where the tiles lie is read off the last bits of the noisy pixels, so that it changes from draw to draw and no seam stays at
its place in a vote. A certificate stays sound: the offset is computed from the noisy image and from nothing else, so tiles,
network and classifier together are still one fixed function of the noisy image, and the theorem (certify/core.py) asks no
more of a base classifier than that it is measurable. For the same reason counts do not depend on the batch: the same noisy
image is cut at the same place, whoever is beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certdef.purifiers.networks.nim import NIM, NIMShape

# In one pass, by the kind of device: bounds the memory, whatever the batch. A processor is faster in its cache.
CHUNK_PIXELS = {"cpu": 2**17, "cuda": 2**21}


@dataclass(frozen=True)
class Tiling:
    """Square tiles over each of N images, mirrored at the edges.

    Attributes:
        window: Side of a tile.
        rows, columns: (N, T * window) and (N, U * window): where the T x U tiles of an image take their values from.
        below, right: (N, height) and (N, width): where the image's own rows and columns then are.
    """

    window: int
    rows: Tensor
    columns: Tensor
    below: Tensor
    right: Tensor

    @staticmethod
    def at(offsets: Tensor, height: int, width: int, window: int) -> Tiling:
        """The tiling of images (height, width) whose first tile begins (N, 2) whole numbers above and left of them."""
        rows, below = _places(height, offsets[:, 0], window)
        columns, right = _places(width, offsets[:, 1], window)
        return Tiling(window, rows, columns, below, right)

    def cut(self, planes: Tensor) -> Tensor:
        """Planes (N, D, height, width) -> their tiles (N * T * U, window, window, D)."""
        image = torch.arange(len(planes), device=planes.device)[:, None, None]
        padded = planes.permute(0, 2, 3, 1)[image, self.rows[:, :, None], self.columns[:, None]]
        tiled = padded.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return tiled.transpose(2, 3).flatten(0, 2)

    def join(self, tiles: Tensor) -> Tensor:
        """The way back: tiles (N * T * U, window, window, D) -> planes (N, D, height, width)."""
        count, down, across = len(self.rows), self.rows.shape[1], self.columns.shape[1]
        tiled = tiles.unflatten(0, (count, down // self.window, across // self.window))
        padded = tiled.transpose(2, 3).reshape(count, down, across, tiles.shape[-1])
        image = torch.arange(count, device=tiles.device)[:, None, None]
        return padded[image, self.below[:, :, None], self.right[:, None]].permute(0, 3, 1, 2)


def _places(side: int, offset: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Where tiles take their rows from, (N, T), mirrored at the edges, and where the rows then are, (N, side)."""
    total = window * (math.ceil(side / window) + (side > window))  # a tile more: room for every offset
    first = offset % min(window, total - side + 1)
    wanted = torch.arange(total, device=offset.device) - first[:, None]
    mirrored = wanted.abs() % max(1, 2 * side - 2)
    rows = torch.minimum(mirrored, (2 * side - 2 - mirrored).abs())
    return rows, torch.arange(side, device=offset.device) + first[:, None]


def tile_offsets(noisy: Tensor) -> Tensor:
    """Two whole numbers for each image (N, C, H, W), (N, 2): sums of last bits of its pixels, as good as random under noise."""
    bits = noisy.detach().float().contiguous().view(torch.int32).flatten(1)
    return torch.stack([(bits & 255).sum(dim=1), (bits >> 8 & 255).sum(dim=1)], dim=1)


def chunks(images: Tensor) -> tuple[Tensor, ...]:
    """Images (N, C, H, W) in parts that bound the memory of a pass."""
    pixels = CHUNK_PIXELS.get(images.device.type, CHUNK_PIXELS["cpu"])
    return images.split(max(1, pixels // (images.shape[2] * images.shape[3])))


def random_squares(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """One square of each image (N, C, H, W), anywhere in it: (N, C, side, side).

    The generator lives on the images' device.
    """
    count, _, height, width = images.shape

    def draw(limit: int) -> Tensor:
        first = torch.randint(limit, (count, 1), generator=generator, device=images.device)
        return first + torch.arange(side, device=images.device)

    rows, columns = draw(height - side + 1), draw(width - side + 1)
    image = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TiledShape(NIMShape):
    """Size of a TiledNIM.

    Args:
        tile: Side of what the network sees at once, in pixels.
    """

    tile: int = 32

    def __post_init__(self) -> None:
        sides = self.image_shape[1:]
        if not 1 <= self.tile <= min(sides):
            raise ValueError(
                f"tile {self.tile} must fit the image {sides[0]}x{sides[1]}: choose at most {min(sides)}"
            )
        if self.patch_size >= 1 and self.tile % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide the tile {self.tile}: choose one that does"
            )
        self.one_tile()

    def one_tile(self) -> NIMShape:
        """The network on a single tile.

        Raises:
            ValueError: A size of its own is unusable.
        """
        sizes = {name: getattr(self, name) for name in NIMShape.__dataclass_fields__ if name != "image_shape"}
        return NIMShape((self.image_shape[0], self.tile, self.tile), **sizes)


class TiledNIM(nn.Module):
    """A NIM of one tile's size on the tiles of images: noisy (N, C, H, W) -> denoised (N, C, H, W), clamped to [0, 1].

    Attributes:
        nim: The network, which is trained on squares of the images.
    """

    def __init__(self, shape: TiledShape):
        super().__init__()
        self.shape = shape
        self.nim = NIM(shape.one_tile())

    def reconstruct(self, noisy: Tensor) -> Tensor:
        """The clean image as predicted, (N, C, H, W), not clamped."""
        height, width = noisy.shape[2:]
        tiling = Tiling.at(tile_offsets(noisy), height, width, self.shape.tile)
        tiles = self.nim.reconstruct(tiling.cut(noisy).permute(0, 3, 1, 2))
        return tiling.join(tiles.permute(0, 2, 3, 1))

    def forward(self, noisy: Tensor) -> Tensor:
        return torch.cat([self.reconstruct(part) for part in chunks(noisy)]).clamp(0, 1)
