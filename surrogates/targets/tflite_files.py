"""What a TFLite file says of the operator that makes an output.

Only the fields on the way from the model to its operators are read, so that nothing beyond the interpreter is needed.
Source: tensorflow/lite/schema/schema.fbs; the binary format of FlatBuffers.
"""

from collections.abc import Iterator
from struct import error as OutOfFile
from struct import unpack_from

MARK = b"TFL3"  # at byte 4 of a file
# Fields by their place in the schema.
MODEL_CODES, MODEL_GRAPHS = 1, 2
GRAPH_OPERATORS = 3
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2
CODE_OLD, CODE = 0, 3  # numbers up to 126 are in the old field, and in later files in both
NAMES = {14: "LOGISTIC", 25: "SOFTMAX", 50: "LOG_SOFTMAX", 56: "ARG_MAX", 79: "ARG_MIN"}
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
    except (OutOfFile, StopIteration, IndexError) as error:
        raise ValueError("it is cut short") from error
    code, inputs = made_by.pop(tensor, (OTHER, ()))
    while code in TRANSPARENT and inputs:
        code, inputs = made_by.pop(inputs[0], (OTHER, ()))  # each once: a circle ends
    return NAMES.get(code)


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


def _numbers(raw: bytes, place: int) -> tuple[int, ...]:
    """Return a vector of whole numbers."""
    if not place:
        return ()
    start = _pointed(raw, place)
    return unpack_from(f"<{min(unpack_from('<I', raw, start)[0], len(raw))}i", raw, start + 4)


def _tables(raw: bytes, place: int) -> Iterator[int]:
    """Yield the places of a vector of tables."""
    if place:
        start = _pointed(raw, place)
        for number in range(unpack_from("<I", raw, start)[0]):
            yield _pointed(raw, start + 4 + 4 * number)
