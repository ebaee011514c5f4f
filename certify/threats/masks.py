"""Masks that cover every patch: rectangles of which one hides the patch whole, wherever it is.

PatchCleanser (Xiang, Mahloujifar, Mittal, USENIX Security 2022, arXiv 2108.09135), section 3.2. Along an axis of n pixels
a patch of p pixels begins at one of n - p + 1 places. k masks that begin s = ceil((n - p + 1) / k) apart and are
p + s - 1 long cover them all: a patch that begins at j lies in the mask that begins at s * floor(j / s). One that would
leave the image is moved back to its edge. Two axes give k * k rectangles.
"""

import math
import re
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from certify.errors import CertifyError, check_count

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class CoveringMasks:
    """Rectangles (K of them) that hide every patch of a size, wherever it is on the image.

    Attributes:
        size: (H, W) of the image in pixels.
        patch: (h, w) of the largest patch; every smaller rectangle lies in one of that size, so it is hidden too.
        boxes: (top, left, height, width) of each mask.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    boxes: tuple[Box, ...]

    @classmethod
    def over(cls, size: tuple[int, int], patch: tuple[int, int], a_side: int = 6) -> "CoveringMasks":
        """``a_side`` masks along each axis, fewer where the patch has fewer places; more masks are smaller ones.

        Raises:
            CertifyError: A patch larger than the image, or no mask.
        """
        check_count("masks a side", a_side)
        for name, length, side in zip(("height", "width"), size, patch, strict=True):
            check_count(f"{name} of the patch", side)
            if side > length:
                raise CertifyError(
                    f"a patch of {patch[0]}x{patch[1]} pixels is larger than the image of {size[0]}x{size[1]}: "
                    "choose a smaller one, such as patch='5%'"
                )
        rows, columns = (_spans(n, p, a_side) for n, p in zip(size, patch, strict=True))
        boxes = tuple((top, left, h, w) for (top, h), (left, w) in product(rows, columns))
        return cls(size, patch, boxes)

    @property
    def hidden(self) -> torch.Tensor:
        """What each mask hides, (K, H, W) bool."""
        hidden = torch.zeros((len(self.boxes), *self.size), dtype=torch.bool)
        for mask, (top, left, height, width) in zip(hidden, self.boxes, strict=True):
            mask[top : top + height, left : left + width] = True
        return hidden

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Every two masks, each with itself too: (K (K + 1) / 2, 2), those that hide most first."""
        pairs = np.array(list(combinations_with_replacement(range(len(self.boxes)), 2)))
        hidden = self.hidden.flatten(1).numpy()
        shown = [(hidden[i] | hidden[j]).sum() for i, j in pairs]
        return pairs[np.argsort(shown, kind="stable")[::-1]]

    def describe(self) -> dict[str, Any]:
        """JSON-able: image, patch, and (begin, length) of the masks along each axis."""
        rows = sorted({(top, height) for top, _, height, _ in self.boxes})
        columns = sorted({(left, width) for _, left, _, width in self.boxes})
        return {
            "size": list(self.size),
            "patch": list(self.patch),
            "rows": [list(each) for each in rows],
            "columns": [list(each) for each in columns],
        }


def _spans(length: int, patch: int, masks: int) -> list[tuple[int, int]]:
    """Begin and length of the masks of one axis."""
    step = math.ceil((length - patch + 1) / masks)
    span = patch + step - 1
    starts = {min(index * step, length - span) for index in range(masks)}
    return [(start, span) for start in sorted(starts)]


def patch_size(text: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of a patch as a user writes it, on images of ``size`` (H, W).

    "3x5" has 3 rows and 5 columns of pixels. "5%" is the smallest square with at least that share of the image's area.

    Raises:
        CertifyError: Neither of them, or larger than the image.
    """
    pixels, share = re.fullmatch(r"(\d+)x(\d+)", text), re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if pixels:
        patch = int(pixels[1]), int(pixels[2])
    elif share:
        side = math.ceil(math.sqrt(float(share[1]) / 100 * size[0] * size[1]) - 1e-9)
        patch = side, side
    else:
        patch = 0, 0
    if min(patch) < 1:
        raise CertifyError(
            f"a patch is rows x columns of pixels or a share of the image, got {text!r}: try 3x3 or 5%"
        )
    if patch[0] > size[0] or patch[1] > size[1]:
        raise CertifyError(
            f"patch {text!r} is {patch[0]}x{patch[1]} pixels, larger than the image of {size[0]}x{size[1]}: "
            "choose a smaller one, such as 5%"
        )
    return patch
