"""What a TFLite file says that its interpreter does not: the operator that makes an output, and how pixels are normalized.

Only the fields on the way there are read, so that nothing beyond the interpreter is needed. Sources:
tensorflow/lite/schema/schema.fbs; tensorflow_lite_support/metadata/metadata_schema.fbs; the binary format of FlatBuffers.
"""

from collections.abc import Iterator
from math import inf, isfinite
from struct import error as OutOfFile
from struct import unpack_from
from typing import Any

MARK = b"TFL3"  # at byte 4 of a file
# Fields by their place in the schema.
MODEL_CODES, MODEL_GRAPHS, MODEL_BUFFERS, MODEL_METADATA = 1, 2, 4, 6
METADATA_NAME, METADATA_BUFFER, BUFFER_DATA = 0, 1, 0
GRAPH_OPERATORS = 3
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2
# ... and in that of metadata.
ABOUT_GRAPHS, GRAPH_INPUTS, TENSOR_UNITS = 3, 2, 4
UNIT_KIND, UNIT_OPTIONS, NORMALIZATION = 0, 1, 1
NORMALIZATION_MEAN, NORMALIZATION_STD = 0, 1
ABOUT = b"TFLITE_METADATA"
CODE_OLD, CODE = 0, 3  # numbers up to 126 are in the old field, and in later files in both
NAMES = {3: "CONV_2D", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 25: "SOFTMAX", 50: "LOG_SOFTMAX"}
NAMES |= {56: "ARG_MAX", 79: "ARG_MIN"}
OTHER = -1
# Those that change the shape or the number type of what they get, and nothing else.
TRANSPARENT = {6: "DEQUANTIZE", 22: "RESHAPE", 43: "SQUEEZE", 53: "CAST", 114: "QUANTIZE"}


def last_operator(raw: bytes, tensor: int) -> str | None:
    """Return the operator that makes a tensor of the main graph: a value of NAMES, None for any other.

    It looks through operators that change the shape or the number type alone.

    Raises:
        ValueError: The file is cut short, or no TFLite model.
    """
    if raw[4:8] != MARK:
        raise ValueError("it is no TFLite")
    try:
        model = _pointed(raw, 0)
        codes = [_code(raw, table) for table in _tables(raw, _field(raw, model, MODEL_CODES))]
        graph = next(_tables(raw, _field(raw, model, MODEL_GRAPHS)))
        made_by: dict[int, tuple[int, tuple[int, ...]]] = {}
        for table in _tables(raw, _field(raw, graph, GRAPH_OPERATORS)):
            place = _field(raw, table, OPERATOR_CODE)
            code = codes[unpack_from("<I", raw, place)[0] if place else 0]
            inputs = _numbers(raw, _field(raw, table, OPERATOR_INPUTS))
            made_by |= dict.fromkeys(_numbers(raw, _field(raw, table, OPERATOR_OUTPUTS)), (code, inputs))
    except (OutOfFile, StopIteration, IndexError, OverflowError, MemoryError) as error:
        raise ValueError("it is cut short") from error
    code, inputs = made_by.pop(tensor, (OTHER, ()))
    while code in TRANSPARENT and inputs:
        code, inputs = made_by.pop(inputs[0], (OTHER, ()))  # each once: a circle ends
    return NAMES.get(code)


def normalization(raw: bytes) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return what is subtracted from pixels of 0 to 255 and what divides them then, a number each or one a channel.

    None where the file has no metadata, or they do not say it.
    """
    try:
        model = _pointed(raw, 0)
        buffers = list(_tables(raw, _field(raw, model, MODEL_BUFFERS)))
        for entry in _tables(raw, _field(raw, model, MODEL_METADATA)):
            place = _field(raw, entry, METADATA_BUFFER)
            if place and _bytes(raw, _field(raw, entry, METADATA_NAME)) == ABOUT:
                data = _bytes(raw, _field(raw, buffers[unpack_from("<I", raw, place)[0]], BUFFER_DATA))
                return _normalization(data)
    except (OutOfFile, StopIteration, IndexError, OverflowError, MemoryError):
        pass
    return None


def _normalization(about: bytes) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the same from a file's metadata."""
    graph = next(_tables(about, _field(about, _pointed(about, 0), ABOUT_GRAPHS)))
    tensor = next(_tables(about, _field(about, graph, GRAPH_INPUTS)))
    for unit in _tables(about, _field(about, tensor, TENSOR_UNITS)):
        kind, options = (_field(about, unit, field) for field in (UNIT_KIND, UNIT_OPTIONS))
        if kind and options and about[kind] == NORMALIZATION:
            table = _pointed(about, options)
            mean, std = (
                _numbers(about, _field(about, table, field), "f")
                for field in (NORMALIZATION_MEAN, NORMALIZATION_STD)
            )
            usable = (
                {len(mean), len(std)} <= {1, 3}
                and all(map(isfinite, mean))
                and all(0 < each < inf for each in std)
            )
            return (mean, std) if usable else None
    return None


def _code(raw: bytes, table: int) -> int:
    old, new = _field(raw, table, CODE_OLD), _field(raw, table, CODE)
    numbers = (unpack_from("<b", raw, old)[0] if old else 0, unpack_from("<i", raw, new)[0] if new else 0)
    return max(numbers)


def _pointed(raw: bytes, place: int) -> int:
    """Return the place that an offset leads to."""
    return int(place + unpack_from("<I", raw, place)[0])


def _field(raw: bytes, table: int, number: int) -> int:
    """Return the place of a field of a table, 0 where it is left out."""
    layout = table - unpack_from("<i", raw, table)[0]
    if layout < 0 or 4 + 2 * number >= unpack_from("<H", raw, layout)[0]:
        return 0
    offset = unpack_from("<H", raw, layout + 4 + 2 * number)[0]
    return int(table + offset) if offset else 0


def _numbers(raw: bytes, place: int, kind: str = "i") -> tuple[Any, ...]:
    """Return a vector of numbers, whole or of another kind of struct's."""
    if not place:
        return ()
    start = _pointed(raw, place)
    return unpack_from(f"<{min(unpack_from('<I', raw, start)[0], len(raw))}{kind}", raw, start + 4)


def _bytes(raw: bytes, place: int) -> bytes:
    """Return a text or a vector of bytes."""
    if not place:
        return b""
    start = _pointed(raw, place)
    return raw[start + 4 : start + 4 + unpack_from("<I", raw, start)[0]]


def _tables(raw: bytes, place: int) -> Iterator[int]:
    """Yield the places of a vector of tables."""
    if place:
        start = _pointed(raw, place)
        for number in range(unpack_from("<I", raw, start)[0]):
            yield _pointed(raw, start + 4 + 4 * number)
