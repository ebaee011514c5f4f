"""The files that an ONNX model is made of: its graph, and the weights that the graph keeps outside of itself.

Only the field numbers of onnx.proto on the way to a tensor's external data are read, so that nothing beyond ONNX
Runtime is needed. Source: github.com/onnx/onnx, onnx.proto and docs/ExternalData.md.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from surrogates.errors import TargetError

# Which fields of a message lead to tensors, and what message they hold.
MESSAGES = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
KEY, VALUE = 1, 2  # of an Entry of external_data
VARINT, BYTES = 0, 2  # wire types of protobuf
FIXED = {1: 8, 5: 4}  # and those of a fixed size in bytes
BLOCK = 2**20


def digest_of(path: Path) -> str:
    """Return the sha256 of a model: its file, NAME.onnx.data beside it, and every other file that its graph names.

    Raises:
        TargetError: A file is missing, or the model cannot be read.
    """
    digest = hashlib.sha256()
    beside = path.with_name(path.name + ".data")
    try:
        weights = external_files(path)
        for file in (path, beside):
            if file in (path, *weights) or file.exists():
                _add(digest, file)
        for file in sorted(weights - {path, beside}):
            digest.update(f"\0{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
            _add(digest, file)
    except OSError as error:
        raise TargetError(f"cannot read the ONNX model {path} ({error.strerror}): check the path") from error
    return digest.hexdigest()


def external_files(path: Path) -> set[Path]:
    """Return the files outside of a model in which its graph says that weights lie.

    Raises:
        TargetError: It is no ONNX model, or one of them is missing or lies elsewhere than beside the model or below.
        OSError: The model cannot be read.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            names = set(_locations(raw, 0, len(raw), "Model"))
    except (ValueError, IndexError, RecursionError) as error:
        raise TargetError(f"cannot load the ONNX model {path} (it is no ONNX): check the file") from error
    for name in sorted(names):
        outside = Path(name).is_absolute() or ".." in Path(name).parts
        if outside or not (path.parent / name).is_file():
            where = "outside of its folder" if outside else "which is no file"
            raise TargetError(
                f"cannot load the ONNX model {path}: its weights lie in {name!r}, {where}: put it beside the model"
            )
    return {path.parent / name for name in names}


def _locations(raw: mmap.mmap, start: int, end: int, kind: str) -> Iterator[str]:
    """Yield the location of each tensor in a message whose data lie outside."""
    for field, first, last in message_fields(raw, start, end):
        inner = MESSAGES[kind].get(field)
        if inner == "Entry":
            entry = {number: raw[first:last] for number, first, last in message_fields(raw, first, last)}
            if entry.get(KEY) == b"location":
                yield entry.get(VALUE, b"").decode()
        elif inner is not None:
            yield from _locations(raw, first, last, inner)


def message_fields(raw: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that has a length; skip the others.

    Raises:
        ValueError: It is cut short, or no message.
        IndexError: The file is cut short.
    """
    at = start
    while at < end:
        tag, at = _varint(raw, at)
        kind = tag & 7
        size = FIXED.get(kind, 0)
        if kind == VARINT:
            _, at = _varint(raw, at)
        elif kind == BYTES:
            size, at = _varint(raw, at)
        elif kind not in FIXED:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("cut short")
        if kind == BYTES:
            yield tag >> 3, at, at + size
        at += size


def _varint(raw: mmap.mmap, at: int) -> tuple[int, int]:
    """Return the number that begins at a position, and the position behind it."""
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("number too long")


def _add(digest: "hashlib._Hash", file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
