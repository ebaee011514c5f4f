"""Reading .npz files that nobody vouches for: sizes are checked before anything is decoded, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

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
    try:
        with zipfile.ZipFile(path) as archive:
            more = [name for name in optional if f"{name}.npy" in archive.namelist()]
            members = {name: archive.getinfo(f"{name}.npy") for name in (*names, *more)}
            need = sum(_decoded_bytes(archive, member) for member in members.values())
            free = psutil.virtual_memory().available
            if need > free:
                raise ConfigError(
                    f"{what} {str(path)!r} needs {need / 2**30:,.1f} GiB once it is decoded, and {free / 2**30:,.1f} are "
                    "free: give fewer or smaller images"
                )
            arrays = {}
            for name, member in members.items():
                with archive.open(member) as file:
                    arrays[name] = npy.read_array(file, allow_pickle=False)
            return arrays
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


def _decoded_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Memory that an array takes beside its copy as float32.

    Raises:
        ValueError: The header and the file disagree about its size.
    """
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        start = file.tell()
    count = math.prod(shape)
    if not dtype.hasobject and start + count * dtype.itemsize != member.file_size:
        raise ValueError(f"{member.filename} says shape {shape} and has {member.file_size:,} bytes")
    return count * (dtype.itemsize + np.dtype(np.float32).itemsize)
