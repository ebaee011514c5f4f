"""Picture files: looked at first, all of them, and decoded when they are asked for.

Nobody vouches for a picture: only four formats are tried, its size is known before it is decoded, and whatever a
decoder raises is a line that names the file.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from certdef.config.job import ConfigError
from certdef.data.pixels import COLORS, MOST_PIXELS, Form, covering, recolored
from certdef.data.source import Images, Progress, no_bar

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SHOWN = 20  # files that an error names
GRAY = ("1", "L", "LA", "La", "I", "F")  # and every I;16
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = 0x0112


class BadPicture(ValueError):
    """What is wrong with a picture, and the remedy."""


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded: (height, width) as it is looked at, and whether it has color."""

    sides: tuple[int, int]
    color: bool


class Pictures:
    """Pictures in files or bytes, all of one size and color, decoded when they are taken.

    Args:
        names: What errors call them.
        open: The path or the bytes of a picture, by its index.
        form: Size and color of all; without a color they are rgb if any has color.
        progress: A factory of progress bars like tqdm.

    Raises:
        ConfigError: A line for each file that is no picture, too large or broken; or one that names the sizes where they
            differ and no size is given.
    """

    def __init__(
        self,
        names: list[str],
        open: Callable[[int], Path | bytes],
        form: Form,
        progress: Progress = no_bar,
    ):
        self._names, self._open = names, open
        headers = self._headers(progress)
        colors = any(header.color for header in headers)
        self._form = Form(form.sides, form.color or ("rgb" if colors else "gray"))
        self._sides = form.sides or self._common(headers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""
        assert self._form.color is not None
        return (COLORS[self._form.color], *self._sides)

    def __len__(self) -> int:
        return len(self._names)

    def take(self, chosen: np.ndarray, progress: Progress = no_bar) -> np.ndarray:
        """Decode pictures; ConfigError with a line for each that is broken."""
        images, faults = np.empty((len(chosen), *self.shape), np.float32), []
        for at, index in enumerate(_bar(progress, chosen, "decode pictures")):
            try:
                image = decode(self._open(index), self._form)
                if image.shape != self.shape:
                    raise BadPicture(
                        f"is {image.shape[1]} x {image.shape[2]} once it is turned: give data.resize"
                    )
                images[at] = image
            except BadPicture as error:
                faults.append((self._names[index], str(error)))
        _refuse(faults)
        return images

    def part(self, start: int, end: int) -> Images:
        """Those from one index up to another, which they do not include."""
        return Part(self, start, end)

    def _headers(self, progress: Progress) -> list[Header]:
        headers, faults = [], []
        for index, name in enumerate(_bar(progress, self._names, "look at pictures")):
            try:
                headers.append(look(self._open(index)))
            except BadPicture as error:
                faults.append((name, str(error)))
        if faults:  # then name the broken ones beside them too, so that all are mended at once
            known = {name for name, _ in faults}
            for index, name in enumerate(self._names):
                if name not in known:
                    try:
                        decode(self._open(index), Form((1, 1), "gray"))
                    except BadPicture as error:
                        faults.append((name, str(error)))
                if len(faults) > SHOWN:
                    break
        _refuse(faults)
        return headers

    def _common(self, headers: list[Header]) -> tuple[int, int]:
        sizes: dict[tuple[int, int], str] = {}
        for header, name in zip(headers, self._names, strict=True):
            sizes.setdefault(header.sides, name)
        if len(sizes) > 1:
            some = ", ".join(f"{h} x {w} ({name})" for (h, w), name in [*sizes.items()][:3])
            least = min(map(min, sizes))
            raise ConfigError(
                f"pictures have {len(sizes)} different sizes, height x width: {some}{' ...' if len(sizes) > 3 else ''}; give "
                f"one to all with --data.resize, e.g. {min(224, least)} (short side, then the center) or [{least},{least}]"
            )
        return next(iter(sizes))


@dataclass(frozen=True)
class Part:
    """Pictures from one index up to another."""

    pictures: Pictures
    start: int
    end: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pictures.shape

    def __len__(self) -> int:
        return self.end - self.start

    def take(self, chosen: np.ndarray, progress: Progress = no_bar) -> np.ndarray:
        return self.pictures.take(chosen + self.start, progress)


def look(picture: Path | bytes) -> Header:
    """Read the header of a picture.

    Raises:
        BadPicture: It is none, or too large to be decoded.
    """
    with _opened(picture) as image:
        height, width = image.height, image.width
        # Not PNG's own getexif, which decodes the picture to look behind it.
        if Image.Image.getexif(image).get(ORIENTATION) in TURNED:
            height, width = width, height
        return Header((height, width), not is_gray(image))


def decode(picture: Path | bytes, form: Form) -> np.ndarray:
    """A picture as it is looked at, (C, H, W) float32 in [0, 1].

    Raises:
        BadPicture: It is none, too large, cut short or damaged.
    """
    with _opened(picture) as image:
        return from_pil(image, form)


def from_pil(image: Image.Image, form: Form) -> np.ndarray:
    """An image of Pillow as it is looked at, (C, H, W) float32 in [0, 1].

    16-bit gray keeps its levels, transparency is dropped as torchvision does; without a color in the form, gray stays gray
    and all else becomes rgb.

    Raises:
        BadPicture: Its mode does not tell which level is white.
    """
    if image.mode == "F" or (image.mode == "I" and image.format is None):
        raise BadPicture(
            f"has the mode {image.mode}, whose levels have no end that is white: give its pixels as an array, uint8 or floats in [0, 1]"
        )
    color = form.color or ("gray" if is_gray(image) else "rgb")
    turned = ImageOps.exif_transpose(image)
    deep = turned.mode == "I" or turned.mode.startswith("I;16")
    plain = turned.convert("F") if deep else turned.convert("L" if color == "gray" else "RGB")
    if form.sides:
        plain = covering(plain, form.sides)
    pixels = np.asarray(plain, np.float32) / (65535 if deep else 255)
    channels = np.atleast_3d(pixels).transpose(2, 0, 1)
    return recolored(channels[None], color)[0].clip(0, 1)


def is_gray(image: Image.Image) -> bool:
    """Whether an image has no color to show, by its mode."""
    return image.mode in GRAY or image.mode.startswith("I;16")


@contextmanager
def _opened(picture: Path | bytes) -> Iterator[Image.Image]:
    """An open picture; whatever its decoder raises inside the block is a BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is checked here or does not matter
            if isinstance(picture, Path):
                _check_file(picture)
            with Image.open(
                picture if isinstance(picture, Path) else io.BytesIO(picture), formats=FORMATS
            ) as image:
                pixels = image.width * image.height
                if pixels > MOST_PIXELS:
                    raise BadPicture(f"has {pixels:,} pixels, more than {MOST_PIXELS:,}: shrink it")
                yield image
    except BadPicture:
        raise
    except ConfigError as error:
        raise BadPicture(f"can't be scaled: {error}") from error
    except UnidentifiedImageError as error:
        raise BadPicture("is no JPEG, PNG, WebP or BMP picture: take it away or convert it") from error
    except Image.DecompressionBombError as error:
        raise BadPicture(f"has more than {MOST_PIXELS:,} pixels: shrink it") from error
    except Exception as error:  # decoders raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadPicture(f"can't be read ({reason}): mend it or take it away") from error


def _check_file(path: Path) -> None:
    """Refuse what is no file: opening a pipe would wait for ever."""
    if path.is_symlink() and not path.exists():
        raise BadPicture(f"is a link to {os.readlink(path)!r}, which is not there: mend it or take it away")
    if not path.exists():
        raise BadPicture("is not there")
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadPicture("is no regular file: take it away")


def _bar(progress: Progress, items: Iterable, title: str) -> Iterable:
    """A bar that is shown only where the work takes seconds."""
    return progress(items, desc=title, unit="picture", delay=2)


def _refuse(faults: list[tuple[str, str]]) -> None:
    if faults:
        lines = [f"{name!r} {reason}" for name, reason in faults[:SHOWN]]
        more = len(faults) - SHOWN
        raise ConfigError("\n".join(lines + ([f"and {more:,} more such files, or more"] if more > 0 else [])))
