"""Reading .npz and .npy files that nobody vouches for: sizes are checked before anything is decoded, and nothing is unpickled."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import psutil
from numpy.lib import format as npy

from certdef.config.job import ConfigError


def read_npz(
    path: Path | str, names: Sequence[str], what: str, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of an .npz by name.

    Args:
        path: The file.
        names: Which arrays.
        what: What the file is called in errors, e.g. the option that names it.
        optional: Those that are read where the file has them.

    Raises:
        ConfigError: No such file or array, damage, objects that would have to be unpickled, or more than memory holds.
    """
    wanted = f"give an .npz with the arrays {' and '.join(names)}"
    if not Path(path).is_file():
        raise ConfigError(f"{what} {str(path)!r} is no file: {wanted}")
    with _one_line(path, what, wanted), zipfile.ZipFile(path) as archive:
        more = [name for name in optional if f"{name}.npy" in archive.namelist()]
        members = {name: archive.getinfo(f"{name}.npy") for name in (*names, *more)}
        need = 0
        for member in members.values():
            with archive.open(member) as file:
                need += _decoded_bytes(file, member.filename, member.file_size)
        _check_memory(path, what, need)
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as file:
                arrays[name] = npy.read_array(file, allow_pickle=False)
        return arrays


def read_npy(path: Path | str, what: str) -> np.ndarray:
    """The array of an .npy; ConfigError as of an .npz."""
    with _one_line(path, what, "give an .npy that numpy.save wrote"), open(path, "rb") as file:
        _check_memory(path, what, _decoded_bytes(file, "the header", os.fstat(file.fileno()).st_size))
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)


@contextmanager
def _one_line(path: Path | str, what: str, wanted: str) -> Iterator[None]:
    """Whatever reading the file raises is a ConfigError of one line."""
    try:
        yield
    except KeyError as error:
        raise ConfigError(f"{what} {str(path)!r} can't be read ({error.args[0]}): {wanted}") from error
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        RuntimeError,  # encrypted, or an unknown compression
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{what} {str(path)!r} can't be read ({reason}): {wanted}") from error


def _check_memory(path: Path | str, what: str, need: int) -> None:
    free = psutil.virtual_memory().available
    if need > free:
        raise ConfigError(
            f"{what} {str(path)!r} needs {need / 2**30:,.1f} GiB once it is decoded, and {free / 2**30:,.1f} are "
            "free: give fewer or smaller images"
        )


def _decoded_bytes(file: IO[bytes], name: str, size: int) -> int:
    """Memory that an array takes beside its copy as float32.

    Raises:
        ValueError: The header and the file disagree about its size.
    """
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    start, count = file.tell(), math.prod(shape)
    if not dtype.hasobject and start + count * dtype.itemsize != size:
        raise ValueError(f"{name} says shape {shape} and has {size:,} bytes")
    return count * (dtype.itemsize + np.dtype(np.float32).itemsize)
